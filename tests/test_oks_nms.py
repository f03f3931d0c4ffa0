"""OKS and its NMS, hard and soft, against plain loops written from the papers' formulas."""

import math

import numpy as np
import pytest
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval

from runtime.keypoints import COCO, MPII
from runtime.nms import oks, oks_nms, soft_oks_nms


def plain_oks(a, b, area, sigmas):
    """Mean over the keypoints of exp(−d² / (2·s²·k²)), s² the area, k = 2σ."""
    terms = []
    for (x, y, *_), (other_x, other_y, *_), sigma in zip(a, b, sigmas, strict=True):
        squared = (x - other_x) ** 2 + (y - other_y) ** 2
        terms.append(math.exp(-squared / (2 * area * (2 * sigma) ** 2)))
    return sum(terms) / len(terms)


def plain_oks_nms(poses, scores, areas, sigmas, threshold):
    """Walk from the best score down and keep a pose unless one that is kept is more like it than the threshold."""
    kept = []
    for candidate in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
        likest = max((plain_oks(poses[candidate], poses[index], (areas[candidate] + areas[index]) / 2, sigmas)
                      for index in kept), default=0)
        if likest <= threshold:
            kept.append(candidate)
    return kept


def plain_soft_oks_nms(poses, scores, areas, sigmas, threshold):
    """Take the best of those left; each of the others fades by exp(−OKS² / threshold); again."""
    left, taken = dict(enumerate(scores)), []
    while left:
        best = min(left, key=lambda index: (-left[index], index))
        taken.append((best, left.pop(best)))
        for index in left:
            alike = plain_oks(poses[best], poses[index], (areas[best] + areas[index]) / 2, sigmas)
            left[index] *= math.exp(-alike * alike / threshold)
    return taken


def crowd(generator, persons, copies, sigmas):
    """Persons, each seen several times with a few pixels' difference, as by overlapping boxes."""
    poses = generator.uniform(0, 300, (persons, 1, len(sigmas), 2))
    poses = poses + generator.normal(0, generator.uniform(0.2, 6, (persons, copies, 1, 1)), (persons, copies,
                                                                                             len(sigmas), 2))
    poses = poses.reshape(-1, len(sigmas), 2)
    keypoints = np.concatenate([poses, generator.uniform(size=(*poses.shape[:2], 1))], axis=2)
    scores = generator.uniform(0.1, 1, len(poses)).round(1)  # with ties
    return keypoints, scores, generator.uniform(2000, 30000, len(poses))


@pytest.mark.parametrize("schema", [COCO, MPII], ids=lambda schema: schema.name)
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_hard_and_soft_equal_the_plain_loops(schema, threshold):
    generator = np.random.default_rng(0)
    dropped = 0
    for _ in range(10):
        keypoints, scores, areas = crowd(generator, 4, 5, schema.sigmas)
        kept = oks_nms(keypoints, scores, areas, schema.sigmas, threshold)
        assert kept.tolist() == plain_oks_nms(keypoints, scores, areas, schema.sigmas, threshold)
        dropped += len(scores) - len(kept)
        order, soft_scores = soft_oks_nms(keypoints, scores, areas, schema.sigmas, threshold)
        wanted = plain_soft_oks_nms(keypoints, scores, areas, schema.sigmas, threshold)
        np.testing.assert_allclose(soft_scores, [score for _, score in wanted], rtol=1e-9)
        assert order.tolist() == [index for index, _ in wanted]
        assert (np.diff(soft_scores) <= 1e-12).all()
        assert (soft_scores <= scores[order]).all()
    assert dropped > 20 if threshold < 1 else dropped == 0


def test_oks_is_pycocotools_where_both_areas_are_the_same():
    generator = np.random.default_rng(1)
    keypoints, _, _ = crowd(generator, 2, 3, COCO.sigmas)
    keypoints[..., 2] = 2
    items = [{"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 5000.0, "bbox": [0, 0, 300, 300],
              "num_keypoints": 17, "keypoints": pose.ravel().tolist(), "score": 1 - number / 10}
             for number, pose in enumerate(keypoints)]
    index, found = CocoIndex(), CocoIndex()
    for target in (index, found):
        target.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": items}
        target.createIndex()
    scoring = COCOeval(index, found, "keypoints")
    scoring.evaluate()
    areas = np.full(len(items), 5000.0)
    np.testing.assert_allclose(oks(keypoints, keypoints, areas, areas, COCO.sigmas), scoring.ious[1, 1], atol=1e-9)


def test_known_poses():
    """Three times one person, the second a copy, the third a sigma's length beside it in every keypoint."""
    person = np.full((17, 2), 100.0)
    away = person + np.stack([2 * np.array(COCO.sigmas) * 100, np.zeros(17)], axis=1)  # area 100²
    poses, areas = np.stack([person, person, away]), [10000, 10000, 10000]
    found = oks(poses[:1], poses, areas[:1], areas, COCO.sigmas)
    np.testing.assert_allclose(found, [[1, 1, math.exp(-0.5)]])
    assert oks_nms(poses, [0.5, 0.9, 0.1], areas, COCO.sigmas, 0.9).tolist() == [1, 2]
    assert oks_nms(poses, [0.5, 0.9, 0.1], areas, COCO.sigmas, 0.6).tolist() == [1]  # exp(−1/2) = 0.607
    assert oks_nms(poses, [0.5, 0.9, 0.1], areas, COCO.sigmas, 1).tolist() == [1, 0, 2]


@pytest.mark.parametrize("function", [oks_nms, soft_oks_nms])
def test_nobody_and_one(function):
    nobody = function(np.zeros((0, 17, 3)), np.zeros(0), np.zeros(0), COCO.sigmas)
    assert [len(part) for part in (nobody if isinstance(nobody, tuple) else (nobody,))] in ([0], [0, 0])
    one = function(np.zeros((1, 17, 3)), np.array([0.3]), np.zeros(1), COCO.sigmas)
    assert (one[0] if isinstance(one, tuple) else one).tolist() == [0]


def test_no_area_does_not_divide_by_zero():
    poses = np.zeros((2, 17, 2))
    poses[1] += 1
    with np.errstate(all="raise", under="ignore"):
        assert oks(poses, poses, [0, 0], [0, 0], COCO.sigmas).tolist() == [[1, 0], [0, 1]]
