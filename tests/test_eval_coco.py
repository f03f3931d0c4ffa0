"""COCO evaluation: real annotation files, images and tiny engines; pycocotools, called plainly, is the judge."""

import hashlib
import json

import numpy as np
import onnxruntime
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval, Params

import runtime
from eval.annotations import load_annotations
from eval.scoring import METRICS, Predictions, coco_metrics, count_found, evaluate, predict
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.keypoints import COCO
from runtime.pose import PoseEstimator
from tests import engines
from tests.coco_data import (
    SIZE,
    read_metrics,
    run_command,
    run_main,
    write_walker_data,
)
from tests.conftest import figure


def plain_stats(annotations, results, sigmas=None):
    """pycocotools as its own demo calls it, on files."""
    index = CocoIndex(str(annotations))
    scoring = COCOeval(index, index.loadRes(str(results)), "keypoints")
    if sigmas:
        scoring.params.kpt_oks_sigmas = np.array(sigmas)
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return scoring.stats.tolist()


def test_command_equals_pycocotools(coco, tmp_path):
    command = ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images", coco / "images",
               "--out", tmp_path / "new" / "out"]
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(tmp_path / "new" / "out")
    expected = plain_stats(coco / "annotations.json", tmp_path / "new" / "out" / "keypoints.json")
    assert [metrics[name] for name in METRICS] == pytest.approx(expected, abs=1e-9)
    assert all(0.05 < value < 1 for value in expected), "numbers that prove nothing"

    protocol = metrics["protocol"]
    assert protocol["boxes"] == "ground truth"
    assert (protocol["flip_test"], protocol["decoding"]) == (False, "dark")
    assert (protocol["images"], protocol["persons"], protocol["poses"]) == (12, 18, 18)
    assert len(protocol["engine_sha256"]) == 64
    assert protocol["versions"]["onnxruntime"] == onnxruntime.__version__
    assert protocol["versions"]["attention-pose"] == runtime.__version__
    digests = [hashlib.sha256((coco / "images" / f"{number}.png").read_bytes()).hexdigest()
               for number in range(12) if number % 4]  # of every fourth image, of nobody, nothing is read
    assert protocol["images_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert f"{metrics['AP']:.3f}" in done.stdout
    assert "ms a person" in done.stdout


@pytest.mark.parametrize("options", [["--flip-test"], ["--decoding", "plain"], ["--decoding", "plain", "--flip-test"]])
def test_options_reach_the_estimator(coco, tmp_path, monkeypatch, options):
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", tmp_path, *options)
    metrics = read_metrics(tmp_path)
    decoding, flip_test = metrics["protocol"]["decoding"], metrics["protocol"]["flip_test"]
    assert flip_test == ("--flip-test" in options)
    assert decoding == (options[1] if "--decoding" in options else "dark")
    annotations = load_annotations(coco / "annotations.json")
    engine = open_engine(coco / "coco.onnx")
    wanted = evaluate(PoseEstimator(engine, decoding, flip_test), annotations, coco / "images")
    assert {name: metrics[name] for name in METRICS} == wanted
    other = evaluate(PoseEstimator(engine, "dark", False), annotations, coco / "images")
    assert wanted != other


def test_a_training_curve_takes_any_estimator(coco):
    """`evaluate` hands a callable the frames, and the boxes of persons with keypoints only, none of a crowd."""
    annotations = load_annotations(coco / "annotations.json")
    assert annotations.person_count == 18
    groups = iter(annotations.persons.values())

    def truth(frame, boxes):
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        group = next(groups)
        left_top_size = np.array([person["bbox"] for person in group])
        np.testing.assert_allclose(boxes[:, :2], left_top_size[:, :2], rtol=1e-6)
        np.testing.assert_allclose(boxes[:, 2:], left_top_size[:, :2] + left_top_size[:, 2:], rtol=1e-6)
        return np.array([np.reshape(person["keypoints"], (17, 3)) for person in group], np.float32)

    assert evaluate(truth, annotations, coco / "images") == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_limit_takes_the_first_images(coco, tmp_path, monkeypatch):
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", tmp_path, "--limit", 4)
    metrics = read_metrics(tmp_path)
    assert (metrics["protocol"]["images"], metrics["protocol"]["images_in_file"]) == (4, 12)
    assert metrics["protocol"]["persons"] == metrics["protocol"]["poses"] == 6
    data = json.loads((coco / "annotations.json").read_text())
    data["images"] = data["images"][:4]
    (tmp_path / "four.json").write_text(json.dumps(data))
    expected = plain_stats(tmp_path / "four.json", tmp_path / "keypoints.json")
    assert [metrics[name] for name in METRICS] == pytest.approx(expected, abs=1e-9)


def test_random_results_equal_pycocotools_with_ties_crowds_and_many_poses(coco, tmp_path):
    """More than 20 poses an image, equal scores, missed images: what the engine's own results hardly have."""
    generator = np.random.default_rng(1)
    annotations = load_annotations(coco / "annotations.json")
    results = []
    for image in annotations.images[2:]:
        for _ in range(int(generator.integers(1, 40))):
            person = annotations.persons.get(image["id"], annotations.persons[103])[0]
            points = np.reshape(person["keypoints"], (17, 3)) + generator.normal(0, generator.uniform(1, 15), (17, 3))
            results.append({"image_id": image["id"], "category_id": 1, "keypoints": points.ravel().tolist(),
                            "score": float(np.round(generator.uniform(), 1))})
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = plain_stats(coco / "annotations.json", tmp_path / "results.json")
    assert list(coco_metrics(annotations, results).values()) == pytest.approx(expected, abs=1e-9)
    assert "area" not in results[0]  # the caller's results are left as they are
    assert list(coco_metrics(annotations, results).values()) == pytest.approx(expected, abs=1e-9)
    assert 0.05 < expected[0] < 0.95


def test_no_results_score_nothing(coco):
    metrics = coco_metrics(load_annotations(coco / "annotations.json"), [])
    assert metrics == dict.fromkeys(METRICS, 0.0)


def test_our_sigmas_are_pycocotools(coco):
    np.testing.assert_allclose(COCO.sigmas, Params("keypoints").kpt_oks_sigmas)


# The walker of the other tests: three dots on a white rectangle, which a tiny person engine finds exactly.


@pytest.mark.parametrize("kind", ["kept", "raw"])
def test_end_to_end_with_a_detector(tmp_path, monkeypatch, capsys, pose_path, kind):
    person_path = engines.person_engine(tmp_path / "person.onnx", kind=kind)
    kinds = ["person"] * 3 + ["unseen"] * 2 + ["false"]
    options = write_walker_data(tmp_path / "data", kinds)
    run_main(monkeypatch, "--engine", pose_path, "--detector", person_path, *options)
    metrics = read_metrics(tmp_path / "data" / "out")
    # 3 of 5 found, and one pose where nobody is labelled, of the same score: the recall is 0.6 at every OKS.
    assert metrics["AR"] == pytest.approx(0.6)
    assert 0.5 < metrics["AP"] <= 0.61
    assert metrics["protocol"]["boxes"] == str(person_path)
    assert metrics["protocol"]["detector_recall"] == pytest.approx(0.6)
    assert metrics["protocol"]["detector_threshold"] == 0.05
    assert metrics["protocol"]["box_nms"] == ("in the engine" if kind == "kept" else 0.6)
    assert (metrics["protocol"]["backend"], metrics["protocol"]["detector_backend"]) == ("onnxruntime",) * 2
    assert metrics["protocol"]["images"] == 6
    assert metrics["protocol"]["poses"] >= 4  # raw: what NMS leaves
    expected = plain_stats(tmp_path / "data" / "annotations.json", tmp_path / "data" / "out" / "keypoints.json",
                           engines.DOTS["sigmas"])
    assert [metrics[name] for name in METRICS] == pytest.approx(expected, abs=1e-9)
    assert "found 0.600 of the persons" in capsys.readouterr().out
    results = json.loads((tmp_path / "data" / "out" / "keypoints.json").read_text())
    assert {result["category_id"] for result in results} == {7}
    assert {result["image_id"] for result in results} == {0, 1, 2, 5}


def test_walker_on_annotated_boxes_is_found_exactly(tmp_path, monkeypatch, pose_path):
    options = write_walker_data(tmp_path, ["person"] * 4)
    run_main(monkeypatch, "--engine", pose_path, *options)
    metrics = read_metrics(tmp_path / "out")
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["APM"] == pytest.approx(1)
    assert metrics["APL"] == -1  # nobody is that large: as pycocotools says it
    picture, box, _ = figure(2)
    (streamed,) = PoseEstimator(open_engine(pose_path))(picture, [box])
    stored = json.loads((tmp_path / "out" / "keypoints.json").read_text())[2]
    np.testing.assert_allclose(np.reshape(stored["keypoints"], (3, 3)), streamed, atol=0.006)


def test_simcc_engine(tmp_path, monkeypatch):
    engine = engines.pose_engine(tmp_path / "simcc.onnx", head="simcc")
    options = write_walker_data(tmp_path / "data", ["person"] * 2)
    run_main(monkeypatch, "--engine", engine, *options)
    metrics = read_metrics(tmp_path / "data" / "out")
    assert metrics["protocol"]["decoding"] == "simcc"
    assert metrics["AP"] == pytest.approx(1)
    with pytest.raises(BadInput, match="--decoding quarter is for heatmaps but .*simcc.onnx has a simcc head"):
        run_main(monkeypatch, "--engine", engine, *options, "--decoding", "quarter")


@pytest.mark.parametrize(
    ("boxes", "scores", "persons", "found"),
    [
        ([], [], [[0, 0, 10, 10]], 0),
        ([[0, 0, 10, 10]], [0.9], [], 0),
        ([[0, 0, 10, 10]], [0.3], [[0, 0, 10, 10]], 0),  # not above 0.3
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 20]], 1),  # IoU 0.5
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 21]], 0),
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 11], [0, 0, 10, 12]], 1),  # one box, one person
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], [[0, 0, 10, 11]], 1),  # one person, once
        ([[0, 0, 10, 10], [0, 0, 10, 11]], [0.9, 0.8], [[0, 0, 10, 10], [0, 0, 10, 15]], 2),
    ],
)
def test_found_persons(boxes, scores, persons, found):
    boxes, persons = (np.array(edges, np.float32).reshape(-1, 4) for edges in (boxes, persons))
    assert count_found(boxes, np.array(scores), persons) == found


def test_what_is_done_outlives_an_interruption(coco):
    predictions = Predictions()
    engine = PoseEstimator(open_engine(coco / "coco.onnx"))

    def interrupted(frame, boxes):
        if predictions.images == 3:
            raise KeyboardInterrupt
        return engine(frame, boxes)

    with pytest.raises(KeyboardInterrupt):
        predict(interrupted, load_annotations(coco / "annotations.json"), coco / "images", predictions)
    assert predictions.images == 3
    assert len(predictions.results) == predictions.persons == 6


def test_a_network_gone_astray_is_named(coco):
    with pytest.raises(BadInput, match="poses of 1.png are no finite numbers"):
        astray = load_annotations(coco / "annotations.json")
        evaluate(lambda frame, boxes: np.full((len(boxes), 17, 3), np.nan), astray, coco / "images")
