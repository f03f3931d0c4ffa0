"""How sure a COCO keypoint score is: bootstrap intervals over images.

pycocotools matches poses to persons image by image, so a resample of images needs no new matching: its AP follows from
the matches, each counted as often as its image was drawn. `interval` gives the interval of one run, `differences` those
of two runs on the same images. Efron and Tibshirani 1993, "An Introduction to the Bootstrap", percentile intervals.
"""

from dataclasses import dataclass

import numpy as np

from eval.scoring import METRICS, evaluated
from runtime.errors import BadInput
from runtime.keypoints import COCO, SCHEMAS

RESAMPLES = 1000
CONFIDENCE = 0.95
RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision off the curve
LEVELS = np.linspace(0.5, 0.95, 10)  # OKS from which on a pose counts as right
AREAS = {"": (0.0, 1e10), "M": (32.0**2, 96.0**2), "L": (96.0**2, 1e10)}  # pixels², by the suffix of the metric


@dataclass(frozen=True)
class Matches:
    """Which poses of a run are right, at T levels of OKS.

    Attributes:
        images: (D,) int, the number of each pose's image; the poses go from the highest score to the lowest.
        right: (T, D) bool, the pose found a person.
        wrong: (T, D) bool, it found none. Neither right nor wrong are poses on crowds and the like.
        persons: (T, I) int, the persons to find on each image.
    """

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    persons: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it with 95 % confidence; NaN where there is no such person."""

    value: float
    low: float
    high: float


def sigmas_of(annotations, protocol=None):
    """The sigmas to score annotations with: the protocol's where it has some, else those of the keypoints' names.

    Raises:
        BadInput: no schema of the project has these keypoints.
    """
    if protocol and protocol.get("sigmas"):
        return tuple(protocol["sigmas"])
    for schema in SCHEMAS.values():
        if annotations.keypoint_names == schema.names:
            return schema.sigmas
    if not annotations.keypoint_names and annotations.keypoints == len(COCO):
        return COCO.sigmas
    raise BadInput(f"{annotations.path} has {annotations.keypoints} keypoints of no schema of the project "
                   f"({', '.join(SCHEMAS)}), so that their sigmas are unknown; give annotations of one of these")


def matches_of(scoring):
    """COCOeval after `evaluate()` → one `Matches` for each of its area ranges."""
    images = {image: number for number, image in enumerate(scoring.params.imgIds)}
    return [_matches(scoring.evalImgs[start:start + len(images)], images, len(scoring.params.iouThrs))
            for start in range(0, len(scoring.evalImgs), len(images))]


def _matches(of_images, images, levels):
    """`of_images` is COCOeval.evalImgs of one area range: a dict for each image, None where nobody is."""
    persons = np.zeros(len(images), int)
    numbers, scores, right, wrong = [], [], [np.zeros((levels, 0), bool)], [np.zeros((levels, 0), bool)]
    for item in filter(None, of_images):
        number = images[item["image_id"]]
        persons[number] = np.count_nonzero(item["gtIgnore"] == 0)
        matched, ignored = np.asarray(item["dtMatches"]) != 0, np.asarray(item["dtIgnore"], bool)
        numbers += [number] * len(item["dtScores"])
        scores += item["dtScores"]
        right.append(matched & ~ignored)
        wrong.append(~matched & ~ignored)
    order = np.argsort(-np.array(scores), kind="stable")  # of equal scores the earlier image's first, as in COCOeval
    return Matches(np.array(numbers, int)[order], np.concatenate(right, 1)[:, order],
                   np.concatenate(wrong, 1)[:, order], np.tile(persons, (levels, 1)))


def precision_recall(matches, weights=None):
    """The curves of precision over recall, as COCOeval.accumulate makes them.

    Args:
        matches: `Matches`.
        weights: (I,) how often each image counts; None for once each. This is the curve of a data set with so many
            copies of the image, exactly so unless poses of one image have equal scores.

    Returns:
        (T, 101) precision at `RECALLS`, the best at that recall or a higher one, and (T,) recall; NaN where there
        is no person to find.
    """
    if weights is None:
        weights = np.ones(matches.persons.shape[1])
    of_pose = weights[matches.images]
    right = np.cumsum(matches.right * of_pose, axis=1)
    wrong = np.cumsum(matches.wrong * of_pose, axis=1)
    persons = matches.persons @ weights
    precision = np.full((len(right), len(RECALLS)), np.nan)
    recall = np.full(len(right), np.nan)
    # Of several copies of a right pose the last has the best precision, so that one step for all of them is exact.
    best = np.maximum.accumulate((right / (wrong + right + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
    for level in np.flatnonzero(persons):
        reached = right[level] / persons[level]
        place = np.searchsorted(reached, RECALLS, side="left")
        precision[level] = np.append(best[level], 0)[place]
        recall[level] = reached[-1] if len(reached) else 0
    return precision, recall


def figures(all_matches, weights=None):
    """COCO's ten numbers from the matches in the three `AREAS` → dict of `METRICS`, NaN where nobody is that large."""
    values = {}
    for suffix, matches in zip(AREAS, all_matches, strict=True):
        precision, recall = precision_recall(matches, weights)
        for name, levels in (("AP", precision.mean(1)), ("AR", recall)):
            known = levels[np.isfinite(levels)]
            values[name + suffix] = float(known.mean()) if len(known) else float("nan")
            if not suffix:
                values[name + "50"], values[name + "75"] = float(levels[0]), float(levels[5])
    return {name: values[name] for name in METRICS}


def draw_weights(images, resamples=RESAMPLES, seed=0):
    """(resamples, images) int: how often each image is in each resample of as many images, drawn with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def interval(results, annotations, sigmas=None, resamples=RESAMPLES, seed=0):
    """One run's ten numbers with their 95 % intervals.

    Args:
        results: list of dicts in COCO's results format.
        annotations: from `load_annotations`.
        sigmas: K; None for those of the annotations' keypoints.
        resamples: more give a steadier interval; 1000 are enough for two digits of its width.
        seed: of the draw.

    Returns:
        dict of `METRICS` → `Interval`.
    """
    run = matches_of(evaluated(annotations, results, sigmas_of(annotations) if sigmas is None else sigmas))
    drawn = _resampled(run, resamples, seed)
    return _intervals(figures(run), drawn)


def differences(results, other, annotations, sigmas=None, resamples=RESAMPLES, seed=0):
    """How much better `other` is than `results`, with 95 % intervals; both are counted on the same resamples.

    Arguments and result as for `interval`.
    """
    sigmas = sigmas_of(annotations) if sigmas is None else sigmas
    runs = [matches_of(evaluated(annotations, run, sigmas)) for run in (results, other)]
    values = [figures(run) for run in runs]
    drawn = [_resampled(run, resamples, seed) for run in runs]
    return _intervals({name: values[1][name] - values[0][name] for name in METRICS}, drawn[1] - drawn[0])


def _resampled(run, resamples, seed):
    """(resamples, 10) the figures of every resample."""
    weights = draw_weights(run[0].persons.shape[1], resamples, seed)
    return np.array([list(figures(run, weight).values()) for weight in weights])


def _intervals(values, drawn):
    result = {}
    tail = 50 * (1 - CONFIDENCE)  # per cent on each side
    for (name, value), column in zip(values.items(), drawn.T, strict=True):
        # A resample may lack persons of a size that a small set has few of.
        column = column[np.isfinite(column)]
        low, high = np.percentile(column, (tail, 100 - tail)) if len(column) else (np.nan, np.nan)
        result[name] = Interval(value, float(low), float(high))
    return result
