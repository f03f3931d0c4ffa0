"""Live sources that break off: real streams on loopback that end, stall, send garbage, change size and come back."""

import itertools
import threading
import time

import numpy as np
import pytest

from runtime.errors import BadInput
from runtime.frames import Frame, open_source, open_url
from runtime.reconnect import Reconnecting, StateChange
from tests.test_frames import send_camera, served


def in_turn(*answers):
    """A camera that treats each connection differently, the last answer again and again."""
    turns = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda handler: next(turns)(handler)


def refuse(handler):
    handler.send_error(503)


def send_garbage(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    handler.wfile.write(bytes(range(256)) * 400)


def send_broken_pictures(handler):
    """The wrapping of pictures, and noise in it."""
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    for _ in range(20):
        handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 4000\r\n\r\n" + noise + b"\r\n")
        time.sleep(0.01)


def reconnecting(address, timeout=10.0, **options):
    return Reconnecting(lambda: open_url(f"{address}/live", timeout), "the camera", **options)


def take(source, enough):
    """Frames and changes up to the first of which `enough(frames, changes)`."""
    frames, changes = [], []
    for given in source:
        (changes if isinstance(given, StateChange) else frames).append(given)
        if enough(frames, changes):
            break
    source.close()
    return frames, changes


def test_a_camera_that_dies_is_opened_again_until_it_is_back():
    """It ends, refuses, sends garbage, sends broken pictures, and comes back with larger ones."""
    second = send_camera(frames=500, fps=50, size=(96, 80))
    answers = in_turn(send_camera(frames=30, fps=50), refuse, send_garbage, send_broken_pictures, second)
    with served(answers) as address:
        source = reconnecting(address, pauses=(0.05, 0.1))
        frames, changes = take(source, lambda frames, changes: frames and frames[-1].image.shape == (80, 96, 3)
                               and len(frames) > 40)
    states = [change.state for change in changes]
    assert states[-1] == "live" and set(states[:-1]) == {"lost"} and len(states) >= 4
    assert " stopped after" in changes[0].reason and changes[0].reason.endswith("tried again in 0.05 s")
    assert "does not open" in changes[1].reason and changes[1].reason.endswith("tried again in 0.1 s")
    assert "without, now 96x80 pixels, 64x48 before" in changes[-1].reason
    assert all(change.anew for change in changes)
    assert all("\n" not in change.reason for change in changes)
    times = [frame.time for frame in frames]
    assert times == sorted(set(times)) and frames[0].time == 0
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    values = [round(float(frame.image.mean())) for frame in frames]
    before = [value for value, frame in zip(values, frames, strict=True) if frame.image.shape == (48, 64, 3)]
    assert before == sorted(set(before)) and len(before) > 20  # each picture once, as it was sent: none was invented


def test_a_pause_of_the_camera_is_told_and_over_with_the_next_frame():
    with served(send_camera(frames=100, fps=50, silent=0.8)) as address:
        source = reconnecting(address, stale_after=0.3)
        frames, changes = take(source, lambda frames, changes: len(changes) >= 2 and len(frames) > 60)
    assert [change.state for change in changes] == ["stale", "live"]
    assert changes[0].reason == "the camera: no frame for 0.3 s"
    assert not any(change.anew for change in changes)  # the same connection: who was there may still be
    gap = max(np.diff([frame.time for frame in frames]))
    assert 0.3 < changes[1].time - changes[0].time < gap


def test_a_camera_that_falls_silent_is_stale_then_lost_then_back():
    with served(in_turn(send_camera(frames=40, fps=50, silent=2.0), send_camera(frames=400, fps=50))) as address:
        source = reconnecting(address, timeout=0.7, pauses=(0.05,), stale_after=0.3)
        frames, changes = take(source, lambda frames, changes: changes and changes[-1].state == "live")
    assert [change.state for change in changes][:2] == ["stale", "lost"]
    assert len(frames) >= 15


@pytest.mark.parametrize("moment", ["reading", "pausing", "opening"])
def test_stopping_is_at_once(moment):
    over = threading.Event()

    def silent(handler):
        if moment == "reading":
            send_camera(frames=10, fps=50)(handler)
        over.wait(20)

    answer = refuse if moment == "pausing" else silent
    with served(answer) as address:
        source = reconnecting(address, pauses=(60,), stale_after=0.2)
        stopping = threading.Timer(0.8, source.stop)
        stopping.start()
        start = time.perf_counter()
        changes = [given for given in source if isinstance(given, StateChange)]
        took = time.perf_counter() - start
        over.set()
        stopping.join()
        source.close()
    assert changes[-1].state == ("lost" if moment == "pausing" else "stale")
    assert took < 5


def test_without_pauses_a_break_is_an_error():
    with served(send_camera(frames=20, fps=50)) as address:
        source = reconnecting(address, pauses=())
        with pytest.raises(BadInput, match=r" stopped after \d+ frames: check the camera or the network$"):
            list(source)
        source.close()


def test_an_opened_source_is_used_first():
    with served(in_turn(send_camera(frames=500, fps=50), refuse)) as address:
        source = Reconnecting(lambda: open_source(video=f"{address}/live"), "the camera",
                              opened=open_source(video=f"{address}/live"))
        frames, changes = take(source, lambda frames, changes: len(frames) > 5)
    assert not changes and source.live and source.total is None


def test_no_credentials_anywhere(capfd):
    def turned_away():
        return open_source(video="rtsp://admin:pa/s#s@127.0.0.1:1/live?token=abc")  # nothing listens there

    source = Reconnecting(turned_away, "the camera", pauses=(0.01,))
    _, changes = take(source, lambda frames, changes: len(changes) == 3)
    for change in changes:
        assert change.state == "lost" and "rtsp://… does not open" in change.reason
        assert not any(secret in change.reason for secret in ("admin", "pa/s", "s#s", "abc", "live"))
    assert capfd.readouterr() == ("", "")  # OpenCV and FFmpeg keep quiet


def test_a_bug_is_no_reason_to_try_again():
    def broken():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(Reconnecting(broken, "the camera"))


class Memory:
    """A camera that gives a few frames and is unplugged."""

    live = True
    fps = 100.0

    def __iter__(self):
        for index in range(5):
            time.sleep(0.01)
            yield Frame(index, index / 100, np.zeros((4, 4, 3), np.uint8), f"{index:06d}")
        raise BadInput("unplugged")

    def close(self):
        pass


@pytest.mark.parametrize(("steady_for", "expected"), [
    (0.02, ["0.01 s", "0.02 s", "0.03 s", "0.03 s", "0.01 s", "0.02 s"]),
    (10, ["0.01 s", "0.02 s", "0.03 s", "0.03 s", "0.03 s", "0.03 s"]),  # a few frames are no camera that is back
])
def test_pauses_grow_and_begin_anew_after_a_while_of_frames(steady_for, expected):
    opened = iter([Memory(), None, None, None, Memory(), None])

    def reopen():
        source = next(opened, None)
        if source is None:
            raise BadInput("camera 0 does not open")
        return source

    source = Reconnecting(reopen, "the camera", pauses=(0.01, 0.02, 0.03), steady_for=steady_for)
    _, changes = take(source, lambda frames, changes: len(changes) == 7)
    pauses = [change.reason.partition("again in ")[2] for change in changes if change.state == "lost"]
    assert pauses == expected


class Slow(Memory):
    """A camera that sends a picture now and then."""

    def __iter__(self):
        for index in range(6):
            time.sleep(0.2)
            yield Frame(index, index / 5, np.zeros((4, 4, 3), np.uint8), f"{index:06d}")
        time.sleep(1.5)
        raise BadInput("unplugged")


def test_a_slow_camera_is_not_stale_between_its_frames():
    source = Reconnecting(Slow, "the camera", pauses=(60,), stale_after=0.1)
    frames, changes = take(source, lambda frames, changes: changes and changes[-1].state == "lost")
    states = [change.state for change in changes]
    assert len(frames) == 6 and states[-2:] == ["stale", "lost"]
    assert states[:-2] in ([], ["stale", "live"], ["stale", "live"] * 2)  # before it knows the camera
    assert changes[-2].time > frames[-1].time + 0.4
