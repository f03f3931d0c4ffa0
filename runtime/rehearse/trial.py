"""`python -m runtime.stream` on trial: started as a process of its own, watched from outside, ended, looked into."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2

from runtime.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN = 20.0  # seconds from a signal to the end of the process
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Missed(Exception):
    """Something did not do what it should; says what it did."""


class Trial:
    """The command, running.

    Args:
        folder: its current folder, where its outputs go; `said.txt` and `printed.txt` take what it says.
        arguments: of `python -m runtime.stream`, without --jsonl, which is given anyway: `poses.jsonl`.
        before: function called in the new process before the command; POSIX only.

    Attributes:
        process: subprocess.Popen.
    """

    def __init__(self, folder, *arguments, before=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines_path = self.folder / "poses.jsonl"
        command = [sys.executable, "-m", "runtime.stream", *map(str, arguments), "--jsonl", self.lines_path.name]
        # A bar drawn ten times a second fills a log; files are read by nobody but us, so that no pipe can fill up.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_MININTERVAL": "5"}
        with open(self.folder / "said.txt", "wb") as said, open(self.folder / "printed.txt", "wb") as printed:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=printed, stderr=said, preexec_fn=before)

    @property
    def said(self):
        """What it wrote to stderr so far."""
        return (self.folder / "said.txt").read_text(errors="replace")

    @property
    def printed(self):
        """What it wrote to stdout so far."""
        return (self.folder / "printed.txt").read_text(errors="replace")

    @property
    def last_words(self):
        """Its error line, or else the last line that it said."""
        lines = [line.rpartition("\r")[2] for line in self.said.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "nothing")

    def lines(self):
        """The whole JSON lines so far, as dicts."""
        text = self.lines_path.read_text() if self.lines_path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, enough, seconds=60.0):
        """Wait until `enough(lines)`, and return the lines; False where it never is or the command ends before."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            lines = self.lines()
            if enough(lines):
                return lines
            if ended or time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def wait_for_frames(self, count, source=0, seconds=90.0):
        """Wait for so many more frames of a source. Returns the lines, or False."""
        before = len(frames_of(self.lines(), source))
        return self.wait_for(lambda lines: len(frames_of(lines, source)) >= before + count, seconds)

    def end(self, number=signal.SIGTERM, within=ENDS_WITHIN):
        """Send a signal and wait. Returns the exit code; where it does not end in time it is killed, and the code is
        that: -9."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.wait(within)

    def wait(self, within=ENDS_WITHIN):
        """Wait for the end that comes by itself; otherwise as `end`."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def close(self):
        """See that it has ended, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def page(self, seconds=60.0):
        """Address of its web page, once it has said it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.said.replace("\r", "\n").splitlines():
                if line.startswith("page: "):
                    return line.split()[1]
            time.sleep(0.1)
        raise BadInput(f"the stream did not start its web page: {self.last_words}")


def frames_of(lines, source=0):
    """The lines of a source that have a frame."""
    return [line for line in lines if line["source"] == source and line["frame"] is not None]


def states_of(lines, source=0):
    """A source's states as they followed each other, without repeats."""
    states: list[str] = []
    for line in lines:
        if line["source"] == source and line["state"] not in states[-1:]:
            states.append(line["state"])
    return states


def read_lines(path):
    """Each whole JSON line as a dict, one after the other; ValueError at one that is cut off, or whose frame or time
    does not rise above its source's last."""
    last: dict[int, tuple[int, float]] = {}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                raise ValueError(f"line {number}, the last, has no end")
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is cut off") from error
            if line["frame"] is not None:
                before = last.get(line["source"], (-1, -1.0))
                if line["frame"] <= before[0] or line["time"] < before[1]:
                    raise ValueError(f"line {number} is older than one before it")
                last[line["source"]] = line["frame"], line["time"]
            yield line


def playable_frames(path):
    """How many frames OpenCV reads from a video, 0 where it does not open."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = 0
    while video.read()[0]:
        count += 1
    video.release()
    return count


def fetch(address, seconds=5.0):
    """The body of a page, or OSError."""
    with urllib.request.urlopen(address, timeout=seconds) as answer:
        return answer.read()
