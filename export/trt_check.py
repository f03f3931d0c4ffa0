"""Builds TensorRT engines of the bundled networks on this machine, checks and times them.

    make trt-check ANNOTATIONS=person_keypoints_val2017.json IMAGES=val2017 > trt_check.json

Needs a CUDA GPU and TensorRT; nothing of it can be tried without them. Every engine passes the gate of
`export.tensorrt_engine` first: pose in FP16 and INT8, the detector with NMS outside, and with the plugin where that is
built. Both detectors must give the same boxes. Then times of a run at several batches, FPS of the whole stream on a
rendered clip, and with --annotations AP, all as JSON. INT8 needs --annotations. Exit code 1 where an engine was refused
or boxes differ, which the JSON says; 2 and one line where something is missing.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from eval.annotations import load_annotations
from eval.bench import accuracy
from export import tensorrt_engine
from export.agreement import SURE
from export.verify import ExportError, real_inputs
from runtime.cuda import current_gpu
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.frames import open_source
from runtime.gpus import driver_version
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.tensorrt_backend import this_machine
from runtime.walkers import write_clip
from train.config import load_config

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 4, 8, 16, 32)
RUNS = 200
SAME_BOXES = 0.01  # pixels: both come from the same network's boxes


def main():
    arguments = parse_arguments()
    machine = this_machine("TensorRT")  # or one line on what is missing
    gpu = current_gpu()
    report: dict = {"gpu": asdict(gpu), "driver": driver_version(), "tensorrt": machine.library_version, "engines": {}}
    data = load_annotations(arguments.annotations) if arguments.annotations else None
    refused = False
    with tempfile.TemporaryDirectory() as folder:
        built = {}
        for name, options in engines(bool(data)).items():
            try:
                built[name] = build(name, options, Path(folder), arguments)
            except ExportError as error:
                report["engines"][name] = {"refused": str(error)}
                refused = True
        for name, path in built.items():
            engine = open_engine(path)
            report["engines"][name] = {"ms": times(engine)}
            if data:
                report["engines"][name]["AP"] = accuracy(engine, data, arguments.images)["AP"]
            engine.close()
        if {"person", "person_plugin"} <= set(built):
            try:
                report["largest_difference_of_boxes"] = compare_boxes(built["person_plugin"], built["person"],
                                                                      arguments.data)
            except ExportError as error:
                report["largest_difference_of_boxes"] = str(error)
                refused = True
        person = built.get("person_plugin", built.get("person"))
        if person and "pose" in built:
            report["stream_fps"] = stream_fps(person, built["pose"], Path(folder))
    print(json.dumps(report, indent=1))
    return 1 if refused else 0


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m export.trt_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO keypoints, to measure AP")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their images")
    parser.add_argument("--data", default="data/people", metavar="DIR",
                        help="real pictures to check and calibrate on; rendered ones without (default: %(default)s)")
    arguments = parser.parse_args()
    if bool(arguments.annotations) != bool(arguments.images):
        raise BadInput("--annotations and --images belong together: give both or neither")
    return arguments


def engines(with_int8):
    """{name: options of export.tensorrt_engine} of what is built."""
    found = {"pose": ["--precision", "fp16"], "person": ["--plugin", "none"]}
    if with_int8:
        found["pose_int8"] = ["--precision", "int8"]
    if tensorrt_engine.PLUGIN.is_file():
        found["person_plugin"] = ["--plugin", str(tensorrt_engine.PLUGIN)]
    else:
        print(f"no plugin at {tensorrt_engine.PLUGIN}: the detector with NMS inside is left out", file=sys.stderr)
    return found


def build(name, options, folder, arguments):
    kind = name.partition("_")[0]
    out = folder / name / f"{kind}.trt"
    command = ["--engine", str(ROOT / f"models/{kind}.onnx"), "--config", str(ROOT / f"configs/{kind}.toml"),
               "--set", f'data=["{arguments.data}"]', "--out", str(out), *options]
    if arguments.annotations and kind == "pose":
        command += ["--annotations", str(arguments.annotations), "--images", str(arguments.images)]
    print(f"building {name}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):  # JSON alone goes to standard output
        tensorrt_engine.main(command)
    return out


def times(engine):
    """{batch: {"p50", "p99"}} milliseconds of a run, copies and synchronising included."""
    width, height = engine.input_size
    found = {}
    for batch in BATCHES if engine.batch is None else (engine.batch,):
        pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
        for _ in range(20):
            engine.run(pixels)
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            engine.run(pixels)
            seconds.append(time.perf_counter() - start)
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        found[batch] = {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
    return found


def compare_boxes(inside, outside, data):
    """Largest difference in pixels between boxes of NMS inside and outside of the engine; ExportError beyond 0.01."""
    pictures, _ = real_inputs(load_config(ROOT / "configs/person.toml", [f'data=["{data}"]']))
    detectors = [PersonDetector(open_engine(path), SURE) for path in (inside, outside)]
    worst = 0.0
    for picture in pictures:
        (boxes, _), (others, _) = (detector(picture) for detector in detectors)
        if boxes.shape != others.shape or np.abs(boxes - others).max(initial=0) > SAME_BOXES:
            raise ExportError(f"the plugin keeps {len(boxes)} boxes that are not the {len(others)} of runtime.nms")
        worst = max(worst, float(np.abs(boxes - others).max(initial=0)))
    for detector in detectors:
        detector.engine.close()
    return worst


def stream_fps(person, pose, folder):
    """Frames a second of the whole stream on a rendered clip of 300 frames at 1280x720."""
    clip = folder / "clip.mp4"
    write_clip(clip, folder / "truth.json", frames=300, size=(1280, 720))
    detector, estimator = PersonDetector(open_engine(person, "person")), PoseEstimator(open_engine(pose, "pose"))
    start, frames = time.perf_counter(), 0
    for _ in stream(open_source(video=clip), detector, estimator):
        frames += 1
    return round(frames / (time.perf_counter() - start), 1)


if __name__ == "__main__":
    run_command(main)
