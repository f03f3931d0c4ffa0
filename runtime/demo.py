"""The demo: public footage, or people that this program renders itself, through the bundled engines.

    python -m runtime.demo                    a clip by Intel, downloaded once; without network a rendered one
    python -m runtime.demo --video street.mp4 own footage: a file, a URL or a camera number
"""

import argparse
import os
from pathlib import Path

from runtime import stream
from runtime.download import download
from runtime.errors import BadInput, run_command
from runtime.mot import clear_mot, load_tracks, load_truth
from runtime.rate import rate
from runtime.walkers import write_clip

FOOTAGE_URL = ("https://raw.githubusercontent.com/intel-iot-devkit/sample-videos/"
               "57978890822836f2b4743852f04f62fc511757e4/one-by-one-person-detection.mp4")
FOOTAGE_SHA256 = "a5964aa259099a482a8b360ffc2c57b5a30f84d5919236a4dad01f8e929ac07c"
FOOTAGE_BYTES = 3_291_918
FOOTAGE_CREDIT = "footage: one-by-one-person-detection.mp4 by Intel, CC BY 4.0"
TIMEOUT, PAUSES = 5, (1,)  # seconds: the demo had rather render people than wait long


def main():
    parser = argparse.ArgumentParser(prog="python -m runtime.demo",
                                     description="Draw the poses of the people in a video: one command, no set-up.")
    parser.add_argument("--video", metavar="FILE_URL_OR_CAMERA",
                        help="own footage: file, URL or camera number (default: public footage, else a rendered clip)")
    parser.add_argument("--out", default="output/demo.mp4", metavar="FILE", help="drawn video (default: %(default)s)")
    parser.add_argument("--jsonl", default="output/demo.jsonl", metavar="FILE",
                        help="poses as JSON lines (default: %(default)s)")
    arguments = parser.parse_args()
    video, truth = (arguments.video, None) if arguments.video else choose_clip(Path(arguments.out).parent)
    exit_code = stream_clip(video, arguments.out, arguments.jsonl)
    if exit_code:
        return exit_code
    print(f"drawn: {arguments.out}   poses: {arguments.jsonl}")
    if truth is not None:
        print(rate(arguments.jsonl, truth))
        frames = load_truth(truth)
        print(clear_mot(frames, load_tracks(arguments.jsonl, len(frames))))
    return exit_code


def stream_clip(video, out, jsonl):
    """Run `python -m runtime.stream` on it, in this process. Returns its exit code."""
    source = ["--camera", str(video)] if str(video).isdecimal() else ["--video", str(video)]
    return stream.main([*source, "--out", str(out), "--jsonl", str(jsonl)])


def choose_clip(folder):
    """Public footage if it can be had, else a rendered clip in the folder.

    Returns:
        The clip's path, and that of its truth (None for footage).
    """
    try:
        footage = download(FOOTAGE_URL, cache_folder() / FOOTAGE_URL.rpartition("/")[2], FOOTAGE_BYTES, FOOTAGE_SHA256,
                           timeout=TIMEOUT, pauses=PAUSES, elsewhere="set XDG_CACHE_HOME to another")
    except BadInput as error:
        print(f"no public footage: {error}")
        print("so people are rendered instead, whose keypoints are known exactly (own footage: --video FILE)")
        clip, truth = folder / "walkers.mp4", folder / "walkers.json"
        write_clip(clip, truth)
        return clip, truth
    print(FOOTAGE_CREDIT)
    return footage, None


def cache_folder():
    """Where downloads stay: $XDG_CACHE_HOME/attention-pose, or ~/.cache/attention-pose."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-pose"


if __name__ == "__main__":
    run_command(main)
