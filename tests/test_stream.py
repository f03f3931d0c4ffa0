"""The command, as a process of its own: what it makes of files and of its options."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from runtime.errors import BadInput
from runtime.options import check_interval
from runtime.timings import Latest
from tests.conftest import ROOT, count_frames, figure, write_clip
from tests.stream_command import COMMAND, error_of, stream, table_of


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
