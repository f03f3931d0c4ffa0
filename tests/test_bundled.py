"""The engines in models/: what they are, how good on a photograph, on a rendered clip, and on COCO photos at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from eval.annotations import load_annotations
from eval.boxes import box_figures
from eval.gate import load_thresholds
from eval.scoring import evaluate
from runtime.detect import THRESHOLD, PersonDetector
from runtime.engine import open_engine
from runtime.keypoints import COCO
from runtime.pose import PoseEstimator
from runtime.rate import rate
from runtime.walkers import write_clip

ROOT = Path(__file__).parents[1]
PHOTOS = Path(os.environ.get("COCO_DEV", ROOT.parent / "shared/data/coco-dev"))


@pytest.fixture(scope="module")
def detector():
    return PersonDetector(open_engine(ROOT / "models/person.onnx", "person"), threshold=THRESHOLD)


@pytest.fixture(scope="module")
def pose():
    return PoseEstimator(open_engine(ROOT / "models/pose.onnx", "pose"))


def test_engines_say_what_they_are(detector, pose):
    for engine in (detector.engine, pose.engine):
        assert engine.path.stat().st_size <= 12e6
        assert all(engine.metadata[key] for key in ("trained_on", "date", "version", "licence", "network"))
    assert pose.schema == COCO


def test_a_photograph(detector, pose):
    """Eileen Collins (NASA, public domain), 512×512; positions read off the photograph."""
    photo = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    boxes, scores = detector(photo)
    left, top, right, bottom = boxes[0]
    assert scores[0] > 0.3 and left < 80 and 0 <= top < 60 and right > 330 and bottom > 440
    found = dict(zip(COCO.names, pose(photo, boxes[:1])[0], strict=True))
    for name, position in {"nose": (225, 123), "right_eye": (204, 101), "left_eye": (248, 101)}.items():
        assert np.linalg.norm(found[name][:2] - position) < 15, name
    assert found["right_shoulder"][0] < 160 < 260 < found["left_shoulder"][0]
    assert 190 < found["right_shoulder"][1] < 320 and 190 < found["left_shoulder"][1] < 320


def test_the_stream_fits_the_rendered_truth(tmp_path):
    write_clip(tmp_path / "walkers.mp4", tmp_path / "truth.json", frames=60)
    subprocess.run([sys.executable, "-m", "runtime.stream", "--video", tmp_path / "walkers.mp4", "--jsonl",
                    tmp_path / "poses.jsonl", "--out", tmp_path / "drawn.mp4"], cwd=ROOT, check=True, timeout=300)
    rating = rate(tmp_path / "poses.jsonl", tmp_path / "truth.json")
    print(rating)
    assert rating.found / rating.persons > 0.6
    assert rating.extra / rating.persons < 0.3
    assert rating.oks > 0.6
    assert rating.pck > 0.7


def test_eval_needs_no_data(tmp_path):
    command = [sys.executable, "-m", "eval.coco", "--engine", "models/pose.onnx", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    assert "rendered pictures, which say little of photos" in done.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["AP"] > 0.2 and metrics["protocol"]["boxes"] == "ground truth"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no COCO photographs at {PHOTOS} (set COCO_DEV to such a folder)")
def test_ap_on_photographs(detector, pose):
    [labels] = PHOTOS.glob("person_keypoints*.json")
    annotations = load_annotations(labels)
    figures = evaluate(pose, annotations, PHOTOS / "images")
    for name, rule, threshold in load_thresholds(ROOT / "models/gate.toml"):
        assert rule == "minimum" and figures[name] >= threshold, name
    everyone = PersonDetector(detector.engine, threshold=0.05)
    assert evaluate(pose, annotations, PHOTOS / "images", everyone)["AP"] > 0.43
    assert box_figures(everyone, annotations, PHOTOS / "images")["found"] > 0.78
