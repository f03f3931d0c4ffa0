"""Downloads one file: goes on where it stopped, tries again when the connection breaks, verifies what arrived.

What has arrived waits in NAME.part beside the target, and in NAME.part.json what the server said of the file, so that
another process, days later, can go on from there. Range requests follow RFC 9110, sections 13.1.5 and 14.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from runtime.errors import BadInput

TIMEOUT = 20.0  # seconds without an answer
PAUSES = (1.0, 3.0, 10.0)  # seconds before each new try
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors that another try may not meet
PIECE = 1 << 16  # bytes


class BrokenOff(Exception):
    """The connection failed; another try may go on from what has arrived.

    Attributes:
        unreachable: there was no connection at all.
    """

    def __init__(self, message, unreachable=False):
        super().__init__(message)
        self.unreachable = unreachable


def download(url, path, size=None, sha256=None, *, timeout=TIMEOUT, pauses=PAUSES, elsewhere="choose another folder"):
    """Download a file, unless it is there already. Ctrl-C keeps what has arrived for the next call.

    A file that changed on the server meanwhile is fetched anew: its ETag or date tells, else its size; without a
    checksum, a server that names no ETag and no date, and a new file of the same size, would go unnoticed.

    Args:
        url: http or https. path: the file to write; its folder is made.
        size: bytes that the file must have, None where unknown: then what the server announces is required.
        sha256: hexadecimal checksum that it must have, None where unknown: then a file at `path` counts as complete,
            since one gets there only when whole.
        timeout: seconds without an answer after which a connection counts as broken.
        pauses: seconds to wait before each new try after a broken connection; the count starts again whenever a try
            got further than all before it. A server that cannot be reached in the first place is not tried again.
        elsewhere: how the caller's user chooses another folder, for messages about this one.

    Returns:
        The path.

    Raises:
        BadInput: no network, an error of the server, a connection that keeps breaking (what has arrived is kept), a
            wrong size, a wrong checksum (what has arrived is removed), a full disk, a folder that cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        if path.is_file() and _is_expected(path, size, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _persist(url, part, size, timeout, pauses, elsewhere)
        if sha256 is not None and (digest := checksum(part)) != sha256:
            _discard(part)
            raise BadInput(f"{url} is not the file expected: its SHA-256 is {digest[:16]}…, not {sha256[:16]}…; what "
                           "arrived was removed, try again or from elsewhere")
        os.replace(part, path)
        _discard(part)
    except OSError as error:
        raise BadInput(f"{path} cannot be read or written: {error.strerror or error}; see to the folder, or "
                       f"{elsewhere}") from error
    return path


def checksum(path):
    """Hexadecimal SHA-256 of a file. Shows its progress when that takes more than two seconds."""
    digest, path = hashlib.sha256(), Path(path)
    total, name = path.stat().st_size, f"checking {path.name}"
    with open(path, "rb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=name, delay=2) as progress:
        while piece := file.read(1 << 20):
            digest.update(piece)
            progress.update(len(piece))
    return digest.hexdigest()


def readable(count):
    """Bytes in words: 815585330 → "0.8 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.1 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def _is_expected(path, size, sha256):
    return (size is None or path.stat().st_size == size) and (sha256 is None or checksum(path) == sha256)


def _persist(url, part, size, timeout, pauses, elsewhere):
    """Fetch until the part file is whole, over as many connections as it takes."""
    furthest = at_start = _landed(part)
    left = list(pauses)
    while True:
        try:
            if _fetch_rest(url, part, size, timeout, elsewhere):
                return
        except BrokenOff as broken:
            if (landed := _landed(part)) > furthest:
                furthest, left = landed, list(pauses)
            if not left or (broken.unreachable and furthest == at_start):
                kept = "; what has arrived is kept, the next try goes on from there" if landed else "; try again"
                raise BadInput(f"{broken}{kept}") from broken
            pause = left.pop(0)
            print(f"{broken}; trying again in {pause:g} s", flush=True)
            time.sleep(pause)


def _fetch_rest(url, part, size, timeout, elsewhere):
    """One connection: append what the part file lacks, or all where the server cannot or must not go on from it.

    Returns:
        Whether the part file is whole. If not, it was removed, and the next call fetches all.
    """
    landed, earlier = _landed(part), _read_note(part)
    if landed and (earlier is None or (size is not None and landed > size)):
        return _start_over(part, f"{part} is not the beginning of this file")
    if landed and landed == (size or earlier["size"]):
        return True
    headers = {"User-Agent": "attention-pose"}
    if landed:
        headers["Range"] = f"bytes={landed}-"
        if earlier["validator"]:
            headers["If-Range"] = earlier["validator"]  # a changed file then comes whole, with status 200
    try:
        answer = _open(urllib.request.Request(url, headers=headers), timeout)
    except urllib.error.HTTPError as error:  # 416: there is nothing from that byte on
        return (size is None and _range(error)[1] == landed) or _start_over(part, f"{url} has changed")
    with answer:
        start, announced = _range(answer) if answer.status == 206 else (0, _length(answer))
        if size is not None and announced not in (None, size):
            raise BadInput(f"{url} is not the file expected: it has {announced} bytes, not {size}; try later or from "
                           "elsewhere")
        note = {"validator": _validator(answer), "size": announced}
        if landed and start == 0:
            _start_over(part, f"{url} has changed" if note != earlier else "the server sends whole files only")
            landed = 0
        elif start != landed:
            raise BrokenOff(f"the server sends another part of {url} than was asked for")
        elif landed and not earlier["validator"] and announced != earlier["size"]:
            return _start_over(part, f"{url} has changed")
        total = size if announced is None else announced
        _check_room(part, (total or 0) - landed, elsewhere)
        if not landed:  # the headers of a later part may be fewer
            _note(part).write_text(json.dumps(note))
        _append(answer, part, landed, total, url)
    return True


def _append(answer, part, landed, total, url):
    """Write what the connection gives behind the `landed` bytes of the part file."""
    name = part.name.removesuffix(".part")
    with (open(part, "ab" if landed else "wb") as file,
          tqdm(total=total, initial=landed, unit="B", unit_scale=True, desc=name) as progress):
        while total is None or landed <= total:
            try:
                piece = answer.read1(PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOff(_broke_off(url, landed, total, error)) from error
            if not piece:
                break
            file.write(piece)
            landed += len(piece)
            progress.update(len(piece))
    if total is not None and landed < total:
        raise BrokenOff(_broke_off(url, landed, total, "the server closed the connection"))
    if total is not None and landed > total:
        _discard(part)
        raise BadInput(f"{url} is not the file expected: it has more than {total} bytes; try from elsewhere")


def _open(request, timeout):
    """The server's answer. Raises HTTPError for status 416 only, which is the caller's."""
    url = request.full_url
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and request.has_header("Range"):
            raise
        told = f"the server answers {error.code} {error.reason} to {url}"
        raise (BrokenOff(told) if error.code in PASSING else BadInput(f"{told}; see to the address")) from error
    except urllib.error.URLError as error:
        raise BrokenOff(f"{url} cannot be reached: {error.reason}", unreachable=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenOff(f"{url} broke off before its answer: {error}") from error


def _broke_off(url, landed, total, why):
    return f"{url} broke off after {landed} of {'unknown' if total is None else total} bytes: {why}"


def _range(answer):
    """First byte and total of the file that a Content-Range names, None for each that it does not."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", answer.headers["Content-Range"] or "")
    start, total = found.groups() if found else (None, None)
    return start and int(start), total and int(total)


def _length(answer):
    length = answer.headers["Content-Length"]
    return length and int(length)


def _validator(answer):
    """What If-Range may hold: a strong ETag (RFC 9110 forbids a weak one), else the date of the last change."""
    tag = answer.headers["ETag"]
    return tag if tag and not tag.startswith("W/") else answer.headers["Last-Modified"]


def _check_room(part, needed, elsewhere):
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise BadInput(f"{part.parent} has {readable(free)} free, and {part.name.removesuffix('.part')} needs "
                       f"{readable(needed)} more; make room, or {elsewhere}")


def _note(part):
    return part.with_name(part.name + ".json")


def _read_note(part):
    """What the server said of the file that the part file belongs to, None where nothing is known of it."""
    try:
        return json.loads(_note(part).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # the latter: killed while writing it
        return None


def _landed(part):
    return part.stat().st_size if part.exists() else 0


def _start_over(part, why):
    """Remove what has arrived. Returns False: the part file is not whole."""
    print(f"{why}: starting over", flush=True)
    _discard(part)
    return False


def _discard(part):
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
