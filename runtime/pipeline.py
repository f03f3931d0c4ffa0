"""The order of things: capture → detect → pose, track, smooth → the caller, who draws and writes.

One capture thread a source, and one thread a stage after it for all sources.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import BadInput
from runtime.frames import Frame
from runtime.keypoints import Poses
from runtime.queues import Queues
from runtime.reconnect import StateChange
from runtime.track import FOLLOWED_FOR, Event, person_sizes


@dataclass
class Result:
    """One frame with its persons, or word of a source that has no frame to give.

    Attributes:
        frame: Frame, its image untouched; None where only the source's state changed.
        poses: Poses in pixels of the frame; with a tracker only those that are tracked. Empty without a frame.
        timings: seconds on `time.perf_counter`: "capture" (a live camera's includes waiting for it), "detect" (only
            where it ran), "pose" (of all frames in its batch), "track" (smoothing included, only with a tracker), and
            "latency", from the frame's arrival to this result's.
        ids: (N,) int, who is who among the persons of one source; None without a tracker.
        events: Events of this frame.
        unsmoothed: (N, K, 3) keypoints before smoothing; None without a smoother.
        source: which source, from 0 in the order given.
        state: "live"; "stale": no new frame for a while; "lost": gone, being tried again where it is Reconnecting;
            "ended": over, while other sources may go on.
        time: seconds on the source's clock, the frame's own where there is one.
        reason: one line, without credentials, on why the source is stale or lost, or how it came back.
        left_out: persons found in this frame or at the last detection that were not posed, to hold a budget.
    """

    frame: Frame | None
    poses: Poses
    timings: dict[str, float]
    ids: np.ndarray | None = None
    events: list[Event] = field(default_factory=list)
    unsmoothed: np.ndarray | None = None
    source: int = 0
    state: str = "live"
    time: float = 0.0
    reason: str | None = None
    left_out: int = 0

    def __post_init__(self):
        if self.frame is not None:
            self.time = self.frame.time


def stream(source, detector, pose, tracker=None, smoother=None, detect_every: int | str = 1,
           budget=None, idle=None) -> Iterator[Result]:
    """Run sources through detection and pose estimation, stages overlapping, each source's results in order.

    Files and folders lose no frame; of a live source only the newest frame is taken. What a stage raises, the
    caller gets after the results before it. Where one of several sources breaks off with BadInput, a Result of state
    "lost" says so at once, and the error is raised at the end of the others; where one of several is simply over, a
    Result of state "ended" says so. Leaving the loop early stops the threads.

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
        source: from `open_source`, or a `Reconnecting`; or a list of them. They stay open, they are the caller's.
        detector: PersonDetector, or any function frame image → boxes, scores.
        pose: PoseEstimator, which takes the persons of all sources in one batch; or any function frame image, boxes →
            keypoints; or, for a budget, a list of either, of the same keypoints, the most accurate first.
        tracker: a new Tracker, to give persons ids; None for pictures that have nothing to do with each other. For a
            list of sources a list as long.
        smoother: a new Smoother, to steady what is tracked; a list likewise.
        detect_every: N, run the detector on every N-th frame only; between, the tracker says where persons are, and new
            ones are not found. "auto": so often that it is busy for half of the sources' time at most.
        budget: a new Budget, which holds the age of live frames.
        idle: function called in the caller's thread, some 20 times a second, while no result comes, as windows need it;
            where it returns True, the stream ends.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    lives = [each.live for each in sources]
    stages = _Stages(lives, detector, pose if isinstance(pose, list) else [pose], _one_each(tracker, len(sources)),
                     _one_each(smoother, len(sources)), detect_every, budget)
    changed = threading.Condition()
    captured = Queues(lives, changed, writers=len(sources), newest_only=True)
    detected, posed = Queues(lives, changed), Queues(lives, changed)
    threads = [threading.Thread(target=_capture, name=f"capture {number}", args=(number, each, captured, len(sources)))
               for number, each in enumerate(sources)]
    threads += [threading.Thread(target=_run_stage, name="detect", args=(captured, 1, stages.detect, detected)),
                threading.Thread(target=_run_stage, name="pose", args=(detected, len(sources), stages.estimate, posed))]
    for thread in threads:
        thread.start()
    try:
        while items := posed.take(1, idle=idle):
            arrival, result = items[0].arrival, items[0].result
            result.timings["latency"] = time.perf_counter() - arrival
            yield result
            if budget and result.frame is not None and lives[result.source]:
                budget.add(arrival, time.perf_counter(), len(result.poses), result.left_out)
    finally:
        for queues in (captured, detected, posed):
            queues.close()
        for each in sources:
            if hasattr(each, "stop"):  # a file's or a camera's next frame is near enough
                each.stop()
        for thread in threads:
            thread.join()


def _one_each(given, count):
    """A list of what was given, as long as the sources."""
    each = given if isinstance(given, list) else [None] * count if given is None else [given]
    if len(each) != count:
        raise ValueError(f"{count} sources need {count} trackers and smoothers, or None for each: {len(each)} given")
    return each


@dataclass
class _Item:
    """What travels from stage to stage: a frame, or a change of its source's state."""

    source: int
    arrival: float  # on time.perf_counter
    frame: Frame | None
    timings: dict[str, float] = field(default_factory=dict)
    change: StateChange | None = None
    found: tuple[np.ndarray, np.ndarray] | None = None  # boxes and scores, where the detector ran
    result: Result | None = None

    def replaces(self, old):
        """Whether the old one, still waiting to be looked at, is of no use any more."""
        if self.change and old.change:
            self.change.anew |= old.change.anew
        return bool(self.change) == bool(old.change) or bool(self.change and self.change.anew)


class _Stages:
    """What is done with the items, and the state that goes on from frame to frame."""

    def __init__(self, lives, detector, estimators, trackers, smoothers, detect_every, budget):
        for tracker, smoother, live in zip(trackers, smoothers, lives, strict=True):
            skips = detect_every != 1 or (live and budget is not None and budget.skips_detections)
            if tracker is None and (smoother is not None or skips):
                raise ValueError("smoothing, and frames without detection, need a tracker")
        if budget is not None and budget.engines > len(estimators):
            raise ValueError(f"a budget for {budget.engines} pose engines needs as many, not {len(estimators)}")
        self._detector, self._estimators = detector, estimators
        self._trackers, self._smoothers, self._budget = trackers, smoothers, budget
        self._schedules = [_Schedule(detect_every, live, len(lives), budget if live else None) for live in lives]
        self._missing = [0] * len(lives)
        names = getattr(estimators[0], "schema", ())
        self._nobody = Poses(np.zeros((0, 4), np.float32), np.zeros(0, np.float32),
                             np.zeros((0, len(names), 3), np.float32))

    def detect(self, items):
        """Boxes where they are due."""
        for item in items:
            schedule = self._schedules[item.source]
            if item.change and item.change.anew:
                schedule.restart()
            if item.frame is not None and schedule.is_due(item.frame.time):
                start = time.perf_counter()
                item.found = self._detector(item.frame.image)
                item.timings["detect"] = time.perf_counter() - start
                schedule.took(item.timings["detect"], item.frame.time)
        return items

    def estimate(self, items):
        """Results of items of different sources, their persons' crops in common batches."""
        start = time.perf_counter()
        frames = [item for item in items if item.frame is not None]
        found = [self._persons(item) for item in frames]
        kept = [self._kept(item.source, boxes) for item, (boxes, _) in zip(frames, found, strict=True)]
        boxes = [boxes[chosen] for (boxes, _), chosen in zip(found, kept, strict=True)]
        estimator = self._estimators[self._budget.engine if self._budget else 0]
        keypoints = _estimate_all(estimator, [item.frame.image for item in frames], boxes)
        took = time.perf_counter() - start
        for number, item in enumerate(frames):
            item.timings["pose"] = took
            keypoints[number][~np.isfinite(keypoints[number]).all(2)] = 0  # half precision overflows: not sure at all
            item.result = self._follow(item, Poses(boxes[number], found[number][1][kept[number]], keypoints[number]))
            # Whom nobody poses nobody follows: they are missing until the next detection.
            missing = 0 if item.found else self._missing[item.source]
            self._missing[item.source] = item.result.left_out = missing + len(found[number][0]) - len(kept[number])
        for item in items:
            if item.change:
                item.result = self._changed(item)
        return items

    def _persons(self, item):
        """Boxes and scores of whom to pose in a frame: the detector's, or the tracker's where it did not run."""
        tracker = self._trackers[item.source]
        if item.found is None:
            return tracker.predict(item.frame.time)
        boxes, scores = item.found
        believed = tracker.believe(item.frame.time, boxes, scores) if tracker else np.arange(len(boxes))
        return boxes[believed], scores[believed]

    def _kept(self, source, boxes):
        """Indices of the persons to pose: with a budget the largest, which are the nearest and the easiest."""
        if self._budget is None or self._budget.persons is None or not self._schedules[source].live:
            return np.arange(len(boxes))
        return np.sort(np.argsort(-person_sizes(boxes), kind="stable")[:self._budget.persons])

    def _follow(self, item, poses):
        """The Result of a frame, its persons tracked and smoothed."""
        start = time.perf_counter()
        tracker, smoother = self._trackers[item.source], self._smoothers[item.source]
        result = Result(item.frame, poses, item.timings, source=item.source)
        if tracker:
            seconds = item.frame.time
            result.poses, result.ids, result.events = tracker.update(seconds, poses, detected=item.found is not None)
            if smoother:
                result.unsmoothed = result.poses.keypoints
                result.poses.keypoints = smoother(seconds, result.ids, result.poses)
            item.timings["track"] = time.perf_counter() - start
        return result

    def _changed(self, item):
        """The Result of a change of state. Who was there before a new beginning is lost."""
        change, tracker = item.change, self._trackers[item.source]
        result = Result(None, self._nobody, item.timings, source=item.source, state=change.state, time=change.time,
                        reason=change.reason)
        if tracker:
            result.ids = np.zeros(0, np.int64)
            if change.anew:
                result.events = [Event("lost", track.id) for track in tracker.tracks if track.id and not track.lost]
                tracker.tracks = []  # its ids go on
        return result


def _estimate_all(estimator, images, boxes):
    """A list of (N, K, 3) keypoints."""
    if hasattr(estimator, "of_frames"):
        return estimator.of_frames(images, boxes)
    return [estimator(image, persons) for image, persons in zip(images, boxes, strict=True)]


class _Schedule:
    """Which frames of a source the detector runs on: every N-th, or with "auto" as many as leave it idle half of the
    time; with a budget no more than that allows.

    "auto" goes by the source's own clock, so that a file is treated as it would be live.
    """

    def __init__(self, every, live=False, sources=1, budget=None):
        self.live = live
        self._every, self._sources, self._budget = every, sources, budget
        self.restart()

    def restart(self):
        """The next frame is due."""
        self._frames = 0  # since the last detection, which included
        self._idle_until = 0.0
        self._forgotten_at = 0.0

    def is_due(self, frame_time):
        wanted = (1 if self._every == "auto" else self._every) * (self._budget.detect_every if self._budget else 1)
        due = not self._frames or self._frames >= wanted and frame_time >= self._idle_until
        # Of a live source frames are passed over, so that any number of them may take too long.
        due |= self.live and frame_time >= self._forgotten_at
        self._frames = 1 if due else self._frames + 1
        return due

    def took(self, seconds, frame_time):
        # A box is followed for a while only; who is not looked for in time would be lost and return all the time.
        self._forgotten_at = frame_time + 0.9 * FOLLOWED_FOR
        if self._every == "auto":
            self._idle_until = min(frame_time + 2 * seconds * self._sources, self._forgotten_at)


def _capture(number, source, outlet, sources):
    """Thread that reads a source. Where it is one of several its own failure is no end for the others."""
    start, seconds = time.perf_counter(), 0.0
    try:
        for given in source:
            arrival = time.perf_counter()
            seconds = given.time
            if isinstance(given, StateChange):
                item = _Item(number, arrival, None, change=given)
            else:
                item = _Item(number, arrival, given, {"capture": arrival - start})
            if not outlet.put(number, item):
                break
            start = time.perf_counter()
        else:
            if sources > 1:
                change = StateChange("ended", seconds, f"{source.label} is over")
                outlet.put(number, _Item(number, time.perf_counter(), None, change=change))
        outlet.finish()
    except BadInput as error:
        if sources > 1:
            change = StateChange("lost", seconds, str(error))
            outlet.put(number, _Item(number, time.perf_counter(), None, change=change))
        outlet.finish(error)
    except Exception as error:
        outlet.fail(error)


def _run_stage(inlet, most, work, outlet):
    """Thread of one stage. An exception travels down the queues, behind the results before it."""
    try:
        while items := inlet.take(most, outlet):
            for item in work(items):
                if not outlet.put(item.source, item):
                    return
        outlet.finish()
    except Exception as error:
        outlet.fail(error)
    finally:
        inlet.close()
