"""MPII's own file, with all its gaps, becomes the COCO file that it must be."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from eval.annotations import load_annotations, read_image
from runtime.errors import BadInput
from runtime.keypoints import MPII
from tests.converters import keypoints_of, picture, run
from train import mpii2coco

NOTHING = np.zeros((0, 0))  # MATLAB's []


def struct_array(items, fields):
    """MATLAB's 1xN struct array: every element has every field, [] where it has no value."""
    array = np.empty((1, len(items)), [(field, object) for field in fields])
    for place, item in enumerate(items):
        for field in fields:
            array[0, place][field] = item.get(field, NOTHING)
    return array


def points(*items, fields=("x", "y", "id", "is_visible")):
    return {"point": struct_array([dict(zip(("id", "x", "y", "is_visible"), item, strict=False)) for item in items],
                                  fields)}


def persons(*items):
    return struct_array(items, ("x1", "y1", "x2", "y2", "annopoints", "scale", "objpos"))


def write_mat(path, images, img_train):
    """MPII's file: images are (name, annorect)."""
    annolist = struct_array([{"image": {"name": name}, "annorect": annorect, "vididx": 1} for name, annorect in images],
                            ("image", "annorect", "frame_sec", "vididx"))
    release = {"annolist": annolist, "img_train": np.array(img_train, np.uint8), "version": "12",
               "single_person": np.array([[NOTHING]], object), "act": {"act_name": "running", "act_id": 1},
               "video_list": np.array([["abc"]], object)}
    savemat(path, {"RELEASE": release}, do_compression=True)
    return path


@pytest.fixture
def mpii(tmp_path):
    """data/MPII with every irregularity of the real file, in a folder to run in."""
    folder = tmp_path / "data" / "MPII"
    for name, size in {"a.jpg": (320, 240), "b.jpg": (100, 200), "d.jpg": (64, 48), "e.jpg": (50, 60),
                       "f.jpg": (40, 30), "test.jpg": (48, 64), "empty.jpg": (9, 9)}.items():
        picture(folder / "images" / name, *size)
    crowd = persons(
        {"x1": 86, "y1": 16, "x2": 106, "y2": 56, "scale": 0.8, "objpos": {"x": 81, "y": 111},
         "annopoints": points((0, 61, 181, 1), (6, 81, 101, "0"), (8, 91.5, 51), (9, 101, 21, "1"), (12, NOTHING, 7),
                              (13, np.nan, 7))},
        {"scale": 0.5, "objpos": {"x": 31, "y": 201}},  # no keypoints, but a place
        {"x1": 1, "y1": 2, "x2": 3},  # nothing that tells where
        {"annopoints": {"point": {"id": 9, "x": 8, "y": 8, "is_visible": 1}},  # a single point is a bare struct
         "scale": 1, "objpos": {"x": 281, "y": 121}},
    )
    two_points = points((3, 11, 21), (15, 31, 121), fields=("id", "x", "y"))  # no point says whether it is visible
    write_mat(folder / "mpii_human_pose_v1_u12_1.mat", [
        ("a.jpg", crowd),
        ("b.jpg", {"annopoints": two_points, "scale": NOTHING}),  # one person is a bare struct
        ("gone.jpg", crowd),
        ("d.jpg", struct_array([{"scale": 0.1, "objpos": {"x": 21, "y": 31}},
                                {"scale": np.nan, "objpos": {"x": 21, "y": 31}}], ("scale", "objpos"))),
        ("e.jpg", NOTHING),
        ("f.jpg", persons({}, {"scale": 0.1, "objpos": {"x": 500, "y": 20}})),  # outside the image
        ("test.jpg", {"scale": 3.0, "objpos": {"x": 2, "y": 3}}),
        ("empty.jpg", persons()),
    ], [1, 1, 1, 1, 1, 1, 0, 0])
    return tmp_path


def test_mpii_value_by_value(mpii):
    done = run("mpii2coco", mpii)
    assert done.returncode == 0, done.stderr
    out = mpii / "data" / "MPII" / "annotations"
    assert sorted(path.name for path in out.iterdir()) == ["test.json", "train.json"]
    train = json.loads((out / "train.json").read_text())
    assert train["images"] == [
        {"id": 0, "file_name": "images/a.jpg", "width": 320, "height": 240},
        {"id": 1, "file_name": "images/b.jpg", "width": 100, "height": 200},
        {"id": 3, "file_name": "images/d.jpg", "width": 64, "height": 48}]
    nobody = {"category_id": 1, "iscrowd": 1, "num_keypoints": 0, "keypoints": [0.0] * 48}
    expected = [
        # MPII's first pixel is 1 and COCO's is 0: 61 → 60. x 60 to 100 and y 20 to 180, a fifth larger.
        {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "bbox": [56, 4, 48, 192], "area": 48 * 192,
         "num_keypoints": 4, "keypoints": keypoints_of(MPII, {0: (60, 180, 2), 6: (80, 100, 1), 8: (90.5, 50, 2),
                                                              9: (100, 20, 2)}),
         "head_box": [85, 15, 105, 55], "scale": 0.8, "center": [80, 110]},
        {"id": 2, "image_id": 0, "bbox": [0, 150, 80, 90], "area": 7200, "scale": 0.5, "center": [30, 200], **nobody},
        {"id": 3, "image_id": 0, "bbox": [180, 20, 140, 200], "area": 28000, "scale": 1, "center": [280, 120],
         **nobody},
        {"id": 4, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [8, 10, 24, 120], "area": 2880,
         "num_keypoints": 2, "keypoints": keypoints_of(MPII, {3: (10, 20, 2), 15: (30, 120, 2)})},
        {"id": 5, "image_id": 3, "bbox": [10, 20, 20, 20], "area": 400, "scale": 0.1, "center": [20, 30], **nobody},
    ]
    assert len(train["annotations"]) == len(expected)
    for annotation, wanted in zip(train["annotations"], expected, strict=True):
        assert annotation == {key: pytest.approx(value) for key, value in wanted.items()}
    category, = train["categories"]
    assert (category["id"], category["name"], category["keypoints"]) == (1, "person", list(MPII.names))
    assert category["skeleton"][:3] == [[1, 2], [2, 3], [3, 7]]  # right ankle, knee, hip, pelvis

    test = json.loads((out / "test.json").read_text())
    assert test["images"] == [{"id": 6, "file_name": "images/test.jpg", "width": 48, "height": 64}]
    assert test["annotations"] == [] and test["categories"] == [category]

    assert "train.json: 3 images, 2 persons with keypoints, 0 without, 3 regions to ignore; left out: " \
           "1 images missing or unreadable, 1 images with no person that can be located, " \
           "1 images without annotations, 4 persons without keypoints, scale or position\n" in done.stdout
    assert "test.json: 1 images, 0 persons" in done.stdout
    assert "warning: 1 images are missing or unreadable, the first is data/MPII/images/gone.jpg" in done.stderr


def test_mpii_as_evaluation_reads_it(mpii):
    mpii2coco.convert(mpii / "data/MPII/mpii_human_pose_v1_u12_1.mat", mpii / "data/MPII/images")[0].write(
        mpii / "train.json")
    annotations = load_annotations(mpii / "train.json")
    assert annotations.keypoint_names == MPII.names
    assert {image: len(found) for image, found in annotations.persons.items()} == {0: 1, 1: 1}
    assert len(annotations.index.getAnnIds(iscrowd=True)) == 3
    for image in annotations.images:
        assert read_image(image, mpii / "data" / "MPII").shape == (image["height"], image["width"], 3)


@pytest.mark.parametrize(("is_visible", "visibility"), [
    (1, 2), (0, 1), ("1", 2), ("0", 1), (True, 2), (np.uint8(0), 1), (NOTHING, 2), ("", 2), (np.nan, 2)])
def test_mpii_visibility(tmp_path, is_visible, visibility):
    picture(tmp_path / "a.jpg", 40, 40)
    person = {"annopoints": points((2, 5, 5, is_visible), (3, 9, 9, 1))}
    train, test = mpii2coco.convert(write_mat(tmp_path / "one.mat", [("a.jpg", person)], [1]), tmp_path)
    assert train.annotations[0]["keypoints"][6:12] == [4, 4, visibility, 8, 8, 2]
    assert test.images == []


@pytest.mark.parametrize(("keypoints", "box"), [
    ([(10, 20, 2), (20, 60, 1), (99, 99, 0)], [9, 16, 12, 48]),
    ([(-10, -20, 2), (0, 20, 2)], [-11, -24, 12, 48]),  # outside the image, as a head's top may be
    ([(10, 20, 2), (11, 21, 2)], [9.9, 19.9, 1.2, 1.2]),
    ([(10, 20, 2)], None),
    ([(10, 20, 2), (10, 60, 2)], None),
    ([(10, 20, 0), (20, 60, 0)], None),
])
def test_box_of_keypoints(keypoints, box):
    found = mpii2coco.keypoint_box(np.array(keypoints, float), 1.2)
    assert found == (box if box is None else pytest.approx(box))


def bad_mats(folder):
    """(file, message) of each way in which it is not MPII's."""
    one = persons({"scale": 1, "objpos": {"x": 5, "y": 5}})
    good = write_mat(folder / "good.mat", [("a.jpg", one)], [1]).read_bytes()
    (folder / "cut.mat").write_bytes(good[:len(good) // 2])
    (folder / "head.mat").write_bytes(good[:100])
    (folder / "changed.mat").write_bytes(good[:200] + b"\x00" * 20 + good[220:])
    (folder / "type.mat").write_bytes(good[:128] + b"\x0d" + good[129:])
    (folder / "text.mat").write_text("<html>not found</html>" * 50)
    (folder / "empty.mat").touch()
    (folder / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    for name in ("cut", "head", "changed", "type", "text", "empty", "new"):
        yield f"{name}.mat", f"{name}.mat is not a .mat file of MATLAB 5, or damaged"
    savemat(folder / "other.mat", {"joints": np.zeros((3, 14, 5)), "name": "LSP"})
    yield "other.mat", "has no struct RELEASE, but joints, name; http"
    savemat(folder / "number.mat", {"RELEASE": 5})
    yield "number.mat", "has no struct RELEASE, but RELEASE"
    savemat(folder / "bare.mat", {"RELEASE": {"version": "12"}})
    yield "bare.mat", "RELEASE has 0 images in annolist and 0 marks in img_train, among version"
    write_mat(folder / "fewer.mat", [("a.jpg", one)], [1, 0, 1])
    yield "fewer.mat", "1 images in annolist and 3 marks in img_train"
    write_mat(folder / "nameless.mat", [("a.jpg", one), (NOTHING, one)], [1, 1])
    yield "nameless.mat", r"annolist\(2\) should have one image.name, but has \[\]"
    write_mat(folder / "joint.mat", [("a.jpg", {"annopoints": points((16, 5, 5))})], [1])
    yield "joint.mat", "a.jpg: keypoint id 16 is none of 0 to 15"
    write_mat(folder / "word.mat", [("a.jpg", {"scale": "large"})], [1])
    yield "word.mat", r"a.jpg: scale should be a number, but is \['large'\]"
    write_mat(folder / "two.mat", [("a.jpg", {"x1": [1, 2]})], [1])
    yield "two.mat", r"a.jpg: x1 should be a number, but is \[1, 2\]"
    write_mat(folder / "deep.mat", [("a.jpg", {"x1": {"x": 1}})], [1])
    yield "deep.mat", "a.jpg: x1 should be a number, but is "
    yield "nowhere.mat", "no annotations at .*nowhere.mat; http://human-pose.mpi-inf.mpg.de/"


def test_bad_mpii_files_are_named(tmp_path):
    picture(tmp_path / "a.jpg", 40, 40)
    for name, message in bad_mats(tmp_path):
        with pytest.raises(BadInput, match=message) as caught:
            mpii2coco.convert(tmp_path / name, tmp_path)
        assert "\n" not in str(caught.value)


def test_mpii_without_its_images_or_a_place_to_write(mpii):
    (mpii / "file").touch()
    for options, message in ((("--images", mpii), "no labelled image is in "),
                             (("--mat", "nowhere.mat"), "error: no annotations at nowhere.mat"),
                             (("--out", mpii / "file" / "folder"), "error: cannot write ")):
        done = run("mpii2coco", mpii, *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]
    assert not list(mpii.rglob("*.json")) and not list(mpii.rglob("*.part"))


def test_what_cannot_be_written_leaves_the_old_file(mpii):
    train, _ = mpii2coco.convert(mpii / "data/MPII/mpii_human_pose_v1_u12_1.mat", mpii / "data/MPII/images")
    (mpii / "out" / "train.json").mkdir(parents=True)
    with pytest.raises(BadInput, match="cannot write .*train.json"):
        train.write(mpii / "out" / "train.json")
    assert [path.name for path in (mpii / "out").iterdir()] == ["train.json"]


def test_a_picture_that_is_none_counts_as_missing(mpii):
    (mpii / "data/MPII/images/b.jpg").write_bytes(b"not a picture")
    train, _ = mpii2coco.convert(mpii / "data/MPII/mpii_human_pose_v1_u12_1.mat", mpii / "data/MPII/images")
    assert [image["id"] for image in train.images] == [0, 3]
    assert [Path(path).name for path in train.missing] == ["b.jpg", "gone.jpg"]
