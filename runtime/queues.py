"""What waits between two stages of the pipeline: a bounded queue for every source."""

import threading
import time
from collections import deque
from math import inf

IDLE_EVERY = 0.05  # seconds without anything new between two calls of `idle`

QUEUE_SIZE = 2  # frames of a file waiting between two stages: enough to smooth jitter
SPARE = 0.003  # seconds by which a live frame may be ready too early
WATCHED = 4  # frames after which a longer wait is believed: one hiccup must not slow the next frames down


class Queues:
    """The queues between two stages, one a source, which either end can shut.

    A file's queue holds QUEUE_SIZE items, a live source's one. A stage begins on an item only where the next ones have
    room for it, so a live source has one frame a stage on its way at most. And where its frames had to wait for the
    stage after, the stage before begins the next one so much later, with a newer frame: a frame's age is then
    the sum of its stages, however much slower one is than the others.

    Args:
        lives: which of the sources are live.
        changed: the Condition that all queues of a pipeline share, since a stage waits for two of them.
        writers: how many threads put, each of which calls `finish`.
        newest_only: of a live source a new item takes the place of the waiting ones that it `replaces`.
    """

    def __init__(self, lives, changed: threading.Condition, writers=1, newest_only=False):
        self._lives = lives
        self._queues: list[deque] = [deque() for _ in lives]
        self._changed = changed
        self._writers = writers
        self._newest_only = newest_only
        self._turn = 0
        self._closed = False
        self._error: BaseException | None = None
        self._holds = [0.0] * len(lives)
        self._slacks: list[deque] = [deque(maxlen=WATCHED) for _ in lives]
        self._next_start = [0.0] * len(lives)

    def put(self, source, item):
        """Wait for room, put the item of a source. False where nobody wants it any more."""
        with self._changed:
            if self._newest_only and self._lives[source]:
                waiting = [old for old in self._queues[source] if not item.replaces(old[0])]
                self._queues[source] = deque(waiting)
            else:
                self._changed.wait_for(lambda: self._closed or not self._writers or self._has_place(source))
            if self._closed or not self._writers:
                return False
            self._queues[source].append((item, time.perf_counter()))
            self._changed.notify_all()
            return True

    def take(self, most, outlet=None, idle=None):
        """Wait for items, and take one each of up to `most` sources, in turn.

        Args:
            most: how many sources at once.
            outlet: Queues that has to have room for what is taken.
            idle: function called again and again while there is nothing; where it returns True, that is the end.

        Returns:
            The items, at least one; none at the end. A writer's error is raised when nothing is left before it.
        """
        with self._changed:
            while not self._closed:
                waits = [outlet.room_in(source) if queue and outlet else 0.0 if queue else inf
                         for source, queue in enumerate(self._queues)]
                turns = [(self._turn + step) % len(waits) for step in range(len(waits))]
                ready = [source for source in turns if waits[source] <= 0][:most]
                if ready:
                    self._turn = ready[-1] + 1
                    self._changed.notify_all()
                    return [self._pop(source) for source in ready]
                if not self._writers and not any(self._queues):
                    if self._error is not None:
                        raise self._error
                    break
                soonest = min(waits)
                if idle is None:
                    self._changed.wait(None if soonest == inf else soonest)
                elif not self._changed.wait(min(soonest, IDLE_EVERY)) and self._call_unlocked(idle):
                    break
            return []

    def _call_unlocked(self, function):
        """A function of the caller's may take its time, and call back."""
        self._changed.release()
        try:
            return function()
        finally:
            self._changed.acquire()

    def room_in(self, source):
        """Seconds until a stage should begin on this source's next item; infinite while there is no place for it."""
        return max(0.0, self._next_start[source] - time.perf_counter()) if self._has_place(source) else inf

    def finish(self, error=None):
        """A writer's end: the reader gets what is left, and when all writers have finished the first error."""
        with self._changed:
            self._writers = max(0, self._writers - 1)
            self._error = self._error or error
            self._changed.notify_all()

    def fail(self, error):
        """The end for all writers."""
        with self._changed:
            self._writers, self._error = 0, error
            self._changed.notify_all()

    def close(self):
        """The reader's end: whoever waits on either side is let go."""
        with self._changed:
            self._closed = True
            for queue in self._queues:
                queue.clear()
            self._changed.notify_all()

    def _has_place(self, source):
        return len(self._queues[source]) < (1 if self._lives[source] else QUEUE_SIZE)

    def _pop(self, source):
        item, since = self._queues[source].popleft()
        if self._lives[source] and not self._newest_only:
            now = time.perf_counter()
            waited = now - since
            # Ready in time for the stage after, but hardly: it may have been waiting, so begin earlier.
            slack = self._holds[source] + waited if waited > SPARE else 0.75 * self._holds[source]
            self._slacks[source].append(slack)
            self._holds[source] = max(0.0, min(self._slacks[source]) - SPARE)
            self._next_start[source] = now + self._holds[source]
        return item
