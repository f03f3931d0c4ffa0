"""Poses of annotated images through the code that streams, and pycocotools' score of them."""

import contextlib
import copy
import io
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.annotations import build_index, read_image
from runtime.crop import crop_region
from runtime.errors import BadInput
from runtime.keypoints import Poses
from runtime.nms import box_iou, oks_nms, soft_oks_nms

METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # in the order of COCOeval.stats

# A person counts as found by a box of about the score that a stream shows.
FOUND_IOU, FOUND_SCORE = 0.5, 0.3


@dataclass
class Predictions:
    """What the engines said, so far.

    Attributes:
        results: COCO results, one dict a pose: image_id, category_id, keypoints (x, y, score)·K, score.
        poses: image id → its Poses, in the order of their results.
        images: images that went through.
        persons: boxes that got a pose, but for those that OKS-NMS took again.
        suppressed: poses that OKS-NMS took.
        found: annotated persons that the detector found (`count_found`); 0 with ground-truth boxes.
        detect_seconds, pose_seconds: time in the detector and in the pose estimator, decoding of images not counted.
    """

    results: list[dict] = field(default_factory=list)
    poses: dict[int, Poses] = field(default_factory=dict)
    images: int = 0
    persons: int = 0
    suppressed: int = 0
    found: int = 0
    detect_seconds: float = 0.0
    pose_seconds: float = 0.0


def evaluate(pose, annotations, images_dir, detector=None, sigmas=None, progress=False):
    """The ten COCO numbers of a pose estimator.

    Args:
        pose: a callable like `PoseEstimator`: frame (H, W, 3) uint8 BGR and boxes (N, 4) → (N, K, 3) keypoints.
        annotations: from `load_annotations`.
        images_dir: folder of the images.
        detector: a callable like `PersonDetector`: frame → boxes (N, 4), scores (N,); None takes the annotated boxes.
        sigmas: K, as for `coco_metrics`.
        progress: whether to show a progress bar.

    Returns:
        dict of `METRICS`.
    """
    predictions = Predictions()
    predict(pose, annotations, images_dir, predictions, detector, progress)
    return coco_metrics(annotations, predictions.results, sigmas)


def predict(pose, annotations, images_dir, predictions, detector=None, progress=False, detections=None, suppress=None):
    """Run all images; `predictions` grows as it goes, so what is done outlives an unreadable image or Ctrl-C.

    Arguments as for `evaluate`. With a detector every image is run, since a pose where nobody is costs precision;
    else those that have boxes.

    Args:
        detections: `eval.detections.Detections`, instead of a detector.
        suppress: a callable that takes an image's Poses and returns those to keep and their scores, such as
            `suppress_duplicates` with its other arguments given.
    """
    images = images_to_read(annotations, detector, detections)
    for image in tqdm(images, desc="evaluating", unit="image", disable=None if progress else True):
        frame = read_image(image, images_dir)
        persons = annotations.persons.get(image["id"], [])
        started = time.perf_counter()
        if detections is not None:
            boxes, box_scores = detections.of(image["id"])
        elif detector is not None:
            boxes, box_scores = detector(frame)
        else:
            boxes, box_scores = person_boxes(persons), np.ones(len(persons), np.float32)
        detected = time.perf_counter()
        poses = Poses(boxes, box_scores, pose(frame, boxes))
        predictions.pose_seconds += time.perf_counter() - detected
        if detector is not None:
            predictions.detect_seconds += detected - started
        if detector is not None or detections is not None:
            predictions.found += count_found(boxes, box_scores, person_boxes(persons))
        _check_finite(poses, image)
        poses, scores = suppress(poses) if suppress else (poses, poses.scores)
        predictions.results += coco_results(poses, scores, image["id"], annotations.category_id)
        predictions.poses[image["id"]] = poses
        predictions.images += 1
        predictions.persons += len(poses)
        predictions.suppressed += len(boxes) - len(poses)


def images_to_read(annotations, detector=None, detections=None):
    """All images where a detector searches them, else those with boxes."""
    boxes = annotations.persons if detections is None else detections.boxes
    return [image for image in annotations.images if detector is not None or image["id"] in boxes]


def person_boxes(persons):
    """Annotations → (N, 4) float32 left, top, right, bottom; COCO's bbox is left, top, width, height."""
    boxes = np.array([person["bbox"] for person in persons], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def count_found(boxes, scores, persons):
    """How many of the (M, 4) `persons` a box of a score above 0.3 overlaps by an IoU of 0.5 or more.

    As in COCO, the best box chooses first and each box finds one person.
    """
    good = scores > FOUND_SCORE
    overlaps = box_iou(boxes[good][np.argsort(-scores[good], kind="stable")], persons)
    found = 0
    for box in range(len(overlaps) if len(persons) else 0):
        nearest = overlaps[box].argmax()
        if overlaps[box, nearest] >= FOUND_IOU:
            overlaps[:, nearest] = 0  # taken
            found += 1
    return found


def suppress_duplicates(poses, sigmas, input_size, threshold, soft=False):
    """OKS-NMS of one image's Poses, hard or soft; a person's area is that of the crop (Xiao et al. 2018).

    Returns:
        The Poses kept, best first, and their scores.
    """
    areas = crop_region(poses.boxes, input_size)[1].prod(1)
    scores = poses.scores
    if soft:
        kept, scores = soft_oks_nms(poses.keypoints, scores, areas, sigmas, threshold)
    else:
        kept = oks_nms(poses.keypoints, scores, areas, sigmas, threshold)
        scores = scores[kept]
    return Poses(poses.boxes[kept], poses.box_scores[kept], poses.keypoints[kept]), scores


def _check_finite(poses, image):
    if not (np.isfinite(poses.keypoints).all() and np.isfinite(poses.scores).all()):
        raise BadInput(f"poses of {image['file_name']} are no finite numbers: the network diverged in training or was "
                       "exported wrongly; make it anew")


def coco_results(poses, scores, image_id, category_id):
    """The poses of one image in COCO's results format; positions to a hundredth of a pixel."""
    keypoints = poses.keypoints.astype(np.float64)
    keypoints[..., :2] = keypoints[..., :2].round(2)
    keypoints[..., 2] = keypoints[..., 2].round(4)
    of_image = {"image_id": image_id, "category_id": category_id}
    return [
        {**of_image, "keypoints": person.ravel().tolist(), "score": float(score)}
        for person, score in zip(keypoints, scores, strict=True)
    ]


def coco_metrics(annotations, results, sigmas=None):
    """pycocotools' ten keypoint numbers; arguments as for `evaluated`.

    Returns:
        dict of `METRICS`: floats, those of `COCOeval.stats`; -1 where no annotated person is of that size.
    """
    return metrics_of(evaluated(annotations, results, sigmas))


def metrics_of(scoring):
    """The ten numbers of `evaluated`'s COCOeval at COCO's own levels and areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        scoring.accumulate()
        scoring.summarize()
    return dict(zip(METRICS, map(float, scoring.stats), strict=True))


def evaluated(annotations, results, sigmas=None, levels=None, areas=None, index=None) -> Any:
    """pycocotools' COCOeval after its `evaluate()`: every image matched.

    Args:
        annotations: from `load_annotations`.
        results: list of dicts in COCO's results format; left as it is. Pose i gets the id i + 1.
        sigmas: K standard deviations of the labels, as in `KeypointSchema`; None takes COCO's own, which fit its 17
            keypoints only.
        levels: T levels of OKS; None for COCO's 0.5, 0.55 … 0.95.
        areas: pairs (least, most), areas of the persons to find in pixels²; None for COCO's all, medium and large.
        index: another COCO object than the annotations' own.
    """
    from pycocotools.cocoeval import COCOeval

    index = index or annotations.index
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes stumbles over an empty list.
        found = index.loadRes(copy.deepcopy(results)) if results else build_index({**index.dataset, "annotations": []})
        scoring = COCOeval(index, found, "keypoints")
        if sigmas is not None:
            scoring.params.kpt_oks_sigmas = np.array(sigmas)
        if len(scoring.params.kpt_oks_sigmas) != annotations.keypoints:
            raise BadInput(f"{annotations.path} has {annotations.keypoints} keypoints a person but the score knows the "
                           f"sigmas of {len(scoring.params.kpt_oks_sigmas)}; give sigmas of the annotations' keypoints")
        if levels is not None:
            scoring.params.iouThrs = np.asarray(levels)
        if areas is not None:
            scoring.params.areaRng = [list(area) for area in areas]
            scoring.params.areaRngLbl = [str(number) for number in range(len(areas))]
        scoring.evaluate()
    return scoring


def image_similarities(scoring, annotations):
    """Image id → mean over its persons of the OKS of the pose most like each, from `evaluated`; 0 is a miss."""
    similarities = {}
    for image_id, persons in annotations.persons.items():
        labelled = annotations.index.loadAnns(annotations.index.getAnnIds(imgIds=[image_id]))
        wanted = {person["id"] for person in persons}
        columns = [number for number, person in enumerate(labelled) if person["id"] in wanted]
        matrix = np.asarray(scoring.ious[image_id, annotations.category_id])  # poses × labelled; [] without poses
        similarities[image_id] = float(matrix[:, columns].max(0).mean()) if matrix.size else 0.0
    return similarities
