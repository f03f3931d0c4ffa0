"""The command, as a process of its own: what it writes, says and returns."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import BadInput
from runtime.options import check_interval
from runtime.stream import open_sources
from runtime.timings import Latest
from tests.conftest import count_frames, figure, index_first, write_clip
from tests.test_frames import send_camera, served
from tests.test_reconnect import in_turn

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "runtime.stream"]


@pytest.fixture
def engines(person_path, pose_path):
    return ["--detector", str(person_path), "--pose", str(pose_path)]


def stream(*arguments, cwd=ROOT, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100,
                          env=environment, **options)


def error_of(ended):
    """The error's one line; the progress bar before it ends in a line of its own."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_video_to_video_and_json_lines(tmp_path, engines):
    clip = write_clip(tmp_path / "clip.mp4", frames=25, fps=10)
    ended = stream("--video", clip, "--out", tmp_path / "drawn.mp4", "--jsonl", tmp_path / "poses.jsonl", *engines)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(25))
    for line in lines:
        _, box, dots = figure(line["frame"])
        [person] = line["persons"]
        assert person["id"] == 1 and line["version"] == 3
        assert line["events"] == ([{"kind": "enter", "id": 1}] if line["frame"] == 0 else [])
        np.testing.assert_allclose(person["box"], box, atol=2)
        np.testing.assert_allclose(np.array(person["keypoints"])[:, :2], dots, atol=1.5)
        assert line["time"] == pytest.approx(line["frame"] / 10, abs=1e-3)
    assert count_frames(tmp_path / "drawn.mp4") == 25
    table = {line[:12].strip(): line[12:].split() for line in ended.stdout.splitlines()}
    assert table["frames"] == table["persons"] == ["25"]
    assert table["tracks"] == ["1"] and "detected on" not in table
    assert float(table["FPS"][0]) > 1
    for stage in ("capture", "detect", "pose", "track", "draw, write", "age"):
        p50, p99 = map(float, table[stage])
        assert 0 <= p50 <= p99
    assert "25/25" in ended.stderr and ended.stderr.count("\r") <= 2  # no line of a log for every state of it
    assert "persons=1" in ended.stderr


def test_options_of_tracking(tmp_path, engines):
    clip, lines = write_clip(tmp_path / "clip.mp4", frames=12, fps=25), tmp_path / "poses.jsonl"

    def run(*options):
        ended = stream("--video", clip, "--jsonl", lines, *options, *engines)
        assert ended.returncode == 0, ended.stderr
        people = [person for line in lines.read_text().splitlines() for person in json.loads(line)["persons"]]
        return ended.stdout, people

    output, smoothed = run("--detect-every", 3, "--report", "jitter")
    table = {line[:12].strip(): line[12:].split() for line in output.splitlines()}
    assert table["detected on"] == ["4", "frames"] and 10 < float(table["lag"][0]) < 100
    assert table["jitter"][-3:] == ["nobody", "at", "rest"]
    _, steadier = run("--smooth", 0.01, 0)
    output, found = run("--no-smooth", "--report", "jitter")
    assert "jitter" in output and "lag" not in output
    _, untracked = run("--no-track")
    assert [len(people) for people in (smoothed, steadier, found, untracked)] == [12] * 4
    assert {person["id"] for person in smoothed + steadier + found} == {1}
    assert {person["id"] for person in untracked} == {None}
    last_dot = [people[-1]["keypoints"][0][0] for people in (steadier, found, untracked)]
    assert last_dot[0] < last_dot[1] - 10  # hardly any smoothing lags so; the walker is on its way to the right
    assert last_dot[1] == last_dot[2]


def table_of(ended):
    return {line[:12].strip(): line[12:].split() for line in ended.stdout.splitlines()}


def test_several_sources_of_different_kinds(tmp_path, engines):
    """Two clips and a folder: each has its own drawn output, its own persons and its own frames in the common lines."""
    clips = [write_clip(tmp_path / f"clip{number}.mp4", frames=frames) for number, frames in enumerate((12, 5))]
    (tmp_path / "photos").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), figure(index)[0])
    ended = stream("--video", clips[0], "--images", tmp_path / "photos", "--video", clips[1], *engines,
                   "--out", "drawn.mp4", "--jsonl", "poses.jsonl", "--csv", "poses.csv", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    counts = [12, 3, 5]
    assert [count_frames(tmp_path / f"drawn_{number}.mp4") for number in range(3)] == counts
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    for source, count in enumerate(counts):
        of_source = [line for line in lines if line["source"] == source]
        assert [line["frame"] for line in of_source] == [*range(count), None]
        assert of_source.pop()["state"] == "ended"
        for line in of_source:
            [person] = line["persons"]
            assert person["id"] == (None if source == 1 else 1)
            np.testing.assert_allclose(person["box"], figure(line["frame"])[1], atol=2)
    assert len((tmp_path / "poses.csv").read_text().splitlines()) == 1 + 20 + 3
    table = table_of(ended)
    assert table["frames"] == table["persons"] == ["20"] and table["tracks"] == ["2"]
    assert table["source 1"] == ["3", "of", str(tmp_path / "photos")]
    assert "20/20" in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_video_from_a_pipe(tmp_path, engines):
    clip = write_clip(tmp_path / "clip.mkv", frames=20)
    ended = subprocess.run([*COMMAND, "--video", "-", "--jsonl", "poses.jsonl", *engines], cwd=tmp_path, timeout=100,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}, input=clip.read_bytes(), capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "poses.jsonl").read_text().count('"id": 1') == 20 + 1  # in 20 frames, and when it entered


def wait_for(running, path, enough, seconds=60):
    """Until the lines of a file are enough."""
    deadline = time.monotonic() + seconds
    while True:
        lines = [json.loads(line) for line in (path.read_text() if path.exists() else "").splitlines()
                 if line.endswith("}")]
        if enough(lines):
            return lines
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(f"not enough in {path.name}: {running.communicate()}")
        time.sleep(0.05)


def start(tmp_path, *arguments):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


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


def test_drawn_video_shows_the_skeleton(tmp_path, engines):
    stream("--video", write_clip(tmp_path / "clip.mp4", frames=3), "--out", tmp_path / "drawn.avi", *engines)
    image = cv2.VideoCapture(str(tmp_path / "drawn.avi")).read()[1]
    plain, _, dots = figure(0)
    middle = ((dots[0] + dots[2]) / 2).astype(int)  # of a limb, white in the clip
    assert plain[middle[1], middle[0]].tolist() == [255, 255, 255]
    assert image[middle[1], middle[0], 0] < 150  # orange now


def test_images_to_folder(tmp_path, engines):
    (tmp_path / "photos").mkdir()
    for index in (1, 2, 10):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), figure(index)[0])
    ended = stream("--images", tmp_path / "photos", "--out", tmp_path / "drawn", *engines)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["1.jpg", "10.jpg", "2.jpg"]
    assert "tracks" not in ended.stdout  # photographs have nothing to do with each other


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


def start_on_a_camera(address, tmp_path, engines):
    """The command on a live stream, once it has written some frames."""
    running = subprocess.Popen([*COMMAND, "--video", f"{address}/live", "--out", str(tmp_path / "drawn.mp4"),
                                "--jsonl", str(tmp_path / "poses.jsonl"), *engines], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    lines = tmp_path / "poses.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") >= 10):
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(f"no ten frames: {running.communicate()}")
        time.sleep(0.02)
    return running


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


def test_two_channels_of_one_recorder_are_told_apart():
    """And no camera is needed to see it: nothing listens there, and the others are waited for."""
    sources = open_sources([("video", "rtsp://user:secret@127.0.0.1:1/1"), ("video", "rtsp://127.0.0.1:1/2")], (60,))
    assert [source.label for source in sources] == ["rtsp://127.0.0.1:1 (source 0)", "rtsp://127.0.0.1:1 (source 1)"]


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


@pytest.mark.parametrize(("arguments", "message"), [
    (["--video", "gone.mp4"], "video gone.mp4 does not exist"),
    (["--camera", "63"], "camera 63 does not open"),
    (["--camera", "-1"], "--camera -1 is below 0: give 0 for the first"),
    (["--video", "clip.mp4", "--serve-token", "abcdefghijkl"], "--serve-token is the page's: give --serve"),
    (["--video", "clip.mp4", "--smooth", "1", "8", "--no-smooth"], "--smooth has no effect with --no-smooth"),
    (["--video", "clip.mp4", "--smooth", "1", "8", "--no-track"], "--smooth has no effect with --no-track"),
    (["--video", "clip.mp4", "--jsonl", "-", "--csv", "-"], "--csv - is also the --jsonl"),
    (["--images", "gone"], "folder gone does not exist"),
    (["--video", "clip.mp4", "--out", "drawn.webm"], "drawn.webm has an unknown suffix"),
    (["--video", "clip.mp4", "--out", "clip.mp4"], "--out clip.mp4 is also the --video"),
    (["--images", ".", "--out", "."], "--out . is also the --images"),
    (["--video", "clip.mp4", "--jsonl", "x.mp4", "--out", "x.mp4"], "--jsonl x.mp4 is also the --out"),
    (["--video", "clip.mp4", "--threshold", "40"], "--threshold 40 is not in 0..1"),
    (["--video", "clip.mp4", "--threads", "0"], "--threads 0 is less than 1"),
    (["--video", "clip.mp4", "--detect-every", "0"], "--detect-every 0 is less than 1"),
    (["--video", "clip.mp4", "--smooth", "0", "1"], "--smooth 0 1: the cutoff must be above 0"),
    (["--video", "clip.mp4", "--no-track", "--report", "jitter"], "--report needs persons that are tracked"),
    (["--video", "clip.mp4", "--video", "-", "--video", "-"], "--video - was given twice, but there is one stdin"),
    (["--video", "clip.mp4", "--video", "gone.mp4"], "video gone.mp4 does not exist"),
    (["--video", "clip.mp4", "--images", ".", "--out", "clip.mp4", "--csv", "clip_1.mp4"], "is also the --out"),
    (["--video", "clip.mp4", "--max-age", "80"], "--max-age 80 is no time: give a number above 0 with its unit"),
    (["--video", "clip.mp4", "--max-age", "80ms"], "--max-age holds the age of live frames"),
    (["--video", "clip.mp4", "--pose", "a.onnx"], "2 --pose engines are for --max-age to choose from"),
    (["--images", ".", "--detect-every", "auto"], "--detect-every needs persons that are tracked, which --images"),
    (["--video", "clip.mp4", "--detector", "gone.onnx"], "engine gone.onnx does not exist"),
    (["--video", "clip.mp4", "--detector", "clip.mp4"], "clip.mp4 is not an engine"),
])
def test_mistakes_end_in_one_line_before_any_work(tmp_path, engines, arguments, message):
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    before = clip.read_bytes()
    ended = stream(*engines, *arguments, cwd=tmp_path)
    assert message in error_of(ended)
    assert ended.stderr.count("\n") == 1
    assert clip.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_show_without_windows_names_the_remedy(tmp_path, engines):
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    ended = stream("--video", write_clip(tmp_path / "clip.mp4", frames=3), "--show", *engines)
    assert "pip uninstall opencv-python-headless && pip install opencv-python" in error_of(ended)


def test_help_teaches_by_examples():
    ended = stream("--help")
    assert ended.returncode == 0
    assert ended.stdout.count("python -m runtime.stream --") >= 5


@pytest.mark.skipif(not (ROOT / "models" / "person.onnx").exists(), reason="needs the trained engines")
def test_trained_engines_from_any_folder(tmp_path, person_path):
    """The project's own engines are found from elsewhere, and do every frame; the detector that finds the bright
    rectangle brings persons to the trained pose engine."""
    clip = write_clip(tmp_path / "clip.mp4", frames=4)
    for detector in ([], ["--detector", person_path]):
        ended = stream("--video", clip, "--jsonl", "poses.jsonl", "--out", "drawn.mp4", *detector, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
        assert len(lines) == count_frames(tmp_path / "drawn.mp4") == 4
    for line in lines:
        [person] = line["persons"]
        keypoints = np.array(person["keypoints"])
        assert keypoints.shape == (17, 3)
        left, top, right, bottom = person["box"]
        assert (np.abs(keypoints[:, 0] - (left + right) / 2) < bottom - top).all()  # within the crop
        assert (np.abs(keypoints[:, 1] - (top + bottom) / 2) < bottom - top).all()


@pytest.mark.parametrize(("every", "fps"), [(1, 25), (1, 0.2), (25, 25), (3, 4), ("auto", 0.2)])
def test_intervals_that_lose_nobody(every, fps):
    check_interval(every, fps)


@pytest.mark.parametrize(("every", "fps", "most"), [(30, 25, 25), (2, 0.5, 1), (9, 8, 8)])
def test_an_interval_in_which_persons_are_forgotten_is_refused(every, fps, most):
    with pytest.raises(BadInput, match=f"--detect-every {every} is .* give {most} or less, or auto"):
        check_interval(every, fps)


def test_the_latest_seconds_are_kept_in_memory_that_does_not_grow(monkeypatch):
    monkeypatch.setattr("runtime.timings.KEPT", 4)
    latest = Latest()
    for seconds in (1, 2, 3):
        latest.append(seconds)
    assert latest.values().tolist() == [1, 2, 3]
    for seconds in (4, 5, 6):
        latest.append(seconds)
    assert sorted(latest.values().tolist()) == [3, 4, 5, 6]
