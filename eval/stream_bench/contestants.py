"""Ways to get poses out of the same clip with the same engines, and what one turn of each of them takes.

A contestant is a function source → iterator of (Frame, number of its persons), which yields as soon as a frame's poses
are there.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from runtime.detect import PersonDetector
from runtime.frames import Frame, open_video
from runtime.pipeline import stream
from runtime.smooth import Smoother
from runtime.track import Tracker


class Clip:
    """The first frames of a video file, each of them, as fast as they are wanted: a source for `runtime.pipeline`.

    path: of the video. frames: how many, at most.
    """

    live = False

    def __init__(self, path, frames):
        self._video = open_video(path)
        self._frames = frames
        self.label, self.fps, self.total = self._video.label, self._video.fps, None

    def __iter__(self):
        return islice(self._video, self._frames)

    def close(self):
        self._video.close()


class Camera:
    """Frames at a camera's pace: one that nobody has fetched when the next arrives is lost.

    images: list of (H, W, 3) uint8 BGR, which stay in memory so that decoding costs nobody anything. fps: their rate.
    """

    live = True
    label = "paced clip"
    total = None

    def __init__(self, images, fps):
        self._images, self.fps = images, fps
        self._started = 0.0

    def __iter__(self):
        self._started = time.perf_counter()
        taken = -1
        while taken < len(self._images) - 1:
            now = time.perf_counter() - self._started
            newest = min(int(now * self.fps), len(self._images) - 1)
            if newest == taken:
                time.sleep(max(0.0, (taken + 1) / self.fps - now))
                continue
            taken = newest
            yield Frame(taken, taken / self.fps, self._images[taken], f"{taken:06d}")

    def age(self, frame):
        """Seconds since the frame arrived, whether or not somebody was there to fetch it."""
        return time.perf_counter() - self._started - frame.time

    def close(self):
        """Nothing stays open."""


@dataclass(frozen=True)
class Contestant:
    """name: as in the table. run: see above. paced: it can also be given a `Camera`."""

    name: str
    run: Callable[[Any], Iterator[tuple[Frame, int]]]
    paced: bool = True


@dataclass
class Turn:
    """What one contestant did with one source.

    Attributes:
        frames: that it gave poses of. persons: of all these frames.
        seconds: from its start to its last result, threads started and queues filled included.
        cpu_seconds: of all cores together, in the whole process.
        ages: seconds from each frame's arrival to its result; empty where the source is no `Camera`.
    """

    frames: int = 0
    persons: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    ages: list[float] = field(default_factory=list)


def take_turn(contestant, source):
    """Run a contestant over a source, which is closed in the end → Turn."""
    turn = Turn()
    with closing(source):
        cpu_start, start = time.process_time(), time.perf_counter()
        for frame, persons in contestant.run(source):
            turn.frames += 1
            turn.persons += persons
            if source.live:
                turn.ages.append(source.age(frame))
        turn.seconds, turn.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return turn


def pipeline(detector, pose, followed=False):
    """Our pipeline. followed: with tracks and smoothing, as `python -m runtime.stream` runs it."""
    def run(source):
        if followed:
            tracker = Tracker(pose.schema.sigmas, detector.threshold)
            results = stream(source, PersonDetector(detector.engine, tracker.weakest), pose, tracker, Smoother())
        else:
            results = stream(source, detector, pose)
        for result in results:
            yield result.frame, len(result.poses)

    return run


def loop(detector, pose):
    """The plain program: read, detect, pose, one after the other, by the very classes that the pipeline has."""
    def run(source):
        for frame in source:
            boxes, _ = detector(frame.image)
            yield frame, len(pose(frame.image, boxes))

    return run


def peer(estimate):
    """Another library's pipeline in the same plain loop. estimate: image → keypoints (N, K, 2), scores (N, K)."""
    def run(source):
        for frame in source:
            keypoints, _ = estimate(frame.image)
            yield frame, len(keypoints)

    return run


class EnginesAlone:
    """What the engines alone allow: both run the clip's inputs, made beforehand, side by side, one thread each.

    No reading, cutting, NMS or decoding, no waiting for each other, no queues: where two stages overlap, poses cannot
    come faster than the slower engine gives them, with the other one at work beside it. It is measured rather than
    computed, so that what they take from each other on few cores (time, caches, memory) is in it.

    Args:
        detector, pose: what the pipeline has; `inputs_of` runs them once over the source to learn what they are given.
        source: whose frames.

    Attributes:
        inputs: of the person engine and of the pose engine, a list of uint8 arrays each.
        stages: of each turn, the seconds that the detector and the pose engine took.
    """

    def __init__(self, detector, pose, source):
        self._engines = detector.engine, pose.engine
        self.inputs, self._frames = inputs_of(detector, pose, source)
        self.stages: list[tuple[float, float]] = []

    def run(self, source):
        """The source is left alone; all frames come in the end."""
        def work(engine, inputs):
            start = time.perf_counter()
            for batch in inputs:
                engine.run(batch)
            return time.perf_counter() - start

        with ThreadPoolExecutor(2) as threads:
            detect, estimate = threads.map(work, self._engines, self.inputs)
        self.stages.append((detect, estimate))
        yield from self._frames


def inputs_of(detector, pose, source):
    """What the engines of a detector and a pose estimator are given over a source, and what comes of it.

    Returns:
        ([inputs of the person engine], [inputs of the pose engine]), uint8 arrays; and the (Frame, persons) of `loop`,
        the frames' images left out.
    """
    engines, recorders = (detector.engine, pose.engine), (_Recorder(detector.engine), _Recorder(pose.engine))
    try:
        detector.engine, pose.engine = recorders
        found = [(Frame(frame.index, frame.time, frame.image[:0], frame.name), persons)
                 for frame, persons in loop(detector, pose)(source)]
    finally:
        detector.engine, pose.engine = engines
    return [recorder.inputs for recorder in recorders], found


class _Recorder:
    """An engine that keeps a copy of each input."""

    def __init__(self, engine):
        self._engine = engine
        self.inputs = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, batch):
        self.inputs.append(batch.copy())
        return self._engine.run(batch)
