"""Likeness of boxes (IoU) and of poses (OKS), and non-maximum suppression by either, on the CPU."""

import numpy as np

IOU_THRESHOLD = 0.6
MAX_BOXES = 100
OKS_THRESHOLD = 0.9  # Xiao et al. 2018


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


def keypoint_similarity(a, b, area, sigmas):
    """The summands of OKS, exp(-d² / 2 (2σ)² area) (https://cocodataset.org/#keypoints-eval).

    Args:
        a, b: (…, K, ≥2) keypoints, x and y in pixels, broadcast.
        area: (…) square pixels: the person's size.
        sigmas: (K,) standard deviations, as in `KeypointSchema`.

    Returns:
        (…, K) float64 in 0..1, 1 for equal places.
    """
    distances = ((np.asarray(a, np.float64)[..., :2] - np.asarray(b, np.float64)[..., :2]) ** 2).sum(-1)
    variances = (2 * np.asarray(sigmas, np.float64)) ** 2
    # np.spacing(1), as in pycocotools: without any area equal places are the same, and others have nothing in common.
    return np.exp(-distances / (2 * variances * (np.asarray(area, np.float64)[..., None] + np.spacing(1))))


def oks(a, b, areas_a, areas_b, sigmas):
    """Object keypoint similarity of every pose of one set with every pose of another.

    All K keypoints count, whatever their scores. The area of a pair is the mean of the two, so the measure is the
    same both ways (COCO's own takes the annotated person's, which poses do not have).

    Args:
        a, b: (N, K, ≥2) and (M, K, ≥2) keypoints, x and y in pixels.
        areas_a, areas_b: (N,) and (M,) square pixels: the persons' size.
        sigmas: (K,) standard deviations, as in `KeypointSchema`.

    Returns:
        (N, M) float64 in 0..1, 1 for equal poses.
    """
    areas = (np.asarray(areas_a, np.float64)[:, None] + np.asarray(areas_b, np.float64)[None]) / 2
    return keypoint_similarity(np.asarray(a)[:, None], np.asarray(b)[None], areas, sigmas).mean(-1)


def oks_nms(keypoints, scores, areas, sigmas, threshold=OKS_THRESHOLD):
    """Greedy NMS of poses (Papandreou et al. 2017): two boxes on one person give one pose twice, and one goes.

    Args:
        keypoints: (N, K, ≥2) of one frame, x and y in pixels.
        scores: (N,). areas: (N,) square pixels.
        sigmas: (K,).
        threshold: a pose more like a better one than this OKS is dropped; lower drops more, 1 none.

    Returns:
        Indices of the poses kept, best first; of equal scores the earlier pose first.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    alike = oks(keypoints, keypoints, areas, areas, sigmas)
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[alike[best, order] <= threshold]
    return np.array(kept, np.int64)


def soft_oks_nms(keypoints, scores, areas, sigmas, threshold=OKS_THRESHOLD):
    """Soft NMS (Bodla et al. 2017) of poses: nothing is dropped, but what resembles a better pose counts for less.

    Each pose kept multiplies the scores of the rest by exp(-OKS²/threshold): a lower threshold lowers them more.
    Arguments as for `oks_nms`.

    Returns:
        Indices of all N poses, best first, and their new scores (N,) in that order.
    """
    rest = np.arange(len(scores))
    left = np.array(scores, np.float64)
    alike = oks(keypoints, keypoints, areas, areas, sigmas)
    order: list[int] = []
    while len(rest):
        best = rest[left[rest].argmax()]
        order.append(best)
        rest = rest[rest != best]
        left[rest] *= np.exp(-alike[best, rest] ** 2 / threshold)
    return np.array(order, np.int64), left[order]
