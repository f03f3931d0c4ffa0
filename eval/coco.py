"""COCO keypoint AP of an engine, measured through the very code that streams.

    python -m eval.coco --annotations person_keypoints_val2017.json --images val2017
    python -m eval.coco --annotations FILE --images DIR --detector models/person.onnx --flip-test

writes keypoints.json (COCO's results format) and metrics.json (pycocotools' ten numbers to the last digit, and the
protocol that they were measured under) to `--out`. Training takes `load_annotations` and `evaluate` for its AP curve.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from tqdm import tqdm

from eval.annotations import check_images, load_annotations, read_image
from eval.report import prepare_folder, summary, write_json
from runtime.decode import DECODINGS
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.keypoints import Poses
from runtime.nms import box_iou
from runtime.pose import PoseEstimator
from runtime.walkers import write_stills

METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # in the order of COCOeval.stats

# Far below the threshold of streaming, so that the whole curve of precision over recall is there.
DETECTOR_THRESHOLD = 0.05
RENDERED_PICTURES, RENDERED_SEED = 60, 100_000
# A person counts as found by a box of about the score that a stream shows.
FOUND_IOU, FOUND_SCORE = 0.5, 0.3


@dataclass
class Predictions:
    """What the engines said, so far.

    Attributes:
        results: COCO results, one dict a pose: image_id, category_id, keypoints (x, y, score)·K, score.
        images: images that went through.
        persons: boxes that got a pose.
        found: annotated persons that the detector found (`count_found`); 0 with ground-truth boxes.
        detect_seconds, pose_seconds: time in the detector and in the pose estimator, decoding of images not counted.
    """

    results: list[dict] = field(default_factory=list)
    images: int = 0
    persons: int = 0
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


def predict(pose, annotations, images_dir, predictions, detector=None, progress=False):
    """Run all images; `predictions` grows as it goes, so what is done outlives an unreadable image or Ctrl-C.

    Arguments as for `evaluate`. With a detector every image is run, since a pose where nobody is costs precision;
    with ground-truth boxes those that have persons.
    """
    images = images_to_read(annotations, detector)
    for image in tqdm(images, desc="evaluating", unit="image", disable=None if progress else True):
        frame = read_image(image, images_dir)
        persons = annotations.persons.get(image["id"], [])
        started = time.perf_counter()
        if detector is None:
            boxes, box_scores = person_boxes(persons), np.ones(len(persons), np.float32)
        else:
            boxes, box_scores = detector(frame)
        detected = time.perf_counter()
        poses = Poses(boxes, box_scores, pose(frame, boxes))
        predictions.pose_seconds += time.perf_counter() - detected
        if detector is not None:
            predictions.detect_seconds += detected - started
            predictions.found += count_found(boxes, box_scores, person_boxes(persons))
        predictions.results += coco_results(poses, image, annotations.category_id)
        predictions.images += 1
        predictions.persons += len(poses)


def images_to_read(annotations, detector):
    """All images where a detector searches them, else those with persons."""
    return [image for image in annotations.images if detector is not None or image["id"] in annotations.persons]


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


def coco_results(poses, image, category_id):
    """The poses of one image in COCO's results format; positions to a hundredth of a pixel."""
    if not (np.isfinite(poses.keypoints).all() and np.isfinite(poses.scores).all()):
        raise BadInput(f"poses of {image['file_name']} are no finite numbers: the network diverged in training or was "
                       "exported wrongly; make it anew")
    keypoints = poses.keypoints.astype(np.float64)
    keypoints[..., :2] = keypoints[..., :2].round(2)
    keypoints[..., 2] = keypoints[..., 2].round(4)
    of_image = {"image_id": image["id"], "category_id": category_id}
    return [
        {**of_image, "keypoints": person.ravel().tolist(), "score": float(score)}
        for person, score in zip(keypoints, poses.scores, strict=True)
    ]


def coco_metrics(annotations, results, sigmas=None):
    """pycocotools' ten keypoint numbers.

    Args:
        annotations: from `load_annotations`.
        results: list of dicts in COCO's results format; left as it is.
        sigmas: K standard deviations of the labels, as in `KeypointSchema`; None takes COCO's own, which fit its 17
            keypoints only.

    Returns:
        dict of `METRICS`: floats, those of `COCOeval.stats`; -1 where no annotated person is of that size.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            found = annotations.index.loadRes(copy.deepcopy(results))
        else:  # loadRes stumbles over an empty list
            found = COCO()
            found.dataset = {**annotations.index.dataset, "annotations": []}
            found.createIndex()
        scoring = COCOeval(annotations.index, found, "keypoints")
        if sigmas is not None:
            scoring.params.kpt_oks_sigmas = np.array(sigmas)
        if len(scoring.params.kpt_oks_sigmas) != annotations.keypoints:
            raise BadInput(f"{annotations.path} has {annotations.keypoints} keypoints a person but the score knows the "
                           f"sigmas of {len(scoring.params.kpt_oks_sigmas)}; give sigmas of the annotations' keypoints")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return dict(zip(METRICS, map(float, scoring.stats), strict=True))


def main():
    arguments = parse_arguments()
    if (arguments.annotations is None) != (arguments.images is None):
        raise BadInput("--annotations and --images belong together: give both, or neither for rendered people")
    if arguments.annotations is None:
        arguments.annotations, arguments.images = rendered_people(arguments.out)
    annotations = load_annotations(arguments.annotations, arguments.limit)
    check_images(images_to_read(annotations, arguments.detector), arguments.images)
    engine = open_engine(arguments.engine, kind="pose", threads=arguments.threads)
    check_schema(engine, annotations)
    decoding = choose_decoding(engine, arguments.decoding)
    pose = PoseEstimator(engine, decoding=decoding or "dark", flip_test=arguments.flip_test)
    detector = None
    if arguments.detector is not None:
        detector_engine = open_engine(arguments.detector, kind="person", threads=arguments.threads)
        detector = PersonDetector(detector_engine, threshold=DETECTOR_THRESHOLD)
    prepare_folder(arguments.out)

    predictions = Predictions()
    try:
        predict(pose, annotations, arguments.images, predictions, detector, progress=True)
    except (BadInput, KeyboardInterrupt):
        if predictions.results:
            write_json(arguments.out / "keypoints.json", predictions.results)
            print(f"kept {predictions.persons} poses of {predictions.images} images in {arguments.out}/keypoints.json")
        raise
    write_json(arguments.out / "keypoints.json", predictions.results)
    sigmas = None if engine.schema.name == "coco" else engine.schema.sigmas
    metrics = coco_metrics(annotations, predictions.results, sigmas)
    protocol = describe_protocol(arguments, annotations, predictions, decoding or "simcc")
    write_json(arguments.out / "metrics.json", {**metrics, "protocol": protocol})
    print(summary(metrics, protocol, predictions))
    print(f"wrote {arguments.out}/keypoints.json and metrics.json")


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m eval.coco",
        description="COCO keypoint AP of an engine, through the code that streams; on the annotated boxes unless a "
        "detector is given.",
    )
    add = parser.add_argument
    add("--engine", type=Path, default=Path("models/pose.onnx"), help="pose engine (default: %(default)s)")
    add("--detector", type=Path, help="person engine that finds the boxes (default: the annotated boxes)")
    add("--annotations", type=Path, help="COCO keypoint file, such as person_keypoints_val2017.json (default: people "
        "that this program renders, which says little of photographs)")
    add("--images", type=Path, help="folder of the images that the annotations name")
    add("--out", type=Path, default=Path("output/eval"), help="folder of the results (default: %(default)s)")
    add("--flip-test", action="store_true", help="average with the mirrored crop: better, at twice the time")
    add("--decoding", choices=DECODINGS, help="how a heatmap becomes a point (default: dark)")
    add("--threads", type=positive, default=1, metavar="N", help="threads of each engine (default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N images of the annotations")
    return parser.parse_args()


def rendered_people(out):
    """Pictures to measure on where the user has none: seeds that training does not use. Returns truth and folder."""
    truth, images = out / "rendered.json", out / "rendered"
    if not truth.is_file():
        prepare_folder(out)
        write_stills(images, truth, RENDERED_PICTURES, seed=RENDERED_SEED)
    print(f"no --annotations given: measuring on {RENDERED_PICTURES} rendered pictures, which say little of photos")
    return truth, images


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def check_schema(engine, annotations):
    """The engine's keypoints are the annotations', in the same order."""
    schema = engine.schema
    if len(schema) != annotations.keypoints:
        raise BadInput(f"{engine.path} finds {len(schema)} keypoints ({schema.name}) but {annotations.path} has "
                       f"{annotations.keypoints} a person; give annotations of the engine's keypoints")
    for number, (ours, theirs) in enumerate(zip(schema.names, annotations.keypoint_names or schema.names, strict=True)):
        if ours != theirs:
            raise BadInput(f"keypoint {number} of {engine.path} is {ours!r} but {theirs!r} in {annotations.path}; give "
                           "annotations of the engine's keypoints, in its order")


def choose_decoding(engine, asked):
    """The decoding of a heatmap engine; None for SimCC, which has but one."""
    if engine.metadata["head"] == "heatmap":
        return asked or "dark"
    if asked is not None:
        raise BadInput(f"--decoding {asked} is for heatmaps but {engine.path} has a {engine.metadata['head']} head; "
                       "leave it out")
    return None


def describe_protocol(arguments, annotations, predictions, decoding):
    """Everything that another run needs to give the same numbers."""
    protocol = {
        "engine": str(arguments.engine),
        "engine_sha256": sha256(arguments.engine),
        "boxes": "ground truth",
        "flip_test": arguments.flip_test,
        "decoding": decoding,
        "annotations": str(annotations.path),
        "annotations_sha256": sha256(annotations.path),
        "images": len(annotations.images),
        "images_in_file": annotations.images_in_file,
        "persons": annotations.person_count,
        "poses": predictions.persons,
        "ms_per_person": 1000 * predictions.pose_seconds / predictions.persons if predictions.persons else 0.0,
        "threads": arguments.threads,
        "versions": {
            "numpy": np.__version__,
            "onnxruntime": onnxruntime.__version__,
            "opencv": cv2.__version__,
            "pycocotools": version("pycocotools"),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if arguments.detector is not None:
        protocol |= {
            "boxes": str(arguments.detector),
            "detector_sha256": sha256(arguments.detector),
            "detector_threshold": DETECTOR_THRESHOLD,
            "detector_recall": predictions.found / annotations.person_count,
            "detector_recall_rule": f"persons with keypoints, at IoU {FOUND_IOU} with a score > {FOUND_SCORE}",
            "detector_ms_per_frame": 1000 * predictions.detect_seconds / max(predictions.images, 1),
        }
    return protocol


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    run_command(main)
