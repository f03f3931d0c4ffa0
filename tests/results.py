"""Results of a stream, made up, for tests of what comes after it."""

import numpy as np

from runtime.frames import Frame
from runtime.keypoints import Poses
from runtime.pipeline import Result


def result(index=0, persons=1, name=None, seconds=None, age=0.05, **more):
    """A frame of noise with so many persons in it; `more` goes to the Result."""
    keypoints = np.full((persons, 17, 3), 0.9, np.float32)
    keypoints[..., :2] = np.stack([np.arange(17) * 10 + 20.123456, np.full(17, 50)], axis=1)
    poses = Poses(np.full((persons, 4), [10.5, 20.25, 110, 220], np.float32), np.full(persons, 0.87654, np.float32),
                  keypoints)
    seconds = index / 25 if seconds is None else seconds
    return Result(Frame(index, seconds, noise(), name or f"{index:06d}"), poses, {"latency": age}, **more)


def news(state, reason, seconds=0.0, source=0):
    """Word of a source that has no frame."""
    nobody = Poses(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 17, 3), np.float32))
    return Result(None, nobody, {}, source=source, state=state, time=seconds, reason=reason)


def noise(size=(320, 240), seed=0):
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
