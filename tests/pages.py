"""What tests of the page share."""

import contextlib
import re

import numpy as np

from runtime.serve import WebPage


@contextlib.contextmanager
def open_pages():
    """A function that opens WebPages, which are closed in the end."""
    opened = []

    def open_one(address="0", labels=("door", "yard"), **more):
        opened.append(WebPage(address, list(labels), **more))
        return opened[-1]

    yield open_one
    for page in opened:
        page.close()


def port_of(page):
    return int(re.search(r":(\d+)/", page.url)[1])


def plain(value, size=(320, 240)):
    """A (H, W, 3) uint8 picture of one grey."""
    return np.full((size[1], size[0], 3), value, np.uint8)
