"""What video files say of themselves, and servers of them, which OpenCV does not pass on."""

import base64
import http.client
import os
import re
import urllib.request
from urllib.parse import unquote, urlsplit

ENDLESS = ("multipart/", "mpegurl", "dash+xml")  # in types of what has no end, or whose list of parts alone has


def counts_frames(path):
    """Whether a file stores how many frames it has, as MP4, MOV and AVI do; MKV, WebM and TS store only a duration."""
    with path.open("rb") as file:
        head = file.read(8)
    return head[4:8] == b"ftyp" or head[:4] == b"RIFF"


def is_trimmed(path):
    """Whether an MP4's edit list hides its beginning (ISO 14496-12, 8.6.6), as trimming on a phone leaves it."""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # the true length follows, in 64 bits
                length = int.from_bytes(file.read(8), "big") - 8
            if header[4:] == b"moov":
                index = file.read(length - 8)
                starts = [match.end() for match in re.finditer(b"elst", index)]
                return any(_first_shown(index[start:start + 32]) > 0 for start in starts)
            if length < 8:  # no MP4, or a last box up to the end
                break
            file.seek(length - 8, os.SEEK_CUR)
    return False


def _first_shown(edits):
    """Media time at which the first edit starts; -1 for an empty edit."""
    wide = edits[:1] == b"\1"  # version, flags (4 bytes), count (4), then duration and time in 32 or 64 bits
    if len(edits) < (24 if wide else 16):  # the letters of a name, or the file's end
        return -1
    return int.from_bytes(edits[16:24] if wide else edits[12:16], "big", signed=True)


def is_file_on_server(url, timeout):
    """Whether an http(s) server says that a URL is a file: it tells its length, or gives any part of it.

    timeout: seconds. False where there is no answer in time, or the server does not answer HEAD.
    """
    try:
        address = urlsplit(str(url))
        request = urllib.request.Request(address._replace(netloc=address.netloc.rpartition("@")[2], fragment="")
                                         .geturl(), method="HEAD")
        if address.username is not None:
            login = f"{unquote(address.username)}:{unquote(address.password or '')}".encode()
            request.add_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            kind = answer.headers.get("Content-Type", "").lower()
            told = "Content-Length" in answer.headers or answer.headers.get("Accept-Ranges", "none") != "none"
    except (OSError, ValueError, http.client.HTTPException):  # FFmpeg has opened it, so its answer counts
        return False
    return told and not any(each in kind for each in ENDLESS)
