"""Poses → poseval's files, one a video: what it reads, for every frame, labelled or not."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from eval.posetrack import write_videos
from runtime.errors import BadInput
from runtime.keypoints import POSETRACK
from tests.conftest import ROOT


def write_originals(folder):
    """Two videos of PoseTrack 2018; every second frame is labelled, and labels are no business of predictions."""
    folder.mkdir(parents=True)
    for video, first in (("000342_mpii", 10003420000), ("001735_mpii", 10017350000)):
        images = [{"id": first + frame, "file_name": f"images/val/{video}/{frame:06d}.jpg", "frame_id": first + frame,
                   "vid_id": video[:6], "nframes": 4, "is_labeled": frame % 2 == 0, "has_no_densepose": True,
                   "ignore_regions_x": [[1, 2, 3]], "ignore_regions_y": [[1, 2, 1]]} for frame in range(4)]
        labels = [{"id": 1, "image_id": first, "track_id": 5, "keypoints": [1.0] * 51, "bbox": [0, 0, 9, 9]}]
        (folder / f"{video}.json").write_text(json.dumps({"images": images, "annotations": labels,
                                                          "categories": [{"id": 1, "name": "person"}]}))


def poses(*image_ids):
    generator = np.random.default_rng(0)
    return [{"image_id": image, "category_id": 1, "score": float(generator.uniform()),
             "keypoints": generator.uniform(0, 1, 51).round(3).tolist()} for image in image_ids]


def test_a_file_a_video_with_every_frame(tmp_path):
    write_originals(tmp_path / "data/PoseTrack/original_annotations/val")
    results = poses(10017350002, 10003420000, 10003420000, 10017350000)
    out = tmp_path / "output/result/PoseTrack"
    out.mkdir(parents=True)
    (out / "keypoints.json").write_text(json.dumps(results))
    done = subprocess.run([sys.executable, "-m", "eval.posetrack"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote 4 poses of 2 videos to output/result/PoseTrack/poseval\n"
    videos = {path.name: json.loads(path.read_text()) for path in (out / "poseval").iterdir()}
    assert sorted(videos) == ["000342_mpii.json", "001735_mpii.json"]
    for name, video in videos.items():
        original = json.loads((tmp_path / "data/PoseTrack/original_annotations/val" / name).read_text())
        assert video["images"] == original["images"]  # all four frames, with their regions to ignore
        [category] = video["categories"]
        assert (category["name"], category["keypoints"]) == ("person", list(POSETRACK.names))
    persons = videos["000342_mpii.json"]["annotations"]
    assert [(person["image_id"], person["track_id"], person["id"]) for person in persons] == [
        (10003420000, 0, 0), (10003420000, 1, 1)]
    for person, result in zip(persons, results[1:3], strict=True):
        there, given = np.reshape(person["keypoints"], (17, 3)), np.reshape(result["keypoints"], (17, 3))
        assert (there[:, :2] == given[:, :2]).all()
        assert (there[:, 2] == 1).all()  # poseval reads it as visibility, and the scores apart
        assert person["scores"] == given[:, 2].tolist()
        assert (person["category_id"], person["score"]) == (1, result["score"])
    assert [person["image_id"] for person in videos["001735_mpii.json"]["annotations"]] == [10017350000, 10017350002]


def test_bad_input_is_named_and_nothing_written(tmp_path):
    originals, out = tmp_path / "val", tmp_path / "out"
    with pytest.raises(BadInput, match="val has no .json files"):
        write_videos(poses(1), originals, out)
    write_originals(originals)
    good = poses(10003420000)
    for results, message in (
        (good + poses(7, 7), r"2 of 3 poses are of images that no file of .*val lists \(first: image 7\)"),
        ([*good, {"image_id": 10003420000, "keypoints": [1, 2, 3], "score": 1}], "result 1 has no 17 keypoints"),
        ([5], "result 0 has no 17 keypoints of PoseTrack: 5"),
    ):
        with pytest.raises(BadInput, match=message):
            write_videos(results, originals, out)
    for content, message in (("{}", "has no list of images"), ('{"images": [{"id": 1}]}', "id and file_name"),
                             ("[", "is not JSON"), ("[]", "is not an object")):
        (originals / "bad.json").write_text(content)
        with pytest.raises(BadInput, match=message):
            write_videos(good, originals, out)
    assert not out.exists()
    (originals / "bad.json").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write "):
        write_videos(good, originals, tmp_path / "file")
