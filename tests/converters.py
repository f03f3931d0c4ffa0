"""What the tests of the converters share."""

import os
import subprocess
import sys

import cv2
import numpy as np

from tests.conftest import ROOT


def picture(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def run(module, folder, *options):
    """The command as a user runs it, from the folder that data/ is in."""
    return subprocess.run([sys.executable, "-m", f"train.{module}", *map(str, options)], cwd=folder, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def keypoints_of(schema, labelled):
    flat = np.zeros((len(schema), 3))
    for index, point in labelled.items():
        flat[index] = point
    return flat.ravel().tolist()
