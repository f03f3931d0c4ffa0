"""Faults on the real stream with real cameras on loopback, one after the other: after each it goes on or ends cleanly.

    python -m runtime.rehearse --faults
    python -m runtime.rehearse --faults stall disk-video

"Cleanly" is: with the documented exit code, one line of error at most, whole JSON lines in order, and a drawn video
that OpenCV reads.
"""

import importlib.util
import signal
import socket
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from runtime.files import make_folder
from runtime.options import MODELS
from runtime.rehearse.cameras import Camera, render_pictures
from runtime.rehearse.trial import Missed, Trial, fetch, frames_of, playable_frames, read_lines, states_of

RATE = 8  # pictures a second of the cameras
PICTURES = 16
SIZE = 480, 360
FEW = 8  # frames that show that it goes on
FILE_LIMITS = {"disk-video": 1_300_000, "disk-lines": 60_000}  # bytes of the largest file that may be written
NEEDS = {"slow-watcher": ("starlette", "uvicorn"), "silent-webhook": ("httpx",)}  # beside the runtime's own libraries


@dataclass
class Scene:
    """What a fault is played with.

    Attributes:
        folder: for this fault's outputs. pictures: (H, W, 3) uint8 BGR of people, for its camera.
    """

    folder: Path
    pictures: list


def faults(names, folder):
    """Play the faults of these names, all where there are none; a line each, as soon as it is known.

    Returns:
        Whether none failed; those whose libraries are missing are skipped.
    """
    print(f"renders {PICTURES} pictures; outputs in {folder}", flush=True)
    pictures = render_pictures(PICTURES, RATE, SIZE)
    passed = True
    for name in names or FAULTS:
        start = time.monotonic()
        missing = [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
        if missing:
            print(f"skip  {name:<16} not installed: pip install {' '.join(missing)}", flush=True)
            continue
        try:
            seen, verdict = FAULTS[name](Scene(folder / name, pictures)), "pass"
        except Missed as error:
            seen, verdict, passed = str(error), "FAIL", False
        print(f"{verdict}  {name:<16} {seen} ({time.monotonic() - start:.0f} s)", flush=True)
    return passed


@contextmanager
def streaming(scene, *options, kind="mjpeg", before=None, waits=True):
    """A camera, and the stream on it; unless it `waits` not, once it has given FEW frames. before: as for Trial."""
    with ExitStack() as opened:
        camera = opened.enter_context(closing(Camera(scene.pictures, RATE, kind)))
        scene.folder.mkdir(parents=True, exist_ok=True)
        for old in scene.folder.iterdir():
            old.unlink()
        trial = opened.enter_context(closing(Trial(scene.folder, "--video", camera.url, *options, before=before)))
        if waits:
            need(trial.wait_for_frames(FEW), f"gave no frames at all: {trial.last_words}")
        yield camera, trial


def need(fact, otherwise):
    if not fact:
        raise Missed(otherwise)
    return fact


def outputs(trial):
    """Frames of the lines and of the video, once both are whole."""
    try:
        lines = sum(line["frame"] is not None for line in read_lines(trial.lines_path))
    except ValueError as error:
        raise Missed(f"poses.jsonl: {error}") from error
    video = trial.folder / "drawn.mp4"
    if not video.exists():
        return f"{lines} frames in whole lines"
    frames = need(playable_frames(video), "the video does not play")
    return f"{lines} frames in whole lines, {frames} playable"


def stopped(trial, number=signal.SIGTERM):
    """End it by a signal. Says the exit code and what the outputs hold."""
    start = time.monotonic()
    code = trial.end(number)
    need(code == 128 + number, f"exit code {code}, not {128 + number}: {trial.last_words}")
    return f"exit code {code} after {time.monotonic() - start:.1f} s, {clean(trial)}"


def refused(trial, words):
    """See that it ends by itself, with exit code 2 and one line that has these words."""
    code = trial.wait(60)
    need(code == 2, f"exit code {code}, not 2: {trial.last_words}")
    need(words in trial.last_words, f"says other than “{words}”: {trial.last_words}")
    return f"exit code 2, “{trial.last_words.removeprefix('error: ')}”; {clean(trial)}"


def clean(trial):
    need("Traceback" not in trial.said, f"a traceback: {trial.last_words}")
    return outputs(trial)


def camera_fault(mode, sign, kind="mjpeg", least=0.0):
    """A fault of a camera: it does as `mode` until the stream's lines show a sign of it, and then works again.

    Args:
        mode: of runtime.rehearse.cameras. sign: function of the JSON lines. kind: of camera.
        least: seconds for which it lasts anyway.
    """
    def play(scene):
        with streaming(scene, "--out", "drawn.mp4", kind=kind) as (camera, trial):
            camera.mode = mode
            time.sleep(least)
            if mode == "large":
                need(trial.wait_for_frames(FEW), "gave no frames of another size")
            lines = need(trial.wait_for(sign), f"never noticed: {states_of(trial.lines())}, {trial.last_words}")
            if mode in ("silent", "gone", "garbage"):
                time.sleep(1)
                made_up = len(frames_of(trial.lines())) - len(frames_of(lines))
                need(not made_up, f"{made_up} frames from a camera that sent none")
            camera.mode = "live"
            need(trial.wait_for_frames(FEW), f"did not go on: {states_of(trial.lines())}, {trial.last_words}")
            states = states_of(trial.lines())
            need(states[-1] == "live", f"goes on as {states[-1]}")
            return f"{' → '.join(states)}; {stopped(trial)}"
    return play


def returns_larger(scene):
    """A camera that dies, and comes back with pictures of twice the width and height."""
    with streaming(scene, "--out", "drawn.mp4") as (camera, trial):
        camera.mode = "gone"
        need(trial.wait_for(has_state("lost")), "its end was not noticed")
        camera.mode = "large"
        words = f"now {2 * SIZE[0]}x{2 * SIZE[1]} pixels, {SIZE[0]}x{SIZE[1]} before"
        need(trial.wait_for(has_reason(words)), f"its size was not noticed: {states_of(trial.lines())}")
        need(trial.wait_for_frames(FEW), "did not go on")
        return f"{' → '.join(states_of(trial.lines()))}, “{words}”; {stopped(trial)}"


def has_state(state, count=1):
    return lambda lines: sum(line["state"] == state for line in lines) >= count


def has_reason(words):
    return lambda lines: any(words in (line.get("reason") or "") for line in lines)


def anything(lines):
    return True


def stopped_by(number, mode="live"):
    """A signal, while the camera does as `mode`."""
    def play(scene):
        with streaming(scene, "--out", "drawn.mp4") as (camera, trial):
            camera.mode = mode
            if mode != "live":
                need(trial.wait_for(lambda lines: states_of(lines)[-1] != "live"), "the camera's end was not noticed")
            return stopped(trial, number)
    return play


def killed(scene):
    """No program can finish a video when it is killed; but the lines are whole."""
    with streaming(scene) as (_, trial):
        trial.end(signal.SIGKILL)
        return outputs(trial)


def slow_watcher(scene):
    """Eight browsers that ask for pictures and never read an answer."""
    with streaming(scene, "--serve", "0") as (_, trial), ExitStack() as opened:
        page = trial.page()
        port = int(page.rsplit(":", 1)[1].strip("/"))
        asked = b"".join(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
                         for path in (b"picture/0.jpg", b"state.json", b"") * 20)
        for _ in range(8):
            browser = opened.enter_context(socket.socket())
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            browser.connect(("127.0.0.1", port))
            browser.sendall(asked)
        seen = goes_on(trial)
        need(b'"ok"' in fetch(f"{page}healthz"), "/healthz does not say ok")
        return f"{seen}, /healthz ok; {stopped(trial)}"


def silent_webhook(scene):
    """A web server that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/poses"
        with streaming(scene, "--webhook", address) as (_, trial):
            seen = goes_on(trial)
            ended = stopped(trial)
            return f"{seen}; {ended}; “{need(undelivered(trial), 'does not say what was not delivered')}”"


def undelivered(trial):
    return next((line for line in trial.said.splitlines() if "were not delivered" in line), "")


def goes_on(trial, seconds=5.0):
    """Half of the camera's pictures at least come out over some seconds."""
    before = len(frames_of(trial.lines()))
    time.sleep(seconds)
    rate = (len(frames_of(trial.lines())) - before) / seconds
    need(rate >= RATE / 2, f"{rate:.1f} frames a second of {RATE} came out")
    return f"{rate:.1f} frames a second of {RATE} came out"


def failing_engine(scene):
    """A pose engine that loads, and fails as soon as there are two persons, who come after a second."""
    engine = scene.folder.parent / "fails.onnx"
    make_folder(engine.parent)
    engine.write_bytes(for_one_person_only((MODELS / "pose.onnx").read_bytes()))
    scene = Scene(scene.folder, [np.full_like(scene.pictures[0], 128)] * RATE + scene.pictures)
    with streaming(scene, "--pose", engine.resolve(), "--out", "drawn.mp4", waits=False) as (_, trial):
        return refused(trial, "fails.onnx")


def for_one_person_only(engine):
    """The ONNX file of the bundled pose engine, with a last node that takes one crop at a time: any other number is an
    error when it runs, though the file says that any will do.

    Two messages of protobuf one after the other are one, their lists joined (protobuf.dev/programming-guides/encoding),
    so that no library is needed; the fields' numbers are those of onnx.proto.
    """
    name, renamed = b"heatmaps", b"heatmapz"
    node = _field(1, renamed) + _field(1, b"one") + _field(2, name) + _field(4, b"Reshape")
    shape = b"".join(side.to_bytes(8, "little") for side in (1, 17, 64, 48))
    tensor = b"\x08\x04" + b"\x10\x07" + _field(8, b"one") + _field(9, shape)  # dims 4, int64
    output = _field(2, name)
    if engine.count(output) != 1:
        raise ValueError(f"{engine.count(output)} nodes give heatmaps, not one")
    return engine.replace(output, _field(2, renamed)) + _field(7, _field(1, node) + _field(5, tensor))


def _field(number, data):
    """A protobuf field of bytes."""
    length, digits = len(data), list[int]()
    while length or not digits:
        digits.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
    return bytes([number << 3 | 2, *digits]) + data


def full_disk(name, words, *options):
    """A file that may not grow beyond a limit (`ulimit -f`), which programs meet as they do a full disk."""
    def play(scene):
        import resource  # which Windows has not

        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (FILE_LIMITS[name], FILE_LIMITS[name]))
        with streaming(scene, *options, before=limit, waits=False) as (_, trial):
            return refused(trial, words)
    return play


FAULTS = {
    "stall": camera_fault("silent", has_state("stale")),
    "hang": camera_fault("silent", has_state("lost"), "mpegts"),
    "drop": camera_fault("gone", has_state("lost")),
    "die-and-return": camera_fault("gone", has_reason("tried again in 5 s")),
    "size": camera_fault("large", anything, least=3),
    "size-mpegts": camera_fault("large", anything, "mpegts", least=3),
    "size-return": returns_larger,
    "broken": camera_fault("broken", anything, least=3),
    "broken-mpegts": camera_fault("broken", anything, "mpegts", least=3),
    "garbage": camera_fault("garbage", has_state("lost", 2)),
    "garbage-mpegts": camera_fault("garbage", has_state("lost"), "mpegts"),
    "slow-watcher": slow_watcher,
    "silent-webhook": silent_webhook,
    "engine": failing_engine,
    "disk-video": full_disk("disk-video", "no space left for drawn.mp4", "--out", "drawn.mp4"),
    "disk-lines": full_disk("disk-lines", "poses.jsonl cannot be written"),
    "sigterm": stopped_by(signal.SIGTERM),
    "ctrl-c": stopped_by(signal.SIGINT),
    "ctrl-c-silent": stopped_by(signal.SIGINT, "silent"),
    "sigterm-lost": stopped_by(signal.SIGTERM, "gone"),
    "sigkill": killed,
}
