"""PoseTrack's own score of poses: AP of every joint, as poseval counts it.

Poses go to persons by PCKh: a joint is right within half the size of the person's head, 0.6 times the diagonal of the
head box; a pose goes to the person of whom it has the largest share of labelled joints right, and a person to the best
of these poses. Over all frames the joints of one kind, by their own scores, give a curve of precision over recall, and
the area under it AP. Iqbal et al. 2017, "PoseTrack: Joint Multi-Person Pose Estimation and Tracking", after the code of
github.com/leonid-pishchulin/poseval (evaluateAP.py).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from runtime.keypoints import POSETRACK

SHARE = 0.5  # of the head's size
HEAD_SHARE = 0.6  # of the head box's diagonal
JOINTS = tuple(number for number, name in enumerate(POSETRACK.names) if not name.endswith("_ear"))  # never labelled
PARTS = {
    "Head": ("head_top", "head_bottom", "nose"),
    **{part: (f"left_{part.lower()}", f"right_{part.lower()}")
       for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")},
}


@dataclass(frozen=True)
class Frame:
    """A labelled frame.

    Attributes:
        labels: (G, 17, 3) x, y in pixels, and whether it is labelled. heads: (G,) size of the head in pixels.
        poses: (P, 17, 3) x, y, score. regions: (Q, 2) polygons in which nothing counts, neither label nor pose.
    """

    labels: np.ndarray
    heads: np.ndarray
    poses: np.ndarray
    regions: list[np.ndarray]


def frames_of(video, results):
    """The labelled frames of a video.

    Args:
        video: dict of a PoseTrack 2018 file: images, annotations.
        results: image id → its poses in COCO's results format.

    Returns:
        list of `Frame`, and how many labelled persons lack a head box: they cannot be measured, and are left out.
    """
    persons: dict[int, list] = {}
    headless = 0
    for person in video.get("annotations") or []:
        if not person.get("keypoints"):
            continue
        if person.get("bbox_head"):
            persons.setdefault(person["image_id"], []).append(person)
        else:
            headless += 1
    frames = []
    for image in video["images"]:
        people = persons.get(image["id"], [])
        if not people:  # poseval leaves out frames without anybody
            continue
        labels = np.array([person["keypoints"] for person in people], float).reshape(-1, len(POSETRACK), 3)
        labels[..., 2] = (labels != 0).any(2)  # as poseval: only what is 0 in all three is not labelled
        heads = HEAD_SHARE * np.linalg.norm([person["bbox_head"][2:] for person in people], axis=1)
        poses = np.array([result["keypoints"] for result in results.get(image["id"], [])],
                         float).reshape(-1, len(POSETRACK), 3)
        frames.append(Frame(labels, heads, poses, _regions(image)))
    return frames, headless


def _regions(image):
    """Polygons (Q, 2) of an image; a single one may come without the outer list."""
    sides = [image.get(name) or [] for name in ("ignore_regions_x", "ignore_regions_y")]
    columns, rows = (side if all(isinstance(part, list) for part in side) else [side] for side in sides)
    polygons = [np.array([xs, ys], np.float32).T for xs, ys in zip(columns, rows, strict=False) if len(xs) == len(ys)]
    return [polygon for polygon in polygons if len(polygon) > 2]


def _outside(points, regions):
    """(N, 17, 3) → (N, 17) bool: in none of the regions, their edges being outside."""
    flat = points[..., :2].reshape(-1, 2).tolist()
    inside = [any(cv2.pointPolygonTest(region, point, False) > 0 for region in regions) for point in flat]
    return ~np.array(inside, bool).reshape(points.shape[:2])


def joint_results(frame):
    """What becomes of each joint of a frame.

    Returns:
        scores (P', 15), right (P', 15) bool, counts (P', 15) bool: whether the joint is a prediction that counts;
        and labelled (15,) int. P' are the poses that have any joint outside the regions to ignore.
    """
    has_label = (_outside(frame.labels, frame.regions) & (frame.labels[..., 2] > 0))[:, JOINTS]
    has_pose = _outside(frame.poses, frame.regions)[:, JOINTS]
    kept = has_pose.any(1)
    poses, has_pose = frame.poses[kept][:, JOINTS], has_pose[kept]
    labels = frame.labels[:, JOINTS]
    distances = np.linalg.norm(poses[:, None, :, :2] - labels[None, :, :, :2], axis=3)
    near = (distances <= SHARE * frame.heads[:, None]) & has_pose[:, None] & has_label[None]
    shares = near.sum(2) / np.maximum(has_label.sum(1), 1)
    right = np.zeros_like(has_pose)
    if len(poses):
        best = shares.argmax(1)
        alone = np.where(np.arange(len(labels)) == best[:, None], shares, 0)
        for person, pose in enumerate(alone.argmax(0)):
            if alone[pose, person] > 0:
                right[pose] = near[pose, person]
    return poses[..., 2], right, has_pose, has_label.sum(0)


def average_precision(scores, right, labelled):
    """Area under the curve of precision over recall, the best precision at a recall or a higher one.

    Args:
        scores: (N,). right: (N,) bool. labelled: how many there are to find.

    Returns:
        0..1; NaN where there is nothing to find.
    """
    if not labelled:
        return float("nan")
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / labelled
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())


def joint_ap(frames):
    """AP of PoseTrack in percent → dict: each joint by its name, then the parts of `PARTS` and "Total", the mean of all
    joints. None for what nobody has labelled."""
    parts = [joint_results(frame) for frame in frames]
    scores, right, counts = (np.concatenate([part[number] for part in parts]) for number in range(3))
    labelled = np.sum([part[3] for part in parts], axis=0)
    values = {POSETRACK.names[joint]: 100 * average_precision(
        scores[counts[:, number], number], right[counts[:, number], number], labelled[number])
        for number, joint in enumerate(JOINTS)}
    table = {**values, **{part: float(np.mean([values[name] for name in names])) for part, names in PARTS.items()}}
    known = [value for value in values.values() if not np.isnan(value)]
    table["Total"] = float(np.mean(known)) if known else float("nan")
    return {name: None if np.isnan(value) else value for name, value in table.items()}


def ap_table(values):
    """The lines that a terminal shows of `joint_ap`."""
    parts = [*PARTS, "Total"]
    return "\n".join(["    " + "".join(f"{part:>10}" for part in parts),
                      "  AP" + "".join("         -" if values[part] is None else f"{values[part]:10.1f}"
                                       for part in parts)])
