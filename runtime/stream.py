"""The command: camera, video, URL or images in; drawn video, images, JSON lines or a window out."""

import argparse
import signal
import time
from collections import defaultdict, deque
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.backends import DEFAULT_BACKEND, ONNX_BACKENDS
from runtime.detect import PersonDetector
from runtime.draw import draw_poses
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.frames import open_source
from runtime.jitter import JitterReport
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.smooth import BETA, MIN_CUTOFF, Smoother
from runtime.track import FOLLOWED_FOR, Tracker
from runtime.write import JsonLinesWriter, Window, open_output

MODELS = Path(__file__).resolve().parents[1] / "models"

EXAMPLES = """
examples:
  draw the persons of a video           python -m runtime.stream --video street.mp4 --out drawn.mp4
  keypoints of a video as JSON lines    python -m runtime.stream --video street.mp4 --jsonl poses.jsonl
  watch the first camera                python -m runtime.stream --camera 0 --show
  record a network camera               python -m runtime.stream --video rtsp://host/stream --out camera.mp4
  draw a folder of photos into another  python -m runtime.stream --images photos --out drawn
  own engines, fewer false persons      python -m runtime.stream --video street.mp4 --out drawn.mp4 \\
                                            --detector person.onnx --pose pose.onnx --threshold 0.6
  faster: look for persons every third  python -m runtime.stream --camera 0 --show --detect-every 3
  try how much smoothing suits a clip   python -m runtime.stream --video dance.mp4 --smooth 0.5 6 --report jitter

Persons of a video or camera are tracked: each keeps its number, and its keypoints are steadied. One who appears is
shown from the second detection on. Images of a folder have nothing to do with each other and are not tracked.
Files and folders lose no frame; of a camera or a live stream the newest frame is taken, so the picture stays
fresh on a slow machine. Ctrl-C ends cleanly: the output is complete up to there.
In the table at the end, "whole way" is from a frame's arrival to its output, waiting between stages included.
exit codes: 0 done, 2 a one-line error (output so far is kept), 130 Ctrl-C, 143 SIGTERM.
"""


def main(argv=None):
    """Run the command. argv: its arguments, those of the process if None. Returns the exit code."""
    arguments = parse_arguments(argv)
    check_outputs(arguments)
    settings = arguments.threads, arguments.backend
    stop = StopRequest()
    timings = Timings(JitterReport() if arguments.report else None)
    with ExitStack() as opened:
        opened.callback(stop.restore)
        window = Window() if arguments.show else None
        detector = PersonDetector(open_engine(arguments.detector, "person", *settings), arguments.threshold)
        pose = PoseEstimator(open_engine(arguments.pose, "pose", *settings))
        source = open_source(arguments.camera, arguments.video, arguments.images)
        opened.callback(source.close)
        check_interval(arguments.detect_every, source.fps)

        opened.callback(timings.report)
        pictures: list = [window] if window else []
        if window:
            opened.callback(window.close)
        if arguments.out:
            pictures.append(open_output(arguments.out, source.fps, source.live))
            opened.callback(pictures[-1].close)
        lines = JsonLinesWriter(arguments.jsonl) if arguments.jsonl else None
        if lines:
            opened.callback(lines.close)

        progress = opened.enter_context(tqdm(total=source.total, unit=" frames", desc=source.label))
        timings.start()
        tracker, smoother = followers(arguments, pose.schema)
        results = stream(source, detector, pose, tracker, smoother, arguments.detect_every)
        for result in opened.enter_context(closing(stop.between(results))):
            start = time.perf_counter()
            if pictures:
                caption = f"{timings.fps:.1f} FPS" if window else ""
                drawn = draw_poses(result.frame.image, result.poses, pose.schema, caption=caption, ids=result.ids)
                for picture in pictures:
                    picture.write(result, drawn)
            if lines:
                lines.write(result)
            timings.add(result, time.perf_counter() - start)
            progress.set_postfix(persons=len(result.poses), refresh=False)
            progress.update()
            if window and window.closed:
                break
    return stop.exit_code


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m runtime.stream", description="Find persons and their keypoints, live or in files.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--camera", type=int, metavar="N", help="camera number, 0 for the first")
    source.add_argument("--video", metavar="PATH_OR_URL", help="video file, http(s):// file or stream, rtsp:// camera")
    source.add_argument("--images", metavar="DIR", help="folder of images, in natural order")
    parser.add_argument("--out", metavar="FILE", help="drawn video (.mp4, .mov, .avi), or a folder for JPEGs")
    parser.add_argument("--jsonl", metavar="FILE", help="poses as JSON, one frame a line, in pixels and seconds")
    parser.add_argument("--show", action="store_true", help="show a window; q or Esc ends")
    parser.add_argument("--detector", metavar="FILE", default=MODELS / "person.onnx",
                        help="person engine (default: the project's models/person.onnx)")
    parser.add_argument("--pose", metavar="FILE", default=MODELS / "pose.onnx",
                        help="pose engine (default: the project's models/pose.onnx)")
    parser.add_argument("--threshold", type=float, default=0.3, metavar="SCORE",
                        help="least score of a person, 0..1; lower finds more, and more that are none (default: 0.3)")
    parser.add_argument("--backend", choices=ONNX_BACKENDS, default=DEFAULT_BACKEND,
                        help="library that runs the engines (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="CPU threads of each engine; they run side by side, so 1 suits most (default: 1)")
    parser.add_argument("--detect-every", type=interval, default=1, metavar="N",
                        help="run the detector on every N-th frame and follow keypoints between, up to a second; auto: "
                             "so often that it is busy half of the time at most (default: 1)")
    parser.add_argument("--smooth", type=float, nargs=2, default=(MIN_CUTOFF, BETA), metavar=("HZ", "BETA"),
                        help="One-Euro filter: cutoff at rest, and its rise with speed (Hz for each person size a "
                             "second); lower is steadier and later (default: " + f"{MIN_CUTOFF:g} {BETA:g})")
    parser.add_argument("--no-smooth", action="store_true", help="leave keypoints as they are found")
    parser.add_argument("--no-track", action="store_true", help="no ids and no smoothing, every detection is shown")
    parser.add_argument("--report", choices=["jitter"], help="jitter: print jitter and lag of the smoothing at the end")
    return parser.parse_args(argv)


def interval(text):
    """--detect-every: a number of frames, or "auto"."""
    return text if text == "auto" else int(text)


def check_interval(detect_every, fps):
    """BadInput where persons would be forgotten between two detections."""
    if detect_every not in ("auto", 1) and detect_every > FOLLOWED_FOR * fps:
        raise BadInput(f"--detect-every {detect_every} is {detect_every / fps:.1f} s at {fps:g} frames a second, but "
                       f"persons are followed for {FOLLOWED_FOR:g} s: give {max(1, int(FOLLOWED_FOR * fps))} or less, "
                       "or auto")


def followers(arguments, schema):
    """A new Tracker and Smoother, None where not wanted."""
    tracker = None if arguments.no_track or arguments.images else Tracker(schema.sigmas)
    return tracker, Smoother(*arguments.smooth) if tracker and not arguments.no_smooth else None


def check_outputs(arguments):
    """What would go wrong later or destroy the input, before any work."""
    if not 0 <= arguments.threshold <= 1:
        raise BadInput(f"--threshold {arguments.threshold:g} is not in 0..1")
    if arguments.threads < 1:
        raise BadInput(f"--threads {arguments.threads} is less than 1")
    if arguments.detect_every != "auto" and arguments.detect_every < 1:
        raise BadInput(f"--detect-every {arguments.detect_every} is less than 1: give a number of frames, or auto")
    if not (arguments.smooth[0] > 0 and arguments.smooth[1] >= 0 and np.isfinite(arguments.smooth).all()):
        raise BadInput("--smooth {:g} {:g}: the cutoff must be above 0, the rise not below it, both finite".format(
            *arguments.smooth))
    untracked = "--images" if arguments.images else "--no-track" if arguments.no_track else None
    for option, given in (("--detect-every", arguments.detect_every != 1), ("--report", arguments.report)):
        if untracked and given:
            raise BadInput(f"{option} needs persons that are tracked, which {untracked} leaves out: drop one of them")
    given = {"--video": arguments.video, "--images": arguments.images, "--out": arguments.out,
             "--jsonl": arguments.jsonl}
    places: dict[Path, str] = {}
    for option, path in given.items():
        if path is None or "://" in str(path):
            continue
        other = places.setdefault(Path(path).resolve(), option)
        if other != option:
            raise BadInput(f"{option} {path} is also the {other}: choose another, it would be overwritten")


class StopRequest:
    """Ctrl-C and SIGTERM end the run between two frames, never in the middle of a write."""

    def __init__(self):
        self.exit_code = 0
        self._waiting = False
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self):
        """Let the signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, results):
        """The results until a signal comes."""
        try:
            while True:
                self._waiting = True  # before the look at the exit code, or a signal between would wait for a frame
                if self.exit_code:
                    return
                result = next(results, None)
                self._waiting = False
                if result is None:
                    return
                yield result
        except KeyboardInterrupt:
            pass  # the exit code says it
        finally:
            self._waiting = False
            results.close()

    def _handle(self, number, _):
        again = self.exit_code != 0
        self.exit_code = 128 + number
        if self._waiting or again:
            raise KeyboardInterrupt


class Timings:
    """What the run took, for the table at the end: the last 100 000 frames, so that a camera can run for months.

    report: a JitterReport to fill and print, or None.
    """

    def __init__(self, report=None):
        self.frames = self.persons = self.dropped = self.detections = 0
        self.identities = None
        self._report = report
        self._running = False
        self._stages = defaultdict(lambda: deque(maxlen=100_000))
        self._started = self._ended = time.perf_counter()

    def start(self):
        self._running = True
        self._started = self._ended = time.perf_counter()

    def report(self):
        """Print the table, unless an error came before the first frame was asked for."""
        if self._running:
            print(self.table(), flush=True)

    def add(self, result, output_seconds):
        self.frames += 1
        self.persons += len(result.poses)
        self.dropped = result.frame.index + 1 - self.frames
        self._ended = time.perf_counter()
        self.detections += "detect" in result.timings
        if result.ids is not None:
            self.identities = max([self.identities or 0, *result.ids.tolist()])
        if self._report:
            self._report.add(result)
        for stage in ("capture", "detect", "pose", "track"):
            if stage in result.timings:
                self._stages[stage].append(result.timings[stage])
        self._stages["draw, write"].append(output_seconds)
        self._stages["whole way"].append(result.timings["latency"] + output_seconds)

    @property
    def fps(self):
        return self.frames / max(self._ended - self._started, 1e-9)

    def table(self):
        dropped = f" ({self.dropped} passed over, the newest are taken)" if self.dropped else ""
        lines = [f"{'frames':<12}{self.frames:>9}{dropped}", f"{'persons':<12}{self.persons:>9}"]
        if self.identities is not None:
            lines.append(f"{'tracks':<12}{self.identities:>9}")
        if self.detections < self.frames:
            lines.append(f"{'detected on':<12}{self.detections:>9} frames")
        lines.append(f"{'FPS':<12}{self.fps:>9.1f}")
        if self.frames:
            lines.append(f"{'ms a frame':<12}{'p50':>9}{'p99':>9}")
        for stage, seconds in self._stages.items():
            middle, slow = np.percentile(seconds, [50, 99]) * 1000
            lines.append(f"{stage:<12}{middle:>9.1f}{slow:>9.1f}")
        if self._report:
            lines.append(str(self._report))
        return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
