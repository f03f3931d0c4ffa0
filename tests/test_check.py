"""`python -m train --check`: healthy data pass, and each kind of damage is named with its number."""

import json
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from runtime.draw import LEFT, RIGHT  # noqa: E402
from runtime.keypoints import COCO  # noqa: E402
from runtime.walkers import write_stills  # noqa: E402
from train.check import Report, check, check_data  # noqa: E402
from train.config import Config  # noqa: E402
from train.sample_picture import write_sample_picture  # noqa: E402

PICTURES = 40


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    write_stills(folder / "images", folder / "person_keypoints.json", PICTURES, (320, 240))
    return folder


def tiny(folder, **changes):
    return Config(**{**dict(data=[str(folder)], input_size=[64, 64], backbone_weights="", freeze_stem=False,
                            attention_blocks=1, attention_width=32, decoder_width=16, min_keypoints=5), **changes})


@pytest.fixture
def damaged(rendered, tmp_path, capsys):
    """A function: damage(annotations, folder) → exit code and report of a damaged copy, but for the batch."""
    def run(damage, **changes):
        shutil.copytree(rendered, tmp_path / "copy")
        path = tmp_path / "copy/person_keypoints.json"
        content = json.loads(path.read_text())
        damage(content, tmp_path / "copy")
        path.write_text(json.dumps(content))
        report = Report()
        check_data(report, tiny(tmp_path / "copy", **changes))
        return report.end(), capsys.readouterr().out
    return run


@pytest.mark.parametrize("task", ["pose", "person"])
def test_healthy_data_have_nothing_wrong(damaged, task):
    code, report = damaged(lambda content, folder: None, task=task)
    assert code == 0 and "nothing is wrong" in report, report
    assert f"{PICTURES} images" in report and f"{PICTURES} decoded" in report


def test_a_healthy_network_learns_one_batch(rendered, capsys):
    code = check(tiny(rendered))
    report = capsys.readouterr().out
    assert code == 0 and "loss" in report and "nothing is wrong" in report, report


def swap_hips(content, folder):
    order = np.arange(len(COCO))
    order[11], order[12] = 12, 11
    for item in content["annotations"]:
        item["keypoints"] = np.reshape(item["keypoints"], (-1, 3))[order].ravel().tolist()


def no_left_knee(content, folder):
    for item in content["annotations"]:
        item["keypoints"][3 * COCO.names.index("left_knee") + 2] = 0


def corners_for_sizes(content, folder):
    for item in content["annotations"]:
        left, top, width, height = item["bbox"]
        item["bbox"] = [left + 300, top + 300, width, height]


def flat_boxes(content, folder):
    for item in content["annotations"][:3]:
        item["bbox"][2] = 0


def odd_visibility(content, folder):
    content["annotations"][0]["keypoints"][2] = 3


def no_numbers(content, folder):
    content["annotations"][0]["bbox"] = [1, 2, None, 4]


def one_missing(content, folder):
    (folder / "images" / content["images"][0]["file_name"]).unlink()


def one_cut_off(content, folder):
    path = folder / "images" / content["images"][0]["file_name"]
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("damage, words", [
    (swap_hips, "left and right hip (0%) disagree with the person's other keypoints"),
    (corners_for_sizes, "have a box that lies mostly outside the image"),
    (flat_boxes, "have a box without width or height"),
    (odd_visibility, "have visibilities other than 0, 1, 2"),
    (no_numbers, "a bbox that is not four numbers"),
    (one_missing, f"1 of {PICTURES} images are missing"),
    (one_cut_off, f"1 of {PICTURES} images tried cannot be used"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named(damaged, damage, words):
    code, report = damaged(damage)
    assert code == 2 and any("wrong" in line and words in line for line in report.splitlines()), report


def test_a_keypoint_that_nobody_has_is_noted(damaged):
    code, report = damaged(no_left_knee)
    assert code == 0 and "left_knee: labelled on nobody" in report, report


def test_the_picture_shows_left_and_right_where_they_are(tmp_path):
    """One keypoint of each side on grey crops: its colour is at its place, in the middle of what is drawn."""
    labels = np.zeros((2, len(COCO), 3), np.float32)
    labels[:, COCO.names.index("left_wrist")] = 16, 48, 1
    labels[:, COCO.names.index("right_wrist")] = 48, 16, 1
    path = tmp_path / "vis/inputs.jpg"
    write_sample_picture(np.full((2, 64, 64, 3), 128, np.uint8), labels, tiny(tmp_path), path)
    sheet = cv2.imread(str(path)).astype(int)
    places = {}
    for name, colour in (("left", LEFT), ("right", RIGHT)):
        rows, columns = np.nonzero(np.abs(sheet - np.array(colour)).max(2) < 40)
        first = (columns < sheet.shape[1] / 2) & (rows > 60)  # of the first input, below the legend
        places[name] = np.median(columns[first]), np.median(rows[first])
    assert places["left"][0] < places["right"][0] and places["left"][1] > places["right"][1], places
