"""Where pictures go: a video, a folder of images, a window. Poses as text: lines.py; to others: serve.py and send.py.

Each writer has `write(result, drawn)`, result from the pipeline and drawn its (H, W, 3) uint8 BGR picture with the
skeletons (None where the result has no frame), and `close()`. A write that did not land raises BadInput; what landed
before is kept and playable.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import cv2

from runtime.crop import letterbox
from runtime.errors import BadInput
from runtime.files import cannot_write, make_folder, open_appending

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "FMP4"}  # MPEG-4: H.264 is not in OpenCV's wheels
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
        open_appending(path).close()

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
            raise cannot_write(path, error) from error

    def close(self):
        """Every image is complete once written."""


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
        raise cannot_write(path, error) from error
    return room
