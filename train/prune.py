"""Take channels out of a trained MobileNetV2 network, and let those that stay speak for them.

    python -m train.prune snapshot_140.weights.h5 --config configs/pose_wide.toml --keep 0.8 --name pose_cut
    python -m train.prune snapshot_101.weights.h5 --config configs/person_wide.toml --like configs/person.toml \\
        --name person_cut

Each of the backbone's blocks makes many channels, filters them and projects them to a few. Over real inputs, channels
say much the same as others do together. The one that the others replace best goes first, and by least squares the
projection takes from them what it had of that one (channel pruning, He et al. 2017; which one goes, and the correction,
are those of the optimal brain surgeon, Hassibi and Stork 1992). Each block is fitted to what it sees in the whole
network. How many go from which block is decided by what the blocks' outputs lose for the work saved.

Writes the one snapshot of a run of the given name, with batch-norm statistics measured on inputs of --config, which the
weights are of; with `--set validation=DIR` its AP is printed. Train on from it with the key `expansions` that is
printed: that makes good what was lost, but for a stem that stays frozen (`freeze_stem`).
"""

import argparse
import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.errors import BadInput, run_command
from train.config import add_config_arguments, load_config

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

STEP, GROUP = 32, 8  # channels that go at a time, at most and in multiples of: CPUs compute 8 or 16 together
WRITING = 12  # multiplications that take as long as to write a value, in ONNX Runtime on a CPU
INPUTS = 320  # over which channels are compared
CELLS = 512  # of an input's map that are looked at
RIDGE = 1e-6  # of the mean variance: some channels are never anything but 0


@dataclass(frozen=True)
class Reader:
    """A 1×1 convolution that reads the channels of a block.

    Attributes:
        convolution, norm: names of its layer and of the batch norm behind it. source: of the layer that it reads.
        output: of the layer whose variance its errors are held against.
    """

    convolution: str
    norm: str
    source: str
    output: str


@dataclass(frozen=True)
class Block:
    """A block of the backbone.

    Attributes:
        makers: names of the layers that have one kernel or number a channel; the first makes the channels.
        readers: who reads them. width: how many they are. work: of a channel, in multiplications, those that writing
            takes (`WRITING`) among them.
    """

    makers: tuple[str, ...]
    readers: tuple[Reader, ...]
    width: int
    work: int


@dataclass(frozen=True)
class Order:
    """Channels of a block in the order in which they go, and the errors of its readers' outputs after none, one, two, …
    of them are gone: shares of their variances, summed over the readers."""

    channels: list[int]
    errors: list[float]


def main():
    arguments = parse_arguments()
    from train.checkpoint import build_network, check_same_network
    from train.loader import Loader
    from train.snapshot import new_run, real_batches, write_run
    from train.validate import validator
    config = load_config(arguments.config, arguments.overrides)
    if config.backbone != "mobilenetv2":
        raise BadInput(f"backbone = {config.backbone!r} cannot be pruned; give a --config with mobilenetv2")
    check_same_network(arguments.weights, config, arguments.config)
    # No ImageNet weights are as narrow, and the run starts from no other.
    narrow_config = new_run(config, arguments.name, init_weights="", backbone_weights="")
    network = build_network(config, weights=arguments.weights)
    blocks = find_blocks(network)
    wanted = widths_of(arguments.like, blocks) if arguments.like else None

    evaluate = validator(config)
    with contextlib.closing(Loader(config)) as loader:
        moments = measure(network, blocks, real_batches(loader, INPUTS))
        orders = [removal_order(network, block, moments) for block in blocks]
        narrow_config = replace(narrow_config, expansions=wanted or choose_widths(blocks, orders, arguments.keep))
        weights = narrowed_weights(network, build_network(narrow_config), blocks, orders, moments)
        path, figures = write_run(narrow_config, weights, loader, evaluate)
    share = work(blocks, narrow_config.expansions) / work(blocks)
    print(f"{path}: {share:.0%} of the work of the blocks" + "".join(f", {name} {figure:.3f}"
                                                                  for name, figure in figures.items()))
    print(f"expansions={str(narrow_config.expansions).replace(' ', '')}")


def find_blocks(network):
    """The blocks of a network on mobilenetv2, from its pixels on: list of `Block`."""
    from train.backbone import EXPANDING, TAPS
    names = {layer.name for layer in network.layers}
    laterals = {tap: f"lateral{stride}" for tap, stride in zip(TAPS["mobilenetv2"], (4, 8, 16, 32), strict=True)
                if f"lateral{stride}_conv" in names}
    blocks = []
    for expand in EXPANDING:
        first = expand == "Conv1"
        name, norm = ("expanded_conv", "bn_Conv1") if first else (expand.removesuffix("_expand"), f"{expand}_BN")
        made, filtered, output = f"{expand}_relu", f"{name}_depthwise_relu", f"{name}_project_BN"
        readers = [Reader(f"{name}_project", output, filtered, f"{name}_add" if f"{name}_add" in names else output)]
        if made in laterals:
            lateral, norm_behind = f"{laterals[made]}_conv", f"{laterals[made]}_bn"
            readers.append(Reader(lateral, norm_behind, made, norm_behind))
        kernel, depthwise = (network.get_layer(layer).kernel for layer in (expand, f"{name}_depthwise"))
        cells = {layer: int(np.prod(network.get_layer(layer).output.shape[1:3])) for layer in (made, filtered)}
        reading = sum(cells[reader.source] * network.get_layer(reader.convolution).filters for reader in readers)
        effort = (cells[made] * (int(np.prod(kernel.shape[:3])) + WRITING)
                  + cells[filtered] * (int(np.prod(depthwise.shape[:2])) + WRITING) + reading)
        blocks.append(Block((expand, norm, f"{name}_depthwise", f"{name}_depthwise_BN"), tuple(readers),
                            kernel.shape[-1], effort))
    return blocks


def widths_of(path, blocks):
    """The expansions of a config, if the blocks can be made as narrow."""
    widths = load_config(path).expansions
    now = [block.width for block in blocks]
    if len(widths) != len(now) or any(width > had for width, had in zip(widths, now, strict=True)):
        raise BadInput(f"{path} has expansions = {widths}, the weights {now}: give a config with {len(now)} of them, "
                       "none larger than these")
    return widths


def measure(network, blocks, batches):
    """Moments of what the blocks' readers read and of their outputs: {layer: (mean (C,), covariance (C, C))}.

    batches: of pixels (B, H, W, 3) uint8 BGR.
    """
    import keras
    layers = {layer for block in blocks for reader in block.readers for layer in (reader.source, reader.output)}
    maps = keras.Model(network.inputs[0], {layer: network.get_layer(layer).output for layer in sorted(layers)})
    rng = np.random.default_rng(0)
    count = dict.fromkeys(layers, 0)
    first: dict[str, Any] = dict.fromkeys(layers, 0)
    second: dict[str, Any] = dict.fromkeys(layers, 0)
    for pixels in tqdm(batches, "channels over real inputs", unit="batch"):
        for layer, values in maps(pixels.astype(np.float32), training=False).items():
            cells = np.reshape(values, (-1, values.shape[-1]))
            if len(cells) > CELLS * len(pixels):
                cells = cells[rng.integers(len(cells), size=CELLS * len(pixels))]
            cells = cells.astype(np.float64)  # the matrices are to be inverted
            count[layer] += len(cells)
            first[layer] = first[layer] + cells.sum(0)
            second[layer] = second[layer] + cells.T @ cells
    means = {layer: first[layer] / count[layer] for layer in layers}
    return {layer: (mean, second[layer] / count[layer] - np.outer(mean, mean)) for layer, mean in means.items()}


def removal_order(network, block, moments):
    """In which order the channels of a block go: `Order`.

    With the others free to take over, to lose channel c costs each reader w_c² / (C⁻¹)_cc, where w_c are its weights of
    that channel and C is the covariance of those that are left (Hassibi and Stork 1992).
    """
    parts = []  # of each reader: inverse covariance, weights, the variance that errors are shares of
    for reader in block.readers:
        covariance = _ridged(moments[reader.source][1])
        weights = _kernel(network, reader) * _gain(network.get_layer(reader.norm))
        parts.append((np.linalg.inv(covariance), weights, np.trace(moments[reader.output][1])))
    left = np.ones(block.width, bool)
    channels, errors = [], [0.0]
    while left.any():
        costs = sum(np.square(weights).sum(1) / np.diag(inverse) / variance for inverse, weights, variance in parts)
        gone = int(np.argmin(np.where(left, costs, np.inf)))
        channels.append(gone)
        errors.append(errors[-1] + costs[gone])
        left[gone] = False
        for inverse, weights, _ in parts:
            column = inverse[:, gone] / inverse[gone, gone]
            weights -= np.outer(column, weights[gone])
            inverse -= np.outer(column, inverse[gone])
            weights[gone], inverse[gone], inverse[:, gone], inverse[gone, gone] = 0, 0, 0, 1
    return Order(channels, errors)


def choose_widths(blocks, orders, keep):
    """How many channels each block keeps, where `keep` is the share of their present work that is left at most."""
    widths = [block.width for block in blocks]

    def price(place):
        gone = blocks[place].width - widths[place]
        errors = orders[place].errors
        return (errors[gone + step(place)] - errors[gone]) / (step(place) * blocks[place].work)

    def step(place):  # half of a narrow block's, of the first one's 32 for instance
        return min(STEP, max(GROUP, blocks[place].width // 2 // GROUP * GROUP))

    while work(blocks, widths) > keep * work(blocks):
        places = [place for place, width in enumerate(widths) if width > step(place)]
        if not places:
            raise BadInput(f"--keep {keep:g} cannot be: as narrow as they may be, the blocks have "
                           f"{work(blocks, widths) / work(blocks):.2f} of their work")
        cheapest = min(places, key=price)
        widths[cheapest] -= step(cheapest)
    return widths


def work(blocks, widths=None):
    """Of all blocks, at their own widths or others."""
    return sum(block.work * width
               for block, width in zip(blocks, widths or [block.width for block in blocks], strict=True))


def narrowed_weights(network, narrow, blocks, orders, moments):
    """Give `narrow` the weights of the channels that go last, and return them: list of arrays."""
    makers: dict[str, np.ndarray] = {}  # kept channels
    kernels: dict[str, np.ndarray] = {}
    shifts: dict[str, np.ndarray] = {}  # of the means that batch norms know
    for block, order in zip(blocks, orders, strict=True):
        kept = np.sort(order.channels[block.width - narrow.get_layer(block.makers[0]).filters:])
        makers |= dict.fromkeys(block.makers, kept)
        for reader in block.readers:
            mean, covariance = moments[reader.source]
            kernel = _kernel(network, reader)
            covariance = _ridged(covariance)[kept]
            fitted = np.linalg.solve(covariance[:, kept], covariance @ kernel)
            kernels[reader.convolution] = fitted[None, None]
            shifts[reader.norm] = mean[kept] @ fitted - mean @ kernel
    for layer in narrow.layers:
        weights = network.get_layer(layer.name).get_weights() if layer.weights else []
        if layer.name in makers:
            axis = 2 if hasattr(layer, "depth_multiplier") else -1  # a depthwise kernel is (h, w, channels, 1)
            weights = [np.take(values, makers[layer.name], axis) for values in weights]
        elif layer.name in kernels:
            weights = [kernels[layer.name]]
        elif layer.name in shifts:
            weights[2] = weights[2] + shifts[layer.name]  # the moving mean, after gamma and beta
        if weights:
            layer.set_weights(weights)
    return narrow.get_weights()


def _ridged(covariance):
    return covariance + np.eye(len(covariance)) * RIDGE * np.trace(covariance) / len(covariance)


def _kernel(network, reader):
    """(channels, outputs), float64."""
    return np.asarray(network.get_layer(reader.convolution).get_weights()[0][0, 0], np.float64)


def _gain(norm):
    gamma, _, _, variance = norm.get_weights()
    return gamma / np.sqrt(variance + norm.epsilon)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m train.prune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="FILE", help=".weights.h5 file")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument("--keep", type=float, metavar="SHARE", help="of the work of the backbone's blocks, 0 … 1")
    widths.add_argument("--like", metavar="CONFIG", help="to the expansions that this config has")
    parser.add_argument("--name", required=True, help="of the new run's folder, output/model_dump/NAME")
    add_config_arguments(parser)
    arguments = parser.parse_args()
    if arguments.keep is not None and not 0 < arguments.keep < 1:
        parser.error(f"--keep {arguments.keep:g} is not between 0 and 1")
    return arguments


if __name__ == "__main__":
    run_command(main)
