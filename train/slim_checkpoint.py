"""TensorFlow 1 checkpoints in our Keras networks: TF-Slim's ImageNet ResNets and TF-SimpleHumanPose's snapshots.

Kernels need no turning: convolutions are (height, width, in, out) on both sides, transposed ones (height, width, out,
in), and both place the 4×4 kernels of stride 2 alike under padding SAME.
"""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import layers

from runtime.errors import BadInput
from train.resnet_v1 import IMAGENET_MEANS, PixelMeans

# TF-SimpleHumanPose reads BGR by OpenCV, yet subtracts the means in RGB order from it; nothing ever turns the channels.
SEED_MEANS = (123.68, 116.78, 103.94)

# The classifier, counters, the learning rate (an unnamed variable) and what optimisers keep beside each weight.
LEFT_ASIDE = re.compile(r"global_step|(.+/)?beta[12]_power|Variable(_\d+)?|resnet_v1_\d+/(logits/.+|mean_rgb)"
                        r"|.+/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|ExponentialMovingAverage)")
UNREADABLE = (tf.errors.OpError, IndexError)  # the second is what a cut-off .data file raises
LAYER = re.compile(r"(?P<place>conv1|up[123]|out|block(?P<block>\d)_unit(?P<unit>\d+)_(?P<part>conv\d|shortcut))"
                   r"(?P<kind>_deconv|_bn)?")


def load_imagenet(network, path):
    """Load TF-Slim's `resnet_v1_50.ckpt` (or 101, 152) into the layers of `resnet_v1`.

    TF-Slim's networks saw RGB, so the first kernel is turned round to take BGR; `PixelMeans` gets ImageNet's means.

    Args:
        network: Keras model with the layers of `resnet_v1`; its other layers stay as they are.
        path: the checkpoint, in the old format of one file or the new one, with or without `.index` and the like.

    Raises:
        BadInput: no such file, no checkpoint, or one that lacks tensors, has others or has them in another shape.
            The network stays as it was.
    """
    reader, shapes = _open(path)
    scope = _scope(shapes, path)
    variables = {name: variable for name, variable in checkpoint_variables(network, scope).items()
                 if name.startswith(f"{scope}/")}
    values = _read(reader, shapes, variables, scope, path)
    values[f"{scope}/conv1/weights"] = values[f"{scope}/conv1/weights"][:, :, ::-1]
    _assign(network, variables, values, IMAGENET_MEANS)


def load_snapshot_of_seed(network, path):
    """Load a trained `snapshot_140.ckpt` of TF-SimpleHumanPose: backbone and head, to the same output.

    The network it came from saw BGR less `SEED_MEANS`; ours then does so too.

    Args:
        network: Keras model with the layers of `resnet_v1`, and `up1_deconv`, `up1_bn` … `up3_bn`, `out`.
        path: as of `load_imagenet`.

    Returns:
        How many epochs lie behind it, by the file's name, or None if it has no such number.

    Raises:
        BadInput: as of `load_imagenet`, or a network with other layers.
    """
    strangers = [layer.name for layer in network.layers
                 if layer.weights and not isinstance(layer, PixelMeans) and not LAYER.fullmatch(layer.name)]
    if strangers:
        raise BadInput(f"{path} is for TF-SimpleHumanPose's network, and this one has {_some(strangers)} besides; set "
                       "backbone = 'resnet_v1_50' (or 101, 152), decoder = 'deconvolution' and attention_blocks = 0")
    reader, shapes = _open(path)
    scope = _scope(shapes, path)
    variables = checkpoint_variables(network, scope)
    _assign(network, variables, _read(reader, shapes, variables, scope, path), SEED_MEANS)
    epoch = re.match(r"snapshot_(\d+)\.ckpt", Path(path).name)
    return int(epoch[1]) if epoch else None


def checkpoint_variables(network, scope):
    """The Keras variables that a checkpoint fills, by the names they have there.

    Args:
        network: Keras model; layers that have no counterpart in a checkpoint are passed over.
        scope: of the backbone, such as "resnet_v1_50".
    """
    found = {}
    for layer in network.layers:
        match = LAYER.fullmatch(layer.name)
        if not match:
            continue
        place = match["place"]
        if match["block"]:
            place = f"{scope}/block{match['block']}/unit_{match['unit']}/bottleneck_v1/{match['part']}"
        elif place == "conv1":
            place = f"{scope}/conv1"
        if isinstance(layer, layers.BatchNormalization):
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                found[f"{place}/BatchNorm/{name}"] = getattr(layer, name)
        else:
            found[f"{place}/weights"] = layer.kernel
            if layer.use_bias:
                found[f"{place}/biases"] = layer.bias
    return found


def _open(path):
    """Reader of a checkpoint, and the shapes of its tensors by name."""
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path))
    if not Path(prefix).is_file() and not Path(f"{prefix}.index").is_file():
        raise BadInput(f"no checkpoint at {path}; give the path of a .ckpt file, or of one with .ckpt.index beside it")
    try:
        reader = tf.train.load_checkpoint(prefix)
        return reader, reader.get_variable_to_shape_map()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return BadInput(f"{path} is no TensorFlow checkpoint that can be read; fetch it again ({_first_line(error)})")


def _scope(shapes, path):
    """The backbone's scope, "resnet_v1_50" for instance."""
    scopes = {name.split("/")[0] for name in shapes if re.match(r"resnet_v1_\d+/", name)}
    if len(scopes) != 1:
        raise BadInput(f"{path} should hold one ResNet v1 of TF-Slim, but has {_some(sorted(scopes)) or 'none'}; "
                       f"its tensors are {_some(sorted(shapes)) or 'none'}")
    return scopes.pop()


def _read(reader, shapes, variables, scope, path):
    """The values of all variables by name, once names and shapes are known to agree."""
    missing = [name for name in variables if name not in shapes]
    left_over = sorted(name for name in shapes if name not in variables and not LEFT_ASIDE.fullmatch(name))
    misshapen = [f"{name} is {tuple(shapes[name])}, not {tuple(variable.shape)}" for name, variable in variables.items()
                 if name in shapes and tuple(shapes[name]) != tuple(variable.shape)]
    kinds = {"missing": missing, "left over": left_over, "of another shape": misshapen}
    faults = [f"{kind} {len(names)} ({_some(names)})" for kind, names in kinds.items() if names]
    if faults:
        head = "with" if "up1/weights" in shapes else "without"
        raise BadInput(f"{path} is not of this network: tensors {'; '.join(faults)}. The file holds {scope} {head} a "
                       "pose head; is that what the config asks for?")
    try:
        return {name: np.asarray(reader.get_tensor(name), np.float32) for name in variables}
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _assign(network, variables, values, means):
    for name, variable in variables.items():
        variable.assign(values[name])
    for layer in network.layers:
        if isinstance(layer, PixelMeans):
            layer.mean.assign(means)


def _some(names, most=3):
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
