"""Opening engines, and detection and pose estimation with them."""

import numpy as np
import onnx
import pytest

from runtime.crop import LETTERBOX_GREY
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.pose import PoseEstimator
from tests import engines
from tests.conftest import figure


def test_metadata_of_both_kinds(person_path, pose_path):
    person, pose = open_engine(person_path, "person"), open_engine(pose_path)
    assert (person.kind, person.input_size, person.schema) == ("person", (320, 192), None)
    assert (pose.kind, pose.input_size) == ("pose", (96, 128))
    assert pose.schema.names == ("left_hand", "right_hand", "nose")
    assert pose.schema.flip_order.tolist() == [1, 0, 2]
    assert pose.metadata["head"] == "heatmap"


def test_one_kind_where_the_other_is_needed(person_path, pose_path):
    with pytest.raises(BadInput, match="person.onnx is a person engine where a pose engine is needed"):
        open_engine(person_path, "pose")
    with pytest.raises(BadInput, match="pose.onnx is a pose engine where a person engine is needed"):
        open_engine(pose_path, "person")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("gone.onnx", None, "does not exist: make it with `make export`"),
    ("empty.onnx", b"", "is not an engine"),
    ("text.onnx", b"version https://git-lfs.github.com/spec/v1\n", "is not an engine"),
    ("net.tflite", b"x", "an engine of LiteRT, which this version does not open: give the .onnx file"),
    ("net.engine", b"x", "net.engine has no net.engine.json beside it"),
    ("net.xml", b"<net/>", "an engine of OpenVINO"),
])
def test_what_is_no_engine(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_cut_off_engine(tmp_path, pose_path):
    path = tmp_path / "half.onnx"
    path.write_bytes(pose_path.read_bytes()[:400])
    with pytest.raises(BadInput, match="is not an engine, or only a part of one: export it again"):
        open_engine(path)


def _without_metadata(model):
    del model.metadata_props[:]


def _with_other_size(model):
    next(entry for entry in model.metadata_props if entry.key == "input_size").value = "64x64"


def _with_broken_keypoints(model):
    next(entry for entry in model.metadata_props if entry.key == "keypoints").value = "{"


def _with_unknown_head(model):
    next(entry for entry in model.metadata_props if entry.key == "head").value = "regression"


def _with_fewer_keypoints(model):
    entry = next(entry for entry in model.metadata_props if entry.key == "keypoints")
    entry.value = entry.value.replace('"nose"', '"nose", "tail"')


def _with_padding(value):
    return lambda model: model.metadata_props.add(key="padding", value=value)


@pytest.mark.parametrize("damage", [_without_metadata, _with_other_size, _with_broken_keypoints, _with_unknown_head,
                                    _with_fewer_keypoints, _with_padding("wide"), _with_padding("nan"),
                                    _with_padding("0.5")])
def test_not_made_by_export(tmp_path, pose_path, damage):
    model = onnx.load(pose_path)
    damage(model)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    with pytest.raises(BadInput, match="was not made by `make export`") as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["kept", "raw"])
@pytest.mark.parametrize(("size", "stretch", "filled"), [
    ((320, 192), 1, 320 * 192), ((640, 384), 1, 320 * 192), ((200, 192), 1, 200 * 192),
    ((200, 192), 1.3, 260 * 192), ((640, 300), 1.2, 320 * 180), ((640, 300), 2, 320 * 192)])
def test_detector_gives_boxes_in_frame_pixels(tmp_path, kind, size, stretch, filled):
    path = engines.person_engine(tmp_path / "person.onnx", kind=kind, stretch=str(stretch))
    detector = PersonDetector(open_engine(path, "person"))
    run, seen = detector.engine.run, []
    detector.engine.run = lambda batch: seen.append(batch) or run(batch)
    image, box, _ = figure(5, size)
    boxes, scores = detector(image)
    assert boxes.dtype == np.float32
    assert boxes.shape == (1, 4)  # of two equal raw boxes NMS keeps the better one
    np.testing.assert_allclose(boxes[0], box, atol=2 * size[0] / 320)
    np.testing.assert_allclose(scores, [0.9], atol=1e-6)
    assert (seen[0] != LETTERBOX_GREY).all(3).sum() == filled


def test_detector_threshold_and_empty_frame(person_path):
    engine = open_engine(person_path, "person")
    for threshold, image in ((0.95, figure()[0]), (0.4, np.full((192, 320, 3), 60, np.uint8))):
        boxes, scores = PersonDetector(engine, threshold)(image)
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)


def test_detector_clips_to_the_frame(tmp_path):
    """A box may end in the letterbox's grey; in the frame it ends at the frame's edge."""
    detector = PersonDetector(open_engine(engines.person_engine(tmp_path / "person.onnx")))
    frame = np.full((192, 100, 3), 255, np.uint8)
    np.testing.assert_allclose(detector(frame)[0], [[0, 0, 100, 192]])


@pytest.mark.parametrize("head", ["heatmap", "simcc"])
@pytest.mark.parametrize("flip_test", [False, True])
def test_pose_gives_the_dots_in_frame_pixels(tmp_path, head, flip_test):
    """The flip test swaps blue with green in the mirrored maps, but a colour stays where it is: the mean has
    two peaks for the hands and one for the nose, which must not move."""
    pose = PoseEstimator(open_engine(engines.pose_engine(tmp_path / "pose.onnx", head=head)), flip_test=flip_test)
    image, box, dots = figure(7)
    keypoints = pose(image, np.array([box], np.float32))
    assert keypoints.shape == (1, 3, 3)
    checked = [2] if flip_test else [0, 1, 2]
    np.testing.assert_allclose(keypoints[0, checked, :2], dots[checked], atol=0.7)
    assert 0.1 < keypoints[0, 2, 2] <= 1


def test_crops_are_as_wide_as_the_engine_says(tmp_path):
    """The person's box is red, of the input's aspect, on a grey frame: a crop at 1.1 is 1 - 1 / 1.1² grey."""
    image = np.full((400, 400, 3), 128, np.uint8)
    image[72:328, 104:296] = (0, 0, 255)
    box = np.array([[104, 72, 296, 328]], np.float32)
    seen = {}
    for metadata in ({}, {"padding": "1.1"}, {"padding": "1"}):
        engine = open_engine(engines.pose_engine(tmp_path / "pose.onnx", **metadata))
        run = engine.run
        engine.run = lambda crops, run=run: seen.update(crops=crops) or run(crops)
        PoseEstimator(engine)(image, box)
        grey = seen["crops"][0, ..., 1].mean() / 128
        assert grey == pytest.approx(1 - engine.padding ** -2, abs=0.01)
    assert engine.padding == 1


@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_flip_test_treats_a_crop_like_its_mirror_image(tmp_path, head):
    pose = PoseEstimator(open_engine(engines.pose_engine(tmp_path / "pose.onnx", head=head)), flip_test=True)
    crops = np.random.default_rng(3).integers(0, 256, (4, 128, 96, 3), np.uint8)
    keypoints, mirrored = pose.estimate(crops), pose.estimate(crops[:, :, ::-1])
    expected = keypoints[:, [1, 0, 2]]
    expected[..., 0] = 95 - expected[..., 0]
    np.testing.assert_allclose(mirrored, expected, atol=0.01)


def test_pose_of_none_one_and_many(pose_path):
    pose = PoseEstimator(open_engine(pose_path, "pose"))
    image, box, dots = figure()
    assert pose(image, np.zeros((0, 4), np.float32)).shape == (0, 3, 3)
    many = pose(image, np.array([box] * 70, np.float32))  # more than one batch
    assert many.shape == (70, 3, 3)
    np.testing.assert_allclose(many, np.repeat(pose(image, np.array([box], np.float32)), 70, axis=0), atol=1e-4)


def test_unknown_decoding(pose_path):
    engine = open_engine(pose_path, "pose")
    with pytest.raises(ValueError, match="unknown decoding 'best'"):
        PoseEstimator(engine, decoding="best")
