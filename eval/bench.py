"""Accuracy against speed on this machine, both of the very same engine files.

    python -m eval.bench models/pose.onnx --annotations person_keypoints_val2017.json --images val2017
    python -m eval.bench old.onnx new.onnx --batch 1,8 --threads 1,2 …     every batch with every number of threads
    python -m eval.bench models/pose.onnx --backend all …                  on every backend that is installed
    python -m eval.bench models/pose.onnx models/pose.onnx …               twice the same: how far chance goes
    python -m eval.bench models/pose.onnx models/person.onnx --limit 200 … a person engine beside it

Speed: milliseconds of one run of the engine alone (pixels in, heatmaps or boxes out) on crops of annotated persons, or
on whole letterboxed images for a person engine. Cutting, decoding and an NMS outside the graph are not in it. Each
combination has a process of its own, and they take turns, since machines drift: × is the time beside the first
engine's of the same threads and batch, measured in the same rounds, and surer than the milliseconds.
Cold: opening the engine and its first run, the file in the system's cache. MB: the most that was resident, less what
Python and the inputs took before. J: of the whole processor, whoever used it, where Linux shows RAPL's counter.
Accuracy: AP on annotated boxes as eval.coco gives it; of a person engine the share of persons that it finds, and in
bench.json AP of its boxes.

Writes to --out: bench.json (every figure, and what it was measured under) and pareto.png (accuracy over the
milliseconds at batch 1; what lies on the line is beaten by nothing in both). Ctrl-C keeps what was measured.
"""

import argparse
import importlib
import itertools
import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval import latency
from eval.annotations import check_images, load_annotations, read_image
from eval.bench_report import ACCURACY, draw, new_figure, table
from eval.boxes import box_figures
from eval.coco import rendered_people
from eval.options import DETECTOR_THRESHOLD
from eval.precision import precision_of
from eval.scoring import FOUND_IOU, FOUND_SCORE, evaluate, images_to_read, person_boxes
from eval.subject import check_schema
from runtime.backends import installed_backends, library_of
from runtime.crop import crop_matrix, crop_region, letterbox, warp_crop
from runtime.detect import PersonDetector
from runtime.doctor import cpu_name
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import sha256, write_json
from runtime.pose import PoseEstimator

INPUTS = 32  # different items that an engine is timed on


@dataclass(frozen=True)
class Contestant:
    """An engine file and what to measure of it; `engine` is the file opened on the first of the backends, `precision`
    as of `eval.precision`."""

    path: Path
    sha256: str
    engine: Any
    precision: str
    backends: list[str]
    batches: list[int]


def main():
    arguments = parse_arguments()
    if (arguments.annotations is None) != (arguments.images is None):
        raise BadInput("--annotations and --images belong together: give both, or neither for rendered people")
    figure = new_figure()
    contestants = [open_contestant(path, arguments.backend, arguments.batch) for path in arguments.engines]
    if arguments.annotations is None:
        arguments.annotations, arguments.images = rendered_people(arguments.out)
    annotations = load_annotations(arguments.annotations, arguments.limit)
    searched = True if any(contestant.engine.kind == "person" for contestant in contestants) else None
    check_images(images_to_read(annotations, searched), arguments.images)
    for contestant in contestants:
        if contestant.engine.kind == "pose":
            check_schema(contestant, annotations)

    report = {"protocol": describe_protocol(arguments, annotations, contestants), "rows": []}
    keep(arguments.out, contestants, report)  # before the engines run for long: can it be written?
    (arguments.out / "pareto.png").unlink(missing_ok=True)  # of an earlier run
    try:
        measure_speed(arguments, contestants, annotations, report)
        keep(arguments.out, contestants, report)
        measure_accuracy(arguments, contestants, annotations, report)
    except (BadInput, KeyboardInterrupt):
        if report["rows"]:
            keep(arguments.out, contestants, report)
            print(table(report), f"kept {len(report['rows'])} rows in {arguments.out}/bench.json", sep="\n")
        raise
    keep(arguments.out, contestants, report)
    print(table(report))
    drawn = draw(figure, arguments.out / "pareto.png", report["rows"])
    print(f"wrote {arguments.out}/bench.json" + (" and pareto.png" if drawn else "; pareto.png needs batch 1"))


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("engines", nargs="*", type=Path, metavar="ENGINE", help="engine files, of which the first is what the others "
        "are compared with (default: models/pose.onnx models/person.onnx)",
        default=[Path("models/pose.onnx"), Path("models/person.onnx")])
    add("--backend", type=lambda text: text.split(","), metavar="NAME,…", help="what runs them, such as "
        "onnxruntime,openvino, or all that are installed (default: the one that streaming takes)")
    add("--batch", type=numbers, default=[1], metavar="N,…", help="items of one run (default: 1)")
    add("--threads", type=numbers, default=[1], metavar="N,…", help="CPU threads of one run (default: 1)")
    add("--seconds", type=positive_seconds, default=3.0, metavar="S", help="of runs for each combination, in "
        f"{latency.ROUNDS} rounds together; more makes p99 surer (default: %(default)g)")
    add("--annotations", type=Path, help="COCO keypoint file, such as person_keypoints_val2017.json (default: people "
        "that this program renders, which says little of photographs)")
    add("--images", type=Path, help="folder of the images that the annotations name")
    add("--limit", type=lambda text: numbers(text)[0], metavar="N", help="only the first N images of the annotations")
    add("--out", type=Path, default=Path("output/bench"), help="folder of the results (default: %(default)s)")
    return parser.parse_args()


def numbers(text):
    """"1,8" → [1, 8], each 1 or more, each once."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{min(found)} is less than 1")
    return list(dict.fromkeys(found))


def positive_seconds(text):
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return seconds


def open_contestant(path, backends, batches):
    """Open an engine on each backend, so that what cannot work ends the command before anything is measured."""
    before = sha256(path) if path.is_file() else ""  # open_engine says what is wrong with it
    if backends is None:
        backends = [open_engine(path).backend]
    elif backends == ["all"]:
        backends = list(installed_backends())
    engines = [open_engine(path, backend=backend) for backend in backends]
    fixed = engines[0].batch
    left_out = [batch for batch in batches if fixed not in (None, batch)]
    if left_out:
        print(f"{path} takes a batch of {fixed} only: measured with that, not with {', '.join(map(str, left_out))}")
        batches = [fixed]
    precision = precision_of(path)[0]
    return Contestant(path, before, engines[0], precision, backends, batches)


def check_unchanged(contestants):
    """BadInput where a file is no longer the one that was measured: its speed and its AP could be of two engines."""
    for contestant in contestants:
        now = sha256(contestant.path) if contestant.path.is_file() else "gone"
        if now != contestant.sha256:
            raise BadInput(f"{contestant.path} changed while it was measured (SHA-256 {contestant.sha256[:12]}… "
                           f"before, {now[:12]}… after): measure again once it is finished")


def keep(out, contestants, report):
    check_unchanged(contestants)
    report["protocol"]["load_after"] = load()
    write_json(out / "bench.json", report, indent=2)


def measure_speed(arguments, contestants, annotations, report):
    """Fill report["rows"], whatever ends it."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for number, contestant in enumerate(contestants):
            inputs = Path(folder, f"{number}.npy")
            np.save(inputs, real_inputs(contestant.engine, annotations, arguments.images))
            settings = itertools.product(contestant.backends, arguments.threads, contestant.batches)
            jobs += [(contestant, latency.Combination(contestant.path, *setting, inputs)) for setting in settings]
        measured: list = []
        try:
            latency.measure([combination for _, combination in jobs], arguments.seconds, measured)
        finally:
            report["rows"] += rows_of([contestant for contestant, _ in jobs], measured)


def real_inputs(engine, annotations, images):
    """(N, H, W, 3) uint8 BGR: crops of the first annotated persons, or the first images, as streaming makes them."""
    size = engine.input_size
    items: list[np.ndarray] = []
    for image in images_to_read(annotations):
        frame = read_image(image, images)
        if engine.kind == "person":
            items.append(letterbox(frame, size, engine.stretch)[0])
        else:
            boxes = person_boxes(annotations.persons[image["id"]])
            centres, extents = crop_region(boxes, size, engine.padding)
            items += [warp_crop(frame, crop_matrix(centre, extent, size), size)
                      for centre, extent in zip(centres, extents, strict=True)]
        if len(items) >= INPUTS:
            break
    return np.stack(items[:INPUTS])


def rows_of(contestants, measured):
    """One dict a combination: what it is, and `eval.latency.statistics` of it."""
    rows: list[dict[str, Any]] = []
    references: dict[tuple, Any] = {}
    for contestant, result in zip(contestants, measured, strict=False):  # fewer where it was stopped
        combination = result.combination
        kind = contestant.engine.kind
        reference = references.setdefault((kind, combination.threads, combination.batch), result)
        middle, lowest, highest = latency.time_ratio(result, reference) or (None, None, None)
        rows.append({"engine": str(contestant.path), "engine_sha256": contestant.sha256, "kind": kind,
                     "backend": combination.backend, "precision": contestant.precision,
                     "threads": combination.threads, "batch": combination.batch, **latency.statistics(result),
                     "ratio": middle, "ratio_lowest": lowest, "ratio_highest": highest, ACCURACY[kind]: None})
    return rows


def measure_accuracy(arguments, contestants, annotations, report):
    """Add the accuracy of each engine file and backend to its rows: on one thread, as eval.coco has it."""
    done: dict[tuple, dict] = {}
    for row in report["rows"]:
        key = row["engine"], row["backend"]
        if key not in done:
            done[key] = accuracy(open_engine(key[0], backend=key[1]), annotations, arguments.images)
            check_unchanged(contestants)
        row |= done[key]


def accuracy(engine, annotations, images):
    """COCO's ten numbers of a pose engine on annotated boxes; of a person engine `eval.boxes.box_figures`."""
    if engine.kind == "pose":
        sigmas = None if engine.schema.name == "coco" else engine.schema.sigmas
        return evaluate(PoseEstimator(engine), annotations, images, sigmas=sigmas, progress=True)
    return box_figures(PersonDetector(engine, threshold=DETECTOR_THRESHOLD), annotations, images, progress=True)


def describe_protocol(arguments, annotations, contestants):
    """Everything that another run needs to measure the same, and on what machine this one was."""
    backends = sorted({library_of(backend) for contestant in contestants for backend in contestant.backends})
    return {
        "engines": [{"path": str(contestant.path), "sha256": contestant.sha256, "kind": contestant.engine.kind,
                     "input_size": contestant.engine.input_size, "metadata": contestant.engine.metadata}
                    for contestant in contestants],
        "timed": "engine.run alone; cutting, decoding and NMS outside the graph are not in it",
        "rounds": latency.ROUNDS,
        "seconds": arguments.seconds,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_before": load(),
        "memory": latency.memory_obstacle() or "most resident, less what Python, imports and inputs took",
        "energy": latency.energy_obstacle() or "RAPL, whole processors, whoever used them",
        "boxes": "ground truth",
        "flip_test": False,
        "decoding": "dark for heatmaps",
        "found_rule": f"persons with keypoints, at IoU {FOUND_IOU} with a score > {FOUND_SCORE}",
        "annotations": str(annotations.path),
        "annotations_sha256": sha256(annotations.path),
        "images": len(annotations.images),
        "images_in_file": annotations.images_in_file,
        "persons": annotations.person_count,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__,
                     **{name: version(name) for name in ("pycocotools", "faster_coco_eval")},
                     **{name: importlib.import_module(name).__version__ for name in backends}},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load():
    """Processes that wanted a core, on average over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    run_command(main)
