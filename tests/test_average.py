"""`python -m train.average`: the mean of two snapshots, with batch-norm statistics of its own."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow")

import numpy as np  # noqa: E402

from tests.conftest import ROOT  # noqa: E402
from train.checkpoint import load_snapshot  # noqa: E402


def average(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.run([sys.executable, "-m", "train.average", *arguments, "--config", "tiny.toml"], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=300)


def test_mean_of_two_snapshots(tiny_run):
    run = tiny_run / "output/model_dump/tiny"
    files = [str(run / f"snapshot_00{epoch}.weights.h5") for epoch in (1, 3)]
    done = average(tiny_run, *files, "--name", "soup")
    assert done.returncode == 0, done.stderr
    assert "soup/snapshot_001.weights.h5: mean of 2" in done.stdout

    soup, config, epoch = load_snapshot(tiny_run / "output/model_dump/soup")
    assert (config.name, config.init_weights, epoch) == ("soup", files[0], 1)
    first, third = (load_snapshot(run, epoch)[0] for epoch in (1, 3))
    differ = 0
    for variable, one, other in zip(soup.variables, first.variables, third.variables, strict=True):
        mean = (one.numpy() + other.numpy()) / 2
        if "moving" not in variable.path:
            np.testing.assert_allclose(variable.numpy(), mean, atol=1e-6, err_msg=variable.path)
        else:
            differ += np.abs(variable.numpy() - mean).max() > 1e-4
    assert differ, "the statistics are the mean of those of the snapshots, not measured"

    again = average(tiny_run, *files, "--name", "soup")
    assert again.returncode == 2 and "holds a run already: give another --name" in again.stderr


def test_bad_input_of_an_average(tiny_run):
    snapshot = "output/model_dump/tiny/snapshot_003.weights.h5"
    for arguments, words in (((snapshot,), "needs two files or more"), ((snapshot, "gone.h5"), "no weights at gone.h5"),
                             ((snapshot, str(ROOT / "models/pose.weights.h5")), "does not fit this network")):
        done = average(tiny_run, *arguments, "--name", "bad")
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    other = average(tiny_run, snapshot, snapshot, "--name", "bad", "--set", "padding=1.5")
    assert other.returncode == 2 and "has padding = 1.25, tiny.toml 1.5: give --set padding=1.25" in other.stderr
    assert not (tiny_run / "output/model_dump/bad").exists()
