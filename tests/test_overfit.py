"""Sixteen crops, learnt by heart: data, network, loss, optimiser and decoding agree, or this fails."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from runtime.pose import PoseEstimator  # noqa: E402
from runtime.walkers import write_stills  # noqa: E402
from train.checkpoint import build_network  # noqa: E402
from train.config import load_config  # noqa: E402
from train.loader import Loader  # noqa: E402
from train.network_engine import NetworkEngine  # noqa: E402
from train.step import build_optimizer, training_step  # noqa: E402

ROOT = Path(__file__).parents[1]
COCO_DEV = Path(os.environ.get("COCO_DEV", ROOT.parent / "shared/data/coco-dev"))
CROPS, STEPS = 16, 60


def share_within_a_twentieth(network, config, crops, labels):
    """PCK@0.05: the share of labelled keypoints found within a twentieth of the crop's height."""
    found = PoseEstimator(NetworkEngine(network, config)).estimate(crops)
    away = np.linalg.norm(found[..., :2] - labels[..., :2], axis=-1)
    inside = (labels[..., 2] > 0) & (labels[..., :2] > 0).all(-1) & (labels[..., :2] < config.input_size).all(-1)
    return (away[inside] < 0.05 * config.input_size[1]).mean()


def test_sixteen_crops_are_learnt_by_heart(tmp_path):
    """Of photographs where COCO_DEV has them, else of rendered people."""
    folder = COCO_DEV
    if not (COCO_DEV / "images").is_dir():
        folder = tmp_path
        write_stills(tmp_path / "images", tmp_path / "person_keypoints.json", 12, (320, 240))
    config = load_config(ROOT / "configs/pose.toml", [
        f"data=['{folder}']", f"init_weights={ROOT / 'models/pose.weights.h5'}", "min_keypoints=10", "sampling={}",
        "workers=0", "flip=0", "scale=0", "shift=0", "rotation_chance=0", "half_body=0", "occlusion=0",
        "low_resolution=0", "colour=0", f"batch={CROPS}", "warmup_steps=5", "epochs=1", "decay_epochs=1", "ema=0"])
    crops, labels = next(Loader(config).batches(0, CROPS))
    network = build_network(config)
    network.compile(build_optimizer(config, STEPS))
    before = share_within_a_twentieth(network, config, crops, labels)
    step = training_step(tf.distribute.get_strategy(), network, network.optimizer, config)
    batches = iter(tf.data.Dataset.from_tensors((crops, labels)).repeat())
    losses = [float(step(batches)) for _ in range(STEPS)]
    after = share_within_a_twentieth(network, config, crops, labels)
    assert losses[-1] < losses[0]
    assert before < 0.98 and after >= 0.99, json.dumps({"before": before, "after": after, "losses": losses[::10]})
