"""INT8 engines: nearly the float one, stamped as what they are, and refused where they are not worth it."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from eval.annotations import load_annotations, read_image
from eval.scoring import person_boxes
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.keypoints import COCO
from runtime.nms import box_iou, keypoint_similarity
from runtime.pose import PoseEstimator
from runtime.walkers import write_stills
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    write_stills(folder / "images", folder / "person_keypoints.json", 8, (400, 300))
    return folder


def quantise(rendered, out, *options):
    truth = rendered / "person_keypoints.json"
    return subprocess.run([sys.executable, "-m", "export.int8", "--engine", "models/pose.onnx", "--set",
                           f"data=['{rendered}']", "--annotations", truth, "--images", rendered / "images", "--out",
                           out, "--inputs", "8", *options], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_an_int8_engine(rendered, tmp_path):
    out = tmp_path / "pose.int8.onnx"
    done = quantise(rendered, out, "--loss", "0.2", "--faster", "0.2")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    before, after = open_engine(ROOT / "models/pose.onnx", "pose"), open_engine(out, "pose")
    assert after.metadata == before.metadata | {"precision": "int8", "calibration": "8 training inputs"}
    assert out.stat().st_size < 0.6 * before.path.stat().st_size
    check_alike(before, after, rendered, 0.9)


def test_one_that_is_not_worth_it_is_refused(rendered, tmp_path):
    done = quantise(rendered, tmp_path / "pose.int8.onnx", "--loss", "0.2", "--faster", "50")
    assert done.returncode == 2 and "less than --faster 50" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_bundled_detector_finds_what_the_float_one_finds(rendered):
    before, after = (open_engine(ROOT / f"models/{name}.onnx", "person") for name in ("person", "person.int8"))
    assert after.metadata["precision"] == "int8" and after.metadata["date"] == before.metadata["date"]
    assert after.stretch == before.stretch and after.path.stat().st_size < 0.6 * before.path.stat().st_size
    overlaps = []
    for path in (rendered / "images").iterdir():
        picture = cv2.imread(str(path))
        (boxes, scores), (others, _) = (PersonDetector(engine, 0.3)(picture) for engine in (before, after))
        overlaps += box_iou(boxes[scores > 0.4], others).max(1, initial=0).tolist()
    assert len(overlaps) > 8 and np.mean(overlaps) > 0.85, np.mean(overlaps)


def test_the_bundled_one(rendered):
    before, after = (open_engine(ROOT / f"models/{name}.onnx", "pose") for name in ("pose", "pose.int8"))
    assert after.metadata["precision"] == "int8" and after.metadata["date"] == before.metadata["date"]
    assert after.path.stat().st_size <= 12e6
    check_alike(before, after, rendered, 0.95)


def check_alike(before, after, folder, least):
    """Mean OKS between the two engines' sure keypoints of the same persons."""
    annotations = load_annotations(folder / "person_keypoints.json")
    similarities = []
    for image in annotations.images:
        boxes = person_boxes(annotations.persons.get(image["id"], []))
        frame = read_image(image, folder / "images")
        ours, theirs = (PoseEstimator(engine)(frame, boxes) for engine in (after, before))
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        likeness = keypoint_similarity(ours, theirs, areas, np.array(COCO.sigmas))
        similarities += likeness[theirs[..., 2] > 0.3].tolist()
    assert len(similarities) > 50 and np.mean(similarities) > least, np.mean(similarities)
