"""Network cameras on loopback that show rendered people, and that fail on command: for rehearsals and tests.

    with closing(Camera(pictures, rate=5)) as camera:
        …                       # python -m runtime.stream --video CAMERA.URL
        camera.mode = "gone"    # pulls the plug; "live" puts it back
"""

import contextlib
import http.server
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from runtime.errors import BadInput
from runtime.walkers import render_clip
from runtime.walkers.compose import FPS

MODES = ("live", "silent", "gone", "garbage", "broken", "large")
KINDS = {"mjpeg": "multipart/x-mixed-replace; boundary=frame", "mpegts": "video/mp2t"}
TS_PACKET = 188  # bytes, ISO/IEC 13818-1
BROKEN_SHARE = 0.02  # of a picture's bytes, replaced by others


def render_pictures(count, rate, size=(640, 480), persons=3, seed=0):
    """`count` (H, W, 3) uint8 BGR pictures of people who move at the speed of life at `rate` pictures a second."""
    step = max(1, round(FPS / rate))
    return [picture for picture, _ in itertools.islice(
        render_clip(step * count, size, seed, persons), 0, None, step)]


class Camera:
    """A camera that sends its pictures again and again, at its own pace, to whoever connects by HTTP.

    Args:
        pictures: list of (H, W, 3) uint8 BGR.
        rate: pictures a second.
        kind: "mjpeg", JPEGs in a multipart stream; or "mpegts", MPEG-4 in a transport stream.

    Attributes:
        url: where it is.
        mode: what it does from now on, open connections included. "live": it works. "silent": connections stay open
            and nothing comes. "gone": connections are cut, and new ones too. "garbage": noise instead of a stream.
            "broken": pictures with a few wrong bytes. "large": pictures of twice the width and height.
        connections: how many there have been.
    """

    def __init__(self, pictures, rate, kind="mjpeg"):
        encode = {"mjpeg": _jpeg_parts, "mpegts": _transport_stream}[kind]
        large = [cv2.resize(picture, None, fx=2, fy=2) for picture in pictures[:10]]
        self._parts = {"live": encode(pictures, rate), "large": encode(large, rate)}
        rng = np.random.default_rng(0)
        self._parts["broken"] = [_damaged(part, rng) for part in self._parts["live"]]
        self._parts["garbage"] = [rng.integers(0, 256, 2000, np.uint8).tobytes() for _ in range(20)]
        self._rate, self._kind = rate, kind
        self.mode = "live"
        self.connections = 0
        self._server = _serve(self._answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{kind}"

    def close(self):
        """Cut all connections."""
        self.mode = "gone"
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler):
        self.connections += 1
        while self.mode == "silent":
            time.sleep(0.05)
        if self.mode == "gone":
            return
        handler.send_response(200)
        handler.send_header("Content-Type", KINDS[self._kind])
        handler.end_headers()
        due = time.monotonic()
        for number in itertools.count():
            while (mode := self.mode) == "silent":
                time.sleep(0.05)
            if mode == "gone":
                return
            parts = self._parts[mode]
            handler.wfile.write(parts[number % len(parts)])
            due = max(due + 1 / self._rate, time.monotonic() - 1)  # after a pause what was missed is not made up for
            time.sleep(max(0.0, due - time.monotonic()))


def _serve(answer):
    """A running HTTP server on loopback whose GET is `answer(handler)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.1,), name="camera", daemon=True).start()
    return server


def _jpeg_parts(pictures, rate):
    """Each picture as a part of a multipart stream."""
    encoded = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
    return [b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)
            for data in encoded]


def _transport_stream(pictures, rate):
    """The pictures as MPEG-TS, cut into as many pieces of whole packets."""
    height, width = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.ts"
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        with _quiet_libraries():
            video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, rate, (width, height))
        if not video.isOpened():
            raise BadInput("this OpenCV writes no MPEG-TS: install opencv-python-headless from PyPI")
        for picture in pictures:
            video.write(picture)
        video.release()
        data = path.read_bytes()
    edges = np.linspace(0, len(data) // TS_PACKET, len(pictures) + 1).astype(int) * TS_PACKET
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@contextlib.contextmanager
def _quiet_libraries():
    """Without what C code writes to stderr: OpenCV names a tag that MPEG-TS has no place for."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _damaged(part, rng):
    """A part with some bytes replaced, those of its first 200 excepted: multipart headers are not the picture."""
    data = np.frombuffer(part, np.uint8).copy()
    hit = rng.random(len(data)) < BROKEN_SHARE
    hit[:200] = False
    data[hit] = rng.integers(0, 256, hit.sum(), np.uint8)
    return data.tobytes()
