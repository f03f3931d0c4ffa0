"""What tests of the senders share: servers on loopback that end with the test, and waiting for what they are sent."""

import contextlib
import socket
import time

SOON = (0.05,)  # back-off of the tests


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def starting(kind):
    """A function that starts servers of a kind, which are closed in the end."""
    started = []

    def start(*arguments, **more):
        started.append(kind(*arguments, **more))
        return started[-1]

    yield start
    for server in started:
        server.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
