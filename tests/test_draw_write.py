"""Drawing, and writing where everything fits and where it does not."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.draw import BOX, LEFT, MIDDLE, RIGHT, draw_poses, id_colour, side_colour
from runtime.errors import BadInput
from runtime.keypoints import COCO, Poses
from runtime.lines import CsvWriter, JsonLinesWriter
from runtime.track import Event
from runtime.write import LONGEST_REPEAT, ImageWriter, VideoWriter, Window, open_output
from tests.conftest import count_frames
from tests.results import news, noise, result

ROOT = Path(__file__).resolve().parents[1]


def pose_at(points, box=(20, 20, 220, 220)):
    """One COCO person with these keypoints {index: (x, y, score)}, others unseen."""
    keypoints = np.zeros((1, 17, 3), np.float32)
    for index, point in points.items():
        keypoints[0, index] = point
    return Poses(np.array([box], np.float32), np.ones(1, np.float32), keypoints)


def test_sides_have_their_colours():
    assert side_colour("left_knee") == side_colour("left_hip", "left_knee") == LEFT
    assert side_colour("right_eye", "nose") == RIGHT
    assert side_colour("nose") == side_colour("left_hip", "right_hip") == MIDDLE


def test_limbs_are_drawn_where_they_are_and_the_frame_is_left_alone():
    frame = np.zeros((240, 240, 3), np.uint8)
    drawn = draw_poses(frame, pose_at({5: (60, 60, 1), 7: (60, 120, 1), 6: (160, 60, 1)}), COCO)
    assert not frame.any()
    assert tuple(drawn[90, 60]) == LEFT  # the upper arm
    assert tuple(drawn[60, 110]) == MIDDLE  # between the shoulders
    assert tuple(drawn[60, 160]) == RIGHT  # a shoulder's dot
    assert not drawn[150:210, 30:210].any()


def test_unsure_keypoints_are_left_out():
    drawn = draw_poses(np.zeros((240, 240, 3), np.uint8), pose_at({5: (60, 60, 1), 7: (60, 120, 0.29)}), COCO)
    assert not drawn[90, 60].any()
    drawn = draw_poses(np.zeros((240, 240, 3), np.uint8), pose_at({5: (60, 60, 1), 7: (60, 120, 0.29)}), COCO, 0.1)
    assert drawn[90, 60].any()


def test_a_persons_number_colours_the_box_and_is_written_beside_the_score():
    frame, poses = np.zeros((600, 600, 3), np.uint8), pose_at({}, (40, 60, 560, 580))
    unknown = draw_poses(frame, poses, COCO)
    assert tuple(unknown[300, 40]) == BOX
    drawn = {id: draw_poses(frame, poses, COCO, ids=np.array([id])) for id in (1, 2)}
    for id, picture in drawn.items():
        assert tuple(picture[300, 40]) == id_colour(id)
        assert picture[:50].any(2).sum() > unknown[:50].any(2).sum()  # a longer text above the box
    assert (drawn[1][:50] != drawn[2][:50]).any()


def test_colours_of_persons_who_come_one_after_the_other_are_told_apart():
    colours = np.array([id_colour(id) for id in range(1, 200)], float)
    for later in (1, 2, 3):
        assert np.linalg.norm(colours[later:] - colours[:-later], axis=1).min() > 60
    assert (colours.max(1) == 255).all()  # bright


def test_line_width_follows_the_person():
    """The same limb in a box twice as large is drawn about twice as thick."""
    widths = []
    for side in (210, 420):
        poses = pose_at({5: (100, 100, 1), 7: (100, 400, 1)}, (0, 0, side, side))
        drawn = draw_poses(np.zeros((600, 600, 3), np.uint8), poses, COCO)
        widths.append(int((drawn[300, 80:120] == LEFT).all(1).sum()))
    assert widths[0] >= 3
    assert 1.3 * widths[0] <= widths[1] <= 2.5 * widths[0]  # whole pixels, and OpenCV rounds thick lines up


def test_keypoints_far_outside_and_no_persons():
    poses = pose_at({5: (60, 60, 1), 7: (1e12, -1e12, 1)}, (-50, -50, 1e4, 1e4))
    assert draw_poses(np.zeros((100, 100, 3), np.uint8), poses, COCO).any()
    nobody = Poses(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 17, 3), np.float32))
    assert not draw_poses(np.zeros((100, 100, 3), np.uint8), nobody, COCO).any()
    assert draw_poses(np.zeros((100, 100, 3), np.uint8), nobody, COCO, caption="12 FPS")[:40].any()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".MP4"])
def test_video_is_written_into_a_new_folder(tmp_path, suffix, capfd):
    path = tmp_path / "new" / "folder" / f"clip{suffix}"
    writer = open_output(path, fps=12.5)
    for index in range(7):
        writer.write(result(index), np.full((240, 320, 3), 40 + 20 * index, np.uint8))
    writer.close()
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    values = [capture.read()[1].mean() for _ in range(7)]
    np.testing.assert_allclose(values, 40 + 20 * np.arange(7), atol=4)
    assert not capture.read()[0]
    assert capfd.readouterr().err == ""


def test_other_sizes_are_letterboxed_into_the_first(tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", 10)
    for size in ((320, 240), (100, 240), (640, 480)):
        writer.write(result(), np.full((size[1], size[0], 3), 250, np.uint8))
    writer.close()
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    frames = [capture.read()[1] for _ in range(3)]
    assert all(frame.shape == (240, 320, 3) for frame in frames)
    assert frames[1][:, :90].mean() > 240 > 130 > frames[1][:, 110:].mean()  # the picture, and the grey beside it


def test_live_video_runs_at_the_speed_of_life(tmp_path):
    """Frames at 0, 0.1, 0.5, 1.0 and 1.01 s after the first, which itself comes late, at 10 frames a second."""
    writer = VideoWriter(tmp_path / "clip.mp4", 10, live=True)
    for index, seconds in enumerate((0, 0.1, 0.5, 1.0, 1.01)):
        writer.write(result(seconds=3.2 + seconds), np.full((240, 320, 3), 50 * index, np.uint8))
    writer.close()
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    values = [capture.read()[1].mean() for _ in range(11)]
    np.testing.assert_allclose(values, [0, 50, 50, 50, 50, 100, 100, 100, 100, 100, 150], atol=6)
    assert not capture.read()[0]


def test_live_video_of_a_camera_that_was_gone_for_days(tmp_path):
    """The last picture is repeated for a few seconds at most, and then the clip goes on at the speed of life."""
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, 10, live=True)
    days = 3 * 86400
    for seconds in (0, 0.1, LONGEST_REPEAT, days, days + 0.1, days + 0.3):
        writer.write(result(seconds=seconds), np.full((240, 320, 3), 0 if seconds < 100 else 200, np.uint8))
        writer.write(news("lost", "no answer", seconds), None)
    writer.close()
    before = round(10 * LONGEST_REPEAT) + 1
    assert count_frames(path) == before + 4
    capture = cv2.VideoCapture(str(path))
    values = [capture.read()[1].mean() for _ in range(before + 4)]
    np.testing.assert_allclose(values, [0] * before + [200] * 4, atol=6)


def test_word_of_a_source_without_a_frame_is_no_picture(tmp_path):
    for path in (tmp_path / "clip.mp4", tmp_path / "drawn"):
        writer = open_output(path, 25)
        writer.write(result(), noise())
        writer.write(news("stale", "no picture for 3 s"), None)
        writer.close()
    assert count_frames(tmp_path / "clip.mp4") == 1
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["000000.jpg"]


def test_output_of_an_unknown_kind_or_in_an_impossible_place(tmp_path):
    with pytest.raises(BadInput, match=r"clip.webm has an unknown suffix: end it in .mp4, .mov, .avi"):
        open_output(tmp_path / "clip.webm", 25)
    (tmp_path / "file").write_text("in the way")
    for path in ("file/clip.mp4", "file/images"):
        with pytest.raises(BadInput, match="cannot be written"):
            open_output(tmp_path / path, 25)
    for open_writer in (JsonLinesWriter, lambda path: CsvWriter(path, COCO.names)):
        with pytest.raises(BadInput, match="cannot be written"):
            open_writer(tmp_path / "file" / "poses")


def test_video_without_a_frame_leaves_no_file(tmp_path):
    VideoWriter(tmp_path / "clip.mp4", 25).close()
    assert not (tmp_path / "clip.mp4").exists()
    (tmp_path / "old.mp4").write_bytes(b"earlier")
    VideoWriter(tmp_path / "old.mp4", 25).close()
    assert (tmp_path / "old.mp4").read_bytes() == b"earlier"


def test_images_keep_their_names(tmp_path):
    writer = open_output(tmp_path / "drawn", 25)
    assert isinstance(writer, ImageWriter)
    for name in ("a.jpg", "b.png", "a.png", "000012"):
        writer.write(result(name=name), noise())
    writer.close()
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["000012.jpg", "a.jpg", "a.png.jpg", "b.jpg"]
    assert cv2.imread(str(tmp_path / "drawn" / "b.jpg")).shape == (240, 320, 3)


def test_json_lines(tmp_path):
    path = tmp_path / "new" / "poses.jsonl"
    writer = JsonLinesWriter(path)
    for index in range(3):
        writer.write(result(index, persons=index))
        assert path.read_text().count("\n") == index + 1  # on the disk at once, in whole lines
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(line["persons"]) for line in lines] == [0, 1, 2]
    assert lines[2]["frame"] == 2
    assert lines[2]["time"] == 0.08
    person = lines[2]["persons"][1]
    assert person["box"] == [10.5, 20.25, 110.0, 220.0]
    assert person["score"] == 0.877
    assert len(person["keypoints"]) == 17
    assert person["keypoints"][1] == [30.12, 50.0, 0.9]
    assert [(line["version"], line["source"], line["state"]) for line in lines] == [(3, 0, "live")] * 3
    assert person["id"] is None and lines[2]["events"] == []  # nobody tracked


def test_json_lines_of_tracked_persons(tmp_path):
    writer = JsonLinesWriter(tmp_path / "poses.jsonl")
    writer.write(result(4, persons=2, ids=np.array([7, 3]), events=[Event("return", 3), Event("lost", 5)]))
    writer.close()
    line = json.loads((tmp_path / "poses.jsonl").read_text())
    assert list(line) == ["version", "source", "state", "frame", "time", "persons", "events"]
    assert [person["id"] for person in line["persons"]] == [7, 3]
    assert line["events"] == [{"kind": "return", "id": 3}, {"kind": "lost", "id": 5}]


def test_json_lines_of_several_sources_and_of_one_that_is_lost(tmp_path):
    writer = JsonLinesWriter(tmp_path / "poses.jsonl")
    writer.write(result(0, source=1))
    writer.write(news("lost", "no answer within 10 s", 3.25, source=1))
    writer.write(result(0, source=0))
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [1, 1, 0]
    assert lines[1] == {"version": 3, "source": 1, "state": "lost", "frame": None, "time": 3.25, "persons": [],
                        "events": [], "reason": "no answer within 10 s"}


def test_lines_begin_with_an_empty_file_and_can_go_to_a_pipe(tmp_path):
    path = tmp_path / "poses.jsonl"
    for _ in range(2):
        writer = JsonLinesWriter(path)
        writer.write(result())
        writer.close()
    assert path.read_text().count("\n") == 1
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        writer = JsonLinesWriter(tmp_path / "pipe")
        writer.write(result())
        assert os.read(reader, 1 << 16) == path.read_bytes()
        writer.close()
        os.close(reader)


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_says_the_same_as_json_lines(tmp_path):
    written = [result(0, persons=0), result(3, persons=2, ids=np.array([7, 3])), news("lost", "no answer", 1.0),
               result(4, persons=1, source=2)]
    writers = [CsvWriter(tmp_path / "new" / "poses.csv", COCO.names), JsonLinesWriter(tmp_path / "poses.jsonl")]
    for one in written:
        for writer in writers:
            writer.write(one)
    for writer in writers:
        writer.close()
    rows = read_rows(tmp_path / "new" / "poses.csv")
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert list(rows[0])[:13] == ["source", "state", "frame", "time", "id", "score", "left", "top", "right", "bottom",
                                  "nose_x", "nose_y", "nose_score"]
    assert list(rows[0])[-1] == "right_ankle_score" and len(rows[0]) == 10 + 3 * 17
    lost = rows.pop(2)
    assert {name: value for name, value in lost.items() if value} == {"source": "0", "state": "lost", "time": "1.0"}
    assert len(rows) == 3 and {row["state"] for row in rows} == {"live"}
    persons = [(line, person) for line in lines for person in line["persons"]]
    for row, (line, person) in zip(rows, persons, strict=True):
        assert [int(row[name]) for name in ("source", "frame")] == [line["source"], line["frame"]]
        assert float(row["time"]) == line["time"] and float(row["score"]) == person["score"]
        assert row["id"] == ("" if person["id"] is None else str(person["id"]))
        assert [float(row[side]) for side in ("left", "top", "right", "bottom")] == person["box"]
        assert [[float(row[f"{name}_{value}"]) for value in ("x", "y", "score")]
                for name in COCO.names] == person["keypoints"]


def test_csv_of_nobody_has_its_first_line(tmp_path):
    CsvWriter(tmp_path / "poses.csv", COCO.names).close()
    assert (tmp_path / "poses.csv").read_text().count("\n") == 1 and read_rows(tmp_path / "poses.csv") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_text_on_a_full_disk():
    full = "/dev/full cannot be written: No space left on device; free some space"
    writer = JsonLinesWriter("/dev/full")
    with pytest.raises(BadInput, match=full):
        writer.write(result())
    writer.close()
    with pytest.raises(BadInput, match=full):
        CsvWriter("/dev/full", COCO.names)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EACCES, 1)])
def test_a_full_disk_that_nobody_foresaw_is_a_line_and_other_troubles_are_not_hidden(number, code):
    script = ("import os\nfrom runtime.errors import run_command\n"
              f"def main(): raise OSError({number}, os.strerror({number}), 'train.log')\nrun_command(main)")
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    line = "error: train.log cannot be written: No space left on device; free some space and run it again\n"
    assert ended.stderr == line if code == 2 else "Traceback" in ended.stderr


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from runtime.errors import run_command
from tests.test_draw_write import *
def main():
    writer = eval(sys.argv[2])
    try:
        for index in range(2000):
            writer.write(result(index, int(sys.argv[3]), name=f"{index}.jpg"), noise(seed=index))
    finally:
        writer.close()
run_command(main)
"""


def run_with_file_limit(limit, writer, persons=1):
    """Write noise until files of `limit` bytes are full, in a process of its own; Python ignores SIGXFSZ, so the
    write fails as on a full disk."""
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(limit), writer, str(persons)], cwd=ROOT,
                           capture_output=True, text=True, timeout=100, env=dict(os.environ))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: "), ended.stderr
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_full_disk_leaves_a_playable_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    message = run_with_file_limit(5_000_000, f"VideoWriter(Path({str(path)!r}), 25)")
    written = int(message.split(" after ")[1].split()[0])
    assert f"no space left for {path}" in message
    assert count_frames(path) == written > 20


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "poses.jsonl"
    message = run_with_file_limit(100_000, f"JsonLinesWriter(Path({str(path)!r}))")
    assert "poses.jsonl cannot be written: File too large; free some space" in message
    text = path.read_text()
    assert text.endswith("}\n")
    frames = [json.loads(line)["frame"] for line in text.splitlines()]
    assert frames == list(range(len(frames)))
    assert 90_000 < len(text) <= 100_000


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk_leaves_whole_rows_of_whole_frames(tmp_path):
    path = tmp_path / "poses.csv"
    message = run_with_file_limit(100_000, f"CsvWriter(Path({str(path)!r}), COCO.names)", persons=3)
    assert "poses.csv cannot be written: File too large; free some space" in message
    assert path.read_text().endswith("\n")
    frames = [int(row["frame"]) for row in read_rows(path)]
    assert frames == sorted(3 * list(range(len(frames) // 3))) and None not in read_rows(path)[-1].values()
    assert 90_000 < path.stat().st_size <= 100_000


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk_leaves_no_half_image(tmp_path):
    message = run_with_file_limit(5_000, f"ImageWriter(Path({str(tmp_path)!r}))")
    assert "0.jpg cannot be written: File too large" in message
    assert list(tmp_path.iterdir()) == []


def test_window_needs_an_opencv_with_windows():
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    with pytest.raises(BadInput, match="pip uninstall opencv-python-headless && pip install opencv-python"):
        Window()
