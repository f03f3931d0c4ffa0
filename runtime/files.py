"""Files that are whole or not there, folders, hashes; what goes wrong with them becomes one line."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from runtime.errors import FULL_DISK, BadInput


@contextlib.contextmanager
def whole_file(path):
    """Write a whole file or none: yields the path of another one beside it, which takes its name in the end.

    BadInput where that fails; what `path` held before is kept then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path, data, indent=None):
    """Write a whole JSON file or none; `indent` as for `json.dumps`."""
    with whole_file(path) as part:
        part.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")


def make_folder(folder):
    """Make a folder and those above it, or BadInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path, error):
    """A BadInput that says why, and what to do."""
    advice = "free some space or choose another place" if error.errno in FULL_DISK else "choose another place"
    return BadInput(f"{path} cannot be written: {error.strerror}; {advice}")


def open_appending(path):
    """Open for appending without a buffer, so that an error shows at the write that met it."""
    make_folder(path.parent)
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise cannot_write(path, error) from error


def sha256(path):
    """Hash of a file in hexadecimal; BadInput where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
