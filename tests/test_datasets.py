"""Annotations → items to train on: weights, crowds, layouts of data/, the order of samples, bad files."""

import json

import cv2
import numpy as np
import pytest

from runtime.errors import BadInput
from runtime.keypoints import MPII
from train.config import Config
from train.datasets import find_annotations, load_persons, load_photos, sampler


def test_sampler_is_even_weighted_and_stateless():
    class Item:
        def __init__(self, image):
            self.image = image

    items = [Item(f"{'human' if i < 20 else 'other'}_{i}.jpg") for i in range(100)]
    pick = sampler(items, Config(sampling={"human_": 3.0}))
    counts = np.bincount([pick(number) for number in range(1400)], minlength=100)
    np.testing.assert_allclose(counts[:20], 30, atol=4)
    np.testing.assert_allclose(counts[20:], 10, atol=4)
    later = np.bincount([pick(number) for number in range(700, 1400)], minlength=100)
    assert (later > 0).all(), "half as many samples should already visit everyone"


def test_keypoint_scores_become_weights_and_crowds_become_ignored(tmp_path):
    keypoints = [10, 10, 2] * 17
    people = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [0, 0, 20, 30], "num_keypoints": 17, "keypoints": keypoints,
         "keypoint_scores": [0.5] * 17, "iscrowd": 0},
        {"id": 2, "image_id": 1, "bbox": [5, 5, 20, 30], "num_keypoints": 17, "keypoints": keypoints, "iscrowd": 0},
        {"id": 3, "image_id": 1, "bbox": [0, 0, 99, 99], "num_keypoints": 0, "keypoints": [0] * 51, "iscrowd": 1}]}
    (tmp_path / "person_keypoints_a.json").write_text(json.dumps(people))
    config = Config(data=[str(tmp_path)])
    teacher, human = load_persons(config)
    assert (teacher.keypoints[:, 2] == 0.5).all() and (human.keypoints[:, 2] == 1).all()
    np.testing.assert_array_equal(human.box, [5, 5, 25, 35])
    [photo] = load_photos(config)
    assert photo.boxes[:, 4].tolist() == [1, 1, -1]


@pytest.mark.parametrize("annotations, images, file_name", [
    ("COCO/annotations/person_keypoints_train2017.json", "COCO/images/train2017", "000000000009.jpg"),
    ("MPII/annotations/train.json", "MPII", "images/015601864.jpg"),
    ("PoseTrack/annotations/train2018.json", "PoseTrack", "images/train/000001_bonn_train/000000.jpg"),
    ("mine", "mine/images", "a.jpg"),
])
def test_every_layout_of_data_is_found(tmp_path, annotations, images, file_name):
    picture = tmp_path / images / file_name
    picture.parent.mkdir(parents=True)
    cv2.imwrite(str(picture), np.zeros((20, 20, 3), np.uint8))
    entry = tmp_path / annotations
    path = entry if entry.suffix else entry / "person_keypoints_x.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": file_name}], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [2, 2, 9, 9], "keypoints": [5, 5, 2] * 16, "num_keypoints": 16}]}))
    assert find_annotations(entry) == (path, tmp_path / images)
    [person] = load_persons(Config(data=[str(entry)], keypoints="mpii"))
    assert person.image == str(picture) and person.keypoints.shape == (len(MPII), 3)


def test_annotations_without_their_images_are_named(tmp_path):
    path = tmp_path / "annotations" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []}))
    with pytest.raises(BadInput, match="first image 'gone.jpg' is in none of"):
        find_annotations(path)
    with pytest.raises(BadInput, match="no annotations at .*other.json"):
        find_annotations(path.with_name("other.json"))
    path.write_text(json.dumps({"images": [None], "annotations": []}))
    with pytest.raises(BadInput, match="no file_name of a first image"):
        find_annotations(path)


def test_keypoint_scores_of_another_length_are_named(tmp_path):
    people = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [
        {"id": 5, "image_id": 1, "bbox": [0, 0, 20, 30], "num_keypoints": 17, "keypoints": [10, 10, 2] * 17,
         "keypoint_scores": [0.5] * 3}]}
    (tmp_path / "person_keypoints_a.json").write_text(json.dumps(people))
    with pytest.raises(BadInput, match="annotation 5 of .* has 3 keypoint_scores for 17 keypoints"):
        load_persons(Config(data=[str(tmp_path)]))


@pytest.mark.parametrize("content, words", [
    ("{", "is not JSON"),
    ("[]", "no COCO keypoint file"),
    ('{"images": [], "annotations": [{"image_id": 7, "keypoints": [0, 0, 0]}]}', "no COCO keypoint file"),
    ('{"images": [], "annotations": [{"id": 1, "image_id": 7, "keypoints": [0, 0, 0]}]}', "has 1 keypoints"),
])
def test_bad_annotations_are_named(tmp_path, content, words):
    (tmp_path / "person_keypoints.json").write_text(content)
    with pytest.raises(BadInput, match=words):
        load_persons(Config(data=[str(tmp_path)]))
