"""PoseTrack's own files, with all their gaps, become the COCO files that they must be."""

import json

import pytest

from eval.annotations import load_annotations, read_image
from runtime.errors import BadInput
from runtime.keypoints import POSETRACK
from tests.converters import keypoints_of, picture, run
from train import posetrack2coco

NOBODY = [0.0] * 3 * 17
FULL = {5: (60, 40, 1), 6: (40, 40, 1), 13: (55.5, 120, 1), 14: (45, 110, 1), 0: (50, 20.25, 1)}
CATEGORY = {"supercategory": "person", "id": 1, "name": "person", "keypoints": list(POSETRACK.names),
            "skeleton": [[16, 14], [14, 12]]}


def frame(video, number, split="train", labelled=True, **more):
    identity = 10_000_000_000 + int(video[:6]) * 10_000 + number
    return {"has_no_densepose": True, "is_labeled": labelled, "file_name": f"images/{split}/{video}/{number:06}.jpg",
            "nframes": 40, "frame_id": identity, "vid_id": video[:6], "id": identity, **more}


def track(image, number, **more):
    return {"image_id": image["id"], "id": image["id"] * 100 + number, "track_id": number, "category_id": 1,
            "scores": [], **more}


def write_video(folder, split, video, images, annotations=()):
    path = folder / "original_annotations" / split / f"{video}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "categories": [CATEGORY]}
    if split != "test":
        content["annotations"] = list(annotations)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def posetrack(tmp_path):
    """data/PoseTrack with every irregularity of the real files, in a folder to run in."""
    folder = tmp_path / "data" / "PoseTrack"
    video, other = "000005_mpii_train", "000009_bonn_train"
    first = frame(video, 0, ignore_regions_x=[[0, 30, 30.5], [1, 2], [], [4, 5, 6], [7, 8, 9]],
                  ignore_regions_y=[[0, 0, 20], [1, 2], [], [7, 8]])
    unlabelled, later = frame(video, 1, labelled=False), frame(video, 4)
    write_video(folder, "train", video, [first, unlabelled, later], [
        track(first, 0, keypoints=keypoints_of(POSETRACK, FULL), bbox=[30, 10, 40.5, 120], bbox_head=[40, 10, 20, 25]),
        track(first, 1, keypoints=keypoints_of(POSETRACK, FULL), bbox_head=[]),  # no box
        track(first, 2, keypoints=NOBODY, bbox=[5, 6, 7, 8]),
        track(first, 3, bbox_head=[1, 2, 3, 4]),  # neither keypoints nor box
        track(first, 4, keypoints=[], bbox=[], bbox_head=[]),
        track(first, 5, keypoints=NOBODY, bbox=[0, 0, 0, 0]),
        track(unlabelled, 0, keypoints=NOBODY)])
    alone, gone = frame(other, 0, ignore_regions_x=[10, 20, 20, 10], ignore_regions_y=[5, 5, 9, 9]), frame(other, 4)
    write_video(folder, "train", other, [alone, gone],
                [track(gone, 0, keypoints=keypoints_of(POSETRACK, FULL), bbox=[1, 1, 5, 5])])
    checked = frame("000342_mpii_test", 0, "val")
    write_video(folder, "val", "000342_mpii_test", [checked],
                [track(checked, 0, keypoints=keypoints_of(POSETRACK, FULL), bbox=[1, 1, 5, 5])])
    tested = [frame("000700_mpii_test", number, "test", labelled=False) for number in range(2)]
    write_video(folder, "test", "000700_mpii_test", tested)
    for image in (first, unlabelled, later, alone, checked, *tested):
        picture(folder / image["file_name"], 160, 130)
    return tmp_path


def test_posetrack_value_by_value(posetrack):
    done = run("posetrack2coco", posetrack)
    assert done.returncode == 0, done.stderr
    out = posetrack / "data" / "PoseTrack" / "annotations"
    assert sorted(path.name for path in out.iterdir()) == ["test2018.json", "train2018.json", "val2018.json"]
    train = json.loads((out / "train2018.json").read_text())
    ids = [10000050000, 10000050004, 10000090000]
    assert train["images"] == [
        {"id": number, "frame_id": number, "vid_id": video[:6], "nframes": 40, "is_labeled": True,
         "has_no_densepose": True, "file_name": f"images/train/{video}/{name}.jpg", "width": 160, "height": 130}
        for number, video, name in zip(ids, ["000005_mpii_train"] * 2 + ["000009_bonn_train"],
                                       ["000000", "000004", "000000"], strict=True)]
    visible = keypoints_of(POSETRACK, {index: (x, y, 2) for index, (x, y, _) in FULL.items()})
    nobody = {"category_id": 1, "iscrowd": 1, "num_keypoints": 0, "keypoints": NOBODY}
    expected = [
        {"id": 1000005000000, "image_id": ids[0], "category_id": 1, "iscrowd": 0, "bbox": [30, 10, 40.5, 120],
         "area": 4860, "num_keypoints": 5, "keypoints": visible, "track_id": 0, "bbox_head": [40, 10, 20, 25]},
        # x 40 to 60 and y 20.25 to 120, times 1.3 as PoseTrack's own boxes
        {"id": 1000005000001, "image_id": ids[0], "category_id": 1, "iscrowd": 0, "bbox": [37, 5.2875, 26, 129.675],
         "area": 26 * 129.675, "num_keypoints": 5, "keypoints": visible, "track_id": 1},
        {"id": 1000005000002, "image_id": ids[0], "category_id": 1, "iscrowd": 0, "bbox": [5, 6, 7, 8], "area": 56,
         "num_keypoints": 0, "keypoints": NOBODY, "track_id": 2},
        {"id": 1000005000003, "image_id": ids[0], "bbox": [1, 2, 3, 4], "area": 12, "track_id": 3,
         "bbox_head": [1, 2, 3, 4], **nobody},
        {"id": 1000005000004, "image_id": ids[0], "bbox": [0, 0, 30.5, 20], "area": 300,
         "segmentation": [[0, 0, 30, 0, 30.5, 20]], **nobody},
        {"id": 1000005000005, "image_id": ids[2], "bbox": [10, 5, 10, 4], "area": 40,
         "segmentation": [[10, 5, 20, 5, 20, 9, 10, 9]], **nobody},
    ]
    assert len(train["annotations"]) == len(expected)
    for annotation, wanted in zip(train["annotations"], expected, strict=True):
        segmentation = wanted.pop("segmentation", None)
        assert annotation.pop("segmentation", None) == segmentation
        assert annotation == {key: pytest.approx(value) for key, value in wanted.items()}
    assert train["categories"][0]["keypoints"] == list(POSETRACK.names)
    assert train["categories"][0]["skeleton"][:2] == [[1, 2], [1, 3]]  # nose to the head's bottom and top

    val, test = (json.loads((out / f"{split}2018.json").read_text()) for split in ("val", "test"))
    assert [image["id"] for image in val["images"]] == [10003420000] and len(val["annotations"]) == 1
    assert [image["id"] for image in test["images"]] == [10007000000, 10007000001] and test["annotations"] == []

    assert "train2018.json: 3 images, 2 persons with keypoints, 1 without, 3 regions to ignore; left out: " \
           "1 images missing or unreadable, 1 persons of unlabelled frames, 2 persons without keypoints or box, " \
           "4 regions to ignore that are no polygon, 1 unlabelled frames\n" in done.stdout
    assert "1 images are missing or unreadable, the first is data/PoseTrack/images/train/000009_bonn_train/000004.jpg" \
        in done.stderr


def convert_train(folder):
    videos = sorted((folder / "data/PoseTrack/original_annotations/train").glob("*.json"))
    return posetrack2coco.convert(videos, folder / "data/PoseTrack")


def test_posetrack_as_evaluation_reads_it(posetrack):
    convert_train(posetrack).write(posetrack / "train.json")
    annotations = load_annotations(posetrack / "train.json")
    assert annotations.keypoint_names == POSETRACK.names
    assert {image: len(found) for image, found in annotations.persons.items()} == {10000050000: 2}
    for image in annotations.images:
        assert read_image(image, posetrack / "data" / "PoseTrack").shape == (130, 160, 3)
    region, = annotations.index.loadAnns(annotations.index.getAnnIds(imgIds=[10000090000]))
    mask = annotations.index.annToMask(region)
    assert mask.shape == (130, 160) and mask[5:9, 10:20].all() and mask.sum() == 40


def test_posetrack_ids_that_repeat_are_numbered_anew(posetrack, capsys):
    folder = posetrack / "data" / "PoseTrack"
    image = frame("000011_mpii_train", 0)
    picture(folder / image["file_name"], 160, 130)
    repeated = {**track(image, 0, bbox=[1, 2, 3, 4]), "id": 1000005000000}
    write_video(folder, "train", "000011_mpii_train", [image], [repeated])
    file = convert_train(posetrack)
    assert [annotation["id"] for annotation in file.annotations] == list(range(1, 8))
    assert [annotation.get("track_id") for annotation in file.annotations] == [0, 1, 2, 3, None, None, 0]
    assert "all are numbered anew from 1" in capsys.readouterr().err


def test_a_frame_in_two_files_is_an_error(posetrack):
    folder = posetrack / "data/PoseTrack/original_annotations/train"
    (folder / "copy.json").write_bytes((folder / "000009_bonn_train.json").read_bytes())
    with pytest.raises(BadInput, match="image 10000090000 of .*copy.json is in .*000009_bonn_train.json already"):
        convert_train(posetrack)


def change(part, **fields):
    def apply(content):
        content[part][0].update(fields)
    return apply


@pytest.mark.parametrize(("alter", "message"), [
    (lambda content: content.pop("images"), "has no list of images, but categories, annotations; https"),
    (lambda content: content.update(images={}), "images is no list of objects"),
    (lambda content: content.update(annotations=[5]), "annotations is no list of objects"),
    (lambda content: content["images"][0].pop("id"), "id of one of its images is None where int should be"),
    (change("images", file_name=3), "file_name of one of its images is 3 where str should be"),
    (change("images", ignore_regions_x="all"), "ignore_regions_x should be lists of numbers, but is all"),
    (change("images", ignore_regions_y=[[1, None]]), r"ignore_regions_y should be lists of numbers, but is \[\[1, N"),
    (change("annotations", image_id=7), "annotation 1000005000000 is of image 7, which it does not list"),
    (change("annotations", keypoints=[1, 2, 1]), "annotation 1000005000000: keypoints should be 51 numbers, but is "),
    (change("annotations", keypoints=[None] * 51), "keypoints should be 51 numbers"),
    (change("annotations", bbox=[1, 2, 3]), "bbox should be 4 numbers"),
    (change("annotations", bbox=[1, 2, 3, float("nan")]), "bbox should be 4 numbers"),
    (change("annotations", bbox_head="none"), "bbox_head should be 4 numbers"),
    (change("categories", keypoints=["nose", "neck"]), "has the keypoints nose, neck, not nose, head_bottom"),
])
def test_bad_posetrack_files_are_named(posetrack, alter, message):
    path = posetrack / "data/PoseTrack/original_annotations/train/000005_mpii_train.json"
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message) as caught:
        convert_train(posetrack)
    assert "000005_mpii_train.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b'{"images": [', b"\x89PNG\r\n\x1a\n\xff", b"[]"])
def test_files_that_are_no_posetrack(tmp_path, text):
    (tmp_path / "video.json").write_bytes(text)
    with pytest.raises(BadInput, match="video.json (is not JSON|has no list of images, but list)"):
        posetrack2coco.convert([tmp_path / "video.json"], tmp_path)


def test_posetrack_in_part_and_none_at_all(posetrack):
    folder = posetrack / "data" / "PoseTrack"
    for path in (folder / "images" / "val").rglob("*.jpg"):
        path.unlink()
    (folder / "original_annotations" / "test" / "000700_mpii_test.json").unlink()
    done = run("posetrack2coco", posetrack)
    assert done.returncode == 0
    assert [path.name for path in (folder / "annotations").iterdir()] == ["train2018.json"]
    assert "val2018.json is not written, for it would have no images" in done.stderr
    assert "test2018.json is not written, for data/PoseTrack/original_annotations/test has no .json" in done.stderr

    for options in (("--annotations", posetrack), ("--images", posetrack)):
        done = run("posetrack2coco", posetrack, "--out", "elsewhere", *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: nothing of ")
        assert not (posetrack / "elsewhere").exists()
