"""The demo: public footage, or people that this program renders itself, through the bundled engines.

    python -m runtime.demo                    a clip by Intel, downloaded once; without network a rendered one
    python -m runtime.demo --video street.mp4 own footage: a file, a URL or a camera number
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import stream
from runtime.download import download
from runtime.errors import BadInput, run_command
from runtime.keypoints import COCO
from runtime.nms import box_iou, keypoint_similarity
from runtime.walkers import write_clip

FOOTAGE_URL = ("https://raw.githubusercontent.com/intel-iot-devkit/sample-videos/"
               "57978890822836f2b4743852f04f62fc511757e4/one-by-one-person-detection.mp4")
FOOTAGE_SHA256 = "a5964aa259099a482a8b360ffc2c57b5a30f84d5919236a4dad01f8e929ac07c"
FOOTAGE_BYTES = 3_291_918
FOOTAGE_CREDIT = "footage: one-by-one-person-detection.mp4 by Intel, CC BY 4.0"
TIMEOUT, PAUSES = 5, (1,)  # seconds: the demo had rather render people than wait long
MATCHED_IOU = 0.5


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
    print(f"drawn: {arguments.out}   poses: {arguments.jsonl}")
    if truth is not None:
        print(rate(arguments.jsonl, truth))
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


@dataclass
class Rating:
    """How poses fit a truth.

    Attributes:
        persons: of the truth, with half of their keypoints visible or more. found: of these, with a pose whose box
            overlaps theirs by IoU 0.5. extra: poses that overlap nobody. oks: mean OKS of those found, nan if none.
        pck: share of the visible keypoints of those found that lie within a tenth of the box's longer side (PCK@0.1).
    """

    persons: int
    found: int
    extra: int
    oks: float
    pck: float

    def __str__(self):
        share = self.found / max(self.persons, 1)
        fit = f", mean OKS of those found {self.oks:.2f} (1 is exact), PCK@0.1 {self.pck:.2f}" if self.found else ""
        return (f"against the rendered truth: {self.found} of {self.persons} persons found ({share:.0%}), "
                f"{self.extra} poses where nobody is{fit}")


def rate(jsonl, truth):
    """Compare JSON lines of poses with a COCO truth whose image ids are frames + 1. Returns a Rating."""
    dataset = json.loads(Path(truth).read_text())
    by_frame: dict[int, list] = {image["id"] - 1: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        by_frame[annotation["image_id"] - 1].append(annotation)
    persons = found = extra = 0
    fits: list[float] = []
    near: list[bool] = []
    for line in Path(jsonl).read_text().splitlines():
        frame = json.loads(line)
        poses, people = frame["persons"], by_frame[frame["frame"]]
        overlap = box_iou(np.reshape([_edges(person["bbox"]) for person in people], (-1, 4)),
                          np.reshape([pose["box"] for pose in poses], (-1, 4)))
        extra += int((overlap < MATCHED_IOU).all(0).sum())
        # Each pose counts for one person only: the best pairs first.
        for row, column in zip(*np.unravel_index(np.argsort(-overlap, axis=None), overlap.shape), strict=True):
            if overlap[row, column] < MATCHED_IOU:
                continue
            matched = people[row]
            overlap[row, :], overlap[:, column] = 0, 0
            if _counts(matched):
                found += 1
                fits.append(similarity(poses[column]["keypoints"], matched))
                near.extend(close_keypoints(poses[column]["keypoints"], matched))
        persons += sum(map(_counts, people))
    oks, pck = (float(np.mean(values)) if values else float("nan") for values in (fits, near))
    return Rating(persons, found, extra, oks, pck)


def similarity(keypoints, annotation):
    """OKS (0..1) of (17, 3) keypoints with a COCO annotation: the mean over its labelled keypoints, after
    pycocotools."""
    truth = np.reshape(annotation["keypoints"], (-1, 3))
    likeness = keypoint_similarity(keypoints, truth, annotation["area"], COCO.sigmas)
    return float(likeness[truth[:, 2] > 0].mean())


def close_keypoints(keypoints, annotation):
    """Which of the visible keypoints of an annotation lie within a tenth of its box's longer side: list of bool."""
    truth = np.reshape(annotation["keypoints"], (-1, 3))
    distances = np.linalg.norm(np.asarray(keypoints)[:, :2] - truth[:, :2], axis=1)
    return (distances < 0.1 * max(annotation["bbox"][2:]))[truth[:, 2] == 2].tolist()


def _counts(annotation):
    return sum(visibility == 2 for visibility in annotation["keypoints"][2::3]) >= len(COCO) / 2


def _edges(bbox):
    left, top, width, height = bbox
    return left, top, left + width, top + height


if __name__ == "__main__":
    run_command(main)
