"""Rehearsals: a few of the faults and a few seconds of a soak for real, and what judges them."""

import json
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

from runtime.engine import open_engine
from runtime.options import MODELS
from runtime.rehearse import soak
from runtime.rehearse.cameras import Camera
from runtime.rehearse.faults import Missed, for_one_person_only, refused
from runtime.rehearse.product import Step, product, run
from runtime.rehearse.soak import Sample, judge, judge_returns, plan, slope
from runtime.rehearse.trial import Trial, read_lines, states_of
from tests.conftest import ROOT, write_clip

COMMAND = [sys.executable, "-m", "runtime.rehearse"]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and sends POSIX signals"),
    pytest.mark.skipif(not (MODELS / "person.onnx").exists(), reason="needs the bundled engines"),
]


def rehearse(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_some_faults_for_real(tmp_path):
    names = ["drop", "disk-lines", "ctrl-c"]
    ended = rehearse("--faults", *names, "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["pass", name] for name in names]
    assert "live → lost → live; exit code 143" in lines[0] and "playable" in lines[0]
    assert "poses.jsonl cannot be written: File too large" in lines[1] and "exit code 130" in lines[2]
    assert ended.stderr == ""


def test_what_ends_otherwise_than_it_should_is_a_failure(tmp_path):
    trial = Trial(tmp_path / "run", "--video", write_clip(tmp_path / "clip.mp4", frames=3))
    with pytest.raises(Missed, match="exit code 0, not 2"):
        refused(trial, "no space left")


def test_an_engine_that_takes_one_person_only(tmp_path):
    path = tmp_path / "fails.onnx"
    path.write_bytes(for_one_person_only((MODELS / "pose.onnx").read_bytes()))
    engine, whole = open_engine(path, "pose"), open_engine(MODELS / "pose.onnx", "pose")
    crops = np.random.default_rng(0).integers(0, 256, (2, 256, 192, 3), np.uint8)
    np.testing.assert_array_equal(engine.run(crops[:1])["heatmaps"], whole.run(crops[:1])["heatmaps"])
    with pytest.raises(Exception, match="cannot be reshaped"):
        engine.run(crops)


def test_seconds_of_a_soak(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "SAMPLE_EVERY", 0.5)
    monkeypatch.setattr(soak, "PICTURES", 10)
    soak.soak(0.15, 5, tmp_path / "soak")
    record = json.loads((tmp_path / "soak" / "soak.json").read_text())
    verdicts = {verdict["asked"]: verdict for verdict in record["verdicts"]}
    assert verdicts["it runs to the end"]["passed"] and verdicts["SIGTERM ends it with exit code 143"]["passed"]
    whole = verdicts["every JSON line is whole, each camera's in order"]
    assert whole["passed"] and int(whole["seen"].split()[0]) > 40
    for sample in record["samples"]:
        assert 50 < sample["rss"] < 2000 and sample["threads"] > 5 and sample["handles"] > 5
        assert sample["states"] == ["live", "live"]
    assert record["samples"][-1]["frames"][0] > record["samples"][0]["frames"][0] + 20
    assert "the stream's own table:\nframes " in (tmp_path / "soak" / "soak.txt").read_text()


def test_stopping_a_soak_stops_its_stream(tmp_path):
    """Where Ctrl-C is ignored at first, as in commands that a shell started in the background."""
    running = subprocess.Popen([*COMMAND, "--soak", "5", "--rate", "25", "--out", str(tmp_path)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    said, deadline = tmp_path / "soak" / "said.txt", time.monotonic() + 100
    while not (said.exists() and "page: " in said.read_text()):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.1)
    port = urlsplit(said.read_text().partition("page: ")[2].split()[0]).port
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and "Traceback" not in errors, errors
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def samples(rss=lambda minute: 300.0, threads=lambda minute: 15, age=lambda minute: 0.05, minutes=60):
    return [Sample(seconds, rss(seconds / 60), threads(seconds / 60), 13, [5 * seconds, 5 * seconds],
                   ["live", "live"], 0.03, age(seconds / 60)) for seconds in range(0, 60 * minutes, 5)]


@pytest.mark.parametrize(("given", "fails"), [
    ({}, None),
    ({"rss": lambda minute: 250 + 50 * min(1, minute / 5)}, None),  # it fills during the warm-up
    ({"rss": lambda minute: 300 + 5 * (minute % 3)}, None),  # up and down
    ({"rss": lambda minute: 300 + 0.4 * minute}, "memory grows"),
    ({"rss": lambda minute: 400 if 30 < minute < 31 else 300}, "memory peaks"),
    ({"threads": lambda minute: 15 + minute // 6}, "threads do not grow"),
    ({"age": lambda minute: 0.05 + 0.05 * minute}, "age below"),
    ({"age": lambda minute: None}, "age below"),
])
def test_what_a_soak_asks_for(given, fails):
    failed = [verdict.asked for verdict in judge(samples(**given), 3600) if not verdict.passed]
    assert len(failed) == (fails is not None) and all(asked.startswith(fails) for asked in failed)


def test_a_camera_that_stays_away_after_a_trouble_is_noticed():
    well = samples(minutes=10)
    plans = [plan(600, 0.0), plan(600, 0.5)]
    assert all(verdict.passed for verdict in judge_returns(well, plans, 5, 600))
    gone = [Sample(*list(vars(sample).values())[:4], [sample.frames[0], min(1500, sample.frames[1])],
                   *list(vars(sample).values())[5:]) for sample in well]
    assert [verdict.passed for verdict in judge_returns(gone, plans, 5, 600)] == [True, True, False]
    assert not judge_returns(well[:60], plans, 5, 600)[0].passed  # it ended half way


def test_troubles_of_a_soak():
    troubles = plan(3600, 0.0)
    assert len(troubles) >= 15 and {mode for _, _, mode in troubles} == {mode for mode, _ in soak.TROUBLES}
    assert all(end < begin for (_, end, _), (begin, _, _) in zip(troubles, troubles[1:], strict=False))
    assert troubles[-1][0] < 3600 - 40
    assert not plan(30, 0.0)


def test_slope_is_robust():
    times = np.arange(50.0)
    values = 3 * times + 7
    values[[5, 20, 30]] += 1000
    assert slope(times, values) == pytest.approx(3)


def line(frame, time=0.0, source=0, state="live"):
    return json.dumps({"source": source, "state": state, "frame": frame, "time": time}) + "\n"


@pytest.mark.parametrize(("text", "error"), [
    (line(0) + line(0, source=1) + line(None, 1.0, state="stale") + line(4, 2.0), None),
    (line(0) + line(1, 1.0)[:20], "line 2, the last, has no end"),
    (line(0)[:20] + "\n" + line(1, 1.0), "line 1 is cut off"),
    (line(3) + line(2, 1.0), "line 2 is older"),
    (line(3, 5.0) + line(4, 4.0), "line 2 is older"),
])
def test_lines_that_are_not_whole(tmp_path, text, error):
    path = tmp_path / "poses.jsonl"
    path.write_text(text)
    if error is None:
        assert states_of(list(read_lines(path))) == ["live", "stale", "live"]
    else:
        with pytest.raises(ValueError, match=error):
            list(read_lines(path))


def test_the_product_says_what_it_skips(tmp_path, capsys):
    def render(folder):
        run(folder, "clip", "runtime.walkers", "--out", "clip.mp4", "--truth", "clip.json", "--frames", "2")
        return "a clip"

    def wrong(folder):
        return run(folder, "wrong", "runtime.walkers", "--out", "clip.webm", "--truth", "clip.json")

    steps = [Step("render", ("json",), render), Step("train", ("render", "no_such_library"), render),
             Step("export", ("train",), render)]
    assert product(tmp_path / "product", steps)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["pass", "skip", "skip"]
    assert "not installed: no_such_library; `make dev`" in lines[2] and "it builds on train: skip" in lines[3]
    assert lines[4].startswith("1 pass, 2 skip, 0 FAIL")
    assert not product(tmp_path / "product", [Step("wrong", (), wrong)])
    assert "exit code 2: error: --out clip.webm is no video name" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--soak", "0.2"], "--soak 0.2 is not in 1..44640 minutes"),
    (["--soak", "1", "--rate", "0"], "--rate 0 is not in 1..25 pictures a second"),
    (["--faults", "fire"], "--faults fire is none of stall, hang, drop"),
])
def test_wrong_options(arguments, message):
    ended = rehearse(*arguments)
    assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr


def test_a_camera_is_told_what_to_do():
    picture = np.full((48, 64, 3), 90, np.uint8)
    for kind in ("mjpeg", "mpegts"):
        camera = Camera([picture] * 10, 20, kind)
        address = "127.0.0.1", urlsplit(camera.url).port
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"
            camera.mode = "gone"
            while client.recv(1 << 16):
                pass  # it ends
        assert camera.connections == 1
        camera.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)

