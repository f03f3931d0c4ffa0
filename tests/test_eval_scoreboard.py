"""The scoreboard: our engines and public ones through the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.bootstrap import Interval
from eval.scoreboard import FOUND, GOALS, POSE, POSE_TIME, WHOLE, Line, verdict
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
])
def test_verdicts(what, ours, peer, words):
    mine = line(what, ours)
    assert verdict(mine, [mine, line(what, peer, ours=False)]) == words


def test_without_peers(tmp_path):
    write_stills(tmp_path / "images", tmp_path / "truth.json", 6)
    done, content = board(tmp_path, tmp_path / "truth.json", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    assert {entry["what"] for entry in content["lines"]} == set(GOALS)
    assert "no peer to compare with" in done.stdout and content["images"] == 6
    values = {entry["what"]: entry["value"] for entry in content["lines"]}
    for what in (POSE, WHOLE, FOUND):
        assert 0 <= values[what]["low"] <= values[what]["value"] <= values[what]["high"] <= 1
    assert values[POSE]["value"] > 0.02


def test_a_folder_without_peers_is_named(tmp_path):
    write_stills(tmp_path / "images", tmp_path / "truth.json", 2)
    done, _ = board(tmp_path, tmp_path / "truth.json", tmp_path / "images", "--peers", tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("holds none of the peers; --help names "
                                                                          "their files")


@pytest.mark.skipif(not (PHOTOS.is_dir() and PEERS.is_dir()), reason=f"no COCO photographs at {PHOTOS} (COCO_DEV) or "
                    f"no public models at {PEERS} (PEERS)")
def test_the_peers_have_the_scores_that_others_measured(tmp_path):
    """Known of the same photographs from another program: TinyPose 0.619, with PicoDet's boxes 0.571; found 0.86 and
    0.77."""
    [annotations] = PHOTOS.glob("person_keypoints*.json")
    done, content = board(tmp_path, annotations, PHOTOS / "images", "--peers", PEERS)
    assert done.returncode == 0, done.stderr
    measured = {(entry["what"], entry["model"]): entry["value"]["value"] for entry in content["lines"]}
    assert measured[POSE, "TinyPose"] == pytest.approx(0.619, abs=0.005)
    assert measured[WHOLE, "PicoDet + TinyPose"] == pytest.approx(0.571, abs=0.005)
    assert measured[FOUND, "PicoDet"] == pytest.approx(0.86, abs=0.01)
    assert measured[FOUND, "YOLOX-nano"] == pytest.approx(0.77, abs=0.01)
    np.testing.assert_allclose(measured[POSE_TIME, "TinyPose"], 1)
