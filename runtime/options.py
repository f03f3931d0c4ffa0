"""What can be asked of `python -m runtime.stream`, and what is refused before any work."""

import argparse
import re
from pathlib import Path

import numpy as np

from runtime.backends import DEFAULT_BACKEND, ONNX_BACKENDS
from runtime.detect import THRESHOLD
from runtime.errors import BadInput
from runtime.smooth import BETA, MIN_CUTOFF
from runtime.track import FOLLOWED_FOR

MODELS = Path(__file__).resolve().parents[1] / "models"

EXAMPLES = """
examples:
  draw the persons of a video           python -m runtime.stream --video street.mp4 --out drawn.mp4
  keypoints of a video as JSON lines    python -m runtime.stream --video street.mp4 --jsonl poses.jsonl
  watch the first camera                python -m runtime.stream --camera 0 --show
  record a network camera               python -m runtime.stream --video rtsp://host/stream --out camera.mp4
  two cameras on a web page             python -m runtime.stream --camera 0 --video rtsp://host/stream --serve 8080
  no older than 80 ms, whoever comes    python -m runtime.stream --camera 0 --show --max-age 80ms
  what another program sends            ffmpeg -i in.mkv -f mpegts - | python -m runtime.stream --video - --out out.mp4
  draw a folder of photos into another  python -m runtime.stream --images photos --out drawn
  own engines, fewer false persons      python -m runtime.stream --video street.mp4 --out drawn.mp4 \\
                                            --detector person.onnx --pose pose.onnx --threshold 0.6
  faster: look for persons every third  python -m runtime.stream --camera 0 --show --detect-every 3
  try how much smoothing suits a clip   python -m runtime.stream --video dance.mp4 --smooth 0.5 6 --report jitter

Persons of a video or camera are tracked: each keeps its number, and its keypoints are steadied. One who appears is
shown from the second detection on. Images of a folder have nothing to do with each other and are not tracked.
Files, folders and stdin lose no frame; of a camera or a live stream the newest frame is taken, so the picture stays
fresh on a slow machine. One that breaks off is opened again after 1, 5, 10 and then every 60 seconds, for ever;
meanwhile window, page and lines say that it is stale or lost, and its persons get new numbers when it is back.
Of several sources each has its own persons and numbers. --out drawn.mp4 becomes drawn_0.mp4, drawn_1.mp4 … in their
order, a folder likewise; the other outputs are common and name the source.
Persons whom --max-age leaves no time for are not posed and count as lost, the smallest first, until there is time.
Ctrl-C ends cleanly: the output is complete up to there.
In the table at the end, "age" is from a frame's arrival to its output, waiting between stages included.
--jsonl - and --csv - write to stdout; the table then goes to stderr.
exit codes: 0 done, 2 a one-line error (output so far is kept), 130 Ctrl-C, 143 SIGTERM.
"""


def parse_arguments(argv):
    """The arguments, checked as far as that can be done without opening anything; BadInput where they are wrong.

    Attribute `sources` is a list of (option, value) in the order given: ("camera", 0), ("video", "street.mp4").
    """
    parser = argparse.ArgumentParser(
        prog="python -m runtime.stream", description="Find persons and their keypoints, live or in files.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_argument_group("sources, one or several")
    for name, kind, metavar, text in (
            ("camera", int, "N", "camera number, 0 for the first"),
            ("video", str, "PATH_OR_URL", "video file, http(s):// file or stream, rtsp:// camera; - reads stdin"),
            ("images", str, "DIR", "folder of images, in natural order")):
        sources.add_argument(f"--{name}", dest="sources", action="append", type=_named(name, kind), metavar=metavar,
                             help=text)
    sources.add_argument("--no-reconnect", action="store_true",
                         help="a camera or live stream that breaks off is an error, and not opened again")
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument("--out", metavar="FILE", help="drawn video (.mp4, .mov, .avi), or a folder for JPEGs")
    outputs.add_argument("--jsonl", metavar="FILE", help="poses as JSON, one frame a line, in pixels and seconds; "
                         "- for stdout")
    outputs.add_argument("--csv", metavar="FILE", help="poses as CSV, one person a row; - for stdout")
    outputs.add_argument("--show", action="store_true", help="show a window; q or Esc ends")
    outputs.add_argument("--serve", metavar="[HOST:]PORT",
                         help="web page with live pictures, states and figures, /metrics and /healthz: 8080 for this "
                              "machine alone, 0.0.0.0:8080 for others too, who need the token in the printed address")
    outputs.add_argument("--serve-token", metavar="TOKEN",
                         help="token of the page (default: the environment's SERVE_TOKEN, or one made at each start)")
    outputs.add_argument("--webhook", metavar="URL", help="POST the objects of the JSON lines to http(s)://…")
    outputs.add_argument("--mqtt", metavar="URL", help="publish them to mqtt(s)://[user:password@]broker[:port]/topic")
    parser.add_argument("--detector", metavar="FILE", default=MODELS / "person.onnx",
                        help="person engine (default: the project's models/person.onnx)")
    parser.add_argument("--pose", metavar="FILE", action="append",
                        help="pose engine (default: the project's models/pose.onnx); for --max-age it may be given "
                             "several times, the most accurate first")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, metavar="SCORE",
                        help="least score of a person, 0..1; lower finds more, and more that are none "
                             "(default: %(default)s)")
    parser.add_argument("--backend", choices=ONNX_BACKENDS, default=DEFAULT_BACKEND,
                        help="library that runs the engines (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="CPU threads of each engine; they run side by side, so 1 suits most (default: 1)")
    parser.add_argument("--detect-every", type=_interval, default=1, metavar="N",
                        help="run the detector on every N-th frame and follow keypoints between, up to a second; auto: "
                             "so often that it is busy half of the time at most (default: 1)")
    parser.add_argument("--max-age", metavar="TIME",
                        help="hold the age of live frames, from arrival to output, below this in 99 of 100, as 80ms or "
                             "0.2s: where it takes longer, detections are left out, then the next --pose is taken, "
                             "then only the largest persons are posed; what was given up is told")
    parser.add_argument("--smooth", type=float, nargs=2, metavar=("HZ", "BETA"),
                        help="One-Euro filter: cutoff at rest, and its rise with speed (Hz for each person size a "
                             "second); lower is steadier and later (default: " + f"{MIN_CUTOFF:g} {BETA:g})")
    parser.add_argument("--no-smooth", action="store_true", help="leave keypoints as they are found")
    parser.add_argument("--no-track", action="store_true", help="no ids and no smoothing, every detection is shown")
    parser.add_argument("--report", choices=["jitter"], help="jitter: print jitter and lag of the smoothing at the end")
    arguments = parser.parse_args(argv)
    if not arguments.sources:
        parser.error("no source: give --camera N, --video PATH_OR_URL or --images DIR")
    arguments.pose = arguments.pose or [MODELS / "pose.onnx"]
    arguments.max_age = duration("--max-age", arguments.max_age)
    _check_ignored(arguments)
    arguments.smooth = arguments.smooth or (MIN_CUTOFF, BETA)
    _check_numbers(arguments)
    _check_places(arguments)
    return arguments


def output_paths(out, count):
    """Where each source's drawn pictures go: FILE itself for one, else FILE_0, FILE_1 … before the suffix."""
    path = Path(out)
    return [path] if count == 1 else [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(count)]


def duration(option, text):
    """Seconds of "80ms" or "0.2s", None of None, or BadInput."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?(ms|s)", text.strip())
    seconds = float(matched[1]) / (1000 if matched[2] == "ms" else 1) if matched else 0
    if seconds <= 0:
        raise BadInput(f"{option} {text} is no time: give a number above 0 with its unit, as 80ms or 0.2s")
    return seconds


def check_interval(detect_every, fps):
    """BadInput where persons would be forgotten between two detections."""
    if detect_every not in ("auto", 1) and detect_every > FOLLOWED_FOR * fps:
        raise BadInput(f"--detect-every {detect_every} is {detect_every / fps:.1f} s at {fps:g} frames a second, but "
                       f"persons are followed for {FOLLOWED_FOR:g} s: give {max(1, int(FOLLOWED_FOR * fps))} or less, "
                       "or auto")


def _named(option, kind):
    def named(text):
        return option, kind(text)
    named.__name__ = kind.__name__  # argparse calls a wrong value by it
    return named


def _interval(text):
    """--detect-every: a number of frames, or "auto"."""
    return text if text == "auto" else int(text)


def _check_numbers(arguments):
    for option, value in arguments.sources:
        if option == "camera" and value < 0:
            raise BadInput(f"--camera {value} is below 0: give 0 for the first")
    if not 0 <= arguments.threshold <= 1:
        raise BadInput(f"--threshold {arguments.threshold:g} is not in 0..1")
    if arguments.threads < 1:
        raise BadInput(f"--threads {arguments.threads} is less than 1")
    if arguments.detect_every != "auto" and arguments.detect_every < 1:
        raise BadInput(f"--detect-every {arguments.detect_every} is less than 1: give a number of frames, or auto")
    if not (arguments.smooth[0] > 0 and arguments.smooth[1] >= 0 and np.isfinite(arguments.smooth).all()):
        raise BadInput("--smooth {:g} {:g}: the cutoff must be above 0, the rise not below it, both finite".format(
            *arguments.smooth))
    options = {option for option, _ in arguments.sources}
    untracked = "--images" if "images" in options else "--no-track" if arguments.no_track else None
    for option, given in (("--detect-every", arguments.detect_every != 1), ("--report", arguments.report)):
        if untracked and given:
            raise BadInput(f"{option} needs persons that are tracked, which {untracked} leaves out: drop one of them")
    if len(arguments.pose) > 1 and arguments.max_age is None:
        raise BadInput(f"{len(arguments.pose)} --pose engines are for --max-age to choose from: give that, or one")


def _check_ignored(arguments):
    """What would have no effect, nobody meant."""
    if arguments.serve_token is not None and not arguments.serve:
        raise BadInput("--serve-token is the page's: give --serve [HOST:]PORT too, or drop it")
    if arguments.smooth and (arguments.no_smooth or arguments.no_track):
        other = "--no-smooth" if arguments.no_smooth else "--no-track"
        raise BadInput(f"--smooth has no effect with {other}: drop one of them")


def _check_places(arguments):
    """No output may destroy an input or another output."""
    count = len(arguments.sources)
    if arguments.sources.count(("video", "-")) > 1:
        raise BadInput("--video - was given twice, but there is one stdin: give the others another way")
    given = [(f"--{option}", value) for option, value in arguments.sources if option != "camera" and value != "-"]
    given += [("--out", path) for path in output_paths(arguments.out, count)] if arguments.out else []
    given += [(f"--{name}", path) for name in ("jsonl", "csv") if (path := getattr(arguments, name))]
    places: dict[Path, str] = {}
    for option, path in given:
        if "://" in str(path):
            continue
        other = places.setdefault(Path(path).resolve(), option)
        if other != option:
            raise BadInput(f"{option} {path} is also the {other}: choose another, it would be overwritten")
