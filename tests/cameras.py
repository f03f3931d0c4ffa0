"""Servers on loopback whose answers are up to the test, among them network cameras."""

import contextlib
import http.server
import itertools
import threading
import time

import cv2
import numpy as np


@contextlib.contextmanager
def served(answer):
    """A server on loopback whose GET is `answer(handler)`; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

        def do_HEAD(self):
            if not hasattr(answer, "head"):
                self.send_error(501)
            else:
                answer.head(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that server_close waits for the answers under way
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send_camera(frames, fps, size=(64, 48), silent=0.0):
    """A network camera: JPEGs in a multipart stream, the index as the picture's grey value.

    silent: seconds for which nothing comes, after half of the frames.
    """
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for index in range(frames):
            time.sleep(silent * (index == frames // 2))
            picture = cv2.imencode(".jpg", np.full((size[1], size[0], 3), index % 256, np.uint8))[1].tobytes()
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                                % (len(picture), picture))
            time.sleep(1 / fps)
    return answer


def in_turn(*answers):
    """A camera that treats each connection differently, the last answer again and again."""
    turns = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda handler: next(turns)(handler)
