"""What several tests need: tiny engines, clips of a walking rectangle with three coloured dots, and fixtures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import engines
from tests.coco_data import coco_engine, write_coco_data
from tests.fake_gpu import FakeCudart, fake_tensorrt
from tests.pages import open_pages

ROOT = Path(__file__).parents[1]

# A shell that starts the tests in the background has Ctrl-C ignored, and the commands that they start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BLUE, GREEN, RED = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="session")
def person_path(tmp_path_factory):
    return engines.person_engine(tmp_path_factory.mktemp("engines") / "person.onnx")


@pytest.fixture(scope="session")
def pose_path(tmp_path_factory):
    return engines.pose_engine(tmp_path_factory.mktemp("engines") / "pose.onnx")


@pytest.fixture(name="engines")
def engine_options(person_path, pose_path):
    """The tiny engines, as options of the stream's command."""
    return ["--detector", str(person_path), "--pose", str(pose_path)]


def figure(index=0, size=(320, 192)):
    """A frame of the walker, 2 pixels further right in each, and its truth.

    Returns:
        (H, W, 3) uint8 BGR image, the box (left, top, right, bottom), the three dots (3, 2).
    """
    image = np.full((size[1], size[0], 3), 60, np.uint8)
    left, top = 20 + 2 * index, 30
    box = (left, top, left + 60, top + 120)
    cv2.rectangle(image, (left, top), (left + 59, top + 119), (255, 255, 255), cv2.FILLED)
    dots = np.array([(left + 15, top + 40), (left + 45, top + 40), (left + 30, top + 90)])
    for dot, colour in zip(dots.tolist(), (BLUE, GREEN, RED), strict=True):
        cv2.circle(image, dot, 5, colour, cv2.FILLED)
    return image, box, dots


def write_clip(path, frames=20, fps=10, codec="mp4v", size=(320, 192)):
    """A video of the walker."""
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size)
    assert video.isOpened()
    for index in range(frames):
        video.write(figure(index, size)[0])
    video.release()
    return path


def index_first(path):
    """Move an MP4's index to its front, as for the web, so that a cut-off copy still opens."""
    data = path.read_bytes()
    boxes, at = {}, 0
    while at < len(data):
        length = int.from_bytes(data[at:at + 4], "big")
        boxes[data[at + 4:at + 8]] = data[at:at + length]
        at += length
    index = bytearray(boxes[b"moov"])
    table = index.index(b"stco") + 8  # chunk offsets move back by the index's length
    for entry in range(int.from_bytes(index[table:table + 4], "big")):
        place = table + 4 + 4 * entry
        offset = int.from_bytes(index[place:place + 4], "big") + len(index)
        index[place:place + 4] = offset.to_bytes(4, "big")
    path.write_bytes(boxes[b"ftyp"] + bytes(index) + boxes[b"free"] + boxes[b"mdat"])
    return path


def count_frames(path):
    """Frames that really decode, or -1 where it is no video."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = 0 if capture.isOpened() else -1
    while capture.read()[0]:
        frames += 1
    return frames


TINY_CONFIG = """
task = "pose"
name = "tiny"
data = ["people"]
input_size = [64, 64]
backbone_weights = ""
freeze_stem = false
attention_blocks = 1
attention_width = 32
decoder_width = 16
batch = 4
epochs = 3
samples_per_epoch = 48
warmup_steps = 4
decay_epochs = 1
ema = 0.5
workers = 0
"""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A folder in which a tiny pose network was trained for three epochs on rendered people."""
    folder = tmp_path_factory.mktemp("tiny_run")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    (folder / "people").mkdir()
    (folder / "tiny.toml").write_text(TINY_CONFIG)
    for command in (["runtime.walkers", "--stills", "24", "--size", "320x240", "--out", "people/images",
                     "--truth", "people/person_keypoints.json"],
                    ["train", "--config", "tiny.toml", "--gpu", "cpu"]):
        subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Folder with coco.onnx, annotations.json and images/."""
    folder = tmp_path_factory.mktemp("coco")
    coco_engine(folder / "coco.onnx")
    (folder / "annotations.json").write_text(json.dumps(write_coco_data(folder / "images")))
    return folder


@pytest.fixture
def no_thread_leaks():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def no_proxy(monkeypatch):
    """A proxy of the machine does not lead to its own servers."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that signs itself, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


@pytest.fixture
def pages():
    with open_pages() as open_one:
        yield open_one


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a GPU and TensorRT, as far as `tests.fake_gpu` goes."""
    cudart = FakeCudart()
    monkeypatch.setattr("runtime.cuda.cudart", lambda: cudart)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    monkeypatch.setattr("runtime.tensorrt_backend._plugins", {})
    return cudart


@pytest.fixture
def pose_trt(tmp_path, pose_path):
    from tests.tensorrt_engines import make_engine  # loads much that the other tests do without
    (tmp_path / "pose.onnx").write_bytes(pose_path.read_bytes())
    return make_engine(tmp_path, tmp_path / "pose.onnx")
