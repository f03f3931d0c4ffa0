"""The command that renders people: `python -m runtime.walkers --help`."""

import argparse
import re
from pathlib import Path

from runtime.errors import BadInput, run_command
from runtime.walkers import write_clip, write_stills
from runtime.write import CODECS


def main():
    parser = argparse.ArgumentParser(prog="python -m runtime.walkers",
                                     description="Render people with exact keypoints, in COCO's format.")
    parser.add_argument("--out", required=True, metavar="PATH", help="video (.mp4, .mov, .avi); with --stills a folder")
    parser.add_argument("--truth", required=True, metavar="FILE", help="COCO keypoint JSON to write")
    parser.add_argument("--stills", type=int, metavar="N", help="pictures in any pose instead of a clip")
    parser.add_argument("--frames", type=int, default=150, help="frames of the clip, 25 a second (default: 150)")
    parser.add_argument("--persons", type=int, default=3, help="people in the clip, 1..20 (default: 3)")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="width x height in pixels (default: 640x480)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pixels (default: 0)")
    arguments = parser.parse_args()
    matched = re.fullmatch(r"(\d+)x(\d+)", arguments.size)
    size = (int(matched[1]), int(matched[2])) if matched else (0, 0)
    if not all(64 <= side <= 4096 for side in size):
        raise BadInput(f"--size {arguments.size} is not WIDTHxHEIGHT of 64 to 4096 pixels: give for example 640x480")
    for option, value, most in (("--frames", arguments.frames, 10 ** 6), ("--persons", arguments.persons, 20),
                                ("--stills", arguments.stills, 10 ** 6)):
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"{option} {value} is not in 1..{most}")
    if arguments.seed < 0:
        raise BadInput(f"--seed {arguments.seed} is negative: give 0 or more")
    if arguments.stills:
        write_stills(arguments.out, arguments.truth, arguments.stills, size, arguments.seed)
    elif Path(arguments.out).suffix.lower() not in CODECS:
        raise BadInput(f"--out {arguments.out} is no video name: end it in {', '.join(CODECS)}")
    else:
        write_clip(arguments.out, arguments.truth, arguments.frames, size, arguments.seed, arguments.persons)


if __name__ == "__main__":
    run_command(main)
