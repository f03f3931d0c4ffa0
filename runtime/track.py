"""Tracking: which person of this frame is which person of the frames before.

A new pose belongs to the track whose prediction it resembles most, by OKS and by IoU of the boxes; where nothing
resembles it, it begins a track of its own. All of it counts in seconds, since frames drop and rates vary.
"""

from dataclasses import dataclass

import numpy as np

from runtime.keypoints import Poses
from runtime.nms import box_iou, keypoint_similarity, oks_nms

# The figures behind these: docs/output.md.
SAME_POSE = 0.6  # OKS above which two poses of a frame are one person, found twice
LEAST_SIMILARITY = 0.1  # mean of OKS and IoU below which a pose is somebody else's
SURE = 0.3  # score from which a keypoint counts; hips of nobody have up to 0.35
FEWEST_SURE = 5  # keypoints sure in both poses, below which the boxes alone decide
VELOCITY_MEMORY = 0.2  # seconds over which a velocity is averaged
SPREAD_DOUBLES = 0.1  # seconds unseen after which OKS tolerates twice the distance, thrice after two of them …
LONGEST_PREDICTION = 0.5  # seconds: an unseen person is expected where it would be then, not further on
LOST_AFTER = 0.3  # seconds unseen: shorter gaps are the detector's
FOLLOWED_FOR = 1.0  # seconds without detection for which keypoints lead a box
FOLLOWED_SCORE = 0.35  # mean keypoint score below which there is nobody in such a box, nor in a weak one
WEAK = 0.6  # share of the threshold from which a detection still shows somebody who is expected there
EXPECTED_IOU = 0.5  # of a box with the one that is expected, from which it shows that person


@dataclass
class Event:
    """What happened to a person: "enter", "lost" (unseen for LOST_AFTER seconds) or "return" (the same id again)."""

    kind: str
    id: int


@dataclass
class Track:
    """A person over time: where it was last seen, in pixels and seconds.

    Attributes:
        id: from 1; 0 until it is confirmed.
        time: when it was last seen. detected: when a detector last saw it.
        box: (4,) left, top, right, bottom. score: of its last detection. keypoints: (K, 3) x, y, score.
        velocity: (2,) of the whole person, pixels a second.
        lost: said so by an event.
    """

    id: int
    time: float
    detected: float
    box: np.ndarray
    score: float
    keypoints: np.ndarray
    velocity: np.ndarray
    lost: bool = False

    def shift(self, time):
        """(2,) pixels that the person should have moved until then."""
        return self.velocity * min(time - self.time, LONGEST_PREDICTION)


class Tracker:
    """Gives persons their ids. One tracker a video; times must rise.

    Args:
        sigmas: (K,) of the keypoints' schema, for OKS.
        threshold: least score of a detection that may begin a track.
        keep: seconds for which a lost person is remembered and can return. Longer finds more who come back, and
            more strangers who come where somebody left.
    """

    def __init__(self, sigmas, threshold=0.0, keep=2.0):
        self.sigmas = sigmas
        self.threshold = threshold
        self.keep = keep
        self.tracks: list[Track] = []
        self._last_time = None
        self._last_id = 0

    @property
    def weakest(self):
        """Least score of a detection that `believe` may take: what a detector has to give it."""
        return WEAK * self.threshold

    def predict(self, time):
        """Boxes for a frame without detection, from the persons of the frame before.

        Returns:
            boxes (N, 4) float32 and scores (N,) float32, those of their last detection.
        """
        # Of the frame before, not of longer ago: who is hidden would take the place of whoever hides him.
        followed = [track for track in self.tracks
                    if track.time == self._last_time and time - track.detected < FOLLOWED_FOR]
        boxes = [track.box + np.tile(track.shift(time), 2) for track in followed]
        return (np.array(boxes, np.float32).reshape(-1, 4),
                np.array([track.score for track in followed], np.float32))

    def believe(self, time, boxes, scores):
        """Which of a detector's boxes are worth a pose: those of the threshold, and weaker ones where a person is
        expected whom none of those shows (after ByteTrack, Zhang et al. 2022). Whoever is there stays there.

        Args:
            boxes: (N, 4). scores: (N,), best first.

        Returns:
            Indices, rising.
        """
        strong, weak = np.flatnonzero(scores >= self.threshold), np.flatnonzero(scores < self.threshold)
        expected = [track.box + np.tile(track.shift(time), 2) for track in self.tracks
                    if track.id and time - track.time <= LOST_AFTER]
        if not len(weak) or not expected:
            return strong
        overlap = box_iou(expected, boxes[weak])
        overlap[box_iou(expected, boxes[strong]).max(1, initial=0) >= EXPECTED_IOU] = 0
        best = overlap.argmax(1)[overlap.max(1) >= EXPECTED_IOU]
        return np.concatenate([strong, np.unique(weak[best])])

    def update(self, time, poses, detected=True):
        """Take in a frame.

        Args:
            time: seconds, later than the frame before.
            poses: Poses found in it.
            detected: their boxes are a detector's; False for those of `predict`, which begin no track.

        Returns:
            Poses to be shown, ids (N,) int of them, and a list of Events. Left out are doubles of a person, predicted
            boxes with nobody in them, and persons seen for the first time, unless in the very first frame.
        """
        if self._last_time is not None and not time > self._last_time:
            raise ValueError(f"time {time} is not later than that of the frame before, {self._last_time}")
        events = [Event("lost", track.id) for track in self.tracks
                  if track.id and not track.lost and time - track.time > self.keep]
        self.tracks = [track for track in self.tracks
                       if (time - track.time <= self.keep if track.id else track.time == self._last_time)]
        found = self._persons(poses, detected)
        owners = _pairs(self._similarity(time, poses.boxes[found], poses.keypoints[found]))
        shown: dict[int, Track] = {}
        for number, person in enumerate(found):
            pose = poses.boxes[person], float(poses.box_scores[person]), poses.keypoints[person]
            if number in owners:
                track = self.tracks[owners[number]]
                _see(track, time, *pose, detected)
                if not track.id and not detected:  # its own prediction is no second sight of it
                    continue
                shown[person] = track
                if track.lost:
                    track.lost = False
                    events.append(Event("return", track.id))
            elif detected and pose[1] >= self.threshold:
                track = Track(0, time, time, *pose, velocity=np.zeros(2))
                self.tracks.append(track)
                if self._last_time is None:
                    shown[person] = track
        people = sorted(shown)
        for person in people:
            if not shown[person].id:
                self._last_id += 1
                shown[person].id = self._last_id
                events.append(Event("enter", self._last_id))
        for track in self.tracks:
            if track.id and not track.lost and time - track.time > LOST_AFTER:
                track.lost = True
                events.append(Event("lost", track.id))
        self._last_time = time
        boxes = np.array([shown[person].box for person in people], np.float32).reshape(-1, 4)
        ids = np.array([shown[person].id for person in people], np.int64)
        return Poses(boxes, poses.box_scores[people], poses.keypoints[people]), ids, events

    def _persons(self, poses, detected):
        """Indices of the poses without doubles and, of predicted and weak boxes, without those that nobody is in."""
        doubtful = (poses.box_scores < self.threshold) | (not detected)
        there = np.flatnonzero(~doubtful | (poses.keypoints[..., 2].mean(1) >= FOLLOWED_SCORE))
        kept = oks_nms(poses.keypoints[there], poses.box_scores[there], person_sizes(poses.boxes[there]) ** 2,
                       self.sigmas, SAME_POSE)
        return there[kept].tolist()

    def _similarity(self, time, boxes, keypoints):
        """(T, N) likeness 0..1 of every track's prediction and every pose: the mean of OKS and IoU, or IoU alone
        where fewer than FEWEST_SURE keypoints are sure in both."""
        if not self.tracks or not len(boxes):
            return np.zeros((len(self.tracks), len(boxes)))
        shifts = np.array([track.shift(time) for track in self.tracks])
        unseen = np.array([min(time - track.time, LONGEST_PREDICTION) for track in self.tracks])
        expected_boxes = np.array([track.box for track in self.tracks]) + np.tile(shifts, 2)
        expected = np.array([track.keypoints for track in self.tracks])
        expected[..., :2] += shifts[:, None]
        areas = (person_sizes(expected_boxes)[:, None] ** 2 + person_sizes(boxes) ** 2) / 2
        areas *= (1 + unseen[:, None] / SPREAD_DOUBLES) ** 2
        likeness = keypoint_similarity(expected[:, None], keypoints[None], areas, self.sigmas)
        sure = (expected[:, None, :, 2] >= SURE) & (keypoints[None, ..., 2] >= SURE)
        count = sure.sum(-1)
        oks = (likeness * sure).sum(-1) / np.maximum(count, 1)
        iou = box_iou(expected_boxes, boxes)
        return np.where(count >= FEWEST_SURE, (oks + iou) / 2, iou)


def _pairs(similarity):
    """{column: row} of those who belong together, the most alike first (optimal assignment measured no better)."""
    owners: dict[int, int] = {}
    free = np.where(similarity >= LEAST_SIMILARITY, similarity, 0)
    for row, column in zip(*np.unravel_index(np.argsort(-free, axis=None, kind="stable"), free.shape), strict=True):
        if free[row, column] > 0:
            free[row, :], free[:, column] = 0, 0
            owners[int(column)] = int(row)
    return owners


def _see(track, time, box, score, keypoints, detected):
    """The track's person is here now."""
    sure = (track.keypoints[:, 2] >= SURE) & (keypoints[:, 2] >= SURE)
    old, new = track.keypoints[sure, :2], keypoints[sure, :2]
    if len(new) < FEWEST_SURE:
        old, new = track.box.reshape(2, 2), box.reshape(2, 2)
    moved, passed = (new - old).mean(0), time - track.time
    track.velocity = track.velocity + (1 - np.exp(-passed / VELOCITY_MEMORY)) * (moved / passed - track.velocity)
    if detected:
        track.detected, track.score, track.box = time, score, box
    else:  # nobody looked for the box: it goes where the keypoints went (taking on their size measured worse)
        track.box = track.box + np.tile(moved, 2)
    track.time, track.keypoints = time, keypoints


def person_sizes(boxes):
    """(N,) pixels: the roots of the areas of (N, 4) boxes."""
    return np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 1, None).prod(-1))
