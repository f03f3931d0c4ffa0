"""Our engines beside public ones, on the same photographs, in the same run.

    python -m eval.scoreboard --annotations person_keypoints_val2017.json --images val2017 --peers DIR

AP of poses on annotated boxes, plain and with the flip test, and end to end with each detector (OKS-NMS 0.9): by all
boxes of a score above 0.05, which gives the whole curve, and as the classic test stage of Xiao et al. 2018 has it, flip
test and quarter-pixel shift, by boxes above 0.3. The share of persons found (IoU 0.5, score above 0.3). All with 95 %
intervals over images; and what a run of each network takes on one thread, as a ratio to the first peer's in float32.
Floors and aims are those that this project set itself.

--peers is a folder with any of tinypose_256x192.xml, picodet_s_320_person.xml (OpenVINO) and yolox_nano_416.onnx.
Writes scoreboard.json to --out.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.annotations import check_images, load_annotations, read_image
from eval.bootstrap import RESAMPLES, Interval, draw_weights, interval
from eval.options import DETECTOR_THRESHOLD, positive
from eval.peers import open_detectors, open_poses
from eval.predictions import Predictions
from eval.report import prepare_folder
from eval.scoring import FOUND_SCORE, count_found, person_boxes, predict, suppress_duplicates
from eval.subject import Subject, check_schema
from runtime.backends import installed_backends
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import write_json
from runtime.keypoints import COCO
from runtime.nms import OKS_THRESHOLD
from runtime.pose import PoseEstimator

ROUNDS = 60  # in which the networks are timed, one run each in turn


@dataclass(frozen=True)
class Goal:
    """What a line of the board is held against: at least these, or at most where `smaller` is better."""

    floor: float
    aim: float | None = None  # None: above every peer
    smaller: bool = False


POSE, WHOLE, FOUND = "pose AP, annotated boxes", "end-to-end AP", "persons found"
POSE_FLIPPED = "pose AP, annotated boxes, flip test"
WHOLE_CLASSIC = f"end-to-end AP, boxes above {FOUND_SCORE:g}, flip test, quarter-pixel shift"
POSE_TIME, DETECTOR_TIME = "pose, time of a run", "detector, time of a run"
# None: a line without a goal.
GOALS = {POSE: Goal(0.50), POSE_FLIPPED: None, WHOLE: Goal(0.42), WHOLE_CLASSIC: None, FOUND: Goal(0.78, 0.88),
         POSE_TIME: Goal(0.7, 0.3, smaller=True), DETECTOR_TIME: Goal(1.2, 0.5, smaller=True)}


@dataclass(frozen=True)
class Line:
    """One figure of one model.

    Attributes:
        what: a key of `GOALS`. model: its name. ours: whether it is this project's. value: with its interval; a time is
            a ratio to the first peer's. milliseconds: of a time.
    """

    what: str
    model: str
    ours: bool
    value: Interval
    milliseconds: float | None = None


def main():
    arguments = parse_arguments()
    annotations = load_annotations(arguments.annotations, arguments.limit)
    check_images(annotations.images, arguments.images)
    prepare_folder(arguments.out)
    ours = {}
    for name, path in named(arguments.pose):
        for backend in arguments.backend:
            engine = open_engine(path, "pose", backend=backend)
            check_schema(Subject(engine, path, engine.metadata["head"], path.stem), annotations)
            ours[f"{name}, {backend}"] = PoseEstimator(engine)
    engines = {f"{name}, {backend}": open_engine(path, "person", backend=backend)
               for name, path in named(arguments.detector) for backend in arguments.backend}
    peers = open_poses(arguments.peers) if arguments.peers else {}
    detectors = {threshold: {**{name: PersonDetector(engine, threshold) for name, engine in engines.items()},
                             **(open_detectors(arguments.peers, threshold) if arguments.peers else {})}
                 for threshold in (DETECTOR_THRESHOLD, FOUND_SCORE)}
    finders = detectors[DETECTOR_THRESHOLD]
    if arguments.peers and not peers and len(finders) == len(engines):
        raise BadInput(f"{arguments.peers} holds none of the peers; --help names their files")

    poses = {**ours, **peers}
    lines = ap_lines(poses, ours, detectors, engines, annotations, arguments)
    lines += [Line(FOUND, name, name in engines, share_found(finder, annotations, arguments, name))
              for name, finder in finders.items()]
    lines += time_lines(POSE_TIME, {name: pose.engine for name, pose in poses.items()}, ours)
    networks = {name: getattr(finder, "engine", finder) for name, finder in finders.items()}
    lines += time_lines(DETECTOR_TIME, networks, engines)

    print(table(lines, annotations, arguments.resamples))
    write_json(arguments.out / "scoreboard.json", {
        "annotations": str(arguments.annotations), "images": len(annotations.images),
        "persons": annotations.person_count, "resamples": arguments.resamples,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "goals": {what: asdict(goal) for what, goal in GOALS.items() if goal},
        "lines": [asdict(line) for line in lines]}, indent=2)
    print(f"wrote {arguments.out}/scoreboard.json")


def named(paths):
    """Name and path of each engine: its stem, or the path where several are named alike."""
    stems = [path.stem for path in paths]
    return [(path.stem if stems.count(path.stem) == 1 else str(path), path) for path in paths]


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.scoreboard", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO keypoint file")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images that it names")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    for kind, option in (("pose", "--pose"), ("person", "--detector")):
        parser.add_argument(option, type=Path, nargs="+", metavar="FILE",
                            default=[Path(f"models/{kind}.onnx"), Path(f"models/{kind}.int8.onnx")],
                            help=f"our {kind} engines; the first goes end to end (default: models/{kind}.onnx "
                                 f"models/{kind}.int8.onnx)")
    backends = installed_backends()
    exact = [name for name in backends if name != "openvino-bf16"]
    parser.add_argument("--backend", nargs="+", default=exact, metavar="NAME",
                        help=f"for our engines, of {', '.join(backends)}; the first goes end to end (default: "
                             f"{' '.join(exact)})")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of the public models")
    parser.add_argument("--resamples", type=positive, default=RESAMPLES, help="of the images (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/scoreboard"), help="default: %(default)s")
    return parser.parse_args()


def ap_lines(poses, ours, detectors, our_detectors, annotations, arguments):
    """AP on annotated boxes, plain and with the flip test, and end to end, plain and classic.

    Args:
        poses: {name: estimator}, ours first. ours: names of ours, of which the first goes end to end.
        detectors: {threshold: {name: detector}}. our_detectors: names of ours, of which our poses take boxes of the
            first; peers' take the other detectors'.
    """
    first, *others = poses
    peers = [name for name in others if name not in ours]
    flipped, classic = ({name: type(poses[name])(poses[name].engine, decoding, flip_test=True)
                         for name in (first, *peers)} for decoding in ("dark", "quarter"))
    lines = [Line(what, name, name in ours, average_precision(pose, annotations, arguments, name))
             for what, estimators in ((POSE, poses), (POSE_FLIPPED, flipped)) for name, pose in estimators.items()]
    pairs = [(first, next(iter(our_detectors))), *((peer, finder) for peer in peers for finder in detectors[FOUND_SCORE]
                                                   if finder not in our_detectors)]
    for what, estimators, threshold in ((WHOLE, poses, DETECTOR_THRESHOLD), (WHOLE_CLASSIC, classic, FOUND_SCORE)):
        for name, finder in pairs:
            label = " + ".join(model.partition(",")[0] for model in (finder, name))
            value = average_precision(estimators[name], annotations, arguments, label, detectors[threshold][finder])
            lines.append(Line(what, label, name in ours, value))
    return lines


def average_precision(pose, annotations, arguments, name, detector=None):
    """AP with its interval, on annotated boxes or those of a detector."""
    suppress = partial(suppress_duplicates, sigmas=COCO.sigmas, input_size=pose.engine.input_size,
                       threshold=OKS_THRESHOLD) if detector else None
    predictions = Predictions()
    tqdm.write(f"AP of {name}")
    predict(pose, annotations, arguments.images, predictions, detector, progress=True, suppress=suppress)
    return interval(predictions.results, annotations, COCO.sigmas, arguments.resamples)["AP"]


def share_found(detector, annotations, arguments, name):
    """The share of annotated persons that a detector finds, with its interval."""
    found, persons = [], []
    for image in tqdm(annotations.images, desc=f"persons that {name} finds", unit="image"):
        people = person_boxes(annotations.persons.get(image["id"], []))
        boxes, scores = detector(read_image(image, arguments.images))
        found.append(count_found(boxes, scores, people))
        persons.append(len(people))
    weights = draw_weights(len(found), arguments.resamples)
    low, high = np.percentile(weights @ np.array(found) / np.maximum(weights @ np.array(persons), 1), (2.5, 97.5))
    return Interval(sum(found) / sum(persons), float(low), float(high))


def runner(network, size):
    """A function that runs a network once, on pixels of a (width, height), made ready beforehand as it wants them."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    if hasattr(network, "prepare"):
        return partial(network.infer, network.prepare(pixels))
    return partial(network.run, pixels[None])


def time_lines(what, networks, ours):
    """Times of networks that take turns, as ratios to the first peer's: medians and quartiles of each round's ratio."""
    runners = {name: runner(network, network.input_size) for name, network in networks.items()}
    seconds = np.zeros((ROUNDS, len(runners)))
    for round_ in tqdm(range(ROUNDS), desc=what, unit="round"):
        for number, run in enumerate(runners.values()):
            start = time.perf_counter()
            run()
            seconds[round_, number] = time.perf_counter() - start
    base = next((number for number, name in enumerate(runners) if name not in ours), 0)
    quartiles = np.percentile(seconds / seconds[:, [base]], (50, 25, 75), axis=0)
    milliseconds = np.median(seconds, axis=0) * 1000
    return [Line(what, name, name in ours, Interval(*map(float, quartiles[:, number])), float(milliseconds[number]))
            for number, name in enumerate(runners)]


def verdict(line, lines):
    """How a line of ours stands to its goal, in words."""
    goal, value = GOALS[line.what], line.value.value
    if goal is None:
        return ""
    rivals = [other.value.value for other in lines if other.what == line.what and not other.ours]
    if goal.smaller and not rivals:
        return "no peer to compare with"
    aim = max(rivals, default=None) if goal.aim is None else goal.aim
    sign, floor, short, met = (-1, "ceiling", "above", "below") if goal.smaller else (1, "floor", "short of", "above")
    if sign * (goal.floor - value) > 0:
        return f"{abs(goal.floor - value):.3f} {short} the {floor} {goal.floor:g}"
    if aim is None:
        return f"{met} the {floor} {goal.floor:g}"
    if sign * (aim - value) > 0:
        return f"{met} the {floor} {goal.floor:g}, {abs(aim - value):.3f} {short} the aim"
    return "the aim is met"


def table(lines, annotations, resamples):
    """The board as text."""
    text = [f"{len(annotations.images)} images, {annotations.person_count} persons; in brackets 95 % intervals over "
            f"{resamples} resamples of the images, of times the quartiles"]
    for what in GOALS:
        ratio = what in (POSE_TIME, DETECTOR_TIME)
        text.append(f"\n{what}" + (", a ratio to the first peer's; one thread" if ratio else ""))
        for line in (line for line in lines if line.what == what):
            mark = verdict(line, lines) if line.ours else "peer"
            took = f"  {line.milliseconds:6.2f} ms" if line.milliseconds is not None else ""
            value, low, high = (f"{figure:.3f}" for figure in (line.value.value, line.value.low, line.value.high))
            text.append(f"  {line.model:28} {value}  [{low} {high}]{took}  {mark}".rstrip())
    return "\n".join(text)


if __name__ == "__main__":
    run_command(main)
