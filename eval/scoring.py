"""Poses of annotated images through the code that streams, and pycocotools' score of them."""

import contextlib
import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.annotations import build_index, load_image
from eval.predictions import ImagePoses, Predictions
from runtime.crop import crop_region
from runtime.errors import BadInput
from runtime.keypoints import PERSON_PADDING, Poses
from runtime.nms import box_iou, oks_nms, soft_oks_nms

METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # in the order of COCOeval.stats

# A person counts as found by a box of about the score that a stream shows.
FOUND_IOU, FOUND_SCORE = 0.5, 0.3
WHOLE = 2**53  # up to here a double holds every whole number


@dataclass(frozen=True)
class Job:
    """An image to do.

    Attributes:
        image: dict of the annotations.
        category_id: of its persons.
        boxes: (N, 4) float32 left, top, right, bottom and (N,) float32 scores of whom to take; None where a detector
            searches.
        persons: (M, 4) boxes of the annotated persons, where `boxes` are not just these.
    """

    image: dict[str, Any]
    category_id: int
    boxes: tuple[np.ndarray, np.ndarray] | None
    persons: np.ndarray | None


@dataclass(frozen=True)
class Runner:
    """Does images: callable, `Job` → `ImagePoses`. Attributes as the arguments of `predict`."""

    pose: Any
    images_dir: Any
    detector: Any = None
    suppress: Any = None

    def __call__(self, job):
        frame, digest = load_image(job.image, self.images_dir)
        started = time.perf_counter()
        boxes, box_scores = self.detector(frame) if job.boxes is None else job.boxes
        detected = time.perf_counter()
        poses = Poses(boxes, box_scores, self.pose(frame, boxes))
        done = time.perf_counter()
        _check_finite(poses, job.image)
        found = 0 if job.persons is None else count_found(boxes, box_scores, job.persons)
        poses, scores = self.suppress(poses) if self.suppress else (poses, poses.scores)
        return ImagePoses(job.image["id"], job.category_id, poses, scores, suppressed=len(boxes) - len(poses),
                          found=found, detect_seconds=detected - started if job.boxes is None else 0.0,
                          pose_seconds=done - detected, image_sha256=digest)


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
    return coco_metrics(annotations, predictions.each_result(), sigmas)


def predict(pose, annotations, images_dir, predictions, detector=None, progress=False, detections=None, suppress=None):
    """Run all images that `predictions` lacks; it grows as it goes, so what is done outlives an unreadable image or
    Ctrl-C.

    Arguments as for `evaluate`. With a detector every image is run, since a pose where nobody is costs precision;
    else those that have boxes. Images are read one at a time and not kept.

    Args:
        predictions: `Predictions`, empty or of the first images.
        detections: `eval.detections.Detections`, instead of a detector.
        suppress: a callable that takes an image's Poses and returns those to keep and their scores, such as
            `suppress_duplicates` with its other arguments given.
    """
    images = images_to_read(annotations, detector, detections)
    runner = Runner(pose, images_dir, detector, suppress)
    collect(map(runner, jobs_of(images[predictions.images:], annotations, detector, detections)), predictions,
            len(images), progress)


def collect(done, predictions, total, progress=True):
    """Add each of the `ImagePoses` as it comes; `total` is what there will be in the end, for the progress bar."""
    shown = tqdm(done, desc="evaluating", unit="image", initial=predictions.images, total=total,
                 disable=None if progress else True)
    for image in shown:
        predictions.add(image)


def jobs_of(images, annotations, detector=None, detections=None):
    """Iterate over the `Job` of each image."""
    for image in images:
        persons = person_boxes(annotations.persons.get(image["id"], []))
        if detections is not None:
            yield Job(image, annotations.category_id, detections.of(image["id"]), persons)
        elif detector is not None:
            yield Job(image, annotations.category_id, None, persons)
        else:
            yield Job(image, annotations.category_id, (persons, np.ones(len(persons), np.float32)), None)


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
    """OKS-NMS of one image's Poses, hard or soft; a person's area is that of the classic crop (Xiao et al. 2018),
    whatever the engine's own padding.

    Returns:
        The Poses kept, best first, and their scores.
    """
    areas = crop_region(poses.boxes, input_size, PERSON_PADDING)[1].prod(1)
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


def coco_metrics(annotations, results, sigmas=None):
    """pycocotools' ten keypoint numbers, equal to 1e-9; arguments as for `evaluated`.

    Returns:
        dict of `METRICS`: floats; -1 where no annotated person is of that size.
    """
    return metrics_of(evaluated(annotations, results, sigmas, matches=False))


def metrics_of(scoring):
    """The ten numbers of `evaluated`'s COCOeval at COCO's own levels and areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        scoring.accumulate()
        scoring.summarize()
    return dict(zip(METRICS, map(float, scoring.stats), strict=True))


def evaluated(annotations, results, sigmas=None, levels=None, areas=None, index=None, matches=True) -> Any:
    """COCOeval after its `evaluate()`: every image matched.

    COCO ranks the poses of all images together and so needs them in memory: at the most some 1.7 KB a pose of 17
    keypoints (2 KB with `matches`; measured on 100 000 poses), beside the annotations.

    Args:
        annotations: from `load_annotations`.
        results: iterable of dicts in COCO's results format; left as it is. Pose i gets the id i + 1.
        sigmas: K standard deviations of the labels, as in `KeypointSchema`; None takes COCO's own, which fit its 17
            keypoints only.
        levels: T levels of OKS; None for COCO's 0.5, 0.55 … 0.95.
        areas: pairs (least, most), areas of the persons to find in pixels²; None for COCO's all, medium and large.
        index: another COCO object than the annotations' own.
        matches: whether `evalImgs`, which pose found whom, is needed. Without it the same is done by
            faster_coco_eval, where the ids let it (`_keypoint_scoring`).

    Raises:
        BadInput: sigmas of other keypoints; poses of images that the annotations lack, or that are no finite numbers.
    """
    index = index or annotations.index
    poses = {**index.dataset, "annotations": _found(annotations, index, results)}
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = _keypoint_scoring(index, poses, matches)
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


def _keypoint_scoring(index, poses, matches):
    """COCOeval of the implementation that will do: faster_coco_eval, or pycocotools where it will not.

    faster_coco_eval keeps to itself which pose found whom, takes ids through doubles, and makes whole numbers of
    others, in the annotations themselves.
    """
    ids = [*index.imgs, *index.cats, *index.anns]
    if matches or 0 in index.anns or not all(type(number) is int and 0 <= number < WHOLE for number in ids):
        from pycocotools.cocoeval import COCOeval

        return COCOeval(index, build_index(poses), "keypoints")
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    return COCOeval_faster(COCO(index.dataset), COCO(poses), "keypoints")


def _found(annotations, index, results):
    """Results → what COCO.loadRes makes of them, in a third of its time: numbered, with the area that they span."""
    found = [{"id": number, "image_id": result["image_id"], "category_id": result["category_id"],
              "score": result["score"], "keypoints": np.array(result["keypoints"], np.float64)}
             for number, result in enumerate(results, start=1)]
    if not found:
        return found
    strange = {pose["image_id"] for pose in found} - index.imgs.keys()
    if strange:
        raise BadInput(f"there are poses on {len(strange)} images that {annotations.path} does not list (first: "
                       f"{min(strange, key=str)}); give the poses of its images")
    points = np.array([pose["keypoints"] for pose in found])
    if not (np.isfinite(points).all() and np.isfinite(np.array([pose["score"] for pose in found], np.float64)).all()):
        raise BadInput("poses or their scores are no finite numbers, by which they cannot be ranked; make them anew")
    areas = np.ptp(points[:, 0::3], axis=1) * np.ptp(points[:, 1::3], axis=1)
    for pose, area in zip(found, areas.tolist(), strict=True):
        pose["area"] = area
    return found


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
