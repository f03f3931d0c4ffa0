"""How poses fit a rendered truth: who was found, OKS and PCK."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BadInput
from runtime.keypoints import COCO
from runtime.nms import box_iou, keypoint_similarity

MATCHED_IOU = 0.5


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
        if frame["frame"] is None:  # of a camera that was lost for a while
            continue
        poses, people = frame["persons"], by_frame[frame["frame"]]
        if any(len(pose["keypoints"]) != len(COCO) for pose in poses):
            raise BadInput(f"{jsonl} has poses of other keypoints than COCO's {len(COCO)}, which the truth has: stream "
                           "the clip with an engine of COCO's keypoints")
        overlap = box_iou(np.reshape([edges(person["bbox"]) for person in people], (-1, 4)),
                          np.reshape([pose["box"] for pose in poses], (-1, 4)))
        extra += int((overlap < MATCHED_IOU).all(0).sum())
        # Each pose counts for one person only: the best pairs first.
        for row, column in zip(*np.unravel_index(np.argsort(-overlap, axis=None), overlap.shape), strict=True):
            if overlap[row, column] < MATCHED_IOU:
                continue
            matched = people[row]
            overlap[row, :], overlap[:, column] = 0, 0
            if counts(matched):
                found += 1
                fits.append(similarity(poses[column]["keypoints"], matched))
                near.extend(close_keypoints(poses[column]["keypoints"], matched))
        persons += sum(map(counts, people))
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


def counts(annotation):
    """Whether an annotated person is to be found: half of its keypoints or more are visible."""
    return sum(visibility == 2 for visibility in annotation["keypoints"][2::3]) >= len(COCO) / 2


def edges(bbox):
    """COCO's left, top, width, height → left, top, right, bottom."""
    left, top, width, height = bbox
    return left, top, left + width, top + height
