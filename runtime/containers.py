"""What video files say of their length, which OpenCV does not pass on."""

import os
import re


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
    wide = edits[0] == 1  # version, flags (4 bytes), count (4), then duration and time in 32 or 64 bits
    return int.from_bytes(edits[16:24] if wide else edits[12:16], "big", signed=True)
