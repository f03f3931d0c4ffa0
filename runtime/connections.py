"""The page's socket and connections. None is kept that asks for nothing: whoever opens many shuts nobody else out."""

import asyncio
import errno
import os
import re
import socket

from runtime.errors import BadInput

MOST_CONNECTIONS = 100
PATIENCE = 15.0  # seconds from one whole request to the next, within which its answer must have been taken, too


def connection_class():
    """A protocol for uvicorn's `http`; its own waits for ever for a request that is never finished.

    A connection without a whole request for PATIENCE seconds is closed, and where there are more than
    MOST_CONNECTIONS the one that has asked for nothing for the longest time: a page that is watched asks every second.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.await_request()
            if len(deadlines) > MOST_CONNECTIONS:
                next(iter(deadlines)).drop()

        def await_request(self):
            self.forget()
            deadlines[self] = self.loop.call_later(PATIENCE, self.drop)

        def handle_events(self):
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:  # a request was whole
                self.await_request()

        def connection_lost(self, exc):
            self.forget()
            super().connection_lost(exc)

        def drop(self):
            self.forget()
            self.transport.abort()  # close() would wait for whoever does not read

        def forget(self):
            if self in deadlines:
                deadlines.pop(self).cancel()

    deadlines: dict[Connection, asyncio.TimerHandle] = {}  # who has asked for nothing for the longest time is first
    return Connection


def listen(address):
    """A listening socket, and the host's name as given ("127.0.0.1" where only a port is), or BadInput."""
    matched = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):)?(\d{1,5})", str(address))
    if not matched or int(matched[2]) > 65535:
        raise BadInput(f"--serve {address} is no address: give a port, 8080, or HOST:PORT, 0.0.0.0:8080 or [::1]:8080")
    host, port = matched[1] or "127.0.0.1", int(matched[2])
    listener = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(MOST_CONNECTIONS)
    except OSError as error:
        if listener:
            listener.close()
        remedies = {errno.EADDRINUSE: f"end the program that has it, or choose another port, as {port + 1}",
                    errno.EACCES: "choose a port from 1024 on",
                    errno.EADDRNOTAVAIL: "give an address of this machine, or 0.0.0.0 for all"}
        raise BadInput(f"--serve {address} cannot be listened on: {error.strerror}; "
                       + remedies.get(error.errno or 0, "check the address")) from error
    return listener, host


def reachable(host):
    """A host name for the address to print: where all addresses are listened on, the one that leads outside."""
    if host not in ("0.0.0.0", "[::]"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of the addresses for examples (RFC 5737); sends nothing
        except OSError:
            return socket.gethostname()  # no network, only its name is known
        return probe.getsockname()[0]
