"""CLEAR MOT: tracks against a truth, as misses, false positives and identity switches.

    python -m runtime.walkers --out walkers.mp4 --truth walkers.json      a clip whose truth is known
    python -m runtime.stream --video walkers.mp4 --jsonl poses.jsonl
    python -m runtime.mot --jsonl poses.jsonl --truth walkers.json        MOTA, identity switches, OKS
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BadInput, run_command
from runtime.nms import box_iou
from runtime.rate import MATCHED_IOU, counts, edges, rate


@dataclass
class ClearMot:
    """CLEAR MOT (Bernardin and Stiefelhagen 2008), boxes matched at IoU 0.5.

    Attributes:
        persons: of the truth, summed over frames. misses: of these, without a track. false_positives: tracks where
            nobody is. switches: how often a person's track is another than the last one.
    """

    persons: int = 0
    misses: int = 0
    false_positives: int = 0
    switches: int = 0

    @property
    def mota(self):
        """1 minus the errors for each person; 1 is perfect, and it can be negative."""
        return 1 - (self.misses + self.false_positives + self.switches) / max(self.persons, 1)

    def __str__(self):
        return (f"MOTA {self.mota:.3f}: of {self.persons} persons {self.misses} missed, {self.false_positives} tracks "
                f"where nobody is, {self.switches} identity switches")


def clear_mot(truth, found):
    """Compare tracks with the truth.

    Args:
        truth: for each frame the ids (N,), boxes (N, 4) and (N,) bool, who counts: others may be found or not.
        found: for each frame the ids (M,) and boxes (M, 4).
    """
    score = ClearMot()
    track_of: dict[int, int] = {}
    for (ids, boxes, counted), (tracks, found_boxes) in zip(truth, found, strict=True):
        overlap = box_iou(boxes, found_boxes)
        # Who kept the track is matched first, however much better another one fits (the paper's step 1).
        kept = np.array([[track_of.get(int(id)) == track for track in tracks] for id in ids], bool)
        order = np.argsort(-(overlap + kept.reshape(overlap.shape)), axis=None, kind="stable")
        matched: dict[int, int] = {}
        for row, column in zip(*np.unravel_index(order, overlap.shape), strict=True):
            if overlap[row, column] >= MATCHED_IOU and row not in matched and column not in matched.values():
                matched[row] = column
                id, track = int(ids[row]), int(tracks[column])
                score.switches += bool(counted[row] and track_of.get(id, track) != track)
                track_of[id] = track
        score.persons += int(counted.sum())
        score.misses += sum(bool(wanted) and row not in matched for row, wanted in enumerate(counted))
        score.false_positives += len(tracks) - len(matched)
    return score


def load_truth(path):
    """Frames of a COCO file (image id = frame + 1) for `clear_mot`: those count who show half of their keypoints.

    A person is known by its "track_id", as in PoseTrack, or by its place among an image's annotations where all images
    have as many (so it is in clips of `runtime.walkers` unless somebody is wholly hidden).
    """
    try:
        dataset = json.loads(_read(path))
        frames: list[list] = [[] for _ in dataset["images"]]
        if sorted(image["id"] for image in dataset["images"]) != list(range(1, len(frames) + 1)):
            raise BadInput(f"{path} is no clip's truth: image ids must be 1, 2, 3 …, frame + 1")
        for annotation in dataset["annotations"]:
            frames[annotation["image_id"] - 1].append(annotation)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is no COCO keypoint file ({error!r}); give the truth of the clip") from error
    known = all("track_id" in annotation for annotation in dataset["annotations"])
    if not known and len({len(people) for people in frames}) > 1:
        raise BadInput(f"{path} does not say who is who: its annotations lack track_id, and not everybody is in every "
                       "frame; render another clip (--seed, fewer --persons)")
    truth = []
    for people in frames:
        ids = [person["track_id"] if known else place for place, person in enumerate(people)]
        boxes = np.reshape([edges(person["bbox"]) for person in people], (-1, 4)).astype(np.float32)
        visible = [counts(person) for person in people]
        truth.append((np.array(ids, int), boxes, np.array(visible, bool)))
    return truth


def load_tracks(path, frames):
    """Ids and boxes of each of so many frames, from JSON lines; a frame that has no line has no tracks."""
    found = [(np.zeros(0, int), np.zeros((0, 4), np.float32)) for _ in range(frames)]
    for line in _read(path).splitlines():
        try:
            frame = json.loads(line)
            if frame["frame"] is None:  # of a camera that was lost for a while
                continue
            persons = frame["persons"]
            boxes = np.reshape([person["box"] for person in persons], (-1, 4)).astype(np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path} holds no JSON lines of runtime.stream ({error!r}); give such a file") from error
        if frame.get("source", 0) != 0:
            raise BadInput(f"{path} holds several sources, a truth is of one clip: stream that one alone")
        if any(person.get("id") is None for person in persons):
            raise BadInput(f"{path} has persons without ids: stream the clip without --no-track")
        if frame["frame"] >= frames:
            raise BadInput(f"{path} has a frame {frame['frame']}, the truth only {frames}: give the truth of this clip")
        found[frame["frame"]] = np.array([person["id"] for person in persons], int), boxes
    return found


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; check the path") from error


def main():
    parser = argparse.ArgumentParser(prog="python -m runtime.mot",
                                     description="Compare tracks with a truth: MOTA, identity switches, OKS.")
    parser.add_argument("--jsonl", required=True, metavar="FILE", help="tracks, from runtime.stream")
    parser.add_argument("--truth", required=True, metavar="FILE", help="COCO JSON of the clip, image id = frame + 1")
    arguments = parser.parse_args()
    truth = load_truth(arguments.truth)
    print(clear_mot(truth, load_tracks(arguments.jsonl, len(truth))))
    print(rate(arguments.jsonl, arguments.truth))


if __name__ == "__main__":
    run_command(main)
