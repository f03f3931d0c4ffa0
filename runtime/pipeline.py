"""The order of things: capture → detect → pose, track, smooth → the caller, who draws and writes.

One thread a stage.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from runtime.frames import Frame
from runtime.keypoints import Poses
from runtime.track import FOLLOWED_FOR, Event

QUEUE_SIZE = 2  # frames waiting between two stages: enough to smooth jitter, few enough to stay fresh


@dataclass
class Result:
    """One frame with its persons.

    Attributes:
        frame: Frame, its image untouched.
        poses: Poses in pixels of the frame; with a tracker only those that are tracked.
        timings: seconds on `time.perf_counter`: "capture" (a live camera's includes waiting for it), "detect" (only
            where it ran), "pose", "track" (smoothing included, only with a tracker), and "latency", from the frame's
            arrival to this result's.
        ids: (N,) int, who is who; None without a tracker.
        events: Events of this frame.
        unsmoothed: (N, K, 3) keypoints before smoothing; None without a smoother.
    """

    frame: Frame
    poses: Poses
    timings: dict[str, float]
    ids: np.ndarray | None = None
    events: list[Event] = field(default_factory=list)
    unsmoothed: np.ndarray | None = None


def stream(source, detector, pose, tracker=None, smoother=None, detect_every: int | str = 1) -> Iterator[Result]:
    """Run a source through detection and pose estimation, stages overlapping, results in order.

    Files and folders lose no frame; of a live source only the newest frame is taken. What a stage raises, the
    caller gets after the results before it. Leaving the loop early stops the threads.

        from runtime.detect import PersonDetector
        from runtime.engine import open_engine
        from runtime.frames import open_source
        from runtime.pipeline import stream
        from runtime.pose import PoseEstimator
        from runtime.track import Tracker

        detector = PersonDetector(open_engine("models/person.onnx", "person"))
        pose = PoseEstimator(open_engine("models/pose.onnx", "pose"))
        for result in stream(open_source(video="street.mp4"), detector, pose, Tracker(pose.schema.sigmas)):
            print(result.frame.time, result.ids, result.poses.keypoints)  # or draw them: runtime.draw

    Args:
        source: from `open_source`; stays open, it is the caller's.
        detector: PersonDetector, or any function frame image → boxes, scores.
        pose: PoseEstimator, or any function frame image, boxes → keypoints.
        tracker: a new Tracker, to give persons ids; None for pictures that have nothing to do with each other.
        smoother: a new Smoother, to steady what is tracked.
        detect_every: N, run the detector on every N-th frame only; between, the tracker says where persons are, and new
            ones are not found. "auto": so often that it is busy for half of the source's time at most.
    """
    if tracker is None and (smoother is not None or detect_every != 1):
        raise ValueError("smoothing, and frames without detection, need a tracker")
    schedule = _Schedule(detect_every)

    def detect(item):
        frame, timings, arrival = item
        if not schedule.is_due(frame.time):
            return frame, timings, arrival, None
        start = time.perf_counter()
        found = detector(frame.image)
        timings["detect"] = time.perf_counter() - start
        schedule.took(timings["detect"], frame.time)
        return frame, timings, arrival, found

    def estimate(item):
        frame, timings, arrival, found = item
        start = time.perf_counter()
        boxes, scores = found or tracker.predict(frame.time)
        keypoints = pose(frame.image, boxes)
        keypoints[~np.isfinite(keypoints).all(2)] = 0  # half precision may overflow: not sure at all
        poses = Poses(boxes, scores, keypoints)
        end = time.perf_counter()
        timings["pose"] = end - start
        result = Result(frame, poses, timings)
        if tracker:
            result.poses, result.ids, result.events = tracker.update(frame.time, poses, detected=found is not None)
            if smoother:
                result.unsmoothed = result.poses.keypoints
                result.poses.keypoints = smoother(frame.time, result.ids, result.poses)
            timings["track"] = time.perf_counter() - end
        return result, arrival

    captured, detected, posed = _Queue(newest_only=source.live), _Queue(), _Queue()
    threads = [
        threading.Thread(target=_run_stage, name="capture", args=(_capture(source), lambda item: item, captured)),
        threading.Thread(target=_run_stage, name="detect", args=(captured, detect, detected)),
        threading.Thread(target=_run_stage, name="pose", args=(detected, estimate, posed)),
    ]
    for thread in threads:
        thread.start()
    try:
        for result, arrival in posed:
            result.timings["latency"] = time.perf_counter() - arrival
            yield result
    finally:
        for queue in (captured, detected, posed):
            queue.close()
        for thread in threads:
            thread.join()


class _Schedule:
    """Which frames the detector runs on: every N-th, or with "auto" as many as leave it idle half of the time.

    "auto" goes by the source's own clock, so that a file is treated as it would be live.
    """

    def __init__(self, every):
        self._every = every
        self._frames = 0
        self._idle_until = 0.0

    def is_due(self, frame_time):
        self._frames += 1
        if self._every == "auto":
            return frame_time >= self._idle_until
        return (self._frames - 1) % self._every == 0

    def took(self, seconds, frame_time):
        # A box is followed for a while only; who is not looked for in time would be lost and return all the time.
        self._idle_until = frame_time + min(2 * seconds, 0.9 * FOLLOWED_FOR)


def _capture(source):
    """(frame, timings, arrival on the clock) of every frame."""
    start = time.perf_counter()
    for frame in source:
        arrival = time.perf_counter()
        yield frame, {"capture": arrival - start}, arrival
        start = time.perf_counter()


def _run_stage(inlet, work, outlet):
    """Thread of one stage. An exception travels down the queues, behind the results before it."""
    try:
        for item in inlet:
            if not outlet.put(work(item)):
                break
        outlet.finish()
    except Exception as error:
        outlet.finish(error)
    finally:
        inlet.close()


class _Queue:
    """A bounded queue between two threads that either end can shut.

    With `newest_only` a full queue drops its oldest item instead of making the putter wait.
    """

    def __init__(self, newest_only=False):
        self._items: deque = deque()
        self._size = 1 if newest_only else QUEUE_SIZE
        self._newest_only = newest_only
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._error = None

    def put(self, item):
        """Wait for room, put the item. False if the reader has closed the queue."""
        with self._changed:
            if self._newest_only and len(self._items) == self._size:
                self._items.popleft()
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def finish(self, error=None):
        """The writer's end: the reader gets what is left, and then the error if there is one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self):
        """The reader's end: whoever waits on either side is let go."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._finished or self._closed)
                if self._closed:
                    return
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error
