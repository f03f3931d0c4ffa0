"""The picture of the window: one source's own, or several in tiles; whoever is not live goes dark, and says so."""

import math

import cv2
import numpy as np

from runtime.crop import LETTERBOX_GREY, letterbox
from runtime.draw import INK

TILE = (640, 360)  # pixels


class Mosaic:
    """A writer that shows the newest picture of each source in a tile of one larger picture, one alone in its own size;
    whose source is stale, lost or ended goes dark, and says so.

    Args:
        window: the writer that shows the larger picture, (rows · 360, columns · 640, 3) uint8 BGR.
        count: number of sources.
    """

    def __init__(self, window, count):
        self._window = window
        self._columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / self._columns)
        self._alone = count == 1
        nothing = np.full((TILE[1], TILE[0], 3), LETTERBOX_GREY, np.uint8)
        self._live = [nothing] * count  # the last live picture of each
        self._picture = np.tile(nothing, (rows, self._columns, 1))

    @property
    def closed(self):
        return self._window.closed

    def write(self, result, drawn):
        if drawn is not None:
            self._live[result.source] = drawn if self._alone else letterbox(drawn, TILE)[0]
        tile = self._live[result.source]
        if result.state != "live":
            tile = tile // 2
            text = result.state if self._alone else f"{result.source}: {result.state}"
            cv2.putText(tile, text, (16, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, INK, 2, cv2.LINE_AA)
        elif drawn is None:  # dark until there is a picture again
            tile = None
        if tile is not None and self._alone:
            self._picture = tile
        elif tile is not None:
            row, column = divmod(result.source, self._columns)
            self._picture[row * TILE[1]:(row + 1) * TILE[1], column * TILE[0]:(column + 1) * TILE[0]] = tile
        self._window.write(result, self._picture)

    def close(self):
        self._window.close()
