"""Results as lines of text: JSON, one frame a line, and CSV, one person a row. Every line is written whole."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np

from runtime.files import cannot_write, open_appending

JSON_VERSION = 3  # of the JSON lines: counts up where a reader of the old ones would go wrong


class JsonLinesWriter:
    """Writes poses as JSON lines, one frame a line:

        {"version": 3, "source": 0, "state": "live", "frame": 0, "time": 0.0, "persons": [{"id": 1, "box": [left, top,
         right, bottom], "score": 0.93, "keypoints": [[x, y, score], …]}, …], "events": [{"kind": "enter", "id": 1}, …]}

    in pixels of the frame and seconds. An id is a person's own for the whole run, null without tracking. An event's
    kind is "enter", "lost" or "return". Where only a source's state changed, "frame" is null and "reason" says why.
    Where a budget left persons out, "left_out" says how many.
    docs/output.md says more, and what earlier versions had. Every line is written whole, whatever ends the run.
    The path "-" is stdout.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._file = _open_lines(self.path)

    def write(self, result, drawn=None):
        _append_whole(self._file, self.path, poses_json(result) + "\n")

    def close(self):
        self._file.close()


class CsvWriter:
    """Writes poses as CSV, one person a row, in the units of the JSON lines; a first line names the columns.

    Args:
        path: of the file, "-" for stdout; missing folders are made, a file of this name is replaced.
        names: the K keypoints' names (`pose.schema.names`).

    Frames without persons have no row; a change of a source's state has one, with source, state and time only. A
    frame's rows are written whole or not at all, whatever ends the run.
    """

    def __init__(self, path, names):
        self.path = Path(path)
        self._file = _open_lines(self.path)
        points = [f"{name}_{value}" for name in names for value in ("x", "y", "score")]
        self._columns = 10 + len(points)
        _append_whole(self._file, self.path, _csv_rows(
            [["source", "state", "frame", "time", "id", "score", "left", "top", "right", "bottom", *points]]))

    def write(self, result, drawn=None):
        if result.frame is None:
            _append_whole(self._file, self.path, _csv_rows(
                [[result.source, result.state, "", round(result.time, 4), *[""] * (self._columns - 4)]]))
        elif len(result.poses):
            _append_whole(self._file, self.path, _csv_rows(
                [result.source, result.state, result.frame.index, round(result.time, 4), person["id"], person["score"],
                 *person["box"], *(value for point in person["keypoints"] for value in point)]
                for person in _persons(result)))

    def close(self):
        self._file.close()


def poses_json(result):
    """One frame's poses, or one change of a source's state, as a line of JSON: JsonLinesWriter says what is in it."""
    frame = None if result.frame is None else result.frame.index
    line = {"version": JSON_VERSION, "source": result.source, "state": result.state, "frame": frame,
            "time": round(result.time, 4), "persons": _persons(result),
            "events": [{"kind": event.kind, "id": event.id} for event in result.events]}
    if frame is None:
        line["reason"] = result.reason
    if result.left_out:
        line["left_out"] = result.left_out
    return json.dumps(line)


def _persons(result):
    """A dict for each person: pixels to a hundredth, scores to a thousandth."""
    poses = result.poses
    ids = [None] * len(poses) if result.ids is None else result.ids.tolist()
    return [
        {"id": id, "box": _rounded(box, 2), "score": round(float(score), 3),
         "keypoints": [[*_rounded(point[:2], 2), round(float(point[2]), 3)] for point in points]}
        for id, box, score, points in zip(ids, poses.boxes, poses.box_scores, poses.keypoints, strict=True)
    ]


def _csv_rows(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rounded(values, digits):
    return [round(float(value), digits) for value in np.asarray(values)]


def is_stdout(path):
    """Whether an output's path means stdout."""
    return str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _open_lines(path):
    """Open a file of lines, an old one emptied, or stdout."""
    if is_stdout(path):
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    file = open_appending(path)
    if path.is_file():  # no pipe, no device
        file.truncate(0)
    return file


def _append_whole(file, path, text):
    """Append to an unbuffered file all of the text or nothing."""
    data = memoryview(text.encode())
    landed = 0
    try:
        while landed < len(data):
            landed += file.write(data[landed:])
    except (OSError, KeyboardInterrupt) as error:
        if landed and file.seekable():  # what went through a pipe is gone
            file.truncate(file.tell() - landed)
        if isinstance(error, KeyboardInterrupt) or isinstance(error, BrokenPipeError) and is_stdout(path):
            raise
        raise cannot_write(path, error) from error
