"""The command where it is ended or hindered: signals, cut-off files, readers that stop, disks that are full."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.cameras import send_camera, served
from tests.conftest import count_frames, index_first, write_clip
from tests.stream_command import error_of, start, stream, wait_for


def start_on_a_camera(address, tmp_path, engines):
    """The command on a live stream, once it has written some frames."""
    running = start(tmp_path, "--video", f"{address}/live", "--out", "drawn.mp4", "--jsonl", "poses.jsonl", *engines)
    wait_for(running, tmp_path / "poses.jsonl", lambda lines: len(lines) >= 10, seconds=90)
    return running


def test_cut_off_video_keeps_its_output(tmp_path, engines):
    clip = index_first(write_clip(tmp_path / "clip.mp4", frames=40))
    clip.write_bytes(clip.read_bytes()[:clip.stat().st_size // 2])
    ended = stream("--video", clip, "--out", tmp_path / "drawn.mp4", "--jsonl", tmp_path / "poses.jsonl", *engines)
    message = error_of(ended)
    assert "ended at frame " in message
    frames = int(message.split("ended at frame ")[1].split()[0])
    assert f"ended at frame {frames} of 40" in message
    assert count_frames(tmp_path / "drawn.mp4") == frames > 5
    assert len((tmp_path / "poses.jsonl").read_text().splitlines()) == frames
    assert ended.stdout.splitlines()[0].split() == ["frames", str(frames)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly(tmp_path, engines, number, code):
    with served(send_camera(frames=3000, fps=50)) as address:
        running = start_on_a_camera(address, tmp_path, engines)
        running.send_signal(number)
        output, errors = running.communicate(timeout=30)
    assert running.returncode == code, errors
    assert "Traceback" not in errors
    assert output.startswith("frames ")
    assert count_frames(tmp_path / "drawn.mp4") >= 1
    text = (tmp_path / "poses.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["persons"] for line in text.splitlines()]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
@pytest.mark.parametrize("reader", ["none", "idle"])
def test_sigterm_ends_a_run_whose_reader_does_not_read(tmp_path, engines, reader):
    """One signal is enough where opening or writing waits for the reader of a pipe."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK) if reader == "idle" else None
    if reading is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)

    def waiting_bytes():
        return int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder)

    def stuck():
        if reading is None:
            return (tmp_path / "drawn.mp4").exists()  # it is opened before
        before = waiting_bytes()
        time.sleep(0.5)
        return before == waiting_bytes() > 3000

    with served(send_camera(frames=30_000, fps=200)) as address:
        running = start(tmp_path, "--video", f"{address}/live", "--jsonl", "pipe", "--out", "drawn.mp4", *engines)
        deadline = time.monotonic() + 60
        while not stuck():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=30)
    if reading is not None:
        os.close(reading)
    assert running.returncode == 143 and "Traceback" not in errors, errors


def test_lines_on_stdout_and_a_reader_that_has_seen_enough(tmp_path, engines):
    clip = write_clip(tmp_path / "clip.mp4", frames=60)
    ended = stream("--video", clip, "--jsonl", "-", *engines, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [json.loads(line)["frame"] for line in ended.stdout.splitlines()] == list(range(60))
    assert "FPS" in ended.stderr and not (tmp_path / "-").exists()
    with start(tmp_path, "--video", clip, "--csv", "/dev/stdout", *engines) as running:
        assert running.stdout.readline().startswith("source,state,frame,time,id")
        running.stdout.close()
        errors = running.stderr.read()
    assert running.returncode == 0 and "Traceback" not in errors and "BrokenPipe" not in errors, errors


def test_a_second_start_by_mistake_leaves_the_lines_of_the_first(tmp_path, engines):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    for name in ("poses.jsonl", "poses.csv"):
        (tmp_path / name).write_text("of the first\n")
    with socket.create_server(("127.0.0.1", 0)) as first:
        ended = stream("--video", clip, "--jsonl", "poses.jsonl", "--csv", "poses.csv", "--serve",
                       first.getsockname()[1], *engines, cwd=tmp_path)
    assert "cannot be listened on" in error_of(ended)
    assert {(tmp_path / name).read_text() for name in ("poses.jsonl", "poses.csv")} == {"of the first\n"}


def test_killed_run_leaves_whole_lines(tmp_path, engines):
    with served(send_camera(frames=3000, fps=50)) as address:
        running = start_on_a_camera(address, tmp_path, engines)
        running.kill()
        running.communicate(timeout=30)
    text = (tmp_path / "poses.jsonl").read_text()
    assert text.endswith("\n")
    assert len([json.loads(line) for line in text.splitlines()]) >= 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_keeps_the_video(tmp_path, engines):
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    ended = stream("--video", clip, "--out", tmp_path / "drawn.mp4", "--jsonl", "/dev/full", *engines)
    assert "/dev/full cannot be written: No space left on device" in error_of(ended)
    assert count_frames(tmp_path / "drawn.mp4") == 1
