"""Sources and stages made up for tests of the pipeline, so that what has to come out is known."""

import time

import numpy as np

from runtime.errors import BadInput
from runtime.frames import Frame


class Frames:
    """Frames from memory; the image's value is the index."""

    live = False
    label = "frames"

    def __init__(self, count, error=None, seconds=0.0):
        self.count, self.error, self.seconds = count, error, seconds
        self.given = 0

    def __iter__(self):
        for index in range(self.count):
            time.sleep(self.seconds)
            self.given += 1
            yield Frame(index, index / 10, np.full((4, 4, 3), index, np.uint8), f"{index:06d}")
        if self.error:
            raise self.error


class Camera(Frames):
    """Frames at their own pace; then it is unplugged."""

    live = True
    fps = 50.0

    def __init__(self, count, fps=50):
        super().__init__(count, BadInput("unplugged"), 1 / fps)

    def close(self):
        pass


def value_box(image):
    value = image[0, 0, 0]
    return np.full((1, 4), value, np.float32), np.ones(1, np.float32)


def value_points(image, boxes):
    return np.full((len(boxes), 2, 3), boxes[0, 0], np.float32)


def walking_box(image):
    """A box 60×120 that moves 2 pixels a frame; nobody in frame 0."""
    left = 10 + 2.0 * image[0, 0, 0]
    found = int(image[0, 0, 0] > 0)
    return np.array([[left, 20, left + 60, 140]], np.float32)[:found], np.full(found, 0.9, np.float32)


def points_of(image, boxes):
    """Three keypoints in every box, at the places of the walker and not of the box."""
    points = np.full((len(boxes), 3, 3), 0.8, np.float32)
    points[:, :, :2] = np.array([[30, 50], [50, 50], [40, 120]]) + [2 * float(image[0, 0, 0]), 0]
    return points
