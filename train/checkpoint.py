"""Networks from configs, and their weights on disk.

`output/model_dump/NAME/` holds
    config.json                the run's config
    snapshot_012.weights.h5    averaged (EMA) weights after epoch 12: what is evaluated and exported
    best.weights.h5            a copy of the snapshot with the best validation AP
    resume.weights.h5          raw weights and optimiser state at the last checkpoint, to train on from
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from runtime.errors import BadInput
from runtime.keypoints import SCHEMAS
from train.config import Config
from train.detector_network import build_person_network
from train.pose_network import build_pose_network

OUTPUT = Path("output")


@dataclass(frozen=True)
class Place:
    """How far a run is: whole epochs, steps of the next one, and the sum of their losses."""

    epoch: int = 0
    step: int = 0
    loss: Any = 0.0

    def __str__(self):
        return f"{self.epoch} epochs" + (f" and {self.step} steps" if self.step else "")


def run_folder(config):
    return OUTPUT / "model_dump" / config.name


def build_network(config, weights=None):
    """The network of a config: from the weights given, else from `init_weights`, else from ImageNet."""
    weights = weights or config.init_weights
    common = dict(input_size=tuple(config.input_size), backbone=config.backbone, freeze_stem=config.freeze_stem,
                  decoder_width=config.decoder_width, attention_blocks=config.attention_blocks,
                  attention_width=config.attention_width, expansions=tuple(config.expansions),
                  backbone_weights=None if weights else config.backbone_weights or None)
    if config.task == "pose":
        network = build_pose_network(len(SCHEMAS[config.keypoints]), head=config.head, decoder=config.decoder,
                                     channel_attention=config.channel_attention, **common)
    else:
        network = build_person_network(**common)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = config.batch_norm == "sync"
            layer.trainable = layer.trainable and config.batch_norm != "frozen"
    if weights:
        load_weights(network, weights)
    return network


def load_weights(network, path):
    """Load `.weights.h5` weights, or a `.ckpt` of TF-SimpleHumanPose; one missing or of another network is BadInput."""
    if ".ckpt" in Path(path).name:
        from train.slim_checkpoint import load_snapshot_of_seed
        load_snapshot_of_seed(network, path)
        return
    if not Path(path).is_file():
        raise BadInput(f"no weights at {path}")
    try:
        network.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} does not fit this network; is it of another config? ({reason})") from error


def save_weights(network, path, place):
    """Save weights and how far they are trained, so that a half-written file never carries the name."""
    partial = path.with_name("partial.weights.h5")
    try:
        network.save_weights(partial)
        with h5py.File(partial, "a") as file:
            file.attrs["epoch"], file.attrs["step"], file.attrs["loss"] = place.epoch, place.step, float(place.loss)
        os.replace(partial, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error}; free some space, then --continue") from error
    finally:
        partial.unlink(missing_ok=True)


def place_of(path):
    """How far the training of a weights file was."""
    try:
        with h5py.File(path) as file:
            return Place(int(file.attrs["epoch"]), int(file.attrs.get("step", 0)), float(file.attrs.get("loss", 0)))
    except (OSError, KeyError) as error:
        raise BadInput(f"{path} is no checkpoint or a damaged one ({error}); remove it to start from the beginning, or "
                       "put a copy in its place") from error


def check_same_network(path, config, config_path):
    """BadInput where the run that a weights file lies in differs in what its weights do not show, but an engine says
    of itself."""
    file = Path(path).parent / "config.json"
    run = json.loads(file.read_text()) if file.is_file() else {}
    for key in ("task", "keypoints", "head", "input_size", "padding", "stretch", "sigma", "loss", "aligned_cells"):
        wanted = getattr(config, key)
        if run.get(key, wanted) != wanted:
            raise BadInput(f"{file} has {key} = {run[key]!r}, {config_path} {wanted!r}: give --set {key}={run[key]!r}, "
                           "or the run's own --config")


def save_config(config, folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}; free some space or see to its rights") from error


def snapshot_path(folder, epoch):
    return Path(folder) / f"snapshot_{epoch:03d}.weights.h5"


def best_path(folder):
    return Path(folder) / "best.weights.h5"


def snapshots(folder):
    """Epochs whose snapshots a run folder holds, ascending."""
    return sorted(int(path.name.split("_")[1].split(".")[0]) for path in Path(folder).glob("snapshot_*.weights.h5"))


def load_snapshot(folder, epoch=None):
    """Network and config of a run at an epoch: a number, "best" by validation, or the last one if None."""
    found = snapshots(folder)
    if epoch == "best":
        if not best_path(folder).is_file():
            raise BadInput(f"{folder} has no best.weights.h5, which a run with validation data writes; give a number")
        epoch = place_of(best_path(folder)).epoch
    if not found:
        raise BadInput(f"no snapshots in {folder}; train first (make train), or give another --run")
    epoch = found[-1] if epoch is None else epoch
    if epoch not in found:
        raise BadInput(f"{folder} has no snapshot of epoch {epoch}; it has {_ranges(found)}")
    config = Config(**json.loads((Path(folder) / "config.json").read_text()))
    return build_network(config, weights=str(snapshot_path(folder, epoch))), config, epoch


def _ranges(numbers):
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} … {numbers[-1]} ({len(numbers)} of them)"


def shrink_weights(source, target):
    """Copy a snapshot with its kernels as float16: half the size, to keep and to train on from.

    Vectors (batch norm statistics, biases) stay float32: their range is wide and they are few.
    """
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        def copy(name, item):
            if isinstance(item, h5py.Dataset):
                values = item[()]
                # NumPy converts, not HDF5: its rounding loses the carry into the exponent, and half the value.
                new.create_dataset(name, data=values.astype(np.float16) if item.ndim >= 2 else values)
            else:
                new.require_group(name)
            for key, value in item.attrs.items():
                new[name].attrs[key] = value
        for key, value in old.attrs.items():
            new.attrs[key] = value
        old.visititems(copy)
