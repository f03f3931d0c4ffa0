"""Where frames come from: a camera, a video file, a URL, a pipe, a folder of images."""

import os
import re
import select
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# FFmpeg's chatter about damaged streams would bury our one line. It is read when FFmpeg is first used.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from runtime.containers import counts_frames, is_file_on_server, is_trimmed  # noqa: E402
from runtime.errors import BadInput  # noqa: E402

if "OPENCV_LOG_LEVEL" not in os.environ:
    set_log_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4, 5
    set_log_level(0)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
FPS_WITHOUT_CLOCK = 25.0  # for images, and for cameras and streams that do not say
URL_TIMEOUT = 10.0  # seconds
FILE_TIMEOUT = 2.0  # seconds for a server to say that what has no duration is a file


@dataclass
class Frame:
    """One picture.

    Attributes:
        index: 0, 1, 2 … as captured; a live source has gaps where the pipeline was too slow.
        time: seconds since the first frame: the file's time stamps, or the clock of a live source.
        image: (H, W, 3) uint8, BGR.
        name: the image's file name, "000012" for frame 12 of a video or camera.
    """

    index: int
    time: float
    image: np.ndarray
    name: str


def open_source(camera=None, video=None, images=None):
    """Open one of: a camera number, a video path or URL or "-" for stdin, a folder of images.

    Every source is iterated once for its Frames, and has `label` (for messages, free of passwords), `fps`,
    `total` (frames, None where unknown), `live` (frames that nobody fetches in time are lost) and `close()`. One whose
    next frame may be long in coming has `stop()`, which ends the iteration from another thread.

    Raises:
        BadInput: also while iterating, when the source breaks off; the frames before have then been given out.
    """
    if camera is not None:
        return open_camera(camera)
    if video == "-":
        return PipedVideo(sys.stdin)
    if video is not None:
        return open_url(video) if "://" in str(video) else open_video(video)
    return ImageFolder(images)


def open_camera(number):
    """The camera of this number, as a live Video."""
    if number < 0:  # OpenCV would take the process down
        raise BadInput(f"camera {number} is below 0: give 0 for the first")
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        devices = ", ".join(sorted(map(str, Path("/dev").glob("video*"))))
        raise BadInput(f"camera {number} does not open: " + (
            f"choose another of {devices}, and see that no other program uses it" if devices
            else "this machine has no /dev/video*; connect a camera, or give --video or --images"))
    return Video(capture, f"camera {number}", live=True)


def open_video(path):
    """A video file: every frame is given out."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"video {path} is a folder: give --images for a folder of images")
    if not path.is_file():
        if "@" in str(path) or re.match(r"\w\w+:", str(path)):  # it may hold a password
            raise BadInput("video does not exist: check the path, or write the address as rtsp://… or http://…")
        raise BadInput(f"video {path} does not exist: check the path")
    # An absolute path, since FFmpeg would read "a:b.mp4" as a protocol.
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise BadInput(f"{path} is no video that can be read: an incomplete copy, or another kind of file")
    return Video(capture, str(path), live=False, counts_frames=counts_frames(path), trimmed=is_trimmed(path))


def open_url(url, timeout=URL_TIMEOUT):
    """A URL: a file on a server gives out every frame, a live stream only the newest.

    timeout: seconds without an answer, after which it is given up.
    """
    label = hide_secrets(url)
    options = [cv2.CAP_PROP_N_THREADS, 1, cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1000 * timeout),
               cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(1000 * timeout)]
    capture = cv2.VideoCapture(str(url), cv2.CAP_FFMPEG, options)
    if not capture.isOpened():
        raise BadInput(f"{label} does not open: no answer, no access, or no video there; try it in a video player")
    # A file's length can be told; a camera's stream has none. Nor has a file without an index, of which servers know.
    live = capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    if live and str(url).lower().startswith(("http://", "https://")):
        live = not is_file_on_server(url, min(timeout, FILE_TIMEOUT))
    return Video(capture, label, live)


def hide_secrets(url):
    """Scheme, host and port of a URL, for messages: user, path and query may all hold a password.

    Where a later @ leaves open whether the password went on over signs like / the host is not shown either.
    """
    scheme, _, rest = str(url).partition("://")
    authority = re.split("[/?#]", rest)[0]
    if "@" in rest[len(authority):] and re.search("[:@]", authority):
        return f"{scheme}://…"
    return f"{scheme}://{authority.rpartition('@')[2]}"


class Video:
    """Frames of a video file, a stream or a camera, through OpenCV.

    Args:
        capture: the opened cv2.VideoCapture; closed by `close()`.
        label: what messages call it.
        live: its frames come at their own pace.
        counts_frames: the file stores how many frames it has; other files' numbers are estimates.
        trimmed: some of them are hidden.
    """

    def __init__(self, capture, label, live, counts_frames=False, trimmed=False):
        self._capture = capture
        self.label = label
        self.live = live
        self._counts_frames = counts_frames
        self._trimmed = trimmed
        fps = capture.get(cv2.CAP_PROP_FPS)
        known = 0.1 <= fps <= 240  # beyond that it is a clock's rate: 1000 in browsers' WebM
        self.fps = fps if known else FPS_WITHOUT_CLOCK
        total = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = round(total) if total > 0 and known and not live else None

    def __iter__(self):
        index, seconds, start = 0, 0.0, None
        while True:
            landed, image = self._capture.read()
            if not landed:
                break
            if self.live:
                now = time.perf_counter()
                start = start or now
                seconds = now - start
            elif index:
                stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                seconds = stamp if stamp > seconds else seconds + 1 / self.fps  # raw streams have no stamps
            yield Frame(index, seconds, image, f"{index:06d}")
            index += 1
        self._check_end(index, seconds)

    def close(self):
        self._capture.release()

    def _check_end(self, frames, seconds):
        """OpenCV reports a break like an end; the number of frames in the header tells them apart."""
        if self.live:
            raise BadInput(f"{self.label} stopped after {frames} frames: check the camera or the network")
        if not self.total or self._trimmed:
            return
        # Estimates are duration times rate: of a variable rate only the time counts, and a second is tolerance.
        reached = frames if self._counts_frames else max(frames, seconds * self.fps + 1) + self.fps
        if reached < self.total:
            raise BadInput(f"{self.label} ended at frame {frames} of {self.total}: it was cut off or is damaged; "
                           "fetch it again (all frames before are done)")


class PipedVideo(Video):
    """The video that another program sends through a pipe. No frame is lost: the other program has to wait.

    A read cannot be interrupted while it waits for the sender, so FFmpeg gets a pipe of our own that can be ended.

    file: what to read, `sys.stdin`.
    """

    def __init__(self, file):
        if sys.platform == "win32":
            raise BadInput("a video on stdin can be read on Linux and macOS only: name a file or a URL")
        if file is None or file.isatty():
            raise BadInput("no video on stdin: pipe one in, as by `ffmpeg -i … -f mpegts - | …`, or name a file")
        self._inner: int | None
        self._stopped: int | None
        self._inner, outer = os.pipe()
        wake, self._stopped = os.pipe()
        threading.Thread(target=_pump, name="stdin", args=(file.fileno(), outer, wake), daemon=True).start()
        capture = cv2.VideoCapture(f"pipe:{self._inner}", cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        super().__init__(capture, "stdin", live=False)
        if not capture.isOpened():
            self.close()
            raise BadInput("what comes on stdin is no video that can be read from a pipe: send MPEG-TS, Matroska or "
                           "MJPEG, as by `ffmpeg -i … -f mpegts - | …`")

    def stop(self):
        """End the iteration, from any thread, even while it waits for the sender."""
        if self._stopped is not None:
            os.close(self._stopped)
            self._stopped = None

    def close(self):
        super().close()
        self.stop()
        if self._inner is not None:
            os.close(self._inner)
            self._inner = None


def _pump(source, target, wake):
    """Thread: copy what comes, until its end or until the other end of `wake` is closed."""
    os.set_blocking(target, False)
    data = b""
    try:
        while True:
            # A pipe that nobody reads any more counts as writable, and writing to it raises.
            reading, writing, _ = select.select([wake] if data else [wake, source], [target] if data else [], [])
            if wake in reading:
                break
            if writing:
                data = data[os.write(target, data):]
            elif not (data := os.read(source, 1 << 16)):
                break
    except BrokenPipeError:
        pass  # closed
    finally:
        os.close(target)
        os.close(wake)


class ImageFolder:
    """The images of a folder in natural order: frame2 before frame10."""

    live = False
    fps = FPS_WITHOUT_CLOCK

    def __init__(self, folder):
        folder = Path(folder)
        self.label = str(folder)
        if not folder.is_dir():
            raise BadInput(f"folder {folder} does not exist or is a file: give a folder of images")
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise BadInput(f"folder {folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._files = sorted(files, key=natural_order)
        self.total = len(files)

    def __iter__(self):
        for index, path in enumerate(self._files):
            yield Frame(index, index / self.fps, read_image(path), path.name)

    def close(self):
        """Nothing stays open between images."""


def read_image(path):
    """Image file → (H, W, 3) uint8 BGR, turned upright as its EXIF says.

    Raises:
        BadInput: missing, cut off, or no image.
    """
    return _decode(read_bytes(path), cv2.IMREAD_COLOR, path)


def read_bytes(path, offset=0, length=-1):
    """Part of an image file, the whole by default: (N,) uint8. A file that cannot be read is BadInput."""
    try:
        return np.fromfile(path, np.uint8, length, offset=offset)
    except OSError as error:
        raise BadInput(f"image {path} cannot be read: {error.strerror}") from error


# By how much OpenCV divides the sides of a JPEG while it decodes, which takes less time.
REDUCTIONS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
              8: cv2.IMREAD_REDUCED_COLOR_8}


def decode_labelled(data, size, name, reduction=1):
    """An image that somebody labelled, in the pixels that the labels mean.

    COCO labels the pixels as stored, other tools the picture turned upright by its EXIF: the labelled size tells which;
    where there is none, it is as stored.

    Args:
        data: (N,) uint8, the file.
        size: labelled width and height, or None.
        name: for the error.
        reduction: 1, 2, 4 or 8, by which both sides are to be divided.

    Returns:
        (H, W, 3) uint8 BGR, sides rounded up, and by what they are divided really: `reduction`, or 1.

    Raises:
        BadInput: cut off, no image, or of another size than labelled.
    """
    if bytes(data[:2]) != b"\xff\xd8":  # of other formats OpenCV decodes all pixels anyway
        reduction = 1
    image = _decode(data, REDUCTIONS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION, name)
    if size and image.shape[1::-1] != tuple(-(-side // reduction) for side in size):
        reduction, image = 1, _decode(data, cv2.IMREAD_COLOR, name)
        if image.shape[1::-1] != tuple(size):
            raise BadInput(f"image {name} is {image.shape[1]}x{image.shape[0]} pixels but was annotated at "
                           f"{size[0]}x{size[1]}; give the images that the annotations were made on")
    return image, reduction


def _decode(data, flags, name):
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        image = None
    if image is None:
        raise BadInput(f"image {name} cannot be decoded: no image, empty or cut off; replace or remove it")
    return image


def natural_order(path):
    """Sort key by name with digits as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)], path.name
