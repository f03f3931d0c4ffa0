"""Poses → poseval's files, one a video, and AP of each joint against loops written from poseval's own code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from eval.gate import check_thresholds
from eval.posetrack import score, write_videos
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
    assert done.stdout == ("wrote 4 poses of 2 videos to output/result/PoseTrack/poseval\nno AP: the files of data/"
                           "PoseTrack/original_annotations/val have no labelled person with a head box\n")
    assert done.stderr.startswith("warning: 2 labelled persons have no bbox_head")
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
        ([{**good[0], "score": float("nan")}], "result 0 has no 17 keypoints"),
        ([{**good[0], "keypoints": [float("nan")] * 51}], "result 0 has no 17 keypoints"),
        ([{"keypoints": [1] * 51, "score": 1}], "result 0 has no 17 keypoints"),
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


# AP of each joint

# Of poseval's table: which joints a column is the mean of.
COLUMNS = {"Head": ("head_top", "head_bottom", "nose"), "Shoulder": ("left_shoulder", "right_shoulder"),
           "Elbow": ("left_elbow", "right_elbow"), "Wrist": ("left_wrist", "right_wrist"),
           "Hip": ("left_hip", "right_hip"), "Knee": ("left_knee", "right_knee"),
           "Ankle": ("left_ankle", "right_ankle")}
REGION = (300, 0, 400, 200)  # left, top, right, bottom: nothing counts in it


def points_of(flat, scores=None):
    """Joint → (x, y, score) of those that poseval keeps: not the ears, not what is 0 in all three."""
    points = {}
    for number, name in enumerate(POSETRACK.names):
        x, y, visible = flat[3 * number:3 * number + 3]
        ignored = REGION[0] < x < REGION[2] and REGION[1] < y < REGION[3]
        if not name.endswith("_ear") and (x or y or visible) and not ignored:
            points[name] = (x, y, scores[number] if scores else None)
    return points


def plain_ap(originals, predictions):
    """Loops over the two folders of files, as evaluateAP.py and eval_helpers.py go through them."""
    found = {name: [] for name in POSETRACK.names if not name.endswith("_ear")}
    wanted = dict.fromkeys(found, 0)
    for file in sorted(originals.glob("*.json")):
        video, answer = json.loads(file.read_text()), json.loads((predictions / file.name).read_text())
        for image in video["images"]:
            people = [item for item in video["annotations"] if item["image_id"] == image["id"]]
            if not people:
                continue
            truths = [(points_of(item["keypoints"]), item["bbox_head"]) for item in people]
            truths = [truth for truth in truths if truth[0]]
            poses = [points_of(item["keypoints"], item["scores"]) for item in answer["annotations"]
                     if item["image_id"] == image["id"]]
            poses = [pose for pose in poses if pose]
            hits = {}
            for p, pose in enumerate(poses):
                for t, (truth, head) in enumerate(truths):
                    size = 0.6 * (head[2] ** 2 + head[3] ** 2) ** 0.5
                    hits[p, t] = {name for name in pose if name in truth and
                                  ((pose[name][0] - truth[name][0]) ** 2 + (pose[name][1] - truth[name][1]) ** 2) ** 0.5
                                  / size <= 0.5}
            chosen = {}
            for p in range(len(poses)):
                shares = [len(hits[p, t]) / len(truths[t][0]) for t in range(len(truths))]
                if shares and max(shares) > 0:
                    chosen.setdefault(shares.index(max(shares)), []).append((max(shares), -p))
            owner = {-max(candidates)[1]: t for t, candidates in chosen.items()}
            for p, pose in enumerate(poses):
                for name, (_, _, likely) in pose.items():
                    found[name].append((likely, p in owner and name in hits[p, owner[p]]))
            for truth, _ in truths:
                for name in truth:
                    wanted[name] += 1
    values = {}
    for name, entries in found.items():
        right, curve = 0, [(0.0, 0.0)]
        for number, (_, hit) in enumerate(sorted(entries, reverse=True), 1):
            right += hit
            curve.append((right / wanted[name], right / number))
        steps = [(after[0] - before[0]) * max(precision for _, precision in curve[number + 1:])
                 for number, (before, after) in enumerate(zip(curve, curve[1:], strict=False))]
        values[name] = 100 * sum(steps)
    table = {column: sum(values[name] for name in names) / len(names) for column, names in COLUMNS.items()}
    return {**values, **table, "Total": sum(values.values()) / len(values)}


def write_people(originals, seed, frames=30):
    """Two videos with people, missing labels, regions to ignore, empty frames; and poses good, doubled and wild."""
    generator = np.random.default_rng(seed)
    results = []
    originals.mkdir(parents=True)
    for video in (1, 2):
        images, labels = [], []
        for frame in range(frames):
            image = 1000 * video + frame
            entry = {"id": image, "file_name": f"images/val/{video:06d}_mpii/{frame:06d}.jpg"}
            if frame % 3 == 0:
                left, top, right, bottom = REGION
                entry |= {"ignore_regions_x": [[left, right, right, left]],
                          "ignore_regions_y": [[top, top, bottom, bottom]]}
            else:  # far away, so that the reference may take it as there always
                entry |= {"ignore_regions_x": [], "ignore_regions_y": []}
            images.append(entry)
            for _ in range(generator.integers(0, 4)):
                left = generator.choice([0, 60, 160]) + (generator.choice([0, 150]) if frame % 3 == 0 else 0)
                places = [left, 10] + generator.uniform(0, 1, (17, 2)) * [60, 150]
                points = np.concatenate([places, np.ones((17, 1))], axis=1)
                shown = generator.uniform(size=17) < 0.8
                labels.append({"image_id": image, "bbox_head": [5, 5, *generator.uniform(15, 30, 2).tolist()],
                               "keypoints": (points * shown[:, None]).ravel().tolist()})
                for _ in range(generator.integers(0, 3)):
                    moved = points + np.concatenate([generator.normal(0, generator.choice([2, 9]), (17, 2)),
                                                     generator.uniform(-0.9, 0, (17, 1))], 1)
                    results.append({"image_id": image, "keypoints": moved.ravel().tolist(), "score": 0.5})
            if generator.uniform() < 0.3:
                wild = generator.uniform(0, 1, (17, 3)) * [280, 200, 1]
                results.append({"image_id": image, "keypoints": wild.ravel().tolist(), "score": 0.5})
        (originals / f"{video:06d}_mpii.json").write_text(json.dumps({"images": images, "annotations": labels}))
    return results


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_what_poseval_counts(tmp_path, seed):
    results = write_people(tmp_path / "val", seed)
    write_videos(results, tmp_path / "val", tmp_path / "poseval")
    values = score(results, tmp_path / "val")
    wanted = plain_ap(tmp_path / "val", tmp_path / "poseval")
    assert values == pytest.approx(wanted, abs=1e-9)
    assert all(10 < wanted[name] < 90 for name in (*COLUMNS, "Total")), wanted


def test_exact_poses_are_100_and_none_are_0(tmp_path, capsys):
    write_people(tmp_path / "val", 0)
    exact = []
    for file in (tmp_path / "val").iterdir():
        for person in json.loads(file.read_text())["annotations"]:
            exact.append({"image_id": person["image_id"], "keypoints": person["keypoints"], "score": 1.0})
    values = score(exact, tmp_path / "val")
    # Joints without a label were put at 0, 0, where poseval would not take them for predictions; here they are.
    assert all(value > 90 for value in values.values())
    assert set(score([], tmp_path / "val").values()) == {0.0}


def test_command_prints_ap_and_keeps_it_for_the_gate(tmp_path):
    results = write_people(tmp_path / "val", 4)
    out = tmp_path / "out"
    out.mkdir()
    (out / "keypoints.json").write_text(json.dumps(results))
    ten = dict.fromkeys(("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"), 0.5)
    (out / "metrics.json").write_text(json.dumps({**ten, "protocol": {"images": 60}}))
    done = subprocess.run([sys.executable, "-m", "eval.posetrack", "--results", out / "keypoints.json", "--originals",
                           tmp_path / "val"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    values = json.loads((out / "posetrack.json").read_text())
    assert done.stdout.splitlines()[-2].split() == [*COLUMNS, "Total"]
    assert done.stdout.splitlines()[-1].split() == ["AP", *(f"{values[name]:.1f}" for name in (*COLUMNS, "Total"))]
    gates = check_thresholds(out / "metrics.json", [("PoseTrack Total", "minimum", values["Total"]),
                                                    ("PoseTrack left_wrist", "minimum", values["left_wrist"] + 1)])
    assert [gate.holds for gate in gates] == [True, False]


@pytest.mark.parametrize("change", [{"keypoints": [1.0] * 50}, {"keypoints": ["x"] * 51}, {"bbox_head": ["a"] * 4},
                                    {"bbox_head": 5}])
def test_labels_of_another_form_are_named(tmp_path, change):
    results = write_people(tmp_path / "val", 0)
    file = tmp_path / "val" / "000002_mpii.json"
    content = json.loads(file.read_text())
    content["annotations"][3].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="000002_mpii.json has persons whose keypoints or bbox_head are not PoseTrack"):
        score(results, tmp_path / "val")
