"""IoU and NMS against plain loops written from the definition."""

import numpy as np
import pytest

from runtime.nms import box_iou, nms


def plain_iou(a, b):
    """IoU of two boxes (left, top, right, bottom), in Python floats."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    union = sum(max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b)) - overlap
    return overlap / union if union > 0 else 0.0


def plain_nms(boxes, scores, iou_threshold, max_boxes):
    """Greedy NMS: walk from the best score down and keep a box unless a kept one covers it."""
    kept = []
    for candidate in sorted(range(len(scores)), key=lambda index: (-scores[index], index)):
        covered = any(plain_iou(boxes[candidate], boxes[index]) > iou_threshold for index in kept)
        if not covered and len(kept) < max_boxes:
            kept.append(candidate)
    return kept


def random_boxes(generator, count, spread=100):
    corners = generator.uniform(0, spread, (count, 2))
    return np.concatenate([corners, corners + generator.uniform(1, 50, (count, 2))], axis=1).astype(np.float32)


def test_iou_of_known_boxes():
    a = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]]
    b = [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10]]
    # the same; half overlaps; sides touch; no area
    np.testing.assert_allclose(np.diag(box_iou(a, b)), [1, 1 / 3, 0, 0], rtol=1e-6)


def test_iou_equals_the_plain_loop():
    generator = np.random.default_rng(0)
    a, b = random_boxes(generator, 40), random_boxes(generator, 30)
    a[:5, 2:] = a[:5, :2]  # points
    b[:5, [0, 2]] = b[:5, [2, 0]]  # inside out: no area
    expected = [[plain_iou(one, other) for other in b.tolist()] for one in a.tolist()]
    found = box_iou(a, b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 3), (3, 0)])
def test_iou_of_no_boxes(a, b):
    assert box_iou(np.zeros((a, 4)), np.zeros((b, 4))).shape == (a, b)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("iou_threshold", [0.1, 0.45, 0.6, 0.9])
def test_nms_equals_the_plain_loop(seed, iou_threshold):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 120))
    boxes = random_boxes(generator, count, spread=float(generator.choice([30, 100, 500])))
    scores = generator.uniform(size=count).astype(np.float32)
    if seed % 2:
        scores = np.round(scores, 1)  # many equal scores
    kept = nms(boxes, scores, iou_threshold)
    assert kept.tolist() == plain_nms(boxes.tolist(), scores.tolist(), iou_threshold, 100)


def test_of_equal_scores_the_earlier_box_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [0, 0, 10, 10]], np.float32)
    assert nms(boxes, np.full(4, 0.5, np.float32)).tolist() == [0, 2]


def test_overlap_at_the_threshold_is_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 0.5
    assert nms(boxes, np.array([0.9, 0.8]), iou_threshold=0.5).tolist() == [0, 1]
    assert nms(boxes, np.array([0.9, 0.8]), iou_threshold=0.49).tolist() == [0]


def test_a_dropped_box_drops_no_other():
    # The second is covered by the first; the third only by the second, which is gone.
    boxes = np.array([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), iou_threshold=0.5).tolist() == [0, 2]


def test_all_overlapping_leaves_the_best():
    boxes = np.tile(np.array([[5, 5, 50, 90]], np.float32), (500, 1))
    scores = np.random.default_rng(1).uniform(size=500)
    assert nms(boxes, scores).tolist() == [int(scores.argmax())]


def test_at_most_max_boxes_the_best_of_them():
    left = np.arange(300, dtype=np.float32) * 20
    boxes = np.stack([left, left * 0, left + 10, left * 0 + 10], axis=1)
    scores = np.random.default_rng(2).permutation(300) / 300
    assert nms(boxes, scores, max_boxes=7).tolist() == np.argsort(-scores)[:7].tolist()
    assert len(nms(boxes, scores)) == 100


def test_no_boxes():
    kept = nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert kept.shape == (0,)
    assert kept.dtype == np.int64


def test_boxes_without_area_and_without_number_drop_no_good_box():
    nan = np.nan
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 5], [9, 9, 1, 1], [nan, nan, nan, nan], [0, 0, 10, 10]], np.float32)
    kept = nms(boxes, np.array([0.5, 0.9, 0.8, 0.7, 0.4])).tolist()
    assert kept == [1, 2, 3, 0]


def test_a_score_without_number_comes_last():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    assert nms(boxes, np.array([np.nan, 0.2, 0.6])).tolist() == [2, 1, 0]
