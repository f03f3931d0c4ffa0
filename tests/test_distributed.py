"""Several devices and several machines train what one does: whole runs, in processes of their own."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from runtime.errors import BadInput  # noqa: E402
from train import devices  # noqa: E402
from train.config import Config  # noqa: E402

ROOT = Path(__file__).parents[1]
# Frozen norms, for their statistics over half a batch are others; that synchronised ones agree is in test_step.py.
SETTINGS = ["batch_norm=frozen", "epochs=2", "learning_rate=2e-4"]


def history(folder, name):
    with (folder / f"output/log/{name}/history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def start(folder, name, *extra, tf_config=None):
    overrides = [part for item in (*SETTINGS, f"name={name}") for part in ("--set", item)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    command = [sys.executable, "-m", "train", "--config", "tiny.toml", "--gpu", "cpu", *overrides, *extra]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_two_machines(folder, *extra):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [start(folder, "machines", *extra, tf_config={"cluster": {"worker": workers},
                                                         "task": {"type": "worker", "index": index}})
            for index in range(2)]


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """With the run of one device."""
    folder = tmp_path_factory.mktemp("distributed")
    for name in ("tiny.toml", "people"):
        (folder / name).symlink_to(tiny_run / name)
    process = start(folder, "one")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def test_two_devices_have_the_loss_curve_of_one(folder):
    """MirroredStrategy over two logical CPUs, since there may be no GPU here."""
    code = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from train.config import load_config
from train.fit import train
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
train(load_config("tiny.toml", {[*SETTINGS, "name=devices"]!r}), strategy)
import os
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
                   timeout=300)
    np.testing.assert_allclose(history(folder, "devices"), history(folder, "one"), rtol=1e-3)


def test_two_machines_one_of_them_killed_lose_nothing(folder):
    """MultiWorkerMirroredStrategy over two processes; the second is killed after the first epoch, then both go on."""
    machines = start_two_machines(folder)
    snapshot = folder / "output/model_dump/machines/resume.weights.h5"
    deadline = time.monotonic() + 240
    while not snapshot.exists() and all(each.poll() is None for each in machines) and time.monotonic() < deadline:
        time.sleep(0.02)
    machines[1].send_signal(signal.SIGKILL)
    _, errors = machines[0].communicate(timeout=120)
    machines[1].communicate()
    assert machines[0].returncode == 2, errors
    assert "another machine of TF_CONFIG is gone" in errors.splitlines()[-1], errors
    assert len(history(folder, "machines")) == 1, "killed too late to show anything"

    for process in start_two_machines(folder, "--continue"):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    np.testing.assert_allclose(history(folder, "machines"), history(folder, "one"), rtol=1e-3)
    written = sorted(path.name for path in (folder / "output/model_dump/machines").iterdir())
    assert written == sorted(path.name for path in (folder / "output/model_dump/one").iterdir())


@pytest.mark.parametrize("text, words", [
    ("{", "TF_CONFIG is not as it should be"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"index": 3}}', "task index 3 is none of its 1 workers"),
])
def test_a_wrong_tf_config_is_named(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(BadInput, match=words):
        devices.choose_strategy("cpu")


@pytest.mark.parametrize("index", [0, 1])
def test_a_machine_that_does_not_come_is_named(monkeypatch, index):
    monkeypatch.setattr(devices, "MACHINES_WAIT", 0.5)
    ports = free_ports(2)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
    with pytest.raises(BadInput, match=f"in vain for 127.0.0.1:{ports[1 - index]} of TF_CONFIG"):
        devices.choose_strategy("cpu")


@pytest.mark.parametrize("index, first", [(1, "nobody.invalid:2222"), (0, "127.0.0.1:99999"), (0, "nobody")])
def test_a_first_machine_that_cannot_be_is_named(monkeypatch, index, first):
    cluster = {"worker": [first, "127.0.0.1:9"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
    with pytest.raises(BadInput, match=f"{first}, the first machine of TF_CONFIG"):
        devices.choose_strategy("cpu")


def test_a_stranger_who_says_nothing_does_not_end_the_wait():
    ports = free_ports(2)
    machines = [f"127.0.0.1:{port}" for port in ports]
    first = threading.Thread(target=devices._wait_for, args=(machines, 0))
    first.start()
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", ports[0])):
        devices._wait_for(machines, 1)
    first.join(timeout=10)
    assert not first.is_alive()


@pytest.mark.parametrize("changes, words", [
    ({"batch": 8}, "batch = 8 cannot be divided over 3 devices"),
    ({"batch": 9, "accumulate": 2}, "accumulate = 2 does not divide the 3 samples of a device's share"),
])
def test_a_batch_that_cannot_be_divided_is_named(changes, words):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(BadInput, match=words):
        devices.distributed_batches(Three(), Config(**changes), None, 0)
