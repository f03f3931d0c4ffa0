"""Live sources that break off and are opened again, and what they say meanwhile."""

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from statistics import median

from runtime.errors import BadInput
from runtime.frames import FPS_WITHOUT_CLOCK, Frame

PAUSES = (1.0, 5.0, 10.0, 60.0)  # seconds before each attempt to open it again; the last one again and again
STALE_AFTER = 2.0  # seconds without a frame
STALE_INTERVALS = 3  # of the source's own, where it sends a frame every few seconds only
STEADY_FOR = 10.0  # seconds of frames after which a break is a new one, and pauses begin anew
LAST_READ = 1.0  # seconds for which the end waits for a read
READING = "read"  # first word in the names of threads that read


@dataclass
class StateChange:
    """A source's word that it is now "live", "stale" (no frame for a while) or "lost" (gone, to be tried again).

    Attributes:
        state: which of the three.
        time: seconds on the source's clock.
        reason: one line, without credentials.
        anew: the frames after it have nothing to do with those before.
    """

    state: str
    time: float
    reason: str
    anew: bool = False


@dataclass
class _News:
    """From the reading thread: a frame, or why there are none."""

    arrival: float
    connection: int
    frame: Frame | None = None
    reason: str = ""
    error: Exception | None = None  # that ends it all


class Reconnecting:
    """A live source that is opened again, for ever, whenever it breaks off.

    Like every source it is iterated once; beside Frames, whose index and time go on as if it were one source, it gives
    StateChanges. A thread of its own reads the frames, so that a read that hangs (OpenCV's cannot be interrupted)
    keeps nobody waiting, not even Ctrl-C; that thread ends when its read does.

        source = Reconnecting(lambda: open_source(video="rtsp://camera/stream"), "the camera")

    Args:
        reopen: function that opens the source, or raises BadInput.
        label: for messages, free of passwords.
        opened: the source, where it is open already; without it the first attempt is made at once.
        pauses: seconds before the attempts after a break, the last one again and again; none where a break is to end
            the iteration with its BadInput.
        stale_after: seconds without a frame after which it is "stale", at least: three intervals of its own frames.
        steady_for: seconds for which frames must have come for the pauses to begin anew.
    """

    live = True
    total = None

    def __init__(self, reopen, label, opened=None, pauses=PAUSES, stale_after=STALE_AFTER,
                 steady_for=STEADY_FOR):
        self.label = label
        self.fps = opened.fps if opened else FPS_WITHOUT_CLOCK
        self._reopen, self._opened = reopen, opened
        self._pauses, self._stale_after, self._steady_for = pauses, stale_after, steady_for
        self._waiting: deque[_News] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def __iter__(self):
        opened, self._opened = self._opened, None
        reader = threading.Thread(target=self._read, name=f"{READING} {self.label}", args=(opened,), daemon=True)
        reader.start()
        try:
            yield from self._told()
        finally:
            self.stop()
            reader.join(LAST_READ)

    def stop(self):
        """End the iteration, from any thread, even while it waits."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def close(self):
        """Stop; what is being read is closed once its read has ended."""
        self.stop()
        if self._opened:
            self._opened.close()

    def _told(self):
        """Frames and changes, of what the reading thread says."""
        state, start, last, last_at = "live", None, None, time.perf_counter()
        intervals: deque[float] = deque(maxlen=5)
        while True:
            patience = max(self._stale_after, STALE_INTERVALS * median(intervals) if intervals else 0)
            news = self._next(last_at + patience if state == "live" else None)
            if self._stopped.is_set():
                return
            now = news.arrival if news else time.perf_counter()
            start = now if start is None else start
            if news is None:
                state = "stale"
                yield StateChange(state, now - start, f"{self.label}: no frame for {patience:.3g} s")
            elif news.error is not None:
                raise news.error
            elif news.frame is None:
                state = "lost"
                yield StateChange(state, now - start, news.reason, anew=True)
            else:
                differs = _difference(last, news) if last else ""
                if state != "live" or differs:
                    state = "live"
                    reason = f"{self.label}: frames after {now - last_at:.1f} s without{differs}"
                    anew = bool(differs) or last is None or news.connection != last.connection
                    yield StateChange(state, now - start, reason, anew)
                if last and last.connection == news.connection:
                    intervals.append(now - last_at)
                last, last_at = news, now
                yield replace(news.frame, time=now - start)

    def _next(self, deadline):
        """The oldest news, or None where there is none until then, or at a stop."""
        with self._changed:
            wait = None if deadline is None else max(0.0, deadline - time.perf_counter())
            self._changed.wait_for(lambda: self._waiting or self._stopped.is_set(), wait)
            return self._waiting.popleft() if self._waiting else None

    def _tell(self, news):
        with self._changed:
            if news.frame and self._waiting and self._waiting[-1].frame:
                self._waiting.pop()  # only the newest frame counts
            self._waiting.append(news)
            self._changed.notify_all()

    def _read(self, source):
        """The reading thread: open, read to the end, wait, and again."""
        connection, index, attempts = 0, 0, 0
        first_at = None  # of this connection
        while not self._stopped.is_set():
            try:
                source = source or self._reopen()
                self.fps = source.fps
                for frame in source:
                    if self._stopped.is_set():
                        break
                    frame = replace(frame, index=index, name=f"{index:06d}")
                    now = time.perf_counter()
                    first_at = first_at or now
                    self._tell(_News(now, connection, frame))
                    index, attempts = index + 1, 0 if now - first_at >= self._steady_for else attempts
                broken: Exception = BadInput(f"{self.label} ended after {index} frames")
            except BadInput as error:
                broken = error
            except Exception as error:  # a bug, which the iterating thread raises
                self._tell(_News(time.perf_counter(), connection, error=error))
                return
            finally:
                if source:
                    source.close()
            if not self._pauses:
                self._tell(_News(time.perf_counter(), connection, error=broken))
                return
            pause = self._pauses[min(attempts, len(self._pauses) - 1)]
            self._tell(_News(time.perf_counter(), connection, reason=f"{broken}; tried again in {pause:g} s"))
            self._stopped.wait(pause)
            source, first_at, connection, attempts = None, None, connection + 1, attempts + 1


def _difference(before, after):
    """What is new in the geometry of the frames, or nothing."""
    (height_before, width_before), (height, width) = before.frame.image.shape[:2], after.frame.image.shape[:2]
    if (width, height) == (width_before, height_before):
        return ""
    return f", now {width}x{height} pixels, {width_before}x{height_before} before"
