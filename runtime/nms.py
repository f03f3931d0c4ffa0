"""Intersection over union, and non-maximum suppression on the CPU."""

import numpy as np

IOU_THRESHOLD = 0.6
MAX_BOXES = 100


def box_iou(a, b):
    """IoU of (N, 4) and (M, 4) boxes (left, top, right, bottom) → (N, M) float32; empty boxes give 0."""
    a, b = np.asarray(a, np.float32)[:, None], np.asarray(b, np.float32)[None]
    overlap = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - overlap
    return np.where(union > 0, overlap / np.where(union > 0, union, 1), 0).astype(np.float32)


def nms(boxes, scores, iou_threshold=IOU_THRESHOLD, max_boxes=MAX_BOXES):
    """Greedy NMS.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,).
        iou_threshold: a box that overlaps a better one by more than this is dropped.

    Returns:
        Indices of the boxes kept, best first; of equal scores the earlier box first.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < max_boxes:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[box_iou(boxes[best][None], boxes[order])[0] <= iou_threshold]
    return np.array(kept, np.int64)
