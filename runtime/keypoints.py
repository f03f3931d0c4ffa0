"""Keypoint schemas, and the poses of one frame."""

from dataclasses import dataclass

import numpy as np

# Sides of a person's crop by those of its box, where no engine or config says otherwise (Xiao et al. 2018).
PERSON_PADDING = 1.25


@dataclass(frozen=True)
class KeypointSchema:
    """What the K keypoints of a data set are.

    Attributes:
        name: "coco", "mpii" or "posetrack", or what an engine of another project calls it.
        names: K keypoint names, in the data set's order.
        flip_pairs: index pairs (left, right) that a mirrored picture swaps.
        limbs: index pairs to join when a skeleton is drawn.
        sigmas: K standard deviations of a labeller's error, as a share of the person's size √area; OKS uses
            (2σ)² (Ronchi and Perona 2017; pycocotools' `kpt_oks_sigmas`).
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]

    def __len__(self):
        return len(self.names)

    @property
    def flip_order(self):
        """(K,) int array: keypoint i of a mirrored picture is keypoint flip_order[i] of the original."""
        order = np.arange(len(self.names))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order


COCO = KeypointSchema(
    name="coco",
    names=("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
           "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
           "right_knee", "left_ankle", "right_ankle"),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9),
           (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    sigmas=(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087,
            0.087, 0.089, 0.089),
)

# MPII and PoseTrack publish no sigmas: a joint has COCO's of the same joint, the middle ones COCO's nearest.
MPII = KeypointSchema(
    name="mpii",
    names=("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
           "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
           "left_wrist"),
    flip_pairs=((5, 0), (4, 1), (3, 2), (15, 10), (14, 11), (13, 12)),
    limbs=((0, 1), (1, 2), (2, 6), (5, 4), (4, 3), (3, 6), (6, 7), (7, 8), (8, 9), (7, 12), (12, 11), (11, 10), (7, 13),
           (13, 14), (14, 15)),
    sigmas=(0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.107, 0.079, 0.079, 0.035, 0.062, 0.072, 0.079, 0.079, 0.072,
            0.062),
)

POSETRACK = KeypointSchema(
    name="posetrack",
    names=("nose", "head_bottom", "head_top", *COCO.names[3:]),  # its ears are never labelled
    flip_pairs=COCO.flip_pairs[1:],
    limbs=((0, 1), (0, 2), (1, 5), (1, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13),
           (13, 15), (12, 14), (14, 16)),
    sigmas=(0.026, 0.079, 0.035, *COCO.sigmas[3:]),
)

SCHEMAS = {schema.name: schema for schema in (COCO, MPII, POSETRACK)}


@dataclass
class Poses:
    """The N persons of one frame. Pixels of the frame throughout.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom.
        box_scores: (N,) float32 in 0..1.
        keypoints: (N, K, 3) float32, x, y, score. Whole numbers of x and y are pixel centres, as in OpenCV
            and COCO; the score is 1 where the network is as sure as its training target, and of engines exported
            from a cross-entropy the similarity (OKS) to expect of that place.
    """

    boxes: np.ndarray
    box_scores: np.ndarray
    keypoints: np.ndarray

    def __len__(self):
        return len(self.boxes)

    @property
    def scores(self):
        """(N,) one score a person, by which COCO ranks them: box score times the mean of its confident
        keypoints' scores (Xiao et al. 2018), those above 0.2."""
        point_scores = self.keypoints[..., 2]
        confident = point_scores > 0.2
        mean = np.where(confident, point_scores, 0).sum(1) / np.maximum(confident.sum(1), 1)
        return self.box_scores * mean
