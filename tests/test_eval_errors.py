"""Error diagnosis on persons whose every mistake is made on purpose."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from eval.annotations import load_annotations
from eval.bootstrap import AREAS
from eval.diagnosis import CORRECTIONS, TYPES, ap_impact, best_ranked, corrected, count_score_errors, diagnose
from eval.errors import analyse, by_group, by_keypoint, groups_of, schema_of, table, type_shares
from eval.scoring import coco_metrics, evaluated
from runtime.errors import BadInput
from runtime.keypoints import COCO
from tests.coco_data import ROOT, read_metrics, run_main

SIGMAS = np.array(COCO.sigmas)
WIDTH, HEIGHT = 1000, 600
WRIST = COCO.names.index("left_wrist")
NO_ERROR = {"jitter": 0, "inversion": 0, "swap": 0, "miss": 0}


def person(number, image, left, top=100.0, size=(120, 300), labels=17):
    """A person whose keypoints are far apart for their size, left ones 40 pixels from right ones."""
    keypoints = np.zeros((17, 3))
    keypoints[:, 0] = left + np.where([name.startswith("left") for name in COCO.names], 20.0, size[0] - 20)
    keypoints[:, 1] = top + np.linspace(10, size[1] - 10, 17)
    keypoints[:, 2] = np.where(np.arange(17) < labels, 2, 0)
    keypoints[keypoints[:, 2] == 0] = 0
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": [left, top, *size],
            "area": 0.5 * size[0] * size[1], "num_keypoints": labels, "keypoints": keypoints.ravel().tolist()}


def annotate(folder, persons, images=2):
    data = {"images": [{"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
                       for number in range(1, images + 1)],
            "annotations": persons, "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.names)}]}
    (folder / "annotations.json").write_text(json.dumps(data))
    return load_annotations(folder / "annotations.json")


def pose(truth, score=0.9, moved=()):
    """A pose exactly on a person, but for keypoints moved to (x, y): {number: (x, y)}."""
    points = np.reshape(truth["keypoints"], (17, 3)).astype(float)
    for number, place in dict(moved).items():
        points[number, :2] = place
    return {"image_id": truth["image_id"], "category_id": 1, "keypoints": points.ravel().tolist(), "score": score}


def place(truth, number, likeness=1.0):
    """Where the similarity to a person's keypoint has a given value: x to the right of it."""
    x, y, _ = np.reshape(truth["keypoints"], (17, 3))[number]
    return x + 2 * SIGMAS[number] * np.sqrt(-2 * np.log(likeness) * truth["area"]), y


def types_of(diagnosis):
    return [TYPES[number] for number in diagnosis.types[0]]


@pytest.fixture
def pair(tmp_path):
    """Two persons side by side on image 1, one on image 2."""
    return annotate(tmp_path, [person(1, 1, 100), person(2, 1, 300), person(3, 2, 100)])


def first(annotations):
    return annotations.persons[1][0]


@pytest.mark.parametrize(
    ("likeness", "kind"),
    [(1.0, "good"), (0.86, "good"), (0.84, "jitter"), (0.51, "jitter"), (0.49, "miss"), (0.01, "miss")],
)
def test_published_thresholds(pair, likeness, kind):
    moved = pose(first(pair), moved={WRIST: place(first(pair), WRIST, likeness)})
    diagnosis = diagnose(pair, [moved], SIGMAS, COCO.flip_order)
    assert types_of(diagnosis) == ["good"] * WRIST + [kind] + ["good"] * (16 - WRIST)
    assert diagnosis.own[0, WRIST] == pytest.approx(likeness)
    assert [item["id"] for item in diagnosis.missed] == [2, 3]


def test_left_for_right_is_an_inversion(pair):
    other = COCO.flip_order[WRIST]
    moved = {WRIST: place(first(pair), other, 0.9), other: place(first(pair), WRIST, 0.6)}
    found = types_of(diagnose(pair, [pose(first(pair), moved=moved)], SIGMAS, COCO.flip_order))
    assert found[WRIST] == found[other] == "inversion"
    assert found.count("good") == 15


@pytest.mark.parametrize("side", ["same", "other"])
def test_a_keypoint_of_another_person_is_a_swap(pair, side):
    theirs = WRIST if side == "same" else COCO.flip_order[WRIST]
    moved = {WRIST: place(pair.persons[1][1], theirs, 0.7)}
    diagnosis = diagnose(pair, [pose(first(pair), moved=moved)], SIGMAS, COCO.flip_order)
    assert types_of(diagnosis)[WRIST] == "swap"
    assert diagnosis.best[0, WRIST] == pytest.approx(0.7)


def test_persons_of_other_images_and_unlabelled_keypoints_are_no_swap(tmp_path):
    annotations = annotate(tmp_path, [person(1, 1, 100), person(2, 1, 500, labels=WRIST), person(3, 2, 500)])
    moved = {WRIST: place(annotations.persons[2][0], WRIST)}
    diagnosis = diagnose(annotations, [pose(first(annotations), moved=moved)], SIGMAS, COCO.flip_order)
    assert types_of(diagnosis)[WRIST] == "miss"


def test_keypoints_without_a_label_have_no_type(tmp_path):
    annotations = annotate(tmp_path, [person(1, 1, 100, labels=9)])
    moved = pose(first(annotations), moved={WRIST: (900, 500)})
    diagnosis = diagnose(annotations, [moved], SIGMAS, COCO.flip_order)
    assert (diagnosis.types[0] == -1).tolist() == [False] * 9 + [True] * 8
    assert type_shares(diagnosis.types) == {"good": 1.0, **NO_ERROR}


@pytest.mark.parametrize(
    ("kind", "likeness", "reached"),
    [("miss", 0.1, 0.5), ("jitter", 0.6, 0.85), ("inversion", 0.7, 0.7), ("swap", 0.65, 0.65)],
)
def test_correction_moves_only_its_own_type_to_the_published_similarity(pair, kind, likeness, reached):
    target = {"inversion": (first(pair), COCO.flip_order[WRIST]), "swap": (pair.persons[1][1], WRIST)}
    moved = pose(first(pair), moved={WRIST: place(*target.get(kind, (first(pair), WRIST)), likeness)})
    diagnosis = diagnose(pair, [moved], SIGMAS, COCO.flip_order)
    assert types_of(diagnosis)[WRIST] == kind
    others = [name for name in CORRECTIONS[:4] if name != kind]
    assert corrected([moved], diagnosis, others, SIGMAS) == [moved]
    before = copy.deepcopy(moved)
    fixed = corrected([moved], diagnosis, [kind], SIGMAS)
    assert moved == before, "the caller's results are left as they are"
    again = diagnose(pair, fixed, SIGMAS, COCO.flip_order)
    assert again.own[0, WRIST] == pytest.approx(reached, abs=1e-6)
    assert again.own[0, WRIST] >= reached, "on the right side of the threshold"
    changed = np.flatnonzero(np.array(fixed[0]["keypoints"]) != before["keypoints"])
    assert set(changed) <= {3 * WRIST, 3 * WRIST + 1}


def test_background_duplicates_and_missed_persons(pair):
    nowhere = pose(person(9, 2, 700), score=0.95)
    results = [pose(first(pair)), pose(first(pair), 0.5), nowhere]
    diagnosis = diagnose(pair, results, SIGMAS, COCO.flip_order)
    assert diagnosis.poses.tolist() == [2, 0, 1], "best score first"
    assert diagnosis.located.tolist() == [-1, 0, -1]
    assert [item["id"] for item in diagnosis.missed] == [2, 3]


@pytest.mark.parametrize(("scores", "wrong"), [((0.9, 0.5), 0), ((0.5, 0.9), 1)])
def test_score_errors(pair, scores, wrong):
    bad = {number: place(first(pair), number, 0.7) for number in range(17)}
    results = [pose(first(pair), scores[0]), pose(first(pair), scores[1], moved=bad), pose(pair.persons[2][0])]
    scoring = evaluated(pair, results, SIGMAS, areas=[AREAS[""]])
    assert count_score_errors(results, scoring) == {
        "persons_with_several_poses": 1, "of_these_wrongly_ranked": wrong, "duplicates": 1}
    ranked = [item["score"] for item in best_ranked(results, scoring)]
    assert ranked[0] == pytest.approx(1) == ranked[2] and ranked[1] < 0.01


def spoil(kind, persons):
    """Exact poses of all persons, but for the first one's."""
    one, good = persons[0], [pose(item) for item in persons]

    def moved(score, places):
        return pose(one, score, places)

    return {
        "miss": [moved(0.9, {number: (5000, 5000) for number in range(9)}), *good[1:]],
        "inversion": [moved(0.9, {number: place(one, COCO.flip_order[number]) for number in range(5, 13)}), *good[1:]],
        "jitter": [moved(0.9, {number: place(one, number, 0.6) for number in range(17)}), *good[1:]],
        "swap": [moved(0.9, {number: place(persons[1], number) for number in range(8)}), *good[1:]],
        "false positives": [pose(person(9, 2, 700), 0.99), *good],
        "score": [moved(0.95, {number: place(one, number, 0.6) for number in range(17)}), *good],
        "false negatives": good[1:],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "also"),  # what gains as well: a pose that is wrong somewhere gains from a place at the end of the list
    [
        ("miss", {"score"}),
        ("inversion", {"score"}),
        ("jitter", {"score"}),
        ("swap", {"score"}),
        ("false positives", {"score"}),
        ("score", {"jitter", "false positives"}),
        ("false negatives", set()),
    ],
)
def test_each_kind_costs_what_it_was_made_to_cost(tmp_path, kind, also):
    persons = [person(1, 1, 100), person(2, 1, 600), person(3, 2, 100), person(4, 2, 600)]
    annotations = annotate(tmp_path, persons)
    results = spoil(kind, persons)
    impact = ap_impact(annotations, results, SIGMAS, diagnose(annotations, results, SIGMAS, COCO.flip_order))
    assert impact["AP"] == pytest.approx(coco_metrics(annotations, results)["AP"], abs=1e-9)
    gains = {name: value - impact["AP"] for name, value in impact["alone"].items()}
    assert gains[kind] > 0.02
    assert {name for name, gain in gains.items() if gain > 1e-9} <= {kind} | also
    steps = [impact["AP"], *impact["progressive"].values()]
    assert list(impact["progressive"]) == list(CORRECTIONS)
    assert steps == sorted(steps) and steps[-1] <= 1 + 1e-9


def test_keypoint_table(tmp_path):
    persons = [person(1, 1, 100), person(2, 2, 100), person(3, 2, 500, labels=WRIST)]
    annotations = annotate(tmp_path, persons)
    results = [pose(persons[0]), pose(persons[1], moved={WRIST: place(persons[1], WRIST, 0.01)})]
    table = by_keypoint(annotations, diagnose(annotations, results, SIGMAS, COCO.flip_order), COCO.names)
    assert table["nose"]["labelled"] == 3 and table["left_wrist"]["labelled"] == 2
    assert table["nose"]["AP"] == pytest.approx(67 / 101), "two of three persons found, precision 1 up to there"
    assert table["left_wrist"]["AP"] == pytest.approx(51 / 101)
    assert (table["left_wrist"]["good"], table["left_wrist"]["miss"]) == (0.5, 0.5)
    assert table["left_wrist"]["pck"] == 0.5 and table["nose"]["pck"] == 1


def test_a_pose_on_nobody_costs_every_keypoint_precision(tmp_path):
    annotations = annotate(tmp_path, [person(1, 1, 100)])
    results = [pose(first(annotations), 0.5), pose(person(9, 2, 700), 0.9)]
    table = by_keypoint(annotations, diagnose(annotations, results, SIGMAS, COCO.flip_order), COCO.names)
    assert table["nose"]["AP"] == table["left_wrist"]["AP"] == pytest.approx(0.5)


def test_a_pose_between_two_persons_is_ranked_by_the_nearer_one(tmp_path):
    annotations = annotate(tmp_path, [person(1, 1, 100), person(2, 1, 115)])
    results = [pose(first(annotations), 0.3)]
    scoring = evaluated(annotations, results, SIGMAS, areas=[AREAS[""]])
    assert 0.3 < np.sort(scoring.ious[1, 1])[0, 0] < 0.9, "it lies on both"
    assert best_ranked(results, scoring)[0]["score"] == pytest.approx(1)


def test_pck_is_a_tenth_of_the_longer_side(tmp_path):
    annotations = annotate(tmp_path, [person(1, 1, 100)])  # 300 pixels high
    x, y = place(first(annotations), WRIST)
    for distance, share in ((29.9, 1), (30.1, 0)):
        results = [pose(first(annotations), moved={WRIST: (x - distance, y)})]
        diagnosis = diagnose(annotations, results, SIGMAS, COCO.flip_order)
        assert by_keypoint(annotations, diagnosis, COCO.names)["left_wrist"]["pck"] == share


def test_groups(tmp_path):
    persons = [
        person(1, 1, 100), person(2, 1, 180),  # IoU 0.2
        person(3, 1, 600),
        person(4, 2, 0, labels=4),  # at the left edge
        person(5, 2, 880, labels=8),  # at the right one
        person(6, 2, 300, size=(20, 30), labels=12),
        person(7, 2, 500, size=(80, 100)),
    ]
    annotations = annotate(tmp_path, persons)
    groups = groups_of(annotations)
    assert groups["crowding"] == {"0 overlapping": {3, 4, 5, 6, 7}, "1-2 overlapping": {1, 2}, "3 or more": set()}
    assert groups["labels"] == {"1-5 keypoints": {4}, "6-10 keypoints": {5}, "11-15 keypoints": {6},
                                "16 or more": {1, 2, 3, 7}}
    assert groups["edge"] == {"cut off by the edge": {4, 5}, "inside": {1, 2, 3, 6, 7}}

    results = [pose(persons[number]) for number in (0, 2, 3, 5, 6)]
    found = by_group(annotations, results, SIGMAS, diagnose(annotations, results, SIGMAS, COCO.flip_order), groups)
    assert {name: row["persons"] for name, row in found["size"].items()} == {"small": 1, "medium": 1, "large": 5}
    metrics = coco_metrics(annotations, results)
    assert found["size"]["medium"]["AP"] == pytest.approx(metrics["APM"])
    assert found["size"]["large"]["AP"] == pytest.approx(metrics["APL"])
    assert found["edge"]["cut off by the edge"]["AR50"] == 0.5
    assert found["edge"]["cut off by the edge"]["AP"] == pytest.approx(51 / 101), "poses on others are not wrong"
    assert found["crowding"]["1-2 overlapping"]["without_pose"] == 0.5
    assert found["crowding"]["3 or more"]["AP"] is None


def test_report_is_json_and_readable(coco, tmp_path):
    annotations = load_annotations(coco / "annotations.json")
    generator = np.random.default_rng(0)
    results = []
    for group in annotations.persons.values():
        for item in group:
            points = np.reshape(item["keypoints"], (17, 3)) + generator.normal(0, 4, (17, 3))
            results.append({**pose(item, float(generator.uniform())), "keypoints": points.ravel().tolist()})
    report = json.loads(json.dumps(analyse(annotations, results, SIGMAS, schema_of(annotations)), allow_nan=False))
    metrics = coco_metrics(annotations, results)
    assert report["impact"]["AP"] == pytest.approx(metrics["AP"], abs=1e-9)
    assert report["metrics"] == pytest.approx(metrics, abs=1e-9)
    assert sum(report["keypoints"].values()) == pytest.approx(1)
    text = table(report)
    assert all(name in text for name in (*COCO.names, *CORRECTIONS, "cut off by the edge", "medium"))


def test_no_pose_at_all(pair):
    report = analyse(pair, [], SIGMAS, COCO)
    assert (report["persons_without_pose"], report["impact"]["AP"]) == (3, 0)
    assert table(report)


def test_unknown_keypoints_are_refused(pair):
    with pytest.raises(BadInput, match="left and right are unknown"):
        schema_of(type(pair)(**{**vars(pair), "keypoint_names": ("left_hand", "nose"), "keypoints": 2}))


def test_command_writes_figures_of_a_real_run(coco, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", run)
    done = subprocess.run([sys.executable, "-m", "eval.errors", run], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "errors.json").read_text())
    assert report["impact"]["AP"] == pytest.approx(read_metrics(run)["AP"], abs=1e-9)
    assert f"AP {report['impact']['AP']:.3f}, put right" in done.stdout
