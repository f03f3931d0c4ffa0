"""What `eval.coco` says of bad input: one line, before an engine runs, and nothing done is lost."""

import json
import resource
import subprocess
import sys

import cv2
import numpy as np
import pytest

from eval.annotations import load_annotations, read_image
from runtime.errors import BadInput
from tests.coco_data import (
    ROOT,
    read_metrics,
    run_command,
    run_main,
    write_walker_data,
)


def drop(part, field):
    def change(data):
        for item in data[part][:2]:
            del item[field]
    return change


def set_all(part, **fields):
    def change(data):
        for item in data[part]:
            item.update(fields)
    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("images"), "has no list 'images'"),
        (lambda data: data.update(images=[]), "has no images"),
        (lambda data: data.update(annotations=[]), "has 0 annotations but none has keypoints"),
        (lambda data: [item.pop("keypoints") for item in data["annotations"]],
         r"has 20 annotations but none has keypoints; give the person_keypoints_\*.json file"),
        (set_all("annotations", num_keypoints=0), "has no person with keypoints on the first 12 of its 12 images"),
        (drop("annotations", "area"), r"2 of 20 annotations have no 'area' \(first: 1\)"),
        (drop("annotations", "bbox"), "2 of 20 annotations have no 'bbox'"),
        (drop("annotations", "iscrowd"), "2 of 20 annotations have no 'iscrowd'"),
        (drop("annotations", "keypoints"), "2 of 20 annotations have no 'keypoints'"),
        (drop("images", "file_name"), r"2 of 12 images have no 'file_name' \(first: 100\)"),
        (set_all("annotations", id=5), r"1 annotation ids occur twice or more \(first: 5\)"),
        (set_all("images", id=5), r"1 image ids occur twice or more \(first: 5\)"),
        (lambda data: data["images"].append("x.jpg"), r"1 of 13 images are no objects \(first: x.jpg\)"),
        (set_all("images", file_name=None), "'file_name' of 12 of 12 images is not what COCO has there"),
        (lambda data: data["annotations"][0]["keypoints"].__setitem__(0, float("nan")),
         "'keypoints' of 1 of 20 annotations is not what COCO has there"),
        (lambda data: data["annotations"][0].update(keypoints=None), "'keypoints' of 1 of 20 annotations"),
        (lambda data: data["annotations"][1].update(bbox=[1, 2, 3]), "'bbox' of 1 of 20 annotations .*1, 2, 3.* of 2"),
        (lambda data: data["annotations"][1].update(bbox=[1, 2, 3, float("inf")]), "'bbox' of 1 of 20 annotations"),
        (lambda data: data["annotations"][1].update(area=None), "'area' of 1 of 20 annotations"),
        (lambda data: data["annotations"][1].update(num_keypoints=None), "'num_keypoints' of 1 of 20 annotations"),
        (lambda data: data["annotations"][1].update(bbox=[9, 9, -3, 4]), "'bbox' of 1 of 20 annotations .*-3, 4"),
        (lambda data: data["annotations"][1].update(num_keypoints=-1), "'num_keypoints' of 1 of 20 annotations .*-1"),
        (lambda data: data["annotations"][1].update(id="b"), "'id' of 1 of 20 annotations .*first: b"),
        (lambda data: data["annotations"][1].update(image_id=[101]), "'image_id' of 1 of 20 annotations"),
        (lambda data: data["annotations"][1].update(category_id=[1]), "'category_id' of 1 of 20 annotations"),
        (lambda data: data["images"][3].update(id=[103]), "'id' of 1 of 12 images is not what COCO has there"),
        (lambda data: data["images"][3].update(id="103"), "1 of 12 image ids are text and the others are not"),
        (lambda data: data["categories"][0].update(keypoints=17), "'keypoints' of category 1 is 17, where a list "),
        (lambda data: data.update(categories=5), "'categories' has no entry with id 1"),
        (lambda data: data.update(categories=None), "'categories' has no entry with id 1"),
        (set_all("annotations", category_id=3), "'categories' has no entry with id 3"),
        (lambda data: data["annotations"][0].update(category_id=2), "has keypoints of 2 categories"),
        (lambda data: data["annotations"][0].update(keypoints=[1, 2, 2]), "1 times 3, 19 times 51"),
        (lambda data: data["categories"][0].update(keypoints=["a"]), "names 1 keypoints but its annotations have 17"),
        (set_all("images", file_name="gone.jpg"), r"9 of 9 images are not in .*images \(first: gone.jpg\)"),
        (set_all("images", width=999), r"1.png is 480x240 pixels but was annotated at 999x240"),
        (lambda data: data["categories"][0]["keypoints"].reverse(),
         "keypoint 0 of .*coco.onnx is 'nose' but 'right_ankle' in .*, and 16 of 17 differ so"),
    ],
)
def test_bad_annotations_are_named(coco, tmp_path, monkeypatch, change, message):
    data = json.loads((coco / "annotations.json").read_text())
    change(data)
    (tmp_path / "changed.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match=message) as caught:
        run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", tmp_path / "changed.json", "--images",
                 coco / "images", "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not JSON"),
        (b"[]", "has no list 'images'"),
        (b"{}", "has no list 'images'"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_annotations(tmp_path / "file.json")
    with pytest.raises(BadInput, match="cannot read"):
        load_annotations(tmp_path)


def test_engines_and_folders_that_do_not_fit(coco, tmp_path, monkeypatch, person_path, pose_path):
    fitting = {"--engine": coco / "coco.onnx", "--annotations": coco / "annotations.json", "--images": coco / "images",
               "--out": tmp_path / "out"}
    (tmp_path / "file").touch()
    for option, value, message in (
        ("--engine", person_path, "is a person engine where a pose engine is needed"),
        ("--engine", pose_path, r"finds 3 keypoints \(dots\) but .* has 17 a person"),
        ("--detector", coco / "coco.onnx", "is a pose engine where a person engine is needed"),
        ("--images", tmp_path / "nowhere", "images folder .*nowhere does not exist; give the folder that holds 1.png"),
        ("--out", tmp_path / "file", "cannot write to folder"),
        ("--out", "/proc/nowhere", "cannot write to folder"),
    ):
        arguments = [part for pair in {**fitting, option: value}.items() for part in pair]
        with pytest.raises(BadInput, match=message):
            run_main(monkeypatch, *arguments)


def test_an_image_that_does_not_decode_keeps_what_was_done(tmp_path, pose_path):
    options = write_walker_data(tmp_path, ["person"] * 4)
    (tmp_path / "images" / "2.png").write_bytes(b"not a picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("of an earlier run")
    done = run_command(["--engine", pose_path, *options])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: image")
    assert "2.png cannot be decoded" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "kept 2 poses of 2 images" in done.stdout
    assert len(json.loads((tmp_path / "out" / "keypoints.json").read_text())) == 2
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_full_disk_is_named_and_leaves_no_half_a_file(coco, tmp_path):
    command = ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images", coco / "images",
               "--out", tmp_path]
    done = run_command(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)))
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "choose another --out" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"journal.jsonl", "keypoints.json"}
    kept = json.loads((tmp_path / "keypoints.json").read_text())
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    assert 1 <= len(kept) < 18 and len(lines) > 1 and all(line.endswith("\n") and json.loads(line) for line in lines)
    assert run_command([*command, "--continue"]).returncode == 0
    assert json.loads((tmp_path / "keypoints.json").read_text())[:len(kept)] == kept
    assert read_metrics(tmp_path)["protocol"]["poses"] == 18


@pytest.mark.parametrize("package", ["pycocotools", "faster_coco_eval"])
def test_a_package_missing_is_said_before_anything_runs(coco, package):
    script = (f"import sys; sys.modules['{package}'] = None; sys.argv = ['eval.coco', *sys.argv[1:]]; "
              "from eval.coco import main; from runtime.errors import run_command; run_command(main)")
    done = subprocess.run([sys.executable, "-c", script, "--annotations", coco / "annotations.json", "--images", coco],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"error: {package} is not installed; pip install -e '.[eval]'\n"


def test_pictures_are_read_the_way_they_were_labelled(tmp_path):
    """A JPEG stored lying, with an EXIF that turns it upright: width and height of the labels say which is meant."""
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20] = 255
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: a quarter turn
    exif = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    (tmp_path / "turned.jpg").write_bytes(turned)
    lying = read_image({"file_name": "turned.jpg", "width": 80, "height": 40}, tmp_path)
    assert lying.shape == (40, 80, 3)
    assert lying[20, 5, 0] > 200
    upright = read_image({"file_name": "turned.jpg", "width": 40, "height": 80}, tmp_path)
    assert upright.shape == (80, 40, 3)
    assert upright[5, 20, 0] > 200
    assert read_image({"file_name": "turned.jpg"}, tmp_path).shape == (40, 80, 3)
    with pytest.raises(BadInput, match="turned.jpg is 40x80 pixels but was annotated at 100x50"):
        read_image({"file_name": "turned.jpg", "width": 100, "height": 50}, tmp_path)
