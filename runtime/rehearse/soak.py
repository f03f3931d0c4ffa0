"""The soak: the real stream on two cameras that never end, for as long as asked, watched from outside.

    python -m runtime.rehearse --soak 60

The cameras (`runtime.rehearse.cameras`: MJPEG and MPEG-TS on loopback, rendered people) fail and return every few
minutes, in turn in every way of TROUBLES. The stream tracks, writes JSON lines and serves its page, which is looked at.
Every few seconds its memory, threads and open files are read from /proc, and frames, states and ages from its page.
What is asked of them is judged after a warm-up, in which engines, caches and rings of fixed size fill.
"""

import json
import os
import platform
import signal
import statistics
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BadInput
from runtime.files import make_folder, write_json
from runtime.rehearse.cameras import Camera, render_pictures
from runtime.rehearse.trial import Trial, fetch, read_lines

SAMPLE_EVERY = 5.0  # seconds
TOLD_EVERY = 60.0  # seconds between two lines of progress
PICTURES = 60  # of a camera, then it begins again
WARM_UP = 600.0, 0.25  # seconds, or this share of the time where that is less
TROUBLES = (("gone", 8.0), ("silent", 4.0), ("garbage", 5.0), ("silent", 14.0), ("broken", 5.0), ("large", 10.0))
CYCLE = 40.0, 180.0  # seconds from a camera's trouble to its next: least, and most

MOST_GROWTH = 16.0  # MB of memory after the warm-up, along a robust line
MOST_PEAK = 64.0  # MB of memory above its median after the warm-up
MOST_MORE = 2  # threads and handles in the last third above those of the first
MOST_AGE = 2.0  # seconds: p99 of every minute; a lag that adds up passes this within minutes


@dataclass
class Sample:
    """The stream at one moment.

    Attributes:
        seconds: since its first frame. rss: resident memory in MB (10^6 bytes). threads, handles: how many.
        frames, states: of each camera, frames since the start.
        age_p50, age_p99: seconds over the last minute, the worse camera's; None where it had no frame.
    """

    seconds: float
    rss: float
    threads: int
    handles: int
    frames: list[int]
    states: list[str]
    age_p50: float | None
    age_p99: float | None


@dataclass
class Verdict:
    """What was asked, whether it was so, and what was seen."""

    asked: str
    passed: bool
    seen: str

    def __str__(self):
        return f"{'pass' if self.passed else 'FAIL'}  {self.asked}: {self.seen}"


def soak(minutes, rate, folder, options=()):
    """Run it; prints progress and verdicts, and writes soak.json and soak.txt into the folder.

    Args:
        minutes: how long, from the first frame on.
        rate: pictures a second of each camera.
        folder: for the record and the stream's own output.
        options: further arguments of `python -m runtime.stream`.

    Returns:
        Whether all was well.

    Raises:
        BadInput: not a Linux machine, or the stream does not start.
    """
    if not Path("/proc/self/fd").exists():
        raise BadInput("--soak reads memory and handles from /proc, which only Linux has: run it there")
    make_folder(folder)
    seconds = 60 * minutes
    started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    say(f"renders {PICTURES} pictures, then soaks for {minutes:g} min; record in {folder}")
    pictures = render_pictures(PICTURES, rate)
    with ExitStack() as opened:
        cameras = [opened.enter_context(closing(Camera(pictures, rate, kind))) for kind in ("mjpeg", "mpegts")]
        addresses = [word for camera in cameras for word in ("--video", camera.url)]
        trial = opened.enter_context(closing(Trial(folder, *addresses, "--serve", "0", *options)))
        page = trial.page()
        if not all(trial.wait_for_frames(5, source, 120) for source in range(len(cameras))):
            raise BadInput(f"the stream gave no frames: {trial.last_words}")
        plans = [plan(seconds, number / len(cameras)) for number in range(len(cameras))]
        samples = watch(trial, cameras, plans, page, seconds)
        exit_code = trial.end(signal.SIGTERM)
        verdicts = [*judge_returns(samples, plans, rate, seconds), *judge(samples, seconds),
                    *judge_output(trial, exit_code)]
        table = trial.printed.strip()
    passed = all(verdict.passed for verdict in verdicts)
    record = {"command": f"python -m runtime.rehearse {' '.join(sys.argv[1:])}", "started": started,
              "machine": machine(), "minutes": minutes, "rate": rate, "passed": passed, "troubles": plans,
              "verdicts": [asdict(verdict) for verdict in verdicts], "samples": [asdict(sample) for sample in samples]}
    write_json(folder / "soak.json", record)
    text = "\n".join([f"soak of {minutes:g} minutes, started {started}, {machine()}", "", *history(samples), "",
                      *map(str, verdicts), "", "the stream's own table:", table, ""])
    (folder / "soak.txt").write_text(text)
    print(text)
    return passed


def watch(trial, cameras, plans, page, seconds):
    """Sample the stream, and trouble its cameras as planned, until the time is over or it ends by itself."""
    samples: list[Sample] = []
    start = time.monotonic()
    told = -TOLD_EVERY
    while (now := time.monotonic() - start) < seconds and trial.process.poll() is None:
        for number, camera in enumerate(cameras):
            camera.mode = next((mode for begin, end, mode in plans[number] if begin <= now < end), "live")
        if not samples or now - samples[-1].seconds >= SAMPLE_EVERY:
            samples.append(take_sample(trial.process.pid, page, len(cameras), now))
            if now - told >= TOLD_EVERY:
                told = now
                say(line_of(samples[-1]))
        time.sleep(0.25)
    for camera in cameras:
        camera.mode = "live"
    return samples


def plan(seconds, offset):
    """A camera's troubles: (begin, end, mode) in seconds. offset: 0..1 of a cycle, so that cameras fail in turn.

    None begins in the last 40 s, which are for coming back.
    """
    cycle = float(np.clip(seconds / 6, *CYCLE))
    begins = np.arange((0.4 + 0.5 * offset) * cycle, seconds - CYCLE[0], cycle)
    return [(begin, begin + TROUBLES[number % len(TROUBLES)][1], TROUBLES[number % len(TROUBLES)][0])
            for number, begin in enumerate(begins.tolist())]


def take_sample(process_id, page, count, now):
    """One Sample; also looks at the pictures, as somebody who watches would."""
    try:
        sources = json.loads(fetch(f"{page}state.json"))["sources"]
        for number in range(count):
            fetch(f"{page}picture/{number}.jpg?after=0")
        status = dict(line.split(":", 1) for line in
                      Path(f"/proc/{process_id}/status").read_text().splitlines() if ":" in line)
        handles = len(os.listdir(f"/proc/{process_id}/fd"))
    except (OSError, KeyError) as error:
        raise BadInput(f"after {now:.0f} s the stream or its page does not answer: {error}") from error
    ages = {key: [source[key] for source in sources if source[key] is not None] for key in ("age_p50", "age_p99")}
    return Sample(round(now, 1), int(status["VmRSS"].split()[0]) * 1024 / 1e6, int(status["Threads"]), handles,
                  [source["frames"] for source in sources], [source["state"] for source in sources],
                  *(max(values) if values else None for values in ages.values()))


def judge(samples, seconds):
    """Verdicts on memory, threads, handles and ages."""
    warm_up = min(WARM_UP[0], WARM_UP[1] * seconds)
    warm = [sample for sample in samples if sample.seconds >= warm_up]
    if len(warm) < 6:
        return [Verdict("enough samples", False, f"{len(warm)} after the warm-up of {warm_up:.0f} s")]
    rss = [sample.rss for sample in warm]
    span = warm[-1].seconds - warm[0].seconds
    growth = slope([sample.seconds for sample in warm], rss) * span
    middle, peak = statistics.median(rss), max(rss)
    verdicts = [
        Verdict(f"memory grows by {MOST_GROWTH:g} MB at most", growth <= MOST_GROWTH,
                f"{growth:+.1f} MB in {span / 60:.1f} min ({3600 * growth / span:+.1f} MB an hour)"),
        Verdict(f"memory peaks {MOST_PEAK:g} MB above its median at most", peak - middle <= MOST_PEAK,
                f"median {middle:.0f} MB, peak {peak:.0f} MB")]
    third = max(1, len(warm) // 3)
    for name, values in (("threads", [sample.threads for sample in warm]),
                         ("handles", [sample.handles for sample in warm])):
        first, last = max(values[:third]), max(values[-third:])
        verdicts.append(Verdict(f"{name} do not grow by more than {MOST_MORE}", last <= first + MOST_MORE,
                                f"at most {first} in the first third, {last} in the last"))
    ages = [sample.age_p99 for sample in warm if sample.age_p99 is not None]
    if ages:
        halves = [statistics.median(part) for part in (ages[:len(ages) // 2], ages[len(ages) // 2:])]
        seen = (f"p99 of a minute {1000 * statistics.median(ages):.0f} ms in the median, {1000 * max(ages):.0f} ms in "
                f"the worst; first half {1000 * halves[0]:.0f} ms, second {1000 * halves[1]:.0f} ms")
    verdicts.append(Verdict(f"age below {MOST_AGE:g} s in 99 of 100 frames of every minute",
                            bool(ages) and max(ages) <= MOST_AGE, seen if ages else "no frame had an age"))
    return verdicts


def judge_output(trial, exit_code):
    """Verdicts on the end and the lines."""
    errors = [line for line in trial.said.splitlines() if "Traceback" in line or line.startswith("error: ")]
    counts = {"frames": 0, "changes of state": 0}
    error = ""
    try:
        for line in read_lines(trial.lines_path):
            counts["changes of state" if line["frame"] is None else "frames"] += 1
    except ValueError as caught:
        error = str(caught)
    return [Verdict("SIGTERM ends it with exit code 143", exit_code == 143 and not errors,
                    ", ".join([f"exit code {exit_code}", *errors[:1]])),
            Verdict("every JSON line is whole, each camera's in order", not error,
                    error or " and ".join(f"{count} {what}" for what, count in counts.items()))]


def judge_returns(samples, plans, rate, seconds):
    """Verdicts on the length of the run, and on frames after each trouble of each camera."""
    verdicts = [Verdict("it runs to the end", samples[-1].seconds >= seconds - 3 * SAMPLE_EVERY,
                        f"{samples[-1].seconds / 60:.1f} min")]
    for camera, troubles in enumerate(plans):
        until = [*(begin for begin, _, _ in troubles[1:]), seconds][:len(troubles)]
        returned = sum(frames_between(samples, camera, end, next_begin) >= 5
                       for (_, end, _), next_begin in zip(troubles, until, strict=True))
        share = samples[-1].frames[camera] / (rate * seconds)
        verdicts.append(Verdict(
            f"camera {camera} is back after each trouble",
            returned == len(troubles) and samples[-1].states[camera] == "live",
            f"after {returned} of {len(troubles)}; {share:.0%} of the pictures that it would have sent without them"))
    return verdicts


def frames_between(samples, camera, begin, end):
    """Frames of a camera from a moment to another, as far as samples tell."""
    counts = [sample.frames[camera] for sample in samples if begin <= sample.seconds <= end]
    return counts[-1] - counts[0] if counts else 0


def slope(times, values):
    """Theil and Sen's robust slope (Sen 1968): the median of the slopes between all pairs of points."""
    times, values = np.asarray(times)[::max(1, len(times) // 500)], np.asarray(values)[::max(1, len(values) // 500)]
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))


def history(samples):
    """Lines of a table: some twenty samples over the whole time."""
    step = max(1, len(samples) // 20)
    return [line_of(sample) for sample in samples[::step]]


def line_of(sample):
    def milliseconds(age):
        return "   –" if age is None else f"{1000 * age:4.0f}"
    return (f"{sample.seconds / 60:5.1f} min  {sample.rss:6.1f} MB  {sample.threads:3d} threads  {sample.handles:3d} "
            f"handles  age p50 {milliseconds(sample.age_p50)} p99 {milliseconds(sample.age_p99)} ms  "
            f"frames {' + '.join(map(str, sample.frames))}  {', '.join(sample.states)}")


def machine():
    """One line on what it ran on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}"


def say(text):
    """At once, since the record may be read while it runs."""
    print(text, flush=True)
