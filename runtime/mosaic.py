"""Several sources in one picture."""

import math

import cv2
import numpy as np

from runtime.crop import LETTERBOX_GREY, letterbox
from runtime.draw import INK

TILE = (640, 360)  # pixels


class Mosaic:
    """A writer that shows the newest picture of each source in a tile of one larger picture; whose source is stale or
    lost goes dark, and says so.

    Args:
        window: the writer that shows the larger picture, (rows · 360, columns · 640, 3) uint8 BGR.
        count: number of sources.
    """

    def __init__(self, window, count):
        self._window = window
        self._columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / self._columns)
        self._picture = np.full((rows * TILE[1], self._columns * TILE[0], 3), LETTERBOX_GREY, np.uint8)

    @property
    def closed(self):
        return self._window.closed

    def write(self, result, drawn):
        row, column = divmod(result.source, self._columns)
        tile = self._picture[row * TILE[1]:(row + 1) * TILE[1], column * TILE[0]:(column + 1) * TILE[0]]
        if drawn is not None:
            tile[:] = letterbox(drawn, TILE)[0]
        elif result.state != "live":
            tile //= 2
            cv2.putText(tile, f"{result.source}: {result.state}", (16, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, INK, 2,
                        cv2.LINE_AA)
        self._window.write(result, self._picture)

    def close(self):
        self._window.close()
