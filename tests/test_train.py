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
from train.checkpoint import build_network, load_snapshot, shrink_weights, snapshot_path  # noqa: E402
from train.config import Config, load_config  # noqa: E402
from train.datasets import load_persons, load_photos, sampler, training_data  # noqa: E402
from train.fit import append_history  # noqa: E402
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
    np.testing.assert_allclose(list(resumed.values()), list(whole.values()), rtol=2e-3)
    assert (tmp_path / "output/log/tiny/curves.png").stat().st_size > 1000


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


def test_two_devices_train(tiny_run, tmp_path):
    """MirroredStrategy over two logical CPUs, since there may be no GPU here."""
    code = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from train.config import load_config
from train.fit import train
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
train(load_config({str(tiny_run / 'tiny.toml')!r}, ["epochs=1", "name=two"]), strategy)
"""
    (tmp_path / "people").symlink_to(tiny_run / "people")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
                   timeout=300)
    assert snapshot_path(tmp_path / "output/model_dump/two", 1).exists()


def test_sampler_is_even_weighted_and_stateless():
    class Item:
        def __init__(self, image):
            self.image = image

    items = [Item(f"{'human' if i < 20 else 'other'}_{i}.jpg") for i in range(100)]
    pick = sampler(items, Config(sampling={"human_": 3.0}))
    counts = np.bincount([pick(number) for number in range(1400)], minlength=100)
    np.testing.assert_allclose(counts[:20], 30, atol=4)
    np.testing.assert_allclose(counts[20:], 10, atol=4)
    later = np.bincount([pick(number) for number in range(700, 1400)], minlength=100)
    assert (later > 0).all(), "half as many samples should already visit everyone"


def test_data_order_resumes(tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    config = load_config("tiny.toml")
    whole = iter(training_data(config))
    next(whole)
    expected, labels = next(whole)
    resumed, same_labels = next(iter(training_data(config, first_sample=config.batch)))
    np.testing.assert_array_equal(resumed, expected)
    np.testing.assert_array_equal(same_labels, labels)
    assert expected.shape == (4, 64, 64, 3) and labels.shape == (4, 17, 3)


def test_keypoint_scores_become_weights_and_crowds_become_ignored(tmp_path):
    keypoints = [10, 10, 2] * 17
    people = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [0, 0, 20, 30], "num_keypoints": 17, "keypoints": keypoints,
         "keypoint_scores": [0.5] * 17, "iscrowd": 0},
        {"id": 2, "image_id": 1, "bbox": [5, 5, 20, 30], "num_keypoints": 17, "keypoints": keypoints, "iscrowd": 0},
        {"id": 3, "image_id": 1, "bbox": [0, 0, 99, 99], "num_keypoints": 0, "keypoints": [0] * 51, "iscrowd": 1}]}
    (tmp_path / "person_keypoints_a.json").write_text(json.dumps(people))
    config = Config(data=[str(tmp_path)])
    teacher, human = load_persons(config)
    assert (teacher.keypoints[:, 2] == 0.5).all() and (human.keypoints[:, 2] == 1).all()
    np.testing.assert_array_equal(human.box, [5, 5, 25, 35])
    [photo] = load_photos(config)
    assert photo.boxes[:, 4].tolist() == [1, 1, -1]


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
        fit.train(config, fit.choose_devices("cpu"), evaluate=crash_once)
    fit.train(config, fit.choose_devices("cpu"), resume=True, evaluate=crash_once)
    assert list(losses(tmp_path)) == [1, 2]
    np.testing.assert_allclose(losses(tmp_path)[1], losses(tiny_run)[1], rtol=2e-3)
    with h5py.File(tmp_path / "output/model_dump/tiny/resume.weights.h5") as file:
        assert int(file["optimizer/vars/0"][()]) == 2 * (48 // 4), "steps taken"


def test_a_loss_that_is_no_number_stops_and_harms_nothing(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "people").symlink_to(tiny_run / "people")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no longer a number"):
        fit.train(load_config(tiny_run / "tiny.toml", ["learning_rate=1e30", "clip_norm=1e30", "warmup_steps=1"]),
                  fit.choose_devices("cpu"))
    assert not list((tmp_path / "output/model_dump/tiny").glob("*.h5"))


@pytest.mark.parametrize("content, words", [
    ("{", "is not JSON"),
    ("[]", "no COCO keypoint file"),
    ('{"images": [], "annotations": [{"image_id": 7, "keypoints": [0, 0, 0]}]}', "no COCO keypoint file"),
    ('{"images": [], "annotations": [{"id": 1, "image_id": 7, "keypoints": [0, 0, 0]}]}', "has 1 keypoints"),
])
def test_bad_annotations_are_named(tmp_path, content, words):
    (tmp_path / "person_keypoints.json").write_text(content)
    with pytest.raises(BadInput, match=words):
        load_persons(Config(data=[str(tmp_path)]))


@pytest.mark.parametrize("override, words", [
    ("batch=0", "batch = 0 is less than 1"),
    ("input_size=[192]", "not .width, height. in multiples of 32"),
    ("data=[1]", "not a list of folders"),
    ("learning_rat=1", "unknown key 'learning_rat'"),
    ("epochs=many", "epochs = 'many' should be of type int"),
    ("task=cat", "task = 'cat'"),
    ("epochs", "has no '='"),
])
def test_config_mistakes_are_named(override, words):
    with pytest.raises(BadInput, match=words):
        load_config(ROOT / "configs/pose.toml", [override])


@pytest.mark.parametrize("name", ["pose", "person"])
def test_bundled_configs_are_valid(name):
    assert load_config(ROOT / f"configs/{name}.toml").task == name


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
        fit.choose_devices(gpus)


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
        fit.train(config, fit.choose_devices("cpu"), evaluate=validator(config))
    assert losses(tiny_run) == before


def test_unreadable_image_is_named(tiny_run, tmp_path):
    people = json.loads(next((tiny_run / "people").glob("*.json")).read_text())
    (tmp_path / "images").mkdir()
    for image in people["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(b"no image")
    (tmp_path / "person_keypoints.json").write_text(json.dumps(people))
    done = train(tiny_run, "--set", f"data=['{tmp_path}']", "--set", "name=broken", check=False)
    assert done.returncode == 2 and "cannot be decoded" in done.stderr.splitlines()[-1], done.stderr
