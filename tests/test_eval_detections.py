"""`eval.coco` as a test stage: boxes of a file, OKS-NMS, test sets, snapshots of training, pictures."""

import json
import zipfile

import cv2
import numpy as np
import pytest

from eval.annotations import load_annotations
from eval.compare import read_run
from eval.detections import load_detections
from eval.scoring import METRICS, Predictions, predict
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.pose import PoseEstimator
from tests import engines
from tests.coco_data import read_metrics, run_command, run_main, write_walker_data


def detections_of(coco, copies=1, shift=0.0):
    """The annotated boxes as detections, each several times, the copies moved by some pixels and of lower scores."""
    data = json.loads((coco / "annotations.json").read_text())
    return [{"image_id": person["image_id"], "category_id": 1, "score": round(0.9 - 0.2 * copy, 3),
             "bbox": [person["bbox"][0] + copy * shift, *person["bbox"][1:]]}
            for person in data["annotations"] if person["num_keypoints"] and not person["iscrowd"]
            for copy in range(copies)]


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def options(coco, out, *more):
    return ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images", coco / "images",
            "--out", out, *more]


def test_annotated_boxes_as_detections_give_the_same_poses(coco, tmp_path, monkeypatch):
    found = detections_of(coco)
    # Other categories are passed over, and what they hold is not looked at.
    found.append({"image_id": 100, "category_id": 18, "bbox": "a dog's", "score": None})
    path = write(tmp_path / "human_detection.json", found)
    run_main(monkeypatch, *options(coco, tmp_path / "truth"))
    run_main(monkeypatch, *options(coco, tmp_path / "found", "--detections", path))
    results = [sorted(json.loads((tmp_path / name / "keypoints.json").read_text()), key=lambda result: (
        result["image_id"], result["keypoints"])) for name in ("truth", "found")]  # OKS-NMS puts the best first
    for truth, seen in zip(*results, strict=True):
        assert (truth["image_id"], truth["keypoints"]) == (seen["image_id"], seen["keypoints"])
        assert seen["score"] == pytest.approx(0.9 * truth["score"])
    protocol = read_metrics(tmp_path / "found")["protocol"]
    assert protocol["boxes"] == str(path)
    assert len(protocol["detections_sha256"]) == 64
    assert (protocol["poses"], protocol["oks_nms"], protocol["min_score"]) == (18, 0.9, 0)
    assert protocol["detector_recall"] == 1
    assert protocol["images_without_detections"] == 3  # they have nobody, and are not read
    assert read_metrics(tmp_path / "truth")["protocol"]["oks_nms"] is None


def test_a_detectors_boxes_from_a_file_score_as_the_detector(tmp_path, monkeypatch, pose_path, person_path):
    write_walker_data(tmp_path, ["person"] * 3 + ["unseen", "false"])
    detector = PersonDetector(open_engine(person_path), threshold=0.05)
    found = []
    for number in range(5):
        for (left, top, right, bottom), score in zip(*detector(cv2.imread(str(tmp_path / f"images/{number}.png"))),
                                                     strict=True):
            found.append({"image_id": number, "category_id": 7, "score": float(score),
                          "bbox": [float(left), float(top), float(right - left), float(bottom - top)]})
    assert len(found) == 4
    common = ["--engine", pose_path, "--annotations", tmp_path / "annotations.json", "--images", tmp_path / "images"]
    run_main(monkeypatch, *common, "--out", tmp_path / "a", "--detector", person_path)
    run_main(monkeypatch, *common, "--out", tmp_path / "b", "--detections", write(tmp_path / "found.json", found))
    ours, theirs = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert [ours[name] for name in METRICS] == [theirs[name] for name in METRICS]
    assert ours["AP"] > 0.3
    assert (tmp_path / "a/keypoints.json").read_bytes() == (tmp_path / "b/keypoints.json").read_bytes()


def test_oks_nms_takes_what_overlapping_boxes_bring_twice(coco, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "twice.json", detections_of(coco, copies=3, shift=2.0))
    metrics = {}
    for name, more in (("default", []), ("none", ["--oks-nms", 1]), ("soft", ["--soft-oks-nms", 0.5])):
        run_main(monkeypatch, *options(coco, tmp_path / name, "--detections", path, *more))
        metrics[name] = read_metrics(tmp_path / name)
    protocols = {name: values["protocol"] for name, values in metrics.items()}
    assert (protocols["none"]["poses"], protocols["none"]["poses_suppressed"]) == (54, 0)
    assert protocols["default"]["poses"] + protocols["default"]["poses_suppressed"] == 54
    assert protocols["default"]["poses"] < 30
    assert protocols["soft"]["poses"] == 54
    assert (protocols["soft"]["oks_nms"], protocols["soft"]["soft_oks_nms"]) == (None, 0.5)
    assert metrics["default"]["AP"] > metrics["none"]["AP"]
    assert metrics["soft"]["AP"] > metrics["none"]["AP"]
    assert "OKS-NMS at 0.9" in capsys.readouterr().out


def test_thresholds_leave_boxes_out(coco, tmp_path):
    found = detections_of(coco, copies=2)
    path = write(tmp_path / "found.json", found)
    annotations = load_annotations(coco / "annotations.json")
    everything = load_detections(path, annotations)
    assert (everything.count, everything.left_out) == (36, 0)
    boxes, scores = everything.of(103)
    assert scores.tolist() == pytest.approx([0.9] * 3 + [0.7] * 3)  # best first
    left, top, width, height = next(item["bbox"] for item in found if item["image_id"] == 103)
    assert boxes[0].tolist() == pytest.approx([left, top, left + width, top + height])
    better = load_detections(path, annotations, min_score=0.7)
    assert (better.count, better.left_out) == (18, 18)
    middle = float(np.median([item["bbox"][2] * item["bbox"][3] for item in found]))
    larger = load_detections(path, annotations, min_area=middle)
    assert larger.count == sum(item["bbox"][2] * item["bbox"][3] > middle for item in found)
    assert 0 < larger.count < 36
    # Nothing has no area and no score: like TF-SimpleHumanPose, only scores above 0 count.
    found += [{**found[0], "score": 0.0}, {**found[0], "bbox": [5, 5, 0, 10]}]
    assert load_detections(write(path, found), annotations).count == 36
    # Of the first images only, the boxes of the others are passed over.
    few = load_detections(path, load_annotations(coco / "annotations.json", limit=3))
    assert sorted(few.boxes) == [101, 102]
    assert few.of(100)[0].shape == (0, 4)


GOOD = {"image_id": 101, "category_id": 1, "bbox": [15.0, 20.0, 60, 90], "score": 0.9}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"annotations": []}, "is no list but an object with annotations; give COCO's results format"),
        (7, "is no list but int"),
        ([], "has no detections"),
        ([GOOD, 5], r"1 of 2 detections are no objects \(first: 5\)"),
        ([GOOD, {"image_id": 101}], r"1 of 2 detections have no 'category_id' \(first: {'image_id': 101}\)"),
        ([{"image_id": 101, "category_id": 1, "score": 1}] * 3, "3 of 3 detections have no 'bbox'"),
        ([{**GOOD, "category_id": 3}], "has 1 detections but none of category 1, the person of .*annotations.json"),
        ([GOOD, {**GOOD, "score": float("nan")}], "1 of 2 detections have a score that is no finite number .*nan"),
        ([{**GOOD, "score": float("inf")}] * 2, "2 of 2 detections have a score that is no finite number"),
        ([{**GOOD, "score": "0.9"}], "1 of 1 detections have a score that is no finite number"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3]}], "1 of 2 detections have a bbox that is not four finite numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], "1 of 1 detections have a bbox that is not four finite numbers"),
        ([GOOD, {**GOOD, "bbox": [50, 60, -10, 20]}],
         "1 of 2 detections have a negative width or height .*; bbox is left, top, width, height, not two corners"),
        ([GOOD, {**GOOD, "image_id": 7}], "1 of 2 detections are of images that .* does not list .*'image_id': 7"),
        ([{**GOOD, "image_id": [101]}], "1 of 1 detections are of images that .* does not list"),
        ([{**GOOD, "score": 0}], "no detection on any of the 12 images: of 1 none has a score above 0 and more "),
    ],
)
def test_bad_detections_are_named(coco, tmp_path, monkeypatch, items, message):
    path = write(tmp_path / "found.json", items)
    with pytest.raises(BadInput, match=message) as caught:
        run_main(monkeypatch, *options(coco, tmp_path / "out", "--detections", path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()  # said before anything runs


def test_detections_that_cannot_be_read(coco, tmp_path):
    annotations = load_annotations(coco / "annotations.json")
    for content, message in ((None, "does not exist"), (b"[", "is not JSON"), (b"\xff", "is not JSON")):
        if content is not None:
            (tmp_path / "found.json").write_bytes(content)
        with pytest.raises(BadInput, match=message):
            load_detections(tmp_path / "found.json", annotations)
    with pytest.raises(BadInput, match="cannot read"):
        load_detections(tmp_path, annotations)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--detector", "a.onnx", "--detections", "b.json"], "are two sources of boxes: give one of them"),
        (["--min-score", "0.2"], "--min-score is for boxes that were found"),
        (["--min-area", "0"], "--min-area is for boxes that were found"),
        (["--epoch", "140"], "--epoch 140 is for a training run: give its folder too, --checkpoint"),
        (["--gpu", "0"], "--gpu 0 is for a training run"),
        (["--checkpoint", "output"], "--engine and --checkpoint are two networks"),
    ],
)
def test_options_that_would_do_nothing(coco, tmp_path, monkeypatch, more, message):
    with pytest.raises(BadInput, match=message):
        run_main(monkeypatch, *options(coco, tmp_path, *more))


@pytest.mark.parametrize("value", ["0", "1.1", "nan", "much"])
def test_no_likeness_at_all(coco, tmp_path, monkeypatch, capsys, value):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *options(coco, tmp_path, "--oks-nms", value))
    assert "--oks-nms" in capsys.readouterr().err


# Test sets: images, and nobody to score against.


def write_test_set(coco, folder, **more):
    """As image_info_test-dev2017.json has it: no annotations, categories without keypoints."""
    data = json.loads((coco / "annotations.json").read_text())
    categories = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
    return write(folder / "image_info_test-dev2017.json", {"images": data["images"], "categories": categories, **more})


def test_a_test_set_gives_what_the_server_takes(coco, tmp_path):
    path = write_test_set(coco, tmp_path)
    found = write(tmp_path / "found.json", detections_of(coco))
    done = run_command(["--engine", coco / "coco.onnx", "--annotations", path, "--images", coco / "images",
                        "--detections", found, "--out", tmp_path / "out"])
    assert done.returncode == 0, done.stderr
    name = "person_keypoints_test-dev2017_coco_results"
    assert "is a test set: no AP here; 18 poses of 12 images" in done.stdout
    assert f"{name}.zip: upload it to COCO's keypoint evaluation, https://cocodataset.org/#upload" in done.stdout
    assert "lacks" not in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"keypoints.json", "metrics.json", f"{name}.zip"}
    assert set(read_metrics(tmp_path / "out")) == {"protocol"}  # and no AP
    with pytest.raises(BadInput, match="metrics.json is of a test set, which has no AP here"):
        read_run(tmp_path / "out")
    assert len(read_metrics(tmp_path / "out")["protocol"]["images_sha256"]) == 64
    with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        uploaded = json.loads(archive.read(f"{name}.json"))
    assert uploaded == json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert len(uploaded) == 18
    for result in uploaded:
        assert set(result) == {"image_id", "category_id", "keypoints", "score"}
        assert type(result["image_id"]) is int
        assert result["category_id"] == 1
        assert len(result["keypoints"]) == 51
        assert all(value == round(value, 4) for value in result["keypoints"])


def test_a_part_of_a_test_set_is_not_for_upload(coco, tmp_path, monkeypatch, capsys):
    path = write_test_set(coco, tmp_path, annotations=[])
    found = write(tmp_path / "found.json", detections_of(coco))
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", path, "--images", coco / "images",
             "--detections", found, "--out", tmp_path / "out", "--limit", 4)
    assert "not this one, though, which lacks 8 images" in capsys.readouterr().out


def test_a_test_set_needs_boxes_and_whole_numbers(coco, tmp_path, monkeypatch):
    path = write_test_set(coco, tmp_path)
    common = ["--engine", coco / "coco.onnx", "--annotations", path, "--images", coco / "images", "--out", tmp_path]
    with pytest.raises(BadInput, match="has no list 'annotations'; .* for a test set without persons give --detect"):
        run_main(monkeypatch, *common)
    data = json.loads(path.read_text())
    for image in data["images"]:
        image["id"] = f"{image['id']}"
    write(path, data)
    found = [{**item, "image_id": str(item["image_id"])} for item in detections_of(coco)]
    with pytest.raises(BadInput, match="image ids such as '101' are no whole numbers"):
        run_main(monkeypatch, *common, "--detections", write(tmp_path / "found.json", found))


def test_persons_without_keypoints_are_no_test_set(coco, tmp_path, monkeypatch):
    """instances_val2017.json by mistake: said, not silently taken for images of nobody."""
    data = json.loads((coco / "annotations.json").read_text())
    for person in data["annotations"]:
        del person["keypoints"]
    found = write(tmp_path / "found.json", detections_of(coco))
    with pytest.raises(BadInput, match="has 20 annotations but none has keypoints"):
        run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", write(tmp_path / "instances.json", data),
                 "--images", coco / "images", "--detections", found)


# Pictures


def test_the_worst_images_are_drawn_first(tmp_path, monkeypatch, pose_path):
    where = write_walker_data(tmp_path, ["person"] * 4)
    data = json.loads((tmp_path / "annotations.json").read_text())
    for number, away in ((2, 9), (1, 4)):
        labels = data["annotations"][number]["keypoints"]
        labels[0::3] = [x + away for x in labels[0::3]]
    write(tmp_path / "annotations.json", data)
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / "output/vis/pose/007_of_an_earlier_run.jpg"
    stale.parent.mkdir(parents=True)
    stale.touch()
    run_main(monkeypatch, "--engine", pose_path, *where, "--draw", 2)
    drawn = sorted(path.name for path in stale.parent.iterdir())
    assert drawn == ["000_2.jpg", "001_1.jpg"]
    picture = cv2.imread(str(stale.parent / drawn[1]))
    original = cv2.imread(str(tmp_path / "images" / drawn[1][4:].replace("jpg", "png")))
    assert picture.shape == original.shape
    assert (np.abs(picture.astype(int) - original).max(2) > 60).sum() > 200


def test_of_a_test_set_the_first_images_are_drawn(tmp_path, monkeypatch, pose_path):
    person_path = engines.person_engine(tmp_path / "person.onnx")
    where = write_walker_data(tmp_path, ["person"] * 4)
    data = json.loads((tmp_path / "annotations.json").read_text())
    write(tmp_path / "annotations.json", {**data, "annotations": []})
    monkeypatch.chdir(tmp_path)
    run_main(monkeypatch, "--engine", pose_path, *where, "--draw", 3, "--detector", person_path)
    assert sorted(path.name for path in (tmp_path / "output/vis/pose").iterdir()) == ["000_0.jpg", "001_1.jpg",
                                                                                     "002_2.jpg"]
    assert not list((tmp_path / "out").glob("*.zip"))  # COCO's server wants COCO's keypoints


# Snapshots of training


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """output/model_dump/tiny of a run that never trained: random weights, in its second snapshot twice as large."""
    from train.checkpoint import Place, build_network, save_config, save_weights, snapshot_path
    from train.config import Config
    folder = tmp_path_factory.mktemp("run") / "output" / "model_dump" / "tiny"
    config = Config(name="tiny", input_size=[64, 64], backbone_weights="", attention_blocks=1, attention_width=32,
                    decoder_width=16)
    save_config(config, folder)
    network = build_network(config)
    save_weights(network, snapshot_path(folder, 1), Place(1))
    network.set_weights([2 * weights for weights in network.get_weights()])
    save_weights(network, snapshot_path(folder, 2), Place(2))
    return folder


def test_a_snapshot_is_measured_as_training_measures_it(coco, run_folder, monkeypatch):
    from train.checkpoint import load_snapshot
    from train.network_engine import NetworkEngine
    monkeypatch.chdir(run_folder.parents[2])
    out = run_folder.parents[1] / "result" / "tiny"
    run_main(monkeypatch, "--checkpoint", "output/model_dump/tiny", "--test_epoch", 1, "--gpu", "cpu", "--images",
             coco / "images", "--annotations", coco / "annotations.json",
             "--limit", 2)  # one person, since each number of persons makes TensorFlow build anew
    [result] = json.loads((out / "keypoints.json").read_text())
    protocol = read_metrics(out)["protocol"]
    assert protocol["engine"] == "output/model_dump/tiny/snapshot_001.weights.h5"
    assert len(protocol["engine_sha256"]) == 64
    assert "keras" in protocol["versions"]
    keypoints = {}
    for epoch in (1, 2):
        network, config, _ = load_snapshot(run_folder, epoch)
        found = Predictions()
        predict(PoseEstimator(NetworkEngine(network, config)), load_annotations(coco / "annotations.json", limit=2),
                coco / "images", found)
        keypoints[epoch] = found.results[0]["keypoints"]
    np.testing.assert_allclose(result["keypoints"], keypoints[1], atol=0.02)
    assert np.abs(np.subtract(result["keypoints"], keypoints[2])).max() > 1


def test_a_snapshot_in_two_workers_gives_what_it_gives_in_one(coco, run_folder, tmp_path, monkeypatch):
    from train.checkpoint import load_snapshot
    from train.network_engine import NetworkEngine
    run_main(monkeypatch, "--checkpoint", run_folder, "--epoch", 1, "--gpu", "cpu", "--workers", 2, "--images",
             coco / "images", "--annotations", coco / "annotations.json", "--limit", 3, "--out", tmp_path)
    network, config, _ = load_snapshot(run_folder, 1)
    found = Predictions()
    predict(PoseEstimator(NetworkEngine(network, config)), load_annotations(coco / "annotations.json", limit=3),
            coco / "images", found)
    results = json.loads((tmp_path / "keypoints.json").read_text())
    assert [result["image_id"] for result in results] == [101, 102, 102]  # one image each
    for ours, wanted in zip(results, found.results, strict=True):
        np.testing.assert_allclose(ours["keypoints"], wanted["keypoints"], atol=0.02)
    protocol = read_metrics(tmp_path)["protocol"]
    assert (protocol["workers"], protocol["backend"], protocol["precision"]) == (2, "keras", "float32")


def test_snapshots_that_are_not_there(coco, run_folder, tmp_path, monkeypatch):
    common = ["--annotations", coco / "annotations.json", "--images", coco / "images", "--out", tmp_path / "out"]
    for more, message in (
        (["--checkpoint", tmp_path / "none"], "no training run at .*none; give its folder, such as output/model_dump/"),
        (["--checkpoint", tmp_path], "no snapshots in"),
        (["--checkpoint", run_folder, "--epoch", 140], r"has no snapshot of epoch 140; it has 1 … 2 \(2 of them\)"),
        (["--checkpoint", run_folder, "--epoch", "best"], "has no best.weights.h5"),
        (["--checkpoint", run_folder, "--gpu", "99"], "GPU 99 asked for, but TensorFlow sees"),
    ):
        with pytest.raises(BadInput, match=message):
            run_main(monkeypatch, *common, *more)
    assert not (tmp_path / "out").exists()
