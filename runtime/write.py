"""Where results go: a video, a folder of images, JSON lines, CSV, a window. Over the network: serve.py and send.py.

Each writer has `write(result, drawn)`, result from the pipeline and drawn its (H, W, 3) uint8 BGR picture with the
skeletons (None where the result has no frame), and `close()`. A write that did not land raises BadInput; what landed
before is kept and playable.
"""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

from runtime.crop import letterbox
from runtime.errors import BadInput

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "FMP4"}  # MPEG-4: H.264 is not in OpenCV's wheels
JSON_VERSION = 3  # of the JSON lines: counts up where a reader of the old ones would go wrong
ENCODER_BUFFER = 512 << 10  # bytes that FFmpeg may still hold back: measured 256 KiB
LONGEST_REPEAT = 5.0  # seconds for which a live video repeats a picture: a camera may be gone for days


def open_output(path, fps, live=False):
    """A writer for drawn frames: a video if the path ends in .mp4, .mov or .avi, a folder of JPEGs without suffix."""
    path = Path(path)
    if path.suffix.lower() in CODECS:
        return VideoWriter(path, fps, live)
    if path.suffix and not path.is_dir():
        raise BadInput(f"output {path} has an unknown suffix: end it in {', '.join(CODECS)}, or give a folder")
    return ImageWriter(path)


class VideoWriter:
    """Writes a video.

    Args:
        path: .mp4, .mov or .avi; missing folders are made, a file of this name is replaced.
        fps: frames per second of the video.
        live: frames come at any time: each is repeated until the next one's time, and those too many are left out,
            so that the video runs at the speed of life. A gap longer than LONGEST_REPEAT seconds is cut out, so
            that a camera that is gone fills no disk. Otherwise every frame is written once.

    The first frame sets the size; others are letterboxed into it.
    """

    def __init__(self, path, fps, live=False):
        self.path = path
        self._fps = fps
        self._live = live
        self._video: cv2.VideoWriter | None = None
        self._written = 0
        self._start = self._last = None
        self._replaces = path.exists()
        _open_file(path).close()

    def write(self, result, drawn):
        if result.frame is None:
            return
        if not self._live:
            self.append(drawn)
            return
        if self._start is None:
            self._start = result.time  # not 0 where the first frames were passed over
        due = round((result.time - self._start) * self._fps)
        if due - self._written > LONGEST_REPEAT * self._fps:
            self._start, due = result.time - self._written / self._fps, self._written
        while self._written < due:
            self.append(self._last)
        if self._written == due:
            self.append(drawn)
        self._last = drawn

    def append(self, picture):
        """Write a (H, W, 3) uint8 BGR picture as the next frame."""
        if self._video is None:
            self._video = self._open(picture)
        self._check_room()
        if picture.shape[1::-1] != self._size:
            picture = letterbox(picture, self._size)[0]
        self._video.write(picture)
        self._written += 1

    def close(self):
        """Finish the file and see that all frames are in it."""
        if self._video is None:
            if not self._replaces:
                self.path.unlink()  # without a frame it would be no video
            return
        self._video.release()
        self._video = None
        written = cv2.VideoCapture(str(self.path.resolve()), cv2.CAP_FFMPEG)
        landed = round(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if landed != self._written:
            raise BadInput(f"{self.path} has {landed} of {self._written} frames: the disk did not take them all; "
                           "choose another place for --out")

    def _open(self, first):
        self._size = first.shape[1::-1]
        self._check_room()
        codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        video = cv2.VideoWriter(str(self.path.resolve()), cv2.CAP_FFMPEG, codec, self._fps, self._size)
        if not video.isOpened():
            raise BadInput(f"{self.path} cannot be written as a video of {self._size[0]}×{self._size[1]} at "
                           f"{self._fps:g} frames per second: choose another --out")
        return video

    def _check_room(self):
        """OpenCV does not tell when a write fails, and without its index, which comes last, a video is lost: so
        stop while there is still room for what FFmpeg holds back, a frame and the index."""
        needed = ENCODER_BUFFER + self._size[0] * self._size[1] + 32 * self._written
        if _room_left(self.path) < needed:
            raise BadInput(f"no space left for {self.path} after {self._written} frames (kept): free some space or "
                           "choose another place for --out")


class ImageWriter:
    """Writes one JPEG a frame, under the name of the image it came from."""

    def __init__(self, folder):
        self.path = folder
        self._names = set()
        make_folder(folder)

    def write(self, result, drawn):
        if result.frame is None:
            return
        name = Path(result.frame.name)
        # a.png and a.jpg of one folder must not overwrite each other
        target = f"{name.stem}.jpg" if f"{name.stem}.jpg" not in self._names else f"{name}.jpg"
        if name.suffix:  # frames of a video have none and are numbered, for weeks if need be
            self._names.add(target)
        path = self.path / target
        try:
            path.write_bytes(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        except OSError as error:
            path.unlink(missing_ok=True)  # half an image would look like a whole one
            raise _cannot_write(path, error) from error

    def close(self):
        """Every image is complete once written."""


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


class Window:
    """Shows the frames; q, Esc or the window's own button sets `closed`."""

    title = "poses (q or Esc ends)"

    def __init__(self):
        if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
            raise BadInput("--show needs an OpenCV with windows: "
                           "`pip uninstall opencv-python-headless && pip install opencv-python`")
        # Asked first, since OpenCV's Qt ends the whole process where there is no display.
        if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            raise BadInput("--show needs a display, and DISPLAY is not set: run it on a desktop, or use --out")
        cv2.namedWindow(self.title, cv2.WINDOW_NORMAL)
        self.closed = self._shown = False

    def write(self, result, drawn):
        if drawn is not None:
            cv2.imshow(self.title, drawn)
            self._shown = True
        self.look()

    def look(self):
        """Whether it is closed; to be asked often, also without pictures, since a window lives by that."""
        pressed = cv2.waitKey(1) & 0xFF
        # Before the first picture, some libraries do not show it yet.
        gone = self._shown and cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        self.closed = self.closed or pressed in (ord("q"), 27) or gone
        return self.closed

    def close(self):
        cv2.destroyAllWindows()


def _rounded(values, digits):
    return [round(float(value), digits) for value in np.asarray(values)]


def is_stdout(path):
    """Whether an output's path means stdout."""
    return str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _open_lines(path):
    """Open a file of lines, an old one emptied, or stdout."""
    if is_stdout(path):
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    file = _open_file(path)
    if path.is_file():  # no pipe, no device
        file.truncate(0)
    return file


def _open_file(path):
    """Open for appending without a buffer, so that an error shows at the write that met it."""
    make_folder(path.parent)
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise _cannot_write(path, error) from error


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
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def whole_file(path):
    """Write a whole file or none: yields the path of another one beside it, which takes its name in the end.

    BadInput where that fails; what `path` held before is kept then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path, data, indent=None):
    """Write a whole JSON file or none; `indent` as for `json.dumps`."""
    with whole_file(path) as part:
        part.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")


def make_folder(folder):
    """Make a folder and those above it, or BadInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path, error):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free some space or choose another place" if full else "choose another place"
    return BadInput(f"{path} cannot be written: {error.strerror}; {advice}")


def _room_left(path):
    """Bytes that the file may still grow by: the disk's, or those of a limit on file sizes (`ulimit -f`)."""
    try:
        room = shutil.disk_usage(path.parent).free
        if sys.platform != "win32":
            import resource

            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            if limit != resource.RLIM_INFINITY:
                room = min(room, limit - path.stat().st_size)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return room
