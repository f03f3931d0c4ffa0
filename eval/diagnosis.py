"""What is wrong with each pose of a run, and what putting it right would bring.

After Ronchi and Perona 2017, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", whose thresholds
these are.
"""

from dataclasses import dataclass

import numpy as np

from eval.annotations import build_index
from eval.bootstrap import AREAS, Matches, matches_of, precision_recall
from eval.scoring import evaluated
from runtime.nms import keypoint_similarity

TYPES = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
UNLABELLED = -1
LOCATED = 0.1  # OKS from which on a pose lies on a person
NEAR, EXACT = 0.5, 0.85  # similarity of one keypoint: below NEAR a miss, from EXACT on good
CORRECTIONS = ("miss", "swap", "inversion", "jitter", "false positives", "score", "false negatives")


@dataclass(frozen=True)
class Diagnosis:
    """What became of D poses, best score first, of which N lie on a person.

    Attributes:
        poses: (D,) int, places in the results of the poses that count.
        located: (D,) int, the place of each among the N below, or -1 where it lies on nobody.
        persons: N annotations, one for each located pose.
        types: (N, K) int, places in `TYPES`, or -1 where the person has no label.
        own: (N, K) similarity exp(-d²/2s²(2σ)²) to the person's own keypoint, 0 where it has no label.
        best: (N, K) that to the keypoint which the prediction is most like, of whomever and whichever side.
        distances: (N, K) pixels to the own keypoint, 0 where it has no label.
        missed: annotations of the persons without a pose.
    """

    poses: np.ndarray
    located: np.ndarray
    persons: list[dict]
    types: np.ndarray
    own: np.ndarray
    best: np.ndarray
    distances: np.ndarray
    missed: list[dict]


def similarity(points, person, area, sigmas):
    """(K, 2) points and a person's (K, 3) labels → (K,) similarity of each keypoint, the summands of OKS; -1 where the
    person has no label. `area` in pixels²."""
    return np.where(person[:, 2] > 0, keypoint_similarity(points, person, area, sigmas), -1.0)


def classify(points, person, others, sigmas, flip_order):
    """The type of every keypoint of a pose on a person.

    Args:
        points: (K, 2) pixels.
        person: annotation that the pose lies on.
        others: annotations of the other persons on the image.
        sigmas: K.
        flip_order: (K,) of `KeypointSchema`.

    Returns:
        types (K,) int, own (K,) and best (K,) similarities as in `Diagnosis`.
    """
    labels = labels_of(person)
    # The own keypoint stands first and wins where two are equally like.
    choices = [similarity(points, labels, person["area"], sigmas),
               similarity(points, labels[flip_order], person["area"], sigmas)]
    for other in others:
        theirs = labels_of(other)
        choices += [similarity(points, theirs, other["area"], sigmas),
                    similarity(points, theirs[flip_order], other["area"], sigmas)]
    likeness = np.array(choices)
    best, whose = likeness.max(0), likeness.argmax(0)
    own_types = np.where(best >= EXACT, GOOD, JITTER)
    types = np.select([best < NEAR, whose == 0, whose == 1], [MISS, own_types, INVERSION], SWAP)
    labelled = labels[:, 2] > 0
    return np.where(labelled, types, UNLABELLED), np.clip(likeness[0], 0, None), np.where(labelled, best, 0.0)


def labels_of(person):
    return np.reshape(person["keypoints"], (-1, 3)).astype(float)


def diagnose(annotations, results, sigmas, flip_order):
    """Match poses to persons from an OKS of 0.1 on, and name what is wrong with each keypoint → `Diagnosis`."""
    scoring = evaluated(annotations, results, sigmas, levels=[LOCATED], areas=[AREAS[""]])
    found, missed = [], []
    for item in filter(None, scoring.evalImgs):
        for pose, person, ignored, score in zip(item["dtIds"], item["dtMatches"][0], item["dtIgnore"][0],
                                                item["dtScores"], strict=True):
            if not ignored:  # COCO takes the best 20 poses of an image, and none on a crowd
                found.append((score, pose - 1, int(person)))
        missed += [annotations.index.anns[person] for person, pose, ignored in
                   zip(item["gtIds"], item["gtMatches"][0], item["gtIgnore"], strict=True) if not pose and not ignored]
    found.sort(key=lambda entry: -entry[0])
    located, rows = [], []
    persons: list[dict] = []
    for _, pose, number in found:
        located.append(len(persons) if number else -1)
        if not number:
            continue
        person = annotations.index.anns[number]
        points = labels_of(results[pose])[:, :2]
        others = [other for other in annotations.index.imgToAnns[person["image_id"]] if other["id"] != number]
        distance = np.linalg.norm(points - labels_of(person)[:, :2], axis=1) * (labels_of(person)[:, 2] > 0)
        rows.append((*classify(points, person, others, sigmas, flip_order), distance))
        persons.append(person)
    types, own, best, distances = (np.array([row[part] for row in rows]).reshape(-1, len(sigmas)) for part in range(4))
    return Diagnosis(np.array([pose for _, pose, _ in found], int), np.array(located, int), persons, types.astype(int),
                     own, best, distances, missed)


def corrected(results, diagnosis, types, sigmas):
    """Results whose keypoints of these types are moved to or from the truth; nothing else changes.

    As published: jitter moves to a similarity of 0.85, a miss to 0.5, an inversion or swap as near to its own keypoint
    as it was to the wrong one. A good keypoint stays. (The paper's code leaves out the factor 2 of (2σ)² here, and so
    moves a miss to 0.84; this follows the text.)
    """
    target = np.select([diagnosis.types == MISS, diagnosis.types == JITTER], [NEAR, EXACT], diagnosis.best)
    wanted = np.isin(diagnosis.types, [TYPES.index(name) for name in types if name in TYPES])
    new = list(results)
    for place, row in zip(diagnosis.poses, diagnosis.located, strict=True):
        if row < 0 or not wanted[row].any():
            continue
        person = diagnosis.persons[row]
        points, labels, moved = labels_of(results[place]), labels_of(person), wanted[row]
        reach = 2 * np.asarray(sigmas) * np.sqrt(-2 * np.log(np.clip(target[row], 1e-12, 1)) * person["area"])
        # A hair nearer, so that rounding does not put the keypoint on the other side of the threshold.
        share = reach * (1 - 1e-9) / np.maximum(diagnosis.distances[row], 1e-12)
        points[moved, :2] = (labels[:, :2] + (points[:, :2] - labels[:, :2]) * share[:, None])[moved]
        new[place] = {**results[place], "keypoints": points.ravel().tolist()}
    return new


def best_ranked(results, scoring):
    """Results with the scores that rank them best: the one best pose of each person gets its OKS, all others less.

    Each person takes the most similar pose still free, the most similar pair first. (The paper lowers scores of
    duplicates by soft NMS instead.)

    Args:
        scoring: COCOeval of these results from `evaluated`.
    """
    scores = np.zeros(len(results))
    for poses, _, oks in _image_oks(scoring):
        scores[poses] = 1e-3 * oks.max(1, initial=0)
        free = oks.copy()
        while free.size and free.max() > 0:
            pose, person = np.unravel_index(free.argmax(), free.shape)
            scores[poses[pose]] = oks[pose, person]
            free[pose], free[:, person] = 0, 0
    return [{**result, "score": float(score)} for result, score in zip(results, scores, strict=True)]


def _image_oks(scoring):
    """Of every image with poses: places in the results (D,), the persons to find (G), their OKS (D, G)."""
    for (image, category), oks in scoring.ious.items():
        persons = scoring._gts[image, category]
        if not len(oks):
            continue
        poses = scoring._dts[image, category]
        order = np.argsort([-pose["score"] for pose in poses], kind="stable")[:len(oks)]
        wanted = [number for number, person in enumerate(persons) if not person["ignore"]]
        yield (np.array([poses[number]["id"] - 1 for number in order]), [persons[number] for number in wanted],
               np.asarray(oks)[:, wanted])


def count_score_errors(results, scoring):
    """Persons with several poses (of an OKS of 0.1 or more, and more like them than like others), and of these the ones
    whose best pose has not the best score."""
    several = wrong = duplicates = 0
    for poses, persons, oks in _image_oks(scoring):
        if not persons:
            continue
        scores = np.array([results[pose]["score"] for pose in poses])
        for person in range(len(persons)):
            near = np.flatnonzero((oks.argmax(1) == person) & (oks[:, person] >= LOCATED))
            several += len(near) > 1
            duplicates += max(len(near) - 1, 0)
            wrong += len(near) > 1 and scores[near].max() > scores[near[oks[near, person].argmax()]]
    return {"persons_with_several_poses": several, "of_these_wrongly_ranked": int(wrong), "duplicates": duplicates}


def average_precision(scoring_or_matches):
    """AP over all levels of OKS, from COCOeval of `evaluated` in one area range, or from `Matches`; 0 for nobody."""
    matches = scoring_or_matches if isinstance(scoring_or_matches, Matches) else matches_of(scoring_or_matches)[0]
    precision = precision_recall(matches)[0]
    return float(precision.mean()) if np.isfinite(precision).all() else 0.0


def only_persons(annotations, ids):
    """The annotations' COCO object in which the persons of these ids alone are to be found."""
    # Whoever has no labelled keypoint pycocotools does not count, and a pose on them is neither right nor wrong.
    people = [{**person, "num_keypoints": person["num_keypoints"] if person["id"] in ids else 0}
              for person in annotations.index.dataset["annotations"]]
    return build_index({**annotations.index.dataset, "annotations": people})


def ap_impact(annotations, results, sigmas, diagnosis):
    """AP once each kind of error is put right.

    Keypoints move as in `corrected`; false positives, the poses on nobody, go; scores become those of `best_ranked`;
    false negatives, the persons without a pose, are no longer to be found. What is then missing to an AP of 1 is that
    corrected keypoints are not exact. (The paper ranks before it takes false positives out, which leaves them
    nothing, and counts all that is still wrong at a level of OKS as false negatives.) A kind may cost a little less
    than nothing: a duplicate is right where the better ranked pose does not reach the level.

    Returns:
        dict: "AP" as it is; "alone" → AP with this kind alone put right; "progressive" → AP with this kind and all
        before it put right, in the order of `CORRECTIONS`.
    """
    def put_right(kinds):
        changed = corrected(results, diagnosis, kinds, sigmas)
        index = None
        if "false positives" in kinds:
            changed = [changed[place] for place in sorted(diagnosis.poses[diagnosis.located >= 0])]
        if "score" in kinds:
            changed = best_ranked(changed, evaluated(annotations, changed, sigmas, areas=[AREAS[""]]))
        if "false negatives" in kinds:
            index = only_persons(annotations, {person["id"] for person in diagnosis.persons})
        return average_precision(evaluated(annotations, changed, sigmas, areas=[AREAS[""]], index=index))

    return {"AP": put_right(()), "alone": {kind: put_right([kind]) for kind in CORRECTIONS},
            "progressive": {kind: put_right(CORRECTIONS[:number + 1]) for number, kind in enumerate(CORRECTIONS)}}
