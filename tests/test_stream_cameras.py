"""The command on cameras: those that die and return, are silent, never come, or are too fast to follow."""

import itertools
import json
import signal
import sys
import threading
import time
import urllib.request

import pytest

from runtime.stream import open_sources
from tests.cameras import in_turn, send_camera, served
from tests.conftest import count_frames
from tests.stream_command import error_of, start, stream, table_of, wait_for


def test_a_camera_that_comes_back_and_one_that_never_came(tmp_path, engines):
    """The first dies and is back after a second, with larger pictures; the second does not answer. Ctrl-C ends it."""
    answers = in_turn(send_camera(frames=40, fps=50), send_camera(frames=4000, fps=50, size=(96, 80)))
    with served(answers) as address:
        url = address.replace("http://", "http://admin:secret@") + "/live?token=secret"
        running = start(tmp_path, "--video", url, "--video", "rtsp://admin:secret@127.0.0.1:1/live", "--jsonl",
                        "poses.jsonl", "--out", "drawn.mp4", *engines)
        wait_for(running, tmp_path / "poses.jsonl", lambda lines: [
            line["state"] for line in lines if line["source"] == 0][-10:] == ["live"] * 10
            and any(line["frame"] is None and line["state"] == "live" for line in lines))
        running.send_signal(signal.SIGINT)
        asked = time.monotonic()
        output, errors = running.communicate(timeout=30)
        assert time.monotonic() - asked < 10
    assert running.returncode == 130, errors
    assert "Traceback" not in errors and "secret" not in errors + output + (tmp_path / "poses.jsonl").read_text()
    assert "rtsp://127.0.0.1:1 does not open" in errors and "the others go on without it" in errors
    assert "lost: " in errors and "tried again in 1 s" in errors
    assert "live: " in errors and "now 96x80 pixels, 64x48 before" in errors
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    states = [line["state"] for line in lines if line["source"] == 0]
    assert [state for state, _ in itertools.groupby(states)] == ["live", "lost", "live"]
    assert {line["state"] for line in lines if line["source"] == 1} == {"lost"}
    assert count_frames(tmp_path / "drawn_0.mp4") > 40 and not (tmp_path / "drawn_1.mp4").exists()
    assert output.splitlines()[-1].startswith("age ") and "lost                2 times" in output


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("moment", ["silent", "opening"])
def test_ctrl_c_does_not_wait_for_a_silent_camera(tmp_path, engines, moment):
    connected, over = threading.Event(), threading.Event()

    def answer(handler):
        connected.set()
        if moment == "silent":
            send_camera(frames=30, fps=50)(handler)
        over.wait(60)

    with served(answer) as address:
        running = start(tmp_path, "--video", f"{address}/live", "--jsonl", "poses.jsonl", *engines)
        if moment == "silent":
            wait_for(running, tmp_path / "poses.jsonl", lambda lines: lines and lines[-1]["state"] == "stale")
        assert connected.wait(60)
        running.send_signal(signal.SIGINT)
        asked = time.monotonic()
        _, errors = running.communicate(timeout=30)
        took = time.monotonic() - asked
        over.set()
    assert running.returncode == 130 and "Traceback" not in errors, errors
    assert took < 5


def test_a_camera_on_the_page(tmp_path, engines):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with served(send_camera(frames=4000, fps=50)) as address:
        running = start(tmp_path, "--video", f"{address}/live", "--serve", "0", "--jsonl", "poses.jsonl", *engines)
        page = next(line for line in running.stderr if line.startswith("page: ")).split()[1]
        wait_for(running, tmp_path / "poses.jsonl", lambda lines: len(lines) > 5)
        with urllib.request.urlopen(f"{page}healthz", timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{page}picture/0.jpg", timeout=10) as answer:
            assert answer.headers["content-type"] == "image/jpeg"
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and "Traceback" not in errors, errors


def test_no_reconnect_makes_a_break_an_error(tmp_path, engines):
    with served(send_camera(frames=40, fps=50)) as address:
        ended = stream("--video", f"{address}/live", "--no-reconnect", "--out", tmp_path / "drawn.mp4", *engines)
    assert " stopped after" in error_of(ended)
    assert count_frames(tmp_path / "drawn.mp4") > 10


def test_an_age_that_cannot_be_held(tmp_path, engines):
    """A tenth of a millisecond is less than any engine takes: something is given up, and the table says so."""
    with served(send_camera(frames=150, fps=50)) as address:
        ended = stream("--video", f"{address}/live", "--no-reconnect", "--max-age", "0.1ms", *engines)
    assert "stopped after" in error_of(ended)
    assert "ms, budget 0.1 ms: gives up 1 of 2 detections" in ended.stderr
    table = table_of(ended)
    assert table["budget"][:5] == ["0.1", "ms,", "held", "by", "0.0%"]
    assert table["gave up"][0] == "detections"


def test_two_channels_of_one_recorder_are_told_apart():
    """And no camera is needed to see it: nothing listens there, and the others are waited for."""
    sources = open_sources([("video", "rtsp://user:secret@127.0.0.1:1/1"), ("video", "rtsp://127.0.0.1:1/2")], (60,))
    assert [source.label for source in sources] == ["rtsp://127.0.0.1:1 (source 0)", "rtsp://127.0.0.1:1 (source 1)"]
