"""What is measured: an engine or a snapshot of training, with the detector and the decoding asked for."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.scoring import Runner, suppress_duplicates
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.gpus import gpu_numbers
from runtime.pose import PoseEstimator


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine, or a network that runs like one; its file; its head; a name for folders."""

    engine: Any
    path: Path
    head: str
    name: str


def open_subject(arguments):
    """The engine or snapshot to measure; TensorFlow is imported for a snapshot only."""
    if arguments.checkpoint is None:
        arguments.engine = arguments.engine or Path("models/pose.onnx")
        engine = open_engine(arguments.engine, "pose", arguments.threads, arguments.backend)
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
    gpus = gpu_numbers(arguments.gpu)
    for number in gpus:  # refuses one that is not there
        choose_strategy(str(number))
    if arguments.gpu == "cpu" or len(gpus) > 1:  # of several each belongs to a worker, and none to this process
        choose_strategy("cpu")
    network, config, number = load_snapshot(arguments.checkpoint, arguments.epoch)
    if config.task != "pose":
        raise BadInput(f"{arguments.checkpoint} is a run of task {config.task!r}; give one of task 'pose'")
    path = snapshot_path(arguments.checkpoint, number)
    return Subject(NetworkEngine(network, config), path, config.head, config.name)


def make_runner(arguments, subject):
    """The subject with the decoding, detector and OKS-NMS asked for, as a `Runner`."""
    pose = PoseEstimator(subject.engine, choose_decoding(subject, arguments.decoding) or "dark", arguments.flip_test)
    detector = open_detector(arguments) if arguments.detector is not None else None
    return Runner(pose, arguments.images, detector, choose_suppression(arguments, subject.engine))


@dataclass(frozen=True)
class LargeBoxes:
    """A `PersonDetector` of which only boxes of more than `min_area` square pixels count."""

    detector: PersonDetector
    min_area: float

    def __call__(self, frame):
        boxes, scores = self.detector(frame)
        large = (boxes[:, 2:] - boxes[:, :2]).prod(1) > self.min_area
        return boxes[large], scores[large]


def open_detector(arguments):
    engine = open_engine(arguments.detector, "person", arguments.threads, arguments.backend)
    return LargeBoxes(PersonDetector(engine, threshold=arguments.min_score), arguments.min_area)


def check_schema(subject, annotations):
    """The engine's keypoints are the annotations', in the same order."""
    schema = subject.engine.schema
    if annotations.is_test_set and not annotations.keypoints:
        return
    if len(schema) != annotations.keypoints:
        raise BadInput(f"{subject.path} finds {len(schema)} keypoints ({schema.name}) but {annotations.path} has "
                       f"{annotations.keypoints} a person; give annotations of the engine's keypoints")
    names = annotations.keypoint_names or schema.names
    other = [number for number, (ours, theirs) in enumerate(zip(schema.names, names, strict=True)) if ours != theirs]
    if other:
        number = other[0]
        raise BadInput(f"keypoint {number} of {subject.path} is {schema.names[number]!r} but {names[number]!r} in "
                       f"{annotations.path}, and {len(other)} of {len(names)} differ so; give annotations of the "
                       "engine's keypoints, in its order")


def choose_decoding(subject, asked):
    """The decoding of a heatmap engine; None for SimCC, which has but one."""
    if subject.head == "heatmap":
        return asked or "dark"
    if asked is not None:
        raise BadInput(f"--decoding {asked} is for heatmaps but {subject.path} has a {subject.head} head; leave it out")
    return None


def choose_suppression(arguments, engine):
    """OKS-NMS as asked for, for `Runner`, or None."""
    limit = arguments.soft_oks_nms or arguments.oks_nms
    if limit is None:
        return None
    if engine.schema.name == "mpii" and arguments.detector is None and arguments.detections is None:
        raise BadInput("OKS-NMS would take persons away that PCKh asks for; leave it out on annotated boxes of MPII")
    return partial(suppress_duplicates, sigmas=engine.schema.sigmas, input_size=engine.input_size, threshold=limit,
                   soft=arguments.soft_oks_nms is not None)
