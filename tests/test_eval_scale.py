"""Evaluation of large sets: pycocotools' numbers in less time, in memory that does not grow.

`python -m tests.test_eval_scale` prints how much faster the score is than pycocotools' on a set as large as val2017.
"""

import contextlib
import io
import json
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from eval.annotations import load_annotations
from eval.predictions import Journal, Predictions, write_results
from eval.scoring import METRICS, coco_metrics, evaluated, image_similarities, predict
from runtime.errors import BadInput
from runtime.keypoints import COCO, MPII

# Fast and exact


def write_large_set(path, images, persons, poses, keypoints=17, seed=0):
    """Annotations with crowds, persons without labels and images without anybody; poses beside them, many of equal
    score, more than COCO's 20 on some images. Returns the poses as COCO results."""
    generator = np.random.default_rng(seed)
    image = np.sort(generator.integers(0, images, persons))
    heights = np.exp(generator.uniform(np.log(20), np.log(400), persons))
    sizes = np.stack([heights / 2, heights], 1)
    corners = generator.uniform(0, 400, (persons, 2))
    places = corners[:, None] + generator.uniform(0, 1, (persons, keypoints, 2)) * sizes[:, None]
    visible = generator.integers(0, 3, (persons, keypoints)) * (generator.random(persons) > 0.1)[:, None]
    labels = np.concatenate([places.round(), visible[..., None]], 2) * (visible > 0)[..., None]
    crowd = generator.random(persons) < 0.02
    boxes = np.concatenate([corners, sizes], 1).round(2)
    people = [{"id": number + 1, "image_id": int(image[number]) * 3 + 7, "category_id": 1,
               "iscrowd": int(crowd[number]), "bbox": boxes[number].tolist(), "area": float(0.3 * heights[number] ** 2),
               "num_keypoints": int((visible[number] > 0).sum()), "keypoints": labels[number].ravel().tolist()}
              for number in range(persons)]
    path.write_text(json.dumps({
        "images": [{"id": number * 3 + 7, "file_name": f"{number}.jpg"} for number in range(images)],
        "annotations": people, "categories": [{"id": 1, "name": "person"}]}))
    whose = generator.integers(0, persons, poses)
    blur = heights[whose] * generator.choice([0.01, 0.05, 0.2, 1], poses)
    found = places[whose] + generator.normal(0, 1, (poses, keypoints, 2)) * blur[:, None, None]
    found = np.concatenate([found, generator.random((poses, keypoints, 1))], 2).round(2).reshape(poses, -1).tolist()
    scores = generator.random(poses).round(3).tolist()
    return [{"image_id": people[person]["image_id"], "category_id": 1, "keypoints": points, "score": score}
            for person, points, score in zip(whose.tolist(), found, scores, strict=True)]


def judge(path, results, sigmas=COCO.sigmas):
    """pycocotools' own ten numbers."""
    index = CocoIndex(str(path))
    scoring = COCOeval(index, index.loadRes([dict(result) for result in results]), "keypoints")
    scoring.params.kpt_oks_sigmas = np.array(sigmas)
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return dict(zip(METRICS, map(float, scoring.stats), strict=True))


def test_a_set_as_large_as_val2017_scores_as_pycocotools(tmp_path):
    results = write_large_set(tmp_path / "large.json", 5000, 11_000, 100_000)
    found = coco_metrics(load_annotations(tmp_path / "large.json"), results)
    assert found == pytest.approx(judge(tmp_path / "large.json", results), abs=1e-9)
    assert all(0.1 < value < 0.99 for value in found.values()), "numbers that prove nothing"


def test_the_large_set_is_scored_by_the_faster_one(tmp_path):
    results = write_large_set(tmp_path / "few.json", 20, 30, 60)
    annotations = load_annotations(tmp_path / "few.json")
    fast, slow = (evaluated(annotations, results, matches=matches) for matches in (False, True))
    assert type(fast).__module__.startswith("faster_coco_eval")
    assert type(slow).__module__.startswith("pycocotools")
    assert image_similarities(fast, annotations) == image_similarities(slow, annotations)


def rename_images(name):
    """Other image ids in annotations and results."""
    def change(data, results):
        for image in data["images"]:
            image["id"] = name(image["id"])
        for item in [*data["annotations"], *results]:
            item["image_id"] = name(item["image_id"])
    return change


def first_id_0(data, results):
    data["annotations"][0]["id"] = 0


def equal_scores(data, results):
    for result in results:
        result["score"] = 0.5


def all_crowds_but_one(data, results):
    for person in data["annotations"][1:]:
        person["iscrowd"] = 1
    points = len(data["annotations"][0]["keypoints"]) // 3
    data["annotations"][0].update(num_keypoints=points, iscrowd=0, keypoints=[50, 50, 2] * points)


def of_dogs(data, results):
    for result in results[::2]:
        result["category_id"] = 18


@pytest.mark.parametrize("change", [
    lambda data, results: None, equal_scores, all_crowds_but_one, of_dogs, first_id_0, rename_images(str),
    rename_images(lambda number: 10**10 + number), rename_images(lambda number: 2**60 + number),
    rename_images(lambda number: -number), lambda data, results: results.__delitem__(slice(1, None)),
    lambda data, results: [result.update(score=-result["score"]) for result in results],
])
@pytest.mark.parametrize("sigmas", [COCO.sigmas, MPII.sigmas])
def test_small_sets_score_as_pycocotools(tmp_path, change, sigmas):
    path = tmp_path / "set.json"
    results = write_large_set(path, 12, 20, 60, keypoints=len(sigmas), seed=1)
    data = json.loads(path.read_text())
    change(data, results)
    path.write_text(json.dumps(data))
    annotations = load_annotations(path)
    before = json.dumps(results), json.dumps(annotations.images)
    assert coco_metrics(annotations, iter(results), sigmas) == pytest.approx(judge(path, results, sigmas), abs=1e-9)
    assert (json.dumps(results), json.dumps(annotations.images)) == before


def test_results_that_cannot_be_ranked_are_refused(tmp_path):
    results = write_large_set(tmp_path / "set.json", 12, 20, 60)
    annotations = load_annotations(tmp_path / "set.json")
    for wrong, message in (({"score": float("nan")}, "no finite numbers"), ({"image_id": 8}, "poses on 1 images that"),
                           ({"keypoints": [float("inf")] * 51}, "no finite numbers")):
        with pytest.raises(BadInput, match=message):
            coco_metrics(annotations, [*results, {**results[0], **wrong}])


# Memory


def test_memory_does_not_grow_with_the_set(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((240, 320, 3), np.uint8))
    boxes = [[10.0 * number, 20.0, 50.0, 100.0] for number in range(8)]
    generator = np.random.default_rng(0)

    def stand_in(frame, boxes):
        return generator.uniform(0, 300, (len(boxes), 17, 3)).astype(np.float32)

    def peak(images, kept):
        """Bytes that a run over so many images takes at the most, beyond the annotations."""
        data = {"images": [{"id": number, "file_name": "0.png"} for number in range(images)], "annotations": [
            {"id": 8 * image + number + 1, "image_id": image, "category_id": 1, "iscrowd": 0, "area": 3000.0,
             "bbox": box, "num_keypoints": 17, "keypoints": [1, 2, 2] * 17}
            for image in range(images) for number, box in enumerate(boxes)], "categories": [{"id": 1}]}
        (tmp_path / "set.json").write_text(json.dumps(data))
        annotations = load_annotations(tmp_path / "set.json")
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        predictions = Predictions(Journal(tmp_path / f"{images}.jsonl", {}) if kept == "journal" else [])
        predict(stand_in, annotations, tmp_path, predictions)
        if kept == "journal":
            write_results(tmp_path / "keypoints.json", predictions)
        most = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        assert predictions.persons == 8 * images
        return most

    peak(10, "journal")  # caches of Python and NumPy
    small, large = peak(100, "journal"), peak(400, "journal")
    picture = 320 * 240 * 3
    assert large < small + 20_000, "2400 more poses take less than 9 bytes each"
    assert large < 4 * picture, "one image at a time"
    kept = peak(400, "list") - peak(100, "list")
    assert 2400 * 200 < kept < 2400 * 600, "the poses themselves, without a journal"
    assert json.loads((tmp_path / "keypoints.json").read_text())[-1]["image_id"] == 399


def compare_speed(folder):
    """Processor seconds of pycocotools and of ours from the annotation file and the poses in memory to the ten numbers,
    and by how much these differ."""
    results = write_large_set(folder / "large.json", 5000, 11_000, 100_000)
    annotations = load_annotations(folder / "large.json")
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = judge(folder / "large.json", results)
    between = time.process_time()
    found = coco_metrics(load_annotations(annotations.path), results)
    return between - started, time.process_time() - between, max(abs(found[name] - wanted[name]) for name in METRICS)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        theirs, ours, difference = compare_speed(Path(place))
    print(f"pycocotools {theirs:.2f} s, ours {ours:.2f} s: {theirs / ours:.1f} times faster, numbers differ by at most "
          f"{difference:.1g}")
