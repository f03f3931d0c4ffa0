"""The scoreboard: our engines and public ones through the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval.bootstrap import Interval
from eval.peers import YOLOX_NMS, Yolox, blurred
from eval.scoreboard import (
    DETECTOR_TIME,
    FOUND,
    GOALS,
    POSE,
    POSE_FLIPPED,
    POSE_TIME,
    WHOLE,
    WHOLE_CLASSIC,
    Line,
    verdict,
)
from runtime.decode import decode_heatmaps
from runtime.nms import IOU_THRESHOLD, box_iou
from runtime.walkers import write_stills
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
PHOTOS = Path(os.environ.get("COCO_DEV", SHARED / "data/coco-dev"))
PEERS = Path(os.environ.get("PEERS", SHARED / "peers"))


def board(tmp_path, annotations, images, *options):
    done = subprocess.run([sys.executable, "-m", "eval.scoreboard", "--annotations", annotations, "--images", images,
                           "--resamples", "50", "--out", tmp_path / "out", *map(str, options)], cwd=ROOT, text=True,
                          capture_output=True, timeout=900)
    return done, json.loads((tmp_path / "out/scoreboard.json").read_text()) if done.returncode == 0 else None


def line(what, value, ours=True):
    return Line(what, "model", ours, Interval(value, value, value), 1.0)


@pytest.mark.parametrize(("what", "ours", "peer", "words"), [
    (POSE, 0.35, 0.62, "0.150 short of the floor 0.5"),
    (POSE, 0.55, 0.62, "above the floor 0.5, 0.070 short of the aim"),
    (POSE, 0.63, 0.62, "the aim is met"),
    (FOUND, 0.80, 0.86, "above the floor 0.78, 0.080 short of the aim"),
    (FOUND, 0.88, 0.86, "the aim is met"),
    (POSE_TIME, 0.90, 1.0, "0.200 above the ceiling 0.7"),
    (POSE_TIME, 0.50, 1.0, "below the ceiling 0.7, 0.200 above the aim"),
    (POSE_TIME, 0.25, 1.0, "the aim is met"),
    (WHOLE_CLASSIC, 0.25, 0.5, ""),
])
def test_verdicts(what, ours, peer, words):
    mine = line(what, ours)
    assert verdict(mine, [mine, line(what, peer, ours=False)]) == words


def test_without_peers(tmp_path):
    write_stills(tmp_path / "images", tmp_path / "truth.json", 6)
    done, content = board(tmp_path, tmp_path / "truth.json", tmp_path / "images", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert {entry["what"] for entry in content["lines"]} == set(GOALS)
    assert "no peer to compare with" in done.stdout and content["images"] == 6
    values = {entry["what"]: entry["value"] for entry in content["lines"]}
    for what in (POSE, POSE_FLIPPED, WHOLE, WHOLE_CLASSIC, FOUND):
        assert 0 <= values[what]["low"] <= values[what]["value"] <= values[what]["high"] <= 1
    assert values[POSE]["value"] > 0.02
    detectors = ["person, onnxruntime", "person.int8, onnxruntime"]
    for what, names in ((FOUND, detectors), (WHOLE, ["person + pose"]), (DETECTOR_TIME, detectors),
                        (POSE, ["pose, onnxruntime", "pose.int8, onnxruntime"])):
        assert [entry["model"] for entry in content["lines"] if entry["what"] == what] == names


def test_a_folder_without_peers_is_named(tmp_path):
    write_stills(tmp_path / "images", tmp_path / "truth.json", 2)
    done, _ = board(tmp_path, tmp_path / "truth.json", tmp_path / "images", "--peers", tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("holds none of the peers; --help names "
                                                                          "their files")


@pytest.mark.skipif(not (PHOTOS.is_dir() and PEERS.is_dir()), reason=f"no COCO photographs at {PHOTOS} (COCO_DEV) or "
                    f"no public models at {PEERS} (PEERS)")
def test_the_peers_have_the_scores_that_others_measured(tmp_path):
    """Known of the same photographs from another program, which does not say all of its settings: TinyPose 0.619, with
    flip test and DARK 0.639; with PicoDet's boxes 0.571, with YOLOX-nano's 0.524; persons found 0.86 and 0.77."""
    [annotations] = PHOTOS.glob("person_keypoints*.json")
    done, content = board(tmp_path, annotations, PHOTOS / "images", "--peers", PEERS, "--backend", "onnxruntime",
                          "--pose", "models/pose.onnx", "--detector", "models/person.onnx")
    assert done.returncode == 0, done.stderr
    measured = {(entry["what"], entry["model"]): entry["value"]["value"] for entry in content["lines"]}
    for what, model, known in ((POSE, "TinyPose", 0.619), (POSE_FLIPPED, "TinyPose", 0.639),
                               (WHOLE, "PicoDet + TinyPose", 0.571), (WHOLE_CLASSIC, "PicoDet + TinyPose", 0.571),
                               (WHOLE_CLASSIC, "YOLOX-nano + TinyPose", 0.524)):
        assert measured[what, model] == pytest.approx(known, abs=0.005), (what, model)
    assert measured[WHOLE, "YOLOX-nano + TinyPose"] > measured[WHOLE_CLASSIC, "YOLOX-nano + TinyPose"]
    assert measured[FOUND, "PicoDet"] == pytest.approx(0.86, abs=0.01)
    assert measured[FOUND, "YOLOX-nano"] == pytest.approx(0.77, abs=0.01)
    np.testing.assert_allclose(measured[POSE_TIME, "TinyPose"], 1)


def test_nms_of_yolox_is_its_own(tmp_path):
    """Of two boxes with an IoU of 0.62 YOLOX's NMS keeps both, where ours would take one; of 0.78 it takes one."""
    cells = np.zeros((3549, 85), np.float32)
    cells[:, 2:4] = np.log(8)  # boxes of 64 pixels at stride 8
    for place, score in ((10 * 52 + 10, 0.9), (10 * 52 + 11, 0.8), (10 * 52 + 30, 0.7), (10 * 52 + 45, 0.005)):
        cells[place, 4:6] = score, 1
    cells[10 * 52 + 11, 0] = 15 / 8 - 1  # 15 pixels further right than the best
    cells[10 * 52 + 12] = cells[10 * 52 + 10]
    cells[10 * 52 + 12, [0, 4]] = -9 / 8, 0.6  # 7 pixels
    graph = helper.make_graph(
        [helper.make_node("Identity", ["cells"], ["output"])], "says the same of every picture",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 416, 416])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3549, 85])],
        [numpy_helper.from_array(cells[None], "cells")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
              tmp_path / "yolox.onnx")
    found = Yolox(tmp_path / "yolox.onnx").run(np.zeros((1, 416, 416, 3), np.uint8))
    np.testing.assert_allclose(found["kept_scores"], [0.9, 0.8, 0.7])
    np.testing.assert_allclose(found["kept_boxes"], [[48, 48, 112, 112], [63, 48, 127, 112], [208, 48, 272, 112]],
                               atol=1e-4)
    np.testing.assert_allclose(box_iou(found["kept_boxes"][:1], found["kept_boxes"][1:2]), 49 / 79)
    assert IOU_THRESHOLD < 49 / 79 < YOLOX_NMS < 57 / 71


def test_dark_of_gaussian_maps_finds_where_they_lie():
    """Maps as TinyPose was taught, with noise that the blur takes away."""
    generator = np.random.default_rng(0)
    places = generator.uniform([6, 6], [41, 57], (1, 17, 2)).astype(np.float32)
    rows, columns = np.mgrid[:64, :48]
    maps = np.exp(-((columns - places[..., 0, None, None]) ** 2 + (rows - places[..., 1, None, None]) ** 2) / 8)
    noisy = np.maximum(maps + generator.normal(0, 0.02, maps.shape), 0).astype(np.float32)
    errors = []
    for heatmaps in (blurred(maps.astype(np.float32)), blurred(noisy), noisy):
        found = decode_heatmaps(heatmaps, (192, 256), "dark", aligned=False)
        errors.append(np.abs(found[..., :2] - 4 * places).max())
        np.testing.assert_allclose(found[..., 2], np.clip(heatmaps.max((2, 3)), 0, 1), atol=1e-6)
    assert errors[0] < 0.1 and errors[1] < 0.6 < errors[2], errors
