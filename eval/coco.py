"""COCO keypoint AP of an engine or a training snapshot, measured through the very code that streams.

Whose boxes?
    python -m eval.coco --annotations person_keypoints_val2017.json --images val2017          annotated ones
    python -m eval.coco --annotations FILE --images DIR --detector models/person.onnx         our detector's
    python -m eval.coco --annotations FILE --images DIR --detections human_detection.json     somebody else's

Which network?
    python -m eval.coco --engine models/pose.onnx …                                           an engine
    python -m eval.coco --checkpoint output/model_dump/COCO --epoch 140 --gpu 0 --flip-test … a snapshot of training

A test set without persons (image_info_test-dev2017.json) gives no AP but a file to upload. MPII's keypoints give PCKh
and result.mat too; for PoseTrack, `python -m eval.posetrack` turns keypoints.json into one file a video.

Writes to --out: keypoints.json (COCO's results format) and metrics.json (pycocotools' ten numbers to the last digit,
and the protocol that they were measured under).
"""

import argparse
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.annotations import check_images, load_annotations
from eval.detections import load_detections
from eval.mpii import pckh_of, pckh_table, write_mat
from eval.report import (
    describe_boxes,
    describe_protocol,
    draw_pictures,
    prepare_folder,
    summary,
    write_upload,
)
from eval.scoring import (
    Predictions,
    evaluated,
    image_similarities,
    images_to_read,
    metrics_of,
    predict,
    suppress_duplicates,
)
from runtime.decode import DECODINGS
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.nms import OKS_THRESHOLD
from runtime.pose import PoseEstimator
from runtime.walkers import write_stills
from runtime.write import write_json

# Far below the threshold of streaming, so that the whole curve of precision over recall is there.
DETECTOR_THRESHOLD = 0.05
RENDERED_PICTURES, RENDERED_SEED = 60, 100_000


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine, or a network that runs like one; its file; its head; a name for folders."""

    engine: Any
    path: Path
    head: str
    name: str


def main():
    arguments = parse_arguments()
    check_options(arguments)
    if arguments.annotations is None:
        arguments.annotations, arguments.images = rendered_people(arguments.out)
    finds_boxes = arguments.detector is not None or arguments.detections is not None
    annotations = load_annotations(arguments.annotations, arguments.limit, test_set=finds_boxes)
    detections = None
    if arguments.detections is not None:
        detections = load_detections(arguments.detections, annotations, arguments.min_score, arguments.min_area)
    check_images(images_to_read(annotations, arguments.detector, detections), arguments.images)
    subject = open_subject(arguments)
    check_schema(subject, annotations)
    decoding = choose_decoding(subject, arguments.decoding)
    pose = PoseEstimator(subject.engine, decoding=decoding or "dark", flip_test=arguments.flip_test)
    detector = open_detector(arguments) if arguments.detector is not None else None
    suppress = choose_suppression(arguments, subject.engine)
    prepare_folder(arguments.out)

    predictions = Predictions()
    try:
        predict(pose, annotations, arguments.images, predictions, detector, True, detections, suppress)
    except (BadInput, KeyboardInterrupt):
        if predictions.results:
            write_json(arguments.out / "keypoints.json", predictions.results)
            print(f"kept {predictions.persons} poses of {predictions.images} images in {arguments.out}/keypoints.json")
        raise
    write_json(arguments.out / "keypoints.json", predictions.results)
    protocol = describe_protocol(arguments, subject.path, annotations, predictions, decoding or "simcc")
    protocol |= describe_boxes(arguments, annotations, detections, predictions)
    score(arguments, subject, annotations, predictions, protocol)


def score(arguments, subject, annotations, predictions, protocol):
    """Metrics, tables, pictures: what follows once the poses are there."""
    similarities = None
    schema = subject.engine.schema
    if schema.name == "mpii":
        write_mat(arguments.out / "result.mat", annotations, predictions.poses)
        print(f"wrote {arguments.out}/result.mat for MPII's evaluation")
    if annotations.is_test_set:
        print(f"{annotations.path} is a test set: no AP here; {predictions.persons} poses of {len(annotations.images)} "
              f"images are in {arguments.out}/keypoints.json")
        if schema.name == "coco":
            print(write_upload(arguments.out, annotations, predictions, subject.name))
    else:
        scoring = evaluated(annotations, predictions.results, None if schema.name == "coco" else schema.sigmas)
        metrics = metrics_of(scoring)
        # PCKh compares person by person, which boxes that were found cannot give.
        has_pckh = schema.name == "mpii" and protocol["boxes"] == "ground truth"
        pckh = {"PCKh": pckh_of(annotations, predictions.poses)} if has_pckh else {}
        write_json(arguments.out / "metrics.json", {**metrics, **pckh, "protocol": protocol}, indent=2)
        print(summary(metrics, protocol, predictions))
        if pckh:
            print(pckh_table(pckh["PCKh"]))
        print(f"wrote {arguments.out}/keypoints.json and metrics.json")
        similarities = image_similarities(scoring, annotations)
    if arguments.draw:
        folder = Path("output/vis") / subject.name
        drawn = draw_pictures(folder, arguments.draw, annotations, predictions, similarities, arguments.images, schema)
        print(f"drew {drawn} pictures to {folder}")
    if schema.name == "posetrack":
        print(f"for PoseTrack's own evaluation: python -m eval.posetrack --results {arguments.out}/keypoints.json")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.coco", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what is measured").add_argument
    add("--engine", type=Path, help="pose engine (default: models/pose.onnx)")
    add("--checkpoint", type=Path, metavar="DIR", help="instead of an engine, a training run's folder, such as "
        "output/model_dump/COCO; needs TensorFlow")
    add("--epoch", "--test_epoch", type=epoch, metavar="140", help="its snapshot: a number, or best for that of the "
        "best validation AP (default: the last)")
    add("--gpu", metavar="0", help="GPU that runs the checkpoint, of several the first, or cpu (default: what "
        "TensorFlow finds; engines run on the CPU)")
    add("--flip-test", action="store_true", help="average with the mirrored crop: better, at twice the time")
    add("--decoding", choices=DECODINGS, help="how a heatmap becomes a point (default: dark)")
    add("--threads", type=positive, default=1, metavar="N", help="threads of each engine (default: %(default)s)")

    add = parser.add_argument_group("on what").add_argument
    add("--annotations", type=Path, help="COCO keypoint file, such as person_keypoints_val2017.json (default: people "
        "that this program renders, which says little of photographs)")
    add("--images", type=Path, help="folder of the images that the annotations name")
    add("--limit", type=positive, metavar="N", help="only the first N images of the annotations")

    add = parser.add_argument_group("whose boxes (default: the annotated ones)").add_argument
    add("--detector", type=Path, help="person engine that finds them")
    add("--detections", type=Path, metavar="FILE", help="JSON in COCO's results format: a list of {image_id, "
        "category_id, bbox, score}, such as data/COCO/dets/human_detection.json")
    add("--min-score", type=float, metavar="S", help=f"only boxes of a higher score (default: {DETECTOR_THRESHOLD} of "
        "a detector's, 0 of --detections; a high one costs AP)")
    add("--min-area", type=float, metavar="PX", help="only boxes of more square pixels (default: 0)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--oks-nms", type=threshold, metavar="OKS", help="of two poses more alike than this drop the "
                       f"worse; 1 drops none (default: {OKS_THRESHOLD} for found boxes, none for annotated ones)")
    which.add_argument("--soft-oks-nms", type=threshold, metavar="OKS", help="lower the score of the worse one "
                       f"instead, the more the smaller this is; usual is {OKS_THRESHOLD}")

    add = parser.add_argument_group("what comes out").add_argument
    add("--out", type=Path, help="folder of the results (default: output/result/NAME for a checkpoint of the run NAME, "
        "else output/eval)")
    add("--draw", type=positive, metavar="N", help="draw the N worst images, of a test set the first N, to "
        "output/vis/NAME")
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = (Path("output/result") / arguments.checkpoint.resolve().name if arguments.checkpoint
                         else Path("output/eval"))
    return arguments


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def threshold(text):
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def epoch(text):
    return text if text == "best" else int(text)


def check_options(arguments):
    """Refuse options that would do nothing, and fill in the defaults that hang on others."""
    finds_boxes = arguments.detector is not None or arguments.detections is not None
    if (arguments.annotations is None) != (arguments.images is None):
        raise BadInput("--annotations and --images belong together: give both, or neither for rendered people")
    if arguments.detector is not None and arguments.detections is not None:
        raise BadInput("--detector and --detections are two sources of boxes: give one of them")
    if arguments.engine is not None and arguments.checkpoint is not None:
        raise BadInput("--engine and --checkpoint are two networks: give one of them")
    if arguments.checkpoint is None:
        for option in ("epoch", "gpu"):
            if getattr(arguments, option) is not None:
                raise BadInput(f"--{option} {getattr(arguments, option)} is for a training run: give its folder too, "
                               "--checkpoint output/model_dump/NAME")
    for option in ("min_score", "min_area"):
        if getattr(arguments, option) is not None and not finds_boxes:
            raise BadInput(f"--{option.replace('_', '-')} is for boxes that were found: give --detections or "
                           "--detector too")
    if arguments.min_score is None:
        arguments.min_score = DETECTOR_THRESHOLD if arguments.detector is not None else 0.0
    arguments.min_area = arguments.min_area or 0.0
    if arguments.oks_nms is None and arguments.soft_oks_nms is None and finds_boxes:
        arguments.oks_nms = OKS_THRESHOLD


def rendered_people(out):
    """Pictures to measure on where the user has none: seeds that training does not use. Returns truth and folder."""
    truth, images = out / "rendered.json", out / "rendered"
    if not truth.is_file():
        prepare_folder(out)
        write_stills(images, truth, RENDERED_PICTURES, seed=RENDERED_SEED)
    print(f"no --annotations given: measuring on {RENDERED_PICTURES} rendered pictures, which say little of photos")
    return truth, images


def open_subject(arguments):
    """The engine or snapshot to measure; TensorFlow is imported for a snapshot only."""
    if arguments.checkpoint is None:
        arguments.engine = arguments.engine or Path("models/pose.onnx")
        engine = open_engine(arguments.engine, kind="pose", threads=arguments.threads)
        return Subject(engine, arguments.engine, engine.metadata["head"], arguments.engine.stem)
    if not arguments.checkpoint.is_dir():
        raise BadInput(f"no training run at {arguments.checkpoint}; give its folder, such as output/model_dump/COCO")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
    try:
        from train.checkpoint import load_snapshot, snapshot_path
        from train.devices import choose_strategy
        from train.network_engine import NetworkEngine
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed, which --checkpoint needs: make dev, or give an --engine"
                       ) from error
    if arguments.gpu is not None:
        choose_strategy(arguments.gpu)
    network, config, number = load_snapshot(arguments.checkpoint, arguments.epoch)
    if config.task != "pose":
        raise BadInput(f"{arguments.checkpoint} is a run of task {config.task!r}; give one of task 'pose'")
    path = snapshot_path(arguments.checkpoint, number)
    return Subject(NetworkEngine(network, config), path, config.head, config.name)


def open_detector(arguments):
    engine = open_engine(arguments.detector, kind="person", threads=arguments.threads)
    detector = PersonDetector(engine, threshold=arguments.min_score)

    def detect(frame):
        boxes, scores = detector(frame)
        large = (boxes[:, 2:] - boxes[:, :2]).prod(1) > arguments.min_area
        return boxes[large], scores[large]

    return detect


def check_schema(subject, annotations):
    """The engine's keypoints are the annotations', in the same order."""
    schema = subject.engine.schema
    if annotations.is_test_set and not annotations.keypoints:
        return
    if len(schema) != annotations.keypoints:
        raise BadInput(f"{subject.path} finds {len(schema)} keypoints ({schema.name}) but {annotations.path} has "
                       f"{annotations.keypoints} a person; give annotations of the engine's keypoints")
    for number, (ours, theirs) in enumerate(zip(schema.names, annotations.keypoint_names or schema.names, strict=True)):
        if ours != theirs:
            raise BadInput(f"keypoint {number} of {subject.path} is {ours!r} but {theirs!r} in {annotations.path}; "
                           "give annotations of the engine's keypoints, in its order")


def choose_decoding(subject, asked):
    """The decoding of a heatmap engine; None for SimCC, which has but one."""
    if subject.head == "heatmap":
        return asked or "dark"
    if asked is not None:
        raise BadInput(f"--decoding {asked} is for heatmaps but {subject.path} has a {subject.head} head; leave it out")
    return None


def choose_suppression(arguments, engine):
    """OKS-NMS as asked for, for `predict`, or None."""
    limit = arguments.soft_oks_nms or arguments.oks_nms
    if limit is None:
        return None
    if engine.schema.name == "mpii" and arguments.detector is None and arguments.detections is None:
        raise BadInput("OKS-NMS would take persons away that PCKh asks for; leave it out on annotated boxes of MPII")
    return partial(suppress_duplicates, sigmas=engine.schema.sigmas, input_size=engine.input_size, threshold=limit,
                   soft=arguments.soft_oks_nms is not None)


if __name__ == "__main__":
    run_command(main)
