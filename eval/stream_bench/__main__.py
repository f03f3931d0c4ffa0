"""How fast the pipeline is: beside a plain loop, beside what the engines alone allow, and beside a public peer.

    python -m eval.stream_bench                      on rendered people: some four minutes
    python -m eval.stream_bench --video street.mp4   on footage of yours
    pip install --no-deps rtmlib                     first, for the peer; without it the rest is measured

All run the same two networks on the same clip in the same process, in turns, since machines drift: A B C …, the next
round backwards. × is a figure beside the pipeline's of the same round: the middle of the rounds, with the lowest and
the highest. It is surer than the figures themselves.

As a file: every frame, as fast as it goes, reading included. CPU: of all cores together.
As a camera: the same frames at the clip's rate, and one that nobody has fetched when the next arrives is lost. Age:
from a frame's arrival, whether or not anybody was there to fetch it, to its poses.

The engines alone: both run the clip's inputs, made beforehand, side by side, one thread each, with nothing else: so
fast the pipeline would be if reading, cutting, decoding and passing on cost nothing (`eval.stream_bench.contestants`).
The peer is rtmlib with copies of our engines that begin and end as it wants them (`eval.stream_bench.peer`).

Prints tables in Markdown; writes stream_bench.json (every turn) and latency.png to --out.
"""

import argparse
import os
import platform
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from tqdm import tqdm

from eval.bench import load
from eval.bench_report import new_figure
from eval.options import positive
from eval.stream_bench.contestants import Camera, Clip, Contestant, EnginesAlone, loop, peer, pipeline, take_turn
from eval.stream_bench.crowd import Crowds, draw_curve
from eval.stream_bench.peer import open_peer, peer_name
from eval.stream_bench.report import curve_rows, markdown, rows_of
from runtime.detect import PersonDetector
from runtime.doctor import cpu_name
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import make_folder, sha256, write_json
from runtime.pose import PoseEstimator
from runtime.walkers import write_clip

ROUNDS, FRAMES, CROWD_FRAMES = 5, 80, 40
WARM_UP = 5  # frames


def main(given=None):
    arguments = parse_arguments(given)
    figure = new_figure()  # before anything is measured: can it be drawn?
    make_folder(arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.video is None:
            arguments.video = Path(folder, "rendered people.mp4")
            write_clip(arguments.video, Path(folder, "truth.json"), arguments.frames)
        report = measure(arguments, folder)
    write_json(arguments.out / "stream_bench.json", report, indent=2)
    draw_curve(figure, arguments.out / "latency.png", report["curve"],
               f"{report['protocol']['cpu']}, {report['protocol']['cores']} cores")
    print(markdown(report))
    print(f"\nwrote {arguments.out}/stream_bench.json and latency.png")


def parse_arguments(given):
    parser = argparse.ArgumentParser(prog="python -m eval.stream_bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--video", type=Path, metavar="FILE", help="clip to run on (default: three rendered people, 640x480)")
    add("--frames", type=positive, default=FRAMES, metavar="N", help="of the clip, the first; they are held in memory "
        "(default: %(default)s)")
    add("--rounds", type=positive, default=ROUNDS, metavar="N", help="in which all take turns; more makes p99 and the "
        "ratios surer (default: %(default)s)")
    add("--crowd-frames", type=positive, default=CROWD_FRAMES, metavar="N", help="of each number of persons and round, "
        "25 a second, for the curve of latency over persons (default: %(default)s)")
    add("--detector", type=Path, default=Path("models/person.onnx"), metavar="FILE", help="(default: %(default)s)")
    add("--pose", type=Path, default=Path("models/pose.onnx"), metavar="FILE", help="(default: %(default)s)")
    add("--out", type=Path, default=Path("output/stream_bench"), metavar="DIR", help="folder of the results (default: "
        "%(default)s)")
    return parser.parse_args(given)


def measure(arguments, folder):
    """All turns of all contestants → what goes to stream_bench.json. folder: for files that may vanish afterwards."""
    load_before, cores = load(), available_cores()
    clip = Clip(arguments.video, arguments.frames)
    images, fps = [frame.image for frame in clip], clip.fps
    clip.close()
    if not images:
        raise BadInput(f"video {arguments.video} has no frame that can be read: give another")
    detector, pose = open_estimators(arguments)
    alone = EnginesAlone(detector, pose, Clip(arguments.video, len(images)))
    contestants, without = choose_contestants(arguments, folder, detector, pose, alone, cores)
    crowds = Crowds(detector, pose, arguments.crowd_frames)
    for contestant in contestants:
        take_turn(contestant, Clip(arguments.video, WARM_UP))
    alone.stages.clear()

    files: dict[str, list] = {contestant.name: [] for contestant in contestants}
    cameras: dict[str, list] = {contestant.name: [] for contestant in contestants if contestant.paced}
    for number in tqdm(range(arguments.rounds), desc="measuring", unit="round"):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            files[contestant.name].append(take_turn(contestant, Clip(arguments.video, len(images))))
            if contestant.paced:
                cameras[contestant.name].append(take_turn(contestant, Camera(images, fps)))
        crowds.take_turns()
    height, width = images[0].shape[:2]
    return {
        "protocol": {
            "cpu": cpu_name(), "cores": cores, "system": platform.platform(),
            "load_before": load_before, "load_after": load(),
            "clip": arguments.video.name, "size": f"{width}x{height}", "frames": len(images), "fps": fps,
            "rounds": arguments.rounds, "without": without,
            "engines": [{"path": str(path), "sha256": sha256(path)} for path in (arguments.detector, arguments.pose)],
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__,
                         "onnxruntime": onnxruntime.__version__},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        "rows": rows_of(files, cameras, len(images)),
        "engines_alone_ms": dict(zip(("detect", "pose"), (1000 * np.median(alone.stages, 0) / len(images)).tolist(),
                                     strict=True)),
        "curve": curve_rows(crowds.turns, arguments.crowd_frames),
    }


def available_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_estimators(arguments, threads=1):
    return (PersonDetector(open_engine(arguments.detector, "person", threads)),
            PoseEstimator(open_engine(arguments.pose, "pose", threads)))


def choose_contestants(arguments, folder, detector, pose, alone, cores):
    """The contestants, the pipeline first, and of what is left out the reason: list of text."""
    chosen = [Contestant("pipeline", pipeline(detector, pose)),
              Contestant("pipeline, tracked and smoothed", pipeline(detector, pose, followed=True)),
              Contestant("engines alone", alone.run, paced=False),
              Contestant("plain loop", loop(detector, pose))]
    if cores > 1:
        chosen.append(Contestant(f"plain loop, engines on {cores} threads",
                                 loop(*open_estimators(arguments, cores))))
    without = []
    try:
        for how, threads in (("as it comes", None), ("engines on 1 thread", 1)):
            estimate = open_peer(arguments.detector, arguments.pose, folder, threads)
            chosen.append(Contestant(f"{peer_name()}, {how}", peer(estimate)))
    except BadInput as error:
        without.append(f"no peer: {error}")
        tqdm.write(without[-1])
    return chosen, without


if __name__ == "__main__":
    run_command(main)
