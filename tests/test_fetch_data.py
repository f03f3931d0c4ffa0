"""Data sets in small, fetched from a real server on the loopback into the layout that training reads."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import BadInput
from tests.test_download import serve
from train import fetch_data
from train.fetch_data import DATASETS
from train.unpack import extract

ROOT = Path(__file__).parents[1]
DETECTIONS = [{"image_id": 139, "category_id": 1, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.9}]
ANNOTATIONS = ["annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"]


def zipped(members):
    """A .zip of {name: bytes}, without compression as COCO's photographs are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members):
    """A .tar.gz of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def photographs(folder, count):
    """JPEGs as in one of COCO's zips, its folder included."""
    random = np.random.default_rng(count)
    return {f"{folder}/": b""} | {
        f"{folder}/{index:012}.jpg": cv2.imencode(".jpg", random.integers(0, 255, (24, 32, 3), np.uint8))[1].tobytes()
        for index in range(count)}


FILES = {
    "/zips/train2017.zip": zipped(photographs("train2017", 5)),
    "/zips/val2017.zip": zipped(photographs("val2017", 3)),
    "/annotations/annotations_trainval2017.zip": zipped(
        {name: json.dumps({"name": name}) for name in [*ANNOTATIONS, "annotations/captions_val2017.json"]}),
    "/mks0601/TF-SimpleHumanPose/releases/download/1.0/human_detection_val2017.json": json.dumps(DETECTIONS).encode(),
    "/models/resnet_v1_50_2016_08_28.tar.gz": tarred({"./resnet_v1_50.ckpt": os.urandom(200_000)}),
}


def shrink(monkeypatch, dataset, part, content, count=0):
    """Expect this content instead of the real file's: its size, its checksum, its number of photographs."""
    small = [replace(source, size=source.size and len(content), photographs=source.photographs and count,
                     sha256=source.sha256 and hashlib.sha256(content).hexdigest())
             for source in DATASETS[dataset][part].sources]
    monkeypatch.setitem(DATASETS[dataset], part, replace(DATASETS[dataset][part], sources=tuple(small)))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shrink(monkeypatch, "coco", "train2017", FILES["/zips/train2017.zip"], 5)
    shrink(monkeypatch, "coco", "val2017", FILES["/zips/val2017.zip"], 3)
    shrink(monkeypatch, "coco", "annotations", FILES["/annotations/annotations_trainval2017.zip"])
    shrink(monkeypatch, "imagenet", "resnet50", FILES["/models/resnet_v1_50_2016_08_28.tar.gz"])
    with serve(dict(FILES)) as running:
        yield running


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """The command on the server, into tmp_path/data. Returns its exit code."""
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fetch_data", *arguments, "--data", str(tmp_path / "data"),
                                         "--mirror", server.url])
        return fetch_data.main()
    return run


def files(folder):
    """Everything in it, hidden files too, as relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


LAYOUT = sorted(["COCO/dets/human_detection.json", *(f"COCO/{name}" for name in ANNOTATIONS),
                 *(f"COCO/images/train2017/{index:012}.jpg" for index in range(5)),
                 *(f"COCO/images/val2017/{index:012}.jpg" for index in range(3))])


def test_coco_lands_in_its_layout_and_is_not_fetched_twice(fetch, server, tmp_path, capsys):
    assert fetch("coco") == 0
    assert files(tmp_path / "data") == LAYOUT
    assert cv2.imread(str(tmp_path / "data/COCO/images/val2017/000000000002.jpg")).shape == (24, 32, 3)
    assert json.loads((tmp_path / "data/COCO" / ANNOTATIONS[1]).read_text())["name"] == ANNOTATIONS[1]
    assert json.loads((tmp_path / "data/COCO/dets/human_detection.json").read_text()) == DETECTIONS
    assert sorted(path for path, _ in server.log) == sorted(set(FILES) - {"/models/resnet_v1_50_2016_08_28.tar.gz"})
    capsys.readouterr()
    assert fetch("coco") == 0
    assert len(server.log) == 4
    printed = capsys.readouterr().out
    assert [line.split(": complete in ")[0] for line in printed.splitlines()] == ["train2017", "val2017", "annotations",
                                                                                  "dets"]
    assert "complete in " + str(tmp_path / "data/COCO/images/val2017") in printed


def test_parts_are_fetched_alone_and_archives_kept_on_request(fetch, server, tmp_path):
    fetch("coco", "--parts", "val2017", "--keep-archives")
    kept = tmp_path / "data/COCO/images/val2017.zip"
    assert kept.read_bytes() == FILES["/zips/val2017.zip"]
    for photograph in (tmp_path / "data/COCO/images/val2017").iterdir():
        photograph.unlink()  # the empty folder that is left is no obstacle
    fetch("coco", "--parts", "val2017")
    assert files(tmp_path / "data") == [name for name in LAYOUT if "val2017/" in name]
    assert [path for path, _ in server.log] == ["/zips/val2017.zip"]


def test_a_broken_download_goes_on(fetch, server, tmp_path):
    server.breaks = [1000]
    with pytest.raises(BadInput, match="broke off after 1000"):
        fetch_data.download(f"{server.url}/zips/val2017.zip", tmp_path / "data/COCO/images/val2017.zip", pauses=())
    fetch("coco", "--parts", "val2017")
    assert [asked for _, asked in server.log] == [None, "bytes=1000-"]
    assert files(tmp_path / "data") == [name for name in LAYOUT if "val2017/" in name]


def test_what_a_killed_unpacking_left_is_done_again(fetch, server, tmp_path):
    images = tmp_path / "data/COCO/images"
    (images / ".val2017.zip.unpacking/val2017").mkdir(parents=True)
    (images / ".val2017.zip.unpacking/val2017/000000000099.jpg").write_bytes(b"half")
    (images / "val2017.zip").write_bytes(FILES["/zips/val2017.zip"])
    fetch("coco", "--parts", "val2017")
    assert files(tmp_path / "data") == [name for name in LAYOUT if "val2017/" in name] and not server.log


def test_a_folder_with_some_photographs_is_left_alone(fetch, server, tmp_path):
    folder = tmp_path / "data/COCO/images/val2017"
    folder.mkdir(parents=True)
    (folder / "000000000000.jpg").write_bytes(b"mine")
    with pytest.raises(BadInput, match="val2017 holds 1 of 3 photographs; move or delete that folder"):
        fetch("coco")
    assert files(folder) == ["000000000000.jpg"] and not server.log


def test_only_what_is_needed_is_unpacked(tmp_path):
    with zipfile.ZipFile(io.BytesIO(FILES["/annotations/annotations_trainval2017.zip"])) as archive:
        assert len(archive.namelist()) == 3
        extract(archive, tmp_path / "there", tuple(ANNOTATIONS))
    assert files(tmp_path / "there") == ANNOTATIONS


BAD_CRC = bytearray(FILES["/zips/val2017.zip"])
BAD_CRC[FILES["/zips/val2017.zip"].index(b"\xff\xd8\xff") + 100] ^= 1  # inside the first JPEG


@pytest.mark.parametrize(("content", "said"), [
    (bytes(BAD_CRC), "damaged .*CRC"),
    (FILES["/zips/val2017.zip"][:-100], "damaged .*not a zip file"),
    (zipped(photographs("val2017", 3) | {"../evil.jpg": b"x"}), r"'\.\./evil\.jpg', which lies outside"),
    (zipped(photographs("val2017", 3) | {"/tmp/evil.jpg": b"x"}), "'/tmp/evil.jpg', which lies outside"),
    (zipped(photographs("train2017", 3)), "holds no val2017"),
], ids=["CRC", "cut off", "parent", "absolute", "another"])
def test_a_bad_zip_is_removed_and_the_next_call_fetches_it_anew(fetch, server, tmp_path, monkeypatch, content, said):
    shrink(monkeypatch, "coco", "val2017", content, 3)
    server.files["/zips/val2017.zip"] = content
    with pytest.raises(BadInput, match=f"val2017.zip is of no use, .*{said}.*; it was removed") as caught:
        fetch("coco", "--parts", "val2017")
    assert "\n" not in str(caught.value) and files(tmp_path) == []
    shrink(monkeypatch, "coco", "val2017", FILES["/zips/val2017.zip"], 3)
    server.files["/zips/val2017.zip"] = FILES["/zips/val2017.zip"]
    fetch("coco", "--parts", "val2017")
    assert len(server.log) == 2 and len(files(tmp_path / "data")) == 3


@pytest.mark.parametrize(("content", "said"), [
    (b"<html>Not here</html>", "it is not JSON"), (b'{"images": []}', "no list of detections"),
    (b'[{"image_id": 1}]', "no list of detections"), (b"[]", "no list of detections"),
])
def test_detections_must_be_detections(fetch, server, tmp_path, content, said):
    server.files["/mks0601/TF-SimpleHumanPose/releases/download/1.0/human_detection_val2017.json"] = content
    with pytest.raises(BadInput, match=said):
        fetch("coco", "--parts", "dets")
    assert files(tmp_path) == []


def test_imagenet_weights_come_out_of_their_tar(fetch, tmp_path):
    assert fetch("imagenet", "--parts", "resnet50") == 0
    assert files(tmp_path / "data") == ["imagenet_weights/resnet_v1_50.ckpt"]
    assert (tmp_path / "data/imagenet_weights/resnet_v1_50.ckpt").stat().st_size == 200_000


GZIP = FILES["/models/resnet_v1_50_2016_08_28.tar.gz"]


@pytest.mark.parametrize(("content", "said"), [
    (GZIP[:-8] + bytes(4) + GZIP[-4:], "CRC check failed"), (GZIP[:5000], "damaged"), (b"no archive", "damaged"),
    (tarred({"resnet_v1_50.ckpt": b"x", "../evil": b"x"}), "'../evil', which lies outside"),
    (tarred({"resnet_v2_50.ckpt": b"x"}), "holds no resnet_v1_50.ckpt"),
], ids=["CRC", "cut off", "no tar", "parent", "another"])
def test_a_bad_tar_is_told_and_removed(fetch, server, tmp_path, monkeypatch, content, said):
    shrink(monkeypatch, "imagenet", "resnet50", content)
    server.files["/models/resnet_v1_50_2016_08_28.tar.gz"] = content
    with pytest.raises(BadInput, match=said):
        fetch("imagenet", "--parts", "resnet50")
    assert files(tmp_path) == []


def test_a_wrong_file_is_not_taken(fetch, server, tmp_path):
    server.files["/zips/val2017.zip"] = FILES["/zips/val2017.zip"][:-1] + b"x"
    with pytest.raises(BadInput, match="val2017.zip is not the file expected: its SHA-256"):
        fetch("coco", "--parts", "val2017")
    assert files(tmp_path) == []


def test_the_disk_is_measured_before_anything_is_fetched(fetch, server, monkeypatch):
    huge = [replace(source, size=10**17) for source in DATASETS["coco"]["val2017"].sources]
    monkeypatch.setitem(DATASETS["coco"], "val2017", replace(DATASETS["coco"]["val2017"], sources=tuple(huge)))
    with pytest.raises(BadInput, match=r"GB free, and this takes 200000000.0 GB \(downloads of 100000000.0 GB.*--data"):
        fetch("coco")
    assert not server.log


def test_a_folder_that_cannot_be_written_is_told(fetch, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(BadInput, match="Not a directory; see to the folder, or choose another folder with --data"):
        fetch("coco")


@pytest.mark.parametrize(("arguments", "said"), [
    (["coco", "--parts", "val2017,images"], "'images' is no part of coco; it has train2017, val2017, annotations"),
    (["coco", "--mirror", "localhost:8000"], "'localhost:8000' is no address; write http://host"),
    (["mpii", "--parts", "val2017"], "not for mpii, which is fetched by hand"),
])
def test_bad_options_are_told(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr("sys.argv", ["fetch_data", "--data", str(tmp_path), *arguments])
    with pytest.raises(BadInput, match=said):
        fetch_data.main()


def test_a_mirror_stands_for_scheme_and_host():
    mirrored = [fetch_data.on_mirror(source.url, "https://files.example.org/pub/") for parts in DATASETS.values()
                for part in parts.values() for source in part.sources]
    assert "https://files.example.org/pub/zips/val2017.zip" in mirrored
    assert "https://files.example.org/pub/models/resnet_v1_152_2016_08_28.tar.gz" in mirrored
    assert len(set(mirrored)) == len(mirrored)
    assert fetch_data.on_mirror("http://a/b", None) == "http://a/b"


def test_the_catalogue_is_well_formed():
    sources = [source for parts in DATASETS.values() for part in parts.values() for source in part.sources]
    assert len(sources) == 10
    for source in sources:
        assert source.name.endswith((".zip", ".tar.gz", ".json")) and source.targets
        assert source.sha256 is None if source.name.endswith(".json") else re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert fetch_data.choose_parts("coco", None) == ["train2017", "val2017", "annotations", "dets"]


def test_help_names_parts_with_their_sizes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fetch_data", "--help"])
    with pytest.raises(SystemExit):
        fetch_data.main()
    printed = capsys.readouterr().out
    for part, size in {"train2017": 19.3, "val2017": 0.8, "annotations": 0.3, "test2017": 6.6}.items():
        assert re.search(rf"coco +{part} +{size} GB", printed)
    assert "without --parts: train2017,val2017,annotations,dets\n" in printed


def test_mpii_is_explained_until_it_is_there(tmp_path):
    command = [sys.executable, "-m", "train.fetch_data", "mpii"]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    told = subprocess.run(command, timeout=120, **options)
    assert told.returncode == 2 and not told.stderr
    for said in ("http://human-pose.mpi-inf.mpg.de", "no commercial use", "data/MPII/images/*.jpg", "train.mpii2coco"):
        assert said in told.stdout
    (tmp_path / "data/MPII/images").mkdir(parents=True)
    (tmp_path / "data/MPII/images/000001163.jpg").write_bytes(b"")
    (tmp_path / "data/MPII/mpii_human_pose_v1_u12_1.mat").write_bytes(b"")
    told = subprocess.run(command, timeout=120, **options)
    assert (told.returncode, told.stdout) == (0, "mpii: its files are in data; next: python -m train.mpii2coco\n")


def test_posetrack_is_explained_until_it_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fetch_data", "posetrack", "--data", str(tmp_path)])
    for split in ("train", "val"):
        assert fetch_data.main() == 2
        printed = capsys.readouterr().out
        assert f"{tmp_path}/PoseTrack/images/{split}/*/*.jpg" in printed and "https://posetrack.net" in printed
        for name in (f"images/{split}/000001_bonn/000000.jpg", f"original_annotations/{split}/000001_bonn.json"):
            (tmp_path / "PoseTrack" / name).parent.mkdir(parents=True)
            (tmp_path / "PoseTrack" / name).write_bytes(b"")
    assert fetch_data.main() == 0
    assert "next: python -m train.posetrack2coco" in capsys.readouterr().out
