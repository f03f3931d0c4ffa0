"""The command: camera, video, URL or images in; drawn video, images, JSON lines or a window out."""

import argparse
import signal
import time
from collections import defaultdict, deque
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.detect import PersonDetector
from runtime.draw import draw_poses
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.frames import open_source
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
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

Files and folders lose no frame; of a camera or a live stream the newest frame is taken, so the picture stays
fresh on a slow machine. Ctrl-C ends cleanly: the output is complete up to there.
In the table at the end, "whole way" is from a frame's arrival to its output, waiting between stages included.
exit codes: 0 done, 2 a one-line error (output so far is kept), 130 Ctrl-C, 143 SIGTERM.
"""


def main(argv=None):
    """Run the command. argv: its arguments, those of the process if None. Returns the exit code."""
    arguments = parse_arguments(argv)
    check_outputs(arguments)
    stop = StopRequest()
    timings = Timings()
    with ExitStack() as opened:
        opened.callback(stop.restore)
        window = Window() if arguments.show else None
        detector = PersonDetector(open_engine(arguments.detector, "person", arguments.threads), arguments.threshold)
        pose = PoseEstimator(open_engine(arguments.pose, "pose", arguments.threads))
        source = open_source(arguments.camera, arguments.video, arguments.images)
        opened.callback(source.close)

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
        for result in opened.enter_context(closing(stop.between(stream(source, detector, pose)))):
            start = time.perf_counter()
            if pictures:
                caption = f"{timings.fps:.1f} FPS" if window else ""
                drawn = draw_poses(result.frame.image, result.poses, pose.schema, caption=caption)
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
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="CPU threads of each engine; they run side by side, so 1 suits most (default: 1)")
    return parser.parse_args(argv)


def check_outputs(arguments):
    """What would go wrong later or destroy the input, before any work."""
    if not 0 <= arguments.threshold <= 1:
        raise BadInput(f"--threshold {arguments.threshold:g} is not in 0..1")
    if arguments.threads < 1:
        raise BadInput(f"--threads {arguments.threads} is less than 1")
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
            while not self.exit_code:
                self._waiting = True
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
    """What the run took, for the table at the end: the last 100 000 frames, so that a camera can run for months."""

    def __init__(self):
        self.frames = self.persons = self.dropped = 0
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
        for stage in ("capture", "detect", "pose"):
            self._stages[stage].append(result.timings[stage])
        self._stages["draw, write"].append(output_seconds)
        self._stages["whole way"].append(result.timings["latency"] + output_seconds)

    @property
    def fps(self):
        return self.frames / max(self._ended - self._started, 1e-9)

    def table(self):
        dropped = f" ({self.dropped} passed over, the newest are taken)" if self.dropped else ""
        lines = [f"{'frames':<12}{self.frames:>9}{dropped}", f"{'persons':<12}{self.persons:>9}",
                 f"{'FPS':<12}{self.fps:>9.1f}"]
        if self.frames:
            lines.append(f"{'ms a frame':<12}{'p50':>9}{'p99':>9}")
        for stage, seconds in self._stages.items():
            middle, slow = np.percentile(seconds, [50, 99]) * 1000
            lines.append(f"{stage:<12}{middle:>9.1f}{slow:>9.1f}")
        return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
