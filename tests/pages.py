"""What tests of the page share."""

import contextlib
import http.client
import json
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


def ask(page, path, headers=None, method="GET", host="127.0.0.1"):
    """Status, headers and body of an answer; the path goes out exactly as given."""
    connection = http.client.HTTPConnection(host, port_of(page), timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"{host}:{port_of(page)}", **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def state_of(page):
    return json.loads(ask(page, "/state.json")[2])["sources"]
