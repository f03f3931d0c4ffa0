"""Training end to end on rendered people: kill and resume, several devices, checkpoints, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from runtime.errors import BadInput  # noqa: E402
from train import fit  # noqa: E402
from train.checkpoint import build_network, load_snapshot, place_of, shrink_weights, snapshot_path  # noqa: E402
from train.config import load_config  # noqa: E402
from train.devices import choose_strategy  # noqa: E402
from train.log import append_history  # noqa: E402
from train.validate import validator  # noqa: E402

ROOT = Path(__file__).parents[1]


def train_command(folder, *extra):
    return [sys.executable, "-m", "train", "--config", str(folder / "tiny.toml"), "--gpu", "cpu", *extra]


def train(folder, *extra, check=True):
    return subprocess.run(train_command(folder, *extra), cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=check, timeout=300)


def losses(folder):
    with (folder / "output/log/tiny/history.csv").open() as file:
        return {int(row["epoch"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_a_killed_run_resumes_where_it_was(tiny_run, tmp_path):
    """`tiny_run` went through three epochs in one go; this one is killed after its first."""
    for name in ("tiny.toml", "people"):
        (tmp_path / name).symlink_to(tiny_run / name)
    run = tmp_path / "output/model_dump/tiny"
    process = subprocess.Popen(train_command(tmp_path), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run / "resume.weights.h5").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not snapshot_path(run, 3).exists()

    train(tmp_path, "--continue")
    whole, resumed = losses(tiny_run), losses(tmp_path)
    assert list(whole) == list(resumed) == [1, 2, 3]
    assert resumed[1] == pytest.approx(whole[1], abs=1e-4), "one seed, one curve"
    np.testing.assert_allclose(list(resumed.values()), list(whole.values()), rtol=2e-3)
    assert (tmp_path / "output/log/tiny/curves.png").stat().st_size > 1000


def test_sigterm_stops_after_a_step_and_goes_on_at_the_next(tiny_run, tmp_path):
    for name in ("tiny.toml", "people"):
        (tmp_path / name).symlink_to(tiny_run / name)
    process = subprocess.Popen(train_command(tmp_path), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "output/log/tiny/train.log"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "--continue goes on there" in errors
    place = place_of(tmp_path / "output/model_dump/tiny/resume.weights.h5")
    assert place.epoch * 12 + place.step > 0 and place.epoch < 3

    (tmp_path / "output/model_dump/tiny/partial.weights.h5").write_bytes(b"half a checkpoint")  # never picked up
    train(tmp_path, "--continue")
    np.testing.assert_allclose(list(losses(tmp_path).values()), list(losses(tiny_run).values()), rtol=2e-3)


def test_a_damaged_checkpoint_is_named(tiny_run, tmp_path):
    for name in ("tiny.toml", "people"):
        (tmp_path / name).symlink_to(tiny_run / name)
    run = tmp_path / "output/model_dump/tiny"
    run.mkdir(parents=True)
    whole = (tiny_run / "output/model_dump/tiny/resume.weights.h5").read_bytes()
    (run / "resume.weights.h5").write_bytes(whole[:len(whole) // 2])
    done = train(tmp_path, "--continue", check=False)
    assert done.returncode == 2 and "is no checkpoint or a damaged one" in done.stderr.splitlines()[-1], done.stderr


def test_training_learns(tiny_run):
    values = losses(tiny_run)
    assert values[3] < values[1] - 0.02


def test_snapshot_rebuilds_the_network_and_float16_keeps_it(tiny_run, tmp_path):
    network, config, epoch = load_snapshot(tiny_run / "output/model_dump/tiny")
    assert epoch == 3 and config.name == "tiny"
    shrink_weights(snapshot_path(tiny_run / "output/model_dump/tiny", 3), tmp_path / "small.weights.h5")
    half = build_network(config, str(tmp_path / "small.weights.h5"))
    for ours, theirs in zip(half.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_history_forgets_epochs_that_are_run_again(tmp_path):
    for epoch, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 1.9)):
        append_history(tmp_path / "history.csv", {"epoch": epoch, "loss": loss})
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss", "1,3.0", "2,1.9"]


def test_a_crash_before_the_snapshot_repeats_the_epoch_with_its_own_schedule(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "people").symlink_to(tiny_run / "people")
    monkeypatch.chdir(tmp_path)
    config = load_config(tiny_run / "tiny.toml", ["epochs=2"])
    calls = []

    def crash_once(network):
        calls.append(network)
        if len(calls) == 1:
            raise OSError("the power went")
        return {}

    with pytest.raises(OSError, match="the power went"):
        fit.train(config, choose_strategy("cpu"), evaluate=crash_once)
    fit.train(config, choose_strategy("cpu"), resume=True, evaluate=crash_once)
    assert list(losses(tmp_path)) == [1, 2]
    np.testing.assert_allclose(losses(tmp_path)[1], losses(tiny_run)[1], rtol=2e-3)
    with h5py.File(tmp_path / "output/model_dump/tiny/resume.weights.h5") as file:
        assert int(file["optimizer/vars/0"][()]) == 2 * (48 // 4), "steps taken"


def test_a_loss_that_is_no_number_stops_and_harms_nothing(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "people").symlink_to(tiny_run / "people")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no longer a number"):
        fit.train(load_config(tiny_run / "tiny.toml", ["learning_rate=1e30", "clip_norm=1e30", "warmup_steps=1"]),
                  choose_strategy("cpu"))
    assert not list((tmp_path / "output/model_dump/tiny").glob("*.h5"))


def test_a_finished_run_and_a_missing_gpu(tiny_run):
    """Through the command: one line, the right exit code, and no run comes to harm."""
    before = losses(tiny_run)
    finished = train(tiny_run, "--continue")
    assert "already has 3 of 3 epochs" in finished.stdout
    missing = train(tiny_run, "--gpu", "7", check=False)
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: GPU 7 asked for, but TensorFlow sees")
    assert losses(tiny_run) == before


@pytest.mark.parametrize("gpus, words", [("1-0", "name none"), ("0,0", "one twice"), ("all", "neither numbers"),
                                         ("0,9", "asked for")])
def test_gpus_that_are_not_there_are_an_error(gpus, words):
    with pytest.raises(BadInput, match=words):
        choose_strategy(gpus)


@pytest.mark.parametrize("overrides, words", [
    ([], "already holds 3 epochs; --continue goes on"),
    (["name=other", "data=['nowhere']"], "should hold one person_keypoints"),
    (["name=other", "backbone_weights=missing.h5"], "no backbone weights at missing.h5"),
    (["name=other", "init_weights=tiny.toml"], "does not fit this network"),
    (["name=other", "head=crystal"], "unknown head 'crystal'"),
    (["name=other", "validation=nowhere"], "should hold one person_keypoints"),
])
def test_bad_input_is_named_before_training(tiny_run, monkeypatch, overrides, words):
    monkeypatch.chdir(tiny_run)
    before = losses(tiny_run)
    config = load_config("tiny.toml", overrides)
    with pytest.raises(BadInput, match=words):
        fit.train(config, choose_strategy("cpu"), evaluate=validator(config))
    assert losses(tiny_run) == before


def test_unreadable_image_is_named(tiny_run, tmp_path):
    people = json.loads(next((tiny_run / "people").glob("*.json")).read_text())
    (tmp_path / "images").mkdir()
    for image in people["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(b"no image")
    (tmp_path / "person_keypoints.json").write_text(json.dumps(people))
    done = train(tiny_run, "--set", f"data=['{tmp_path}']", "--set", "name=broken", check=False)
    assert done.returncode == 2 and "21 images cannot be read (max_unreadable = 20)" in done.stderr.splitlines()[-1]
    assert "cannot be decoded" in done.stderr.splitlines()[-1], done.stderr
