"""The command: cameras, videos, URLs or images in; drawn video, images, JSON lines, a window or a web page out."""

import os
import sys
import threading
import time
from contextlib import ExitStack, closing
from functools import partial

from tqdm import tqdm

from runtime.budget import Budget
from runtime.detect import PersonDetector
from runtime.draw import draw_poses
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.frames import hide_secrets, open_source
from runtime.lines import CsvWriter, JsonLinesWriter, is_stdout
from runtime.mosaic import Mosaic
from runtime.options import check_interval, output_paths, parse_arguments
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.reconnect import PAUSES, READING, Reconnecting
from runtime.send import open_mqtt, open_webhook
from runtime.serve import WebPage
from runtime.smooth import Smoother
from runtime.stop import StopRequest
from runtime.timings import Timings
from runtime.track import Tracker
from runtime.write import Window, open_output

TERMINAL_REDRAWN = 0.1  # seconds between two states of the progress
UNSEEN_REDRAWN = 600.0  # where it is no terminal


def main(argv=None):
    """Run the command. argv: its arguments, those of the process if None. Returns the exit code."""
    arguments = parse_arguments(argv)
    stop = StopRequest()
    try:
        return _run(arguments, stop)
    except KeyboardInterrupt:
        if not stop.exit_code:
            raise
        return stop.exit_code


def _run(arguments, stop):
    with ExitStack() as opened:
        opened.callback(stop.restore)
        window = opened.enter_context(closing(Window())) if arguments.show else None
        poses = open_poses(arguments)
        trackers, smoothers = followers(arguments, poses[0].schema)
        detector = open_detector(arguments, trackers)
        for stage in (detector, *poses):
            opened.callback(stage.engine.close)
        sources = stop.until(open_sources, arguments.sources, () if arguments.no_reconnect else PAUSES)
        if sources is None:
            return stop.exit_code
        for source in sources:
            opened.enter_context(closing(source))
            check_interval(arguments.detect_every, source.fps)
        budget = open_budget(arguments, sources, trackers)
        timings = Timings([source.label for source in sources], bool(arguments.report), budget)
        on_stdout = any(map(is_stdout, (arguments.jsonl, arguments.csv)))
        opened.callback(timings.report, sys.stderr if on_stdout else sys.stdout)
        outputs = stop.until(Outputs, arguments, sources, window, poses[0].schema, opened, budget)
        if outputs is None:
            return stop.exit_code

        totals = [source.total for source in sources]
        # In a log every redrawing is one more line.
        redrawn = TERMINAL_REDRAWN if sys.stderr.isatty() else UNSEEN_REDRAWN
        progress = opened.enter_context(tqdm(
            total=None if None in totals else sum(totals), unit=" frames",
            mininterval=redrawn, maxinterval=max(10, redrawn),
            desc=sources[0].label if len(sources) == 1 else f"{len(sources)} sources"))
        timings.start()
        results = stream(sources, detector, poses, trackers, smoothers, arguments.detect_every, budget,
                         idle=window.look if window else None)
        told, due = ["live"] * len(sources), 0.0
        for result in opened.enter_context(closing(stop.between(results))):
            start = time.perf_counter()
            outputs.write(result, f"{timings.recent_fps:.1f} FPS" if window else "")
            took = time.perf_counter() - start
            timings.add(result, took)
            outputs.took(result, took)
            news = [budget.news() if budget else None]
            if result.frame is not None:
                progress.update()
            elif result.state != told[result.source]:
                told[result.source] = result.state
                news.append(f"{result.state}: {result.reason}")
            if start >= due:  # a percentile a frame would cost more than drawing the bar
                due = start + redrawn
                age = {"age_p99": f"{1000 * timings.age:.0f}ms"} if sources[result.source].live else {}
                progress.set_postfix(persons=len(result.poses), **age, refresh=False)
            for line in filter(None, news):
                tqdm.write(line, file=sys.stderr)
            if window and window.closed:
                break
    return stop.exit_code


def open_poses(arguments):
    """The pose estimators, which must find the same keypoints."""
    poses = [PoseEstimator(open_engine(path, "pose", arguments.threads, arguments.backend)) for path in arguments.pose]
    for path, pose in zip(arguments.pose, poses, strict=True):
        if pose.schema.names != poses[0].schema.names:
            raise BadInput(f"--pose {path} finds other keypoints than {arguments.pose[0]}: give engines of the same")
    return poses


def open_detector(arguments, trackers):
    """The detector. Where all sources are tracked it gives weaker boxes, too, for the trackers to choose from."""
    engine = open_engine(arguments.detector, "person", arguments.threads, arguments.backend)
    return PersonDetector(engine, trackers[0].weakest if all(trackers) else arguments.threshold)


def open_sources(given, pauses):
    """Open sources side by side, since each may take its time; live ones so that they are opened again.

    Args:
        given: list of (option, value), option "camera", "video" or "images".
        pauses: of Reconnecting; none for sources that are not opened again.

    Raises:
        BadInput: one does not open. Of several only a file or a folder is an error: the others may yet come.
    """
    opened: list = [None] * len(given)

    def open_one(number, option, value):
        try:
            opened[number] = open_source(**{option: value})
        except Exception as error:  # raised below
            opened[number] = error

    # Ctrl-C must not wait for a network's answer, nor the end of the process.
    threads = [threading.Thread(target=open_one, name=READING, args=(number, *each), daemon=True)
               for number, each in enumerate(given)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (option, value) in enumerate(given):
        source, reopen = opened[number], partial(open_source, **{option: value})
        may_come = option == "camera" or "://" in str(value)
        if isinstance(source, Exception):
            if not (isinstance(source, BadInput) and may_come and pauses and len(given) > 1):
                raise source
            tqdm.write(f"{source}; the others go on without it", file=sys.stderr)
            label = f"camera {value}" if option == "camera" else hide_secrets(value)
            opened[number] = Reconnecting(reopen, label, pauses=pauses)
        elif source.live:
            opened[number] = Reconnecting(reopen, source.label, source, pauses)
    labels = [source.label for source in opened]
    for number, source in enumerate(opened):
        if labels.count(source.label) > 1:  # two channels of one recorder
            source.label += f" (source {number})"
    return opened


def followers(arguments, schema):
    """A new Tracker and Smoother for each source, None where not wanted."""
    trackers = [None if arguments.no_track or option == "images" else Tracker(schema.sigmas, arguments.threshold)
                for option, _ in arguments.sources]
    return trackers, [Smoother(*arguments.smooth) if tracker and not arguments.no_smooth else None
                      for tracker in trackers]


def open_budget(arguments, sources, trackers):
    """The Budget of --max-age, or None."""
    if arguments.max_age is None:
        return None
    if not any(source.live for source in sources):
        raise BadInput("--max-age holds the age of live frames, and of a file or folder none is left out: drop it")
    tracked = all(tracker for tracker, source in zip(trackers, sources, strict=True) if source.live)
    return Budget(arguments.max_age, tracked, len(arguments.pose))


class Outputs:
    """What was asked for; each result goes to all of it.

    Args:
        arguments: of the command.
        sources: opened.
        window: Window, or None.
        schema: KeypointSchema of the poses.
        opened: ExitStack that closes the outputs.
        budget: the stream's Budget, or None.

    What can fail without harm is opened first: a second start by mistake must not empty the files of the first.
    """

    def __init__(self, arguments, sources, window, schema, opened, budget=None):
        def add(writer):
            opened.callback(writer.close)
            return [writer]

        self._schema = schema
        self._drawings = [] if window is None else [Mosaic(window, len(sources))]
        self._drawings_of, self._lines, self._page = [], [], None
        if arguments.serve:
            token = arguments.serve_token or os.environ.get("SERVE_TOKEN") or None
            labels = [source.label for source in sources]
            [self._page] = add(WebPage(arguments.serve, labels, token, budget=budget))
            tqdm.write(f"page: {self._page.url}", file=sys.stderr)
        if arguments.webhook:
            self._lines += add(open_webhook(arguments.webhook))
        if arguments.mqtt:
            self._lines += add(open_mqtt(arguments.mqtt))
        if arguments.out:
            for path, source in zip(output_paths(arguments.out, len(sources)), sources, strict=True):
                self._drawings_of += add(open_output(path, source.fps, source.live))
        if arguments.jsonl:
            self._lines += add(JsonLinesWriter(arguments.jsonl))
        if arguments.csv:
            self._lines += add(CsvWriter(arguments.csv, schema.names))

    def write(self, result, caption):
        """Draw, if anybody looks, and write. caption: for the picture."""
        drawings = [*self._drawings, *self._drawings_of[result.source:result.source + 1]]
        drawings += [self._page] if self._page else []
        drawn = None
        if result.frame is not None and any(getattr(drawing, "watched", True) for drawing in drawings):
            drawn = draw_poses(result.frame.image, result.poses, self._schema, caption=caption, ids=result.ids)
        for output in [*drawings, *self._lines]:
            output.write(result, drawn)

    def took(self, result, seconds):
        """What `write` took of a result, for the ages that the page tells."""
        if self._page and result.frame is not None:
            self._page.took(result.source, seconds)


def run():
    """The command as a process of its own, which ends even where a camera does not answer."""
    try:
        run_command(main)
    except SystemExit as end:
        # OpenCV's reads cannot be interrupted, and one that returned while Python clears up would abort the process.
        if any(thread.name.startswith(READING) for thread in threading.enumerate()):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        raise


if __name__ == "__main__":
    run()
