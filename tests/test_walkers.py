"""Rendered people: the truth must be that of the pixels."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from runtime.keypoints import COCO
from runtime.walkers import render_clip, render_still
from runtime.walkers.body import BONES
from runtime.walkers.clothes import random_person
from runtime.walkers.render import annotate, draw, gather, place, shade_ground
from runtime.walkers.scene import Camera, Scene, box
from tests.conftest import ROOT

INDEX = {name: index for index, name in enumerate(COCO.names)}
FRONT, LEFT_SIDE, BACK = 0.0, -np.pi / 2, np.pi
SIZE = (240, 320)


@pytest.fixture(scope="module")
def scene():
    """A grey room without shadows."""
    camera = Camera(420.0, (119.5, 159.5), 1.2, 0.07)
    grey = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    return Scene(camera, grey, np.zeros((0, 4, 3)), np.zeros((0, 3)), np.array([0, 0.8, 0.6]), np.full(3, 0.6),
                 np.full(3, 0.6), 0.0)


def person(heading, spot=(0.0, -2.9), seed=5, spread=12.0):
    """Someone upright with arms a little spread."""
    angles = np.zeros((len(BONES), 3))
    angles[BONES.index("left_arm"), 2], angles[BONES.index("right_arm"), 2] = spread, -spread
    return place(random_person(np.random.default_rng(seed)), angles, spot, heading)


def shoot(scene, *people):
    facets = gather(scene, people)
    picture, owners = draw(facets, shade_ground(scene, people))
    return picture, annotate(facets, people, scene, owners, 1)


def points(annotation):
    return np.reshape(annotation["keypoints"], (-1, 3))


def test_same_seed_gives_the_same_pixels_and_another_seed_others():
    first, truth = render_still(7, (160, 120))
    again, truth_again = render_still(7, (160, 120))
    other, _ = render_still(8, (160, 120))
    assert np.array_equal(first, again) and truth == truth_again
    assert not np.array_equal(first, other)
    clips = [list(render_clip(3, (160, 120), seed=2)) for _ in range(2)]
    for (picture, labels), (picture_again, labels_again) in zip(*clips, strict=True):
        assert np.array_equal(picture, picture_again) and labels == labels_again


@pytest.mark.parametrize(("heading", "visible", "hidden"), [
    (FRONT, ["nose", "left_eye", "right_eye", "left_shoulder", "right_hip", "left_wrist"], []),
    (BACK, ["left_shoulder", "right_shoulder", "left_hip", "right_elbow"], ["nose", "left_eye", "right_eye"]),
    (LEFT_SIDE, ["nose", "left_eye", "left_shoulder", "left_elbow"], ["right_eye", "right_ear", "right_shoulder"]),
])
def test_the_own_body_hides_what_is_behind_it(scene, heading, visible, hidden):
    annotation, = shoot(scene, person(heading))[1]
    labels = points(annotation)[:, 2]
    assert {name: labels[INDEX[name]] for name in visible} == dict.fromkeys(visible, 2)
    assert {name: labels[INDEX[name]] for name in hidden} == dict.fromkeys(hidden, 1)


def test_left_is_on_the_right_of_the_picture_for_who_looks_at_the_camera(scene):
    for heading, sign in ((FRONT, 1), (BACK, -1)):
        labelled = points(shoot(scene, person(heading))[1][0])
        for left, right in COCO.flip_pairs:
            assert sign * (labelled[left, 0] - labelled[right, 0]) > 0
    assert (np.diff(labelled[[0, 5, 11, 13, 15], 1]) > 0).all()  # from the nose down to the ankle


@pytest.mark.parametrize("heading", [FRONT, BACK, LEFT_SIDE, 0.7])
def test_box_and_area_are_those_of_the_persons_pixels(scene, heading):
    picture, (annotation,) = shoot(scene, person(heading))
    # Where the picture differs from the empty scene there is the person; the edges are blended.
    changed = np.abs(picture.astype(int) - scene.backdrop).max(2) > 3
    left, top, width, height = cv2.boundingRect(changed.astype(np.uint8))
    assert np.abs(np.subtract(annotation["bbox"], (left, top, width, height))).max() <= 2
    assert annotation["area"] == pytest.approx(changed.sum(), rel=0.06)
    labelled = points(annotation)
    box_left, box_top, box_width, box_height = annotation["bbox"]
    assert (labelled[:, 0] > box_left - 1).all() and (labelled[:, 0] < box_left + box_width).all()
    assert (labelled[:, 1] > box_top - 1).all() and (labelled[:, 1] < box_top + box_height).all()


def test_who_stands_behind_is_hidden_and_who_cannot_be_seen_has_no_annotation(scene):
    front, behind = person(FRONT, (0.0, -2.9), seed=5), person(FRONT, (0.25, -3.6), seed=3)
    near, far = shoot(scene, behind, front)[1][::-1]
    alone = shoot(scene, behind)[1][0]
    assert far["area"] < 0.8 * alone["area"]
    assert points(far)[INDEX["right_shoulder"], 2] == 1 and points(alone)[INDEX["right_shoulder"], 2] == 2
    assert near["area"] == shoot(scene, front)[1][0]["area"]
    wall, tint = box((0, -2.0), (6, 6, 0.2), (0.5, 0.5, 0.5))
    assert shoot(replace(scene, quads=wall, colours=tint), front)[1] == []


def test_a_box_before_the_legs_hides_them(scene):
    low_wall, tint = box((0, -2.3), (4, 0.6, 0.2), (0.2, 0.2, 0.8))
    annotation, = shoot(replace(scene, quads=low_wall, colours=tint), person(FRONT))[1]
    labels = points(annotation)[:, 2]
    assert (labels[[15, 16]] == 1).all() and (labels[[0, 5, 6, 11, 12]] == 2).all()
    assert annotation["num_keypoints"] == 17
    assert sum(annotation["bbox"][1::2]) < points(annotation)[15, 1]


def test_keypoints_outside_the_picture_are_not_labelled(scene):
    annotation, = shoot(scene, person(FRONT, (0.0, -1.5)))[1]
    labelled = points(annotation)
    assert annotation["num_keypoints"] == (labelled[:, 2] > 0).sum() < 17
    assert (labelled[labelled[:, 2] == 0] == 0).all()
    inside = labelled[labelled[:, 2] > 0, :2]
    assert (inside > -0.5).all() and (inside < np.array(SIZE) - 0.5).all()
    assert annotation["bbox"][3] == SIZE[1]


def test_stills_vary_and_their_labels_hold_together():
    visibilities, sizes = [], []
    for seed in range(12):
        picture, annotations = render_still(seed, (192, 144))
        assert picture.shape == (144, 192, 3) and picture.dtype == np.uint8
        for annotation in annotations:
            left, top, width, height = annotation["bbox"]
            assert min(left, top) >= 0 and left + width <= 192 and top + height <= 144
            assert 0 < annotation["area"] <= width * height
            visibilities += points(annotation)[:, 2].tolist()
            sizes.append(height)
    assert {0, 1, 2} == set(visibilities)
    assert max(sizes) > 2 * np.median(sizes) or min(sizes) < 0.5 * np.median(sizes)


def test_people_of_a_clip_move_smoothly_and_do_move():
    frames = [[points(annotation)[:, :2] for annotation in annotations]
              for _, annotations in render_clip(26, (320, 240), seed=0)]
    assert {len(frame) for frame in frames} == {3}
    steps = np.linalg.norm(np.diff(np.array(frames), axis=0), axis=-1)
    assert steps.max() < 20  # pixels between frames: a swinging foot; a jump would be more
    assert np.linalg.norm(np.array(frames[-1]) - frames[0], axis=-1).max() > 10


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "runtime.walkers", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True)


def test_the_command_writes_a_clip_and_truth_that_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    clip, truth = tmp_path / "walkers.mp4", tmp_path / "new" / "walkers.json"
    done = command("--out", clip, "--truth", truth, "--frames", 4, "--size", "160x120", "--persons", 2)
    assert done.returncode == 0, done.stderr
    video = cv2.VideoCapture(str(clip))
    assert [video.get(field) for field in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)] == [4, 25]
    dataset = coco.COCO(str(truth))
    assert [dataset.imgs[image_id]["file_name"] for image_id in sorted(dataset.imgs)] == [
        f"frame_{frame:06d}.jpg" for frame in range(4)]
    assert len(dataset.anns) == len(json.loads(truth.read_text())["annotations"])  # ids are unique
    category, = dataset.cats.values()
    assert category["keypoints"] == list(COCO.names) and [16, 14] in category["skeleton"]


def test_stills_are_a_data_set_on_which_the_truth_scores_full_marks(tmp_path):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth = tmp_path / "truth.json"
    done = command("--stills", 3, "--out", tmp_path / "pictures", "--truth", truth, "--size", "160x120", "--seed", 5)
    assert done.returncode == 0, done.stderr
    dataset = coco.COCO(str(truth))
    for image in dataset.imgs.values():
        assert cv2.imread(str(tmp_path / "pictures" / image["file_name"])).shape == (120, 160, 3)
    exact = [{key: annotation[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 1.0}
             for annotation in dataset.anns.values()]
    evaluation = cocoeval.COCOeval(dataset, dataset.loadRes(exact), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--size", "640"], "--size 640 is not"), (["--size", "10x10"], "--size 10x10"), (["--frames", "0"], "--frames 0"),
    (["--persons", "99"], "--persons 99"), (["--seed", "-1"], "--seed -1"), (["--stills", "0"], "--stills 0"),
    (["--out", "walkers"], "no video name"), (["--truth", "/proc/none/truth.json"], "cannot be written"),
])
def test_bad_options_are_told_in_one_line(tmp_path, arguments, said):
    done = command("--out", tmp_path / "a.mp4", "--truth", tmp_path / "a.json", "--frames", "1", "--size", "64x64",
                   *arguments)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [done.stderr.splitlines()[-1]]
    assert said in done.stderr
