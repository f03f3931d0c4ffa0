"""Speed of the pipeline beside others: exact on tiny engines, the peer on the bundled ones, and the command whole."""

import itertools
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from eval.stream_bench import __main__ as stream_bench
from eval.stream_bench.contestants import (
    Camera,
    Clip,
    Contestant,
    EnginesAlone,
    Turn,
    inputs_of,
    loop,
    peer,
    pipeline,
    take_turn,
)
from eval.stream_bench.crowd import TILE, Crowds, crowd, render_tiles
from eval.stream_bench.peer import open_peer
from eval.stream_bench.report import curve_rows, rows_of
from runtime.crop import letterbox
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import read_image
from runtime.pose import PoseEstimator
from runtime.walkers import render_clip
from tests import engines
from tests.conftest import write_clip

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "models/person.onnx", ROOT / "models/pose.onnx"


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", frames=12)


@pytest.fixture
def estimators(person_path, pose_path):
    return PersonDetector(open_engine(person_path, "person")), PoseEstimator(open_engine(pose_path, "pose"))


def test_a_camera_gives_the_newest_frame_only(estimators):
    images = [np.full((4, 4, 3), index, np.uint8) for index in range(20)]
    quick = list(Camera(images, fps=200))
    assert quick[-1].index == 19
    assert all((frame.image == frame.index).all() and frame.time == frame.index / 200 for frame in quick)

    camera, seen = Camera(images, fps=200), []
    for frame in camera:
        time.sleep(0.012)  # more than two frames arrive meanwhile
        seen.append(frame.index)
        assert camera.age(frame) >= 0.012
    assert seen[-1] == 19  # the clip's last frame waits to be fetched
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(seen[:-1]))


def test_pipeline_and_loop_find_the_same(clip, estimators):
    for way in (pipeline(*estimators), pipeline(*estimators, followed=True), loop(*estimators)):
        turn = take_turn(Contestant("", way), Clip(clip, 10))
        assert (turn.frames, turn.persons, turn.ages) == (10, 10, [])
        assert turn.seconds > 0 and turn.cpu_seconds > 0


def test_ages_count_from_the_arrival(clip, estimators):
    images = [frame.image for frame in Clip(clip, 12)]

    def slow(source):
        for frame in source:
            time.sleep(0.02)
            yield frame, 1

    turn = take_turn(Contestant("", slow), Camera(images, fps=100))
    assert turn.frames == turn.persons == len(turn.ages) < 12
    assert min(turn.ages) >= 0.02
    turn = take_turn(Contestant("", pipeline(*estimators)), Camera(images, fps=25))
    assert 0 < turn.frames == turn.persons == len(turn.ages)


def test_inputs_are_those_of_the_stages(clip, estimators):
    detector, pose = estimators
    before = detector.engine, pose.engine
    (pictures, crops), found = inputs_of(detector, pose, Clip(clip, 3))
    assert (detector.engine, pose.engine) == before
    assert [persons for _, persons in found] == [1, 1, 1]
    for frame, picture, crop in zip(Clip(clip, 3), pictures, crops, strict=True):
        np.testing.assert_array_equal(picture[0], letterbox(frame.image, (320, 192))[0])
        assert crop.shape == (1, 128, 96, 3)


def test_engines_alone_count_every_run(clip, estimators):
    alone = EnginesAlone(*estimators, Clip(clip, 12))
    turn = take_turn(Contestant("", alone.run, paced=False), Clip(clip, 12))
    assert (turn.frames, turn.persons) == (12, 12)
    assert len(alone.stages) == 1 and max(alone.stages[0]) <= turn.seconds

    # An engine that fails is an error, not a fast one.
    smaller = write_clip(clip.with_name("other.mp4"), frames=2)
    broken = EnginesAlone(*estimators, Clip(smaller, 2))
    broken.inputs[1].append(np.zeros((1, 7, 7, 3), np.uint8))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        take_turn(Contestant("", broken.run), Clip(smaller, 2))


def test_figures_of_known_turns():
    def turn(seconds, cpu, ages=()):
        return Turn(10, 30, seconds, cpu, list(ages))

    files = {"pipeline": [turn(1.0, 1.5), turn(2.0, 1.5), turn(1.0, 1.5)],
             "engines alone": [turn(0.8, 1.5), turn(1.0, 1.5), turn(0.5, 1.5)],
             "other": [turn(2.0, 3.0), turn(2.0, 3.0), turn(4.0, 1.5)]}
    cameras = {"pipeline": [turn(1, 1, [0.01, 0.02, 0.03])] * 3, "other": [turn(1, 1, [0.04, 0.04])] * 3}
    own, alone, other = rows_of(files, cameras, frames=4)
    assert own["fps"] == 10 and own["cpu_ms"] == 150 and own["persons"] == 3
    assert own["fps_ratio"] == [1, 1, 1] and own["taken"] == 0.75
    assert alone["fps_ratio"] == pytest.approx([2, 1.25, 2])
    assert alone["p50_ms"] is alone["p50_ratio"] is alone["taken"] is None
    assert other["fps_ratio"] == pytest.approx([0.5, 0.25, 1]) and other["cpu_ratio"] == pytest.approx([2, 1, 2])
    assert other["p50_ms"] == pytest.approx(40) and other["p50_ratio"] == pytest.approx([2, 2, 2])
    one, two = curve_rows({1: cameras["pipeline"], 2: cameras["other"]}, frames=4)
    assert one["p50_ms"] == pytest.approx(20) and one["p99_ms"] == pytest.approx(30)
    assert two["results"] == 6 and two["taken"] == 0.5 and two["p50_ratio"] == pytest.approx([2, 2, 2])


@pytest.fixture(scope="module")
def people():
    return render_tiles(3)


def test_a_crowd_has_its_number_of_persons(people):
    images, boxes = crowd(people, 3, frames=4)
    assert len(images) == len(boxes) == 4
    assert images[0].shape == (480, 1280, 3)
    width, height = TILE
    assert (images[0][height:] == 114).all() and (images[0][:, 3 * width:] == 114).all()
    for number, box in enumerate(boxes[2]):
        picture, own_box = people[number][2 % len(people[number])]
        np.testing.assert_array_equal(images[2][:height, number * width:(number + 1) * width], picture)
        np.testing.assert_allclose(box, own_box + [number * width, 0, number * width, 0])
        assert number * width <= box[0] < box[2] <= (number + 1) * width and 0 <= box[1] < box[3] <= height


def test_crowds_are_posed_whole(estimators):
    crowds = Crowds(*estimators, frames=2, persons=(1, 2))
    crowds.take_turns()
    crowds.take_turns()
    for number, turns in crowds.turns.items():
        assert len(turns) == 2
        assert all(turn.persons == number * turn.frames > 0 for turn in turns)


def planes(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def test_the_peer_runs_the_same_networks(tmp_path):
    """Its copies compute what our engines compute, and it finds the same people."""
    pytest.importorskip("rtmlib", reason="the peer is not installed: pip install --no-deps rtmlib")
    estimate = open_peer(*BUNDLED, tmp_path)
    person, pose = (open_engine(path) for path in BUNDLED)
    image = list(render_clip(1, (640, 480), seed=0))[0][0]
    boxed = letterbox(image, person.input_size)[0][None]
    crops = np.stack([cv2.resize(image, pose.input_size), cv2.resize(image[::-1], pose.input_size)])
    for engine, name, pixels in ((person, "person.onnx", boxed), (pose, "pose.onnx", crops)):
        copy = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        [found] = copy.run(None, {copy.get_inputs()[0].name: planes(pixels)})
        outputs = engine.run(pixels)
        if engine is person:
            np.testing.assert_allclose(found[0, :, :4], outputs["kept_boxes"], atol=0.01)
            np.testing.assert_allclose(found[0, :, 4], outputs["kept_scores"], atol=1e-4)
        else:
            np.testing.assert_allclose(found, outputs["heatmaps"], atol=1e-4)

    keypoints, _ = estimate(image)
    boxes, _ = PersonDetector(person)(image)
    ours = PoseEstimator(pose)(image, boxes)[:, :, :2]
    assert len(keypoints) == len(ours) == 3
    distances = np.linalg.norm(keypoints[:, None] - ours[None], axis=3)
    # Half of a person's keypoints lie within a fiftieth of its height: the decoding differs, and the box a little.
    assert (np.median(distances, 2).min(0) < 0.02 * (boxes[:, 3] - boxes[:, 1])).all()
    assert [persons for _, persons in peer(estimate)(Camera([image], 25))] == [3]


def test_the_peer_can_run_on_one_thread(tmp_path):
    pytest.importorskip("rtmlib", reason="the peer is not installed: pip install --no-deps rtmlib")
    pipeline_of_peer = open_peer(*BUNDLED, tmp_path, threads=1)
    for tool in (pipeline_of_peer.det_model, pipeline_of_peer.pose_model):
        assert tool.session.get_session_options().intra_op_num_threads == 1


def test_engines_that_the_peer_cannot_run(tmp_path, pose_path):
    pytest.importorskip("rtmlib", reason="the peer is not installed: pip install --no-deps rtmlib")
    raw = engines.person_engine(tmp_path / "raw.onnx", kind="raw")
    with pytest.raises(BadInput, match="raw.onnx has the outputs boxes, scores"):
        open_peer(raw, pose_path, tmp_path / "copies")
    with pytest.raises(BadInput, match="does not begin with Cast and Transpose"):
        open_peer(engines.person_engine(tmp_path / "kept.onnx"), pose_path, tmp_path / "copies")


def test_the_command_whole_without_the_peer(clip, person_path, pose_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rtmlib", None)  # cannot be imported, as where it is not installed
    stream_bench.main(["--video", str(clip), "--frames", "6", "--rounds", "2", "--crowd-frames", "2", "--detector",
                       str(person_path), "--pose", str(pose_path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "no peer: rtmlib is not installed: pip install --no-deps rtmlib" in printed
    assert "as fast as engines alone; aim 0.95" in printed and "aim 1.5" not in printed
    assert printed.count("\n| pipeline |") == 2
    tables = [part.splitlines() for part in printed.split("\n\n") if part.startswith("|")]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert [line.split("|")[1].strip() for line in tables[-1][2:]] == ["1", "2", "4", "8", "16"]
    report = json.loads((tmp_path / "out/stream_bench.json").read_text())
    assert report["protocol"]["frames"] == 6
    assert all(row["persons"] == 1 and len(row["as_file"]) == 2 for row in report["rows"])
    assert min(report["engines_alone_ms"].values()) > 0
    assert min(read_image(tmp_path / "out/latency.png").shape[:2]) > 300


@pytest.mark.parametrize(("wrong", "message"), [
    (["--video", "none.mp4"], "video none.mp4 does not exist"),
    (["--detector", "none.onnx"], "engine none.onnx does not exist"),
    (["--out", "a file"], "a file"),
])
def test_bad_input_ends_in_a_line(wrong, message, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("")
    with pytest.raises(BadInput, match=message):
        stream_bench.main(["--video", str(clip), "--detector", str(BUNDLED[0]), "--pose", str(BUNDLED[1]), *wrong])
