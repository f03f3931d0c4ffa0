"""Several sources in one picture: each in its place, and dark where it is lost."""

import numpy as np
import pytest

from runtime.frames import Frame
from runtime.keypoints import Poses
from runtime.mosaic import TILE, Mosaic
from runtime.pipeline import Result

NOBODY = Poses(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 3, 3), np.float32))


class Screen:
    """A writer that keeps what it is shown."""

    closed = False

    def write(self, result, drawn):
        self.shown = drawn.copy()

    def close(self):
        self.closed = True


def picture(value):
    return np.full((TILE[1], TILE[0], 3), value, np.uint8)


@pytest.mark.parametrize(("count", "columns", "rows"), [(2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2)])
def test_each_source_has_its_place(count, columns, rows):
    screen = Screen()
    mosaic = Mosaic(screen, count)
    for source in range(count):
        mosaic.write(Result(Frame(0, 0.0, picture(0), ""), NOBODY, {}, source=source), picture(10 + source))
    assert screen.shown.shape == (rows * TILE[1], columns * TILE[0], 3)
    for source in range(count):
        row, column = divmod(source, columns)
        assert (screen.shown[row * TILE[1]:(row + 1) * TILE[1], column * TILE[0]:(column + 1) * TILE[0]]
                == 10 + source).all()
    mosaic.close()
    assert mosaic.closed


def test_a_lost_source_goes_dark_and_says_so_and_comes_back():
    screen = Screen()
    mosaic = Mosaic(screen, 2)
    for source in (0, 1):
        mosaic.write(Result(Frame(0, 0.0, picture(0), ""), NOBODY, {}, source=source), picture(100))
    mosaic.write(Result(None, NOBODY, {}, source=1, state="lost", reason="unplugged"), None)
    left, right = screen.shown[:, :TILE[0]], screen.shown[:, TILE[0]:]
    assert (left == 100).all()
    assert np.median(right) == 50 and right.max() == 255  # dark, and written on
    mosaic.write(Result(Frame(1, 1.0, picture(0), ""), NOBODY, {}, source=1), picture(90))
    assert (screen.shown[:, TILE[0]:] == 90).all()


def test_failed_attempts_leave_a_lost_source_as_dark_as_it_is():
    screen = Screen()
    mosaic = Mosaic(screen, 2)
    mosaic.write(Result(Frame(0, 0.0, picture(0), ""), NOBODY, {}, source=1), picture(100))
    lost = Result(None, NOBODY, {}, source=1, state="lost", reason="unplugged")
    mosaic.write(lost, None)
    once = screen.shown
    mosaic.write(Result(None, NOBODY, {}, source=1, state="stale"), None)
    assert (screen.shown != once).any()
    mosaic.write(lost, None)
    assert (screen.shown == once).all()  # no darker, and no text over another


def test_one_source_keeps_its_size_and_goes_dark_where_it_is_lost():
    screen = Screen()
    mosaic = Mosaic(screen, 1)
    lost = Result(None, NOBODY, {}, state="lost", reason="unplugged")
    mosaic.write(lost, None)  # before any picture
    assert screen.shown.max() == 255
    mosaic.write(Result(Frame(0, 0.0, picture(0), ""), NOBODY, {}), np.full((240, 320, 3), 100, np.uint8))
    assert screen.shown.shape == (240, 320, 3) and (screen.shown == 100).all()
    mosaic.write(lost, None)
    assert np.median(screen.shown) == 50 and screen.shown.max() == 255
    dark = screen.shown
    mosaic.write(Result(None, NOBODY, {}, reason="it is back"), None)
    assert (screen.shown == dark).all()  # until its first picture
