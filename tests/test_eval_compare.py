"""Comparing two runs: the bootstrap against pycocotools itself, and what is refused."""

import copy
import hashlib
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from eval.annotations import load_annotations
from eval.bootstrap import differences, draw_weights, figures, interval, matches_of, sigmas_of
from eval.scoring import METRICS, coco_metrics, evaluated
from runtime.errors import BadInput
from runtime.keypoints import COCO
from tests.coco_data import ROOT, run_main


def guesses(annotations, seed, error=5.0):
    """Poses beside the truth, some twice, some nowhere near anybody; scores are equal across images, not within."""
    generator = np.random.default_rng(seed)
    results = []
    for image in annotations.images:
        scores = iter(generator.permutation(19) / 20 + 0.05)
        for person in annotations.persons.get(image["id"], []):
            for _ in range(generator.integers(0, 3)):
                points = np.reshape(person["keypoints"], (17, 3)).astype(float)
                points[:, :2] += generator.normal(0, error, (17, 2)) * generator.choice([0.3, 1, 3])
                results.append((image["id"], points, next(scores)))
        for _ in range(generator.integers(0, 3)):
            results.append((image["id"], generator.uniform(0, 240, (17, 3)), next(scores)))
    return [{"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(),
             "score": float(score)} for image, points, score in results]


def write_run(folder, results, annotations, path, **changes):
    """What eval.coco writes."""
    protocol = {"engine": "pose.onnx", "engine_sha256": "a" * 64, "boxes": "ground truth", "flip_test": False,
                "decoding": "dark", "annotations": str(path), "images": len(annotations.images), "threads": 1,
                "annotations_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "images_in_file": annotations.images_in_file, "persons": annotations.person_count,
                "images_sha256": "d" * 64, "poses": len(results), "ms_per_person": 5.0,
                "versions": {"numpy": "2"}, "date": "2026-01-01"}
    folder.mkdir()
    (folder / "keypoints.json").write_text(json.dumps(results))
    metrics = {**coco_metrics(annotations, results), "protocol": {**protocol, **changes}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def truth(coco):
    return load_annotations(coco / "annotations.json")


@pytest.fixture
def two_runs(coco, truth, tmp_path):
    """A run and a better one of another engine."""
    path = coco / "annotations.json"
    return (write_run(tmp_path / "first", guesses(truth, 0), truth, path),
            write_run(tmp_path / "second", guesses(truth, 0, error=2), truth, path, engine_sha256="b" * 64, threads=4))


def compare(*arguments):
    return subprocess.run([sys.executable, "-m", "eval.compare", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)


@pytest.mark.parametrize("seed", range(4))
def test_plain_set_equals_pycocotools(truth, seed):
    results = guesses(truth, seed)
    wanted = coco_metrics(truth, results)
    assert figures(matches_of(evaluated(truth, results, COCO.sigmas))) == pytest.approx(wanted, abs=1e-9)
    assert 0.05 < wanted["AP"] < 0.95, "a number that proves nothing"


def test_no_poses_at_all_are_zero(truth):
    found = figures(matches_of(evaluated(truth, [], COCO.sigmas)))
    assert found == coco_metrics(truth, []) == dict.fromkeys(METRICS, 0)


def duplicated(truth, results, weights):
    """The data set in which every image really is there as often as its weight says, judged by pycocotools."""
    data = {**truth.index.dataset, "images": [], "annotations": []}
    poses = []
    for number, (image, weight) in enumerate(zip(truth.images, weights, strict=True)):
        for copy_number in range(weight):
            name = 1000 * number + copy_number  # copies follow each other, as poses of equal score are ranked by image
            data["images"].append({**image, "id": name})
            for person in truth.index.imgToAnns[image["id"]]:
                data["annotations"].append({**copy.deepcopy(person), "image_id": name,
                                            "id": len(data["annotations"]) + 1})
            poses += [{**pose, "image_id": name} for pose in results if pose["image_id"] == image["id"]]
    index = CocoIndex()
    index.dataset = data
    index.createIndex()
    scoring = COCOeval(index, index.loadRes(poses), "keypoints")
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return dict(zip(METRICS, scoring.stats, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_a_resample_equals_pycocotools_on_the_duplicated_images(truth, seed):
    results = guesses(truth, seed)
    weights = draw_weights(len(truth.images), 1, seed)[0]
    assert weights.sum() == len(truth.images) and weights.max() > 1 and weights.min() == 0
    found = figures(matches_of(evaluated(truth, results, COCO.sigmas)), weights)
    wanted = {name: np.nan if value < 0 else value for name, value in duplicated(truth, results, weights).items()}
    assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert found != figures(matches_of(evaluated(truth, results, COCO.sigmas)))


def test_a_size_that_nobody_has_is_not_a_number(truth):
    """pycocotools says -1, which an interval must not average in."""
    large = {person["id"] for persons in truth.persons.values() for person in persons if person["area"] > 96**2}
    data = copy.deepcopy(truth.index.dataset)
    data["annotations"] = [person for person in data["annotations"] if person["id"] not in large]
    index = CocoIndex()
    index.dataset = data
    index.createIndex()
    scoring = evaluated(truth, guesses(truth, 0), COCO.sigmas, index=index)
    found = figures(matches_of(scoring))
    assert large and np.isnan(found["APL"]) and np.isnan(found["ARL"]) and found["APM"] > 0 < found["AP"]


def test_interval_holds_the_value_and_narrows_with_equal_images(truth):
    results = guesses(truth, 1)
    found = interval(results, truth, np.array(COCO.sigmas), resamples=300)
    value = found["AP"]
    assert value.low < value.value < value.high
    assert value.value == pytest.approx(coco_metrics(truth, results)["AP"], abs=1e-9)
    assert interval(results, truth, resamples=300) == found, "the same seed draws the same resamples"
    exact = [{"image_id": image, "category_id": 1, "keypoints": person["keypoints"], "score": 1.0}
             for image, persons in truth.persons.items() for person in persons]
    sure = interval(exact, truth, resamples=100)["AP"]
    assert (sure.value, sure.low, sure.high) == pytest.approx((1, 1, 1))


def test_both_runs_are_counted_on_the_same_resamples(truth):
    """The second run has one image less: pairing leaves only this image's chance in the difference."""
    results = guesses(truth, 2)
    last = max(pose["image_id"] for pose in results)
    less = [pose for pose in results if pose["image_id"] != last]
    paired = differences(less, results, truth, resamples=300)["AR"]
    alone = interval(results, truth, resamples=300)["AR"]
    assert paired.value > 0 and paired.low == 0
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_command_shows_differences(two_runs, tmp_path):
    first, second = two_runs
    done = compare(first, second, "--resamples", 200, "--out", tmp_path / "difference.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "difference.json").read_text())["differences"]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in two_runs]
    for name in METRICS:
        assert written[name]["value"] == pytest.approx(metrics[1][name] - metrics[0][name], abs=1e-9)
        assert written[name]["low"] <= written[name]["value"] <= written[name]["high"]
    assert f"{metrics[1]['AP'] - metrics[0]['AP']:+.4f}" in done.stdout
    assert written["AP"]["low"] > 0 and "beyond chance" in done.stdout


def test_a_run_against_itself_is_nothing(two_runs, tmp_path):
    done = compare(two_runs[0], two_runs[0], "--resamples", 50, "--out", tmp_path / "difference.json")
    assert done.returncode == 0, done.stderr
    assert "beyond chance" not in done.stdout
    for item in json.loads((tmp_path / "difference.json").read_text())["differences"].values():
        assert item == {"value": 0, "low": 0, "high": 0}


def test_other_protocols_are_refused_naming_every_difference(coco, truth, tmp_path):
    path = coco / "annotations.json"
    first = write_run(tmp_path / "first", guesses(truth, 0), truth, path)
    second = write_run(tmp_path / "second", guesses(truth, 1), truth, path, flip_test=True, decoding="plain",
                       engine="other.onnx", threads=2, date="2027-01-01", versions={}, ms_per_person=9.0)
    done = compare(first, second)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "decoding: dark / plain; flip_test: False / True)" in done.stderr
    done = compare(first, second, "--anyway", "--resamples", 20)
    assert done.returncode == 0, done.stderr
    assert "warning: different flip_test: False / True" in done.stdout


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"boxes": "person.onnx"}, "boxes: ground truth / person.onnx"),
        ({"annotations_sha256": "c" * 64}, "annotations_sha256"),
        ({"images": 3}, "images: 12 / 3"),
        ({"detector_threshold": 0.1}, "detector_threshold: none / 0.1"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow: none / 1"),
        ({"images_sha256": "e" * 64}, "images_sha256: dddddddddddd / eeeeeeeeeeee"),
    ],
)
def test_each_thing_that_changes_the_measure_counts(coco, truth, tmp_path, changes, named):
    from eval.compare import read_run, refuse_other_protocol
    path = coco / "annotations.json"
    first = read_run(write_run(tmp_path / "first", guesses(truth, 0), truth, path))
    second = read_run(write_run(tmp_path / "second", guesses(truth, 1), truth, path, **changes))
    with pytest.raises(BadInput, match=named):
        refuse_other_protocol(first.protocol, second.protocol)


def test_the_same_detector_at_another_place_is_the_same():
    from eval.compare import protocol_differences
    first, second = ({"boxes": path, "detector_sha256": "d" * 64} for path in ("a/person.onnx", "b/person.onnx"))
    assert protocol_differences(first, second) == []
    assert protocol_differences(first, {**second, "detector_sha256": "e" * 64}) == [
        "detector_sha256: dddddddddddd / eeeeeeeeeeee"]


def change_poses(folder, change):
    results = json.loads((folder / "keypoints.json").read_text())
    (folder / "keypoints.json").write_text(json.dumps([{**pose, "keypoints": change(pose)} for pose in results]))


def change_field(folder, **fields):
    results = json.loads((folder / "keypoints.json").read_text())
    results[3:5] = [{**pose, **fields} for pose in results[3:5]]
    (folder / "keypoints.json").write_text(json.dumps(results))


def break_results(folder, truth):
    results = json.loads((folder / "keypoints.json").read_text())
    (folder / "keypoints.json").write_text(json.dumps(results[:-9]))


def break_images(folder, truth):
    results = json.loads((folder / "keypoints.json").read_text())
    results[0]["image_id"] = 77
    (folder / "keypoints.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, truth: (folder / "metrics.json").unlink(), "there is no .*metrics.json"),
        (lambda folder, truth: (folder / "keypoints.json").unlink(), "there is no .*keypoints.json"),
        (lambda folder, truth: (folder / "metrics.json").write_text("{"), "is not JSON"),
        (lambda folder, truth: (folder / "metrics.json").write_text('{"AP": 0.5}'), "has no protocol"),
        (lambda folder, truth: (folder / "metrics.json").write_text('{"AP": NaN, "protocol": {}}'), "AP = nan"),
        (lambda folder, truth: (folder / "keypoints.json").write_text("[1]"), "no list of poses"),
        (lambda folder, truth: change_poses(folder, lambda pose: pose["keypoints"][:48]),
         r"(\d+) of \1 poses are not the 17 keypoints, .*annotations.json \(the first has 48 values\)"),
        (lambda folder, truth: change_poses(folder, lambda pose: ["x"] * 51), "are not the 17 keypoints"),
        (lambda folder, truth: change_poses(folder, lambda pose: None), "are not the 17 keypoints"),
        (lambda folder, truth: change_field(folder, score=float("nan")),
         r"score of 2 of \d+ poses is no finite number .*nan"),
        (lambda folder, truth: change_field(folder, image_id=[1]), r"image_id of 2 of \d+ poses is no whole number"),
        (break_results, "the files are of different runs"),
        (break_images, "poses on 1 images that are not in"),
    ],
)
def test_broken_folders_are_named(two_runs, truth, change, message):
    from eval.compare import annotations_of, read_run
    change(two_runs[0], truth)
    with pytest.raises(BadInput, match=message) as caught:
        annotations_of(read_run(two_runs[0]))
    assert "\n" not in str(caught.value)


def test_runs_of_other_keypoints_end_in_one_line(two_runs):
    change_poses(two_runs[1], lambda pose: pose["keypoints"][:48])
    for more in ([], ["--anyway"]):
        done = compare(*two_runs, *more)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "second/keypoints.json: " in done.stderr and "are not the 17 keypoints" in done.stderr


def test_other_pictures_under_the_same_names_are_refused(coco, tmp_path, monkeypatch):
    shutil.copytree(coco / "images", tmp_path / "images")
    options = ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
               tmp_path / "images"]
    run_main(monkeypatch, *options, "--out", tmp_path / "first")
    picture = cv2.imread(str(tmp_path / "images" / "5.png"))
    cv2.imwrite(str(tmp_path / "images" / "5.png"), picture // 2)
    run_main(monkeypatch, *options, "--out", tmp_path / "second")
    picture[0, 0] = 9  # of an image of nobody, which is not read
    cv2.imwrite(str(tmp_path / "images" / "0.png"), picture)
    run_main(monkeypatch, *options, "--out", tmp_path / "third", "--workers", 2)
    done = compare(tmp_path / "first", tmp_path / "second")
    assert done.returncode == 2 and "images_sha256: " in done.stderr and done.stderr.count("\n") == 1
    assert compare(tmp_path / "second", tmp_path / "third", "--resamples", 20).returncode == 0


def test_other_annotations_are_refused(two_runs, coco, tmp_path):
    text = (coco / "annotations.json").read_text()
    (tmp_path / "other.json").write_text(text + " ")
    done = compare(*two_runs, "--annotations", tmp_path / "other.json")
    assert done.returncode == 2 and "is not the file that" in done.stderr
    (tmp_path / "same.json").write_text(text)
    done = compare(*two_runs, "--annotations", tmp_path / "same.json", "--resamples", 20)
    assert done.returncode == 0, done.stderr


def test_sigmas_come_from_the_keypoints_names(truth):
    assert sigmas_of(truth) == COCO.sigmas
    assert sigmas_of(truth, {"sigmas": [0.1] * 17}) == (0.1,) * 17
    with pytest.raises(BadInput, match="of no schema"):
        sigmas_of(type(truth)(**{**vars(truth), "keypoint_names": ("left_hand", "nose"), "keypoints": 2}))
