"""MPII's own score, PCKh, and a .mat of the poses for its MATLAB script.

A keypoint is right within a share of the head's size, 0.6 times the diagonal of the annotated head box (Andriluka et
al. 2014). The table is that of the official evaluatePCKh.m: Head is the mean of upper neck and head top, every other
part the mean of left and right, and Mean ("Total" there) counts all keypoints together; pelvis and thorax are left out.
Several Python versions of it print the head top alone as Head.
"""

import numpy as np

from runtime.errors import BadInput
from runtime.files import whole_file
from runtime.keypoints import MPII

SHARES = (0.5, 0.1)  # PCKh@0.5 and PCKh@0.1
HEAD_SHARE = 0.6  # of the head box's diagonal
FIRST_PIXEL = 1  # MATLAB counts from 1; train.mpii2coco took it off
PARTS = {
    "Head": ("upper_neck", "head_top"),
    **{part: (f"left_{part.lower()}", f"right_{part.lower()}")
       for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")},
}


def pckh(predicted, labelled, head_boxes, share=0.5):
    """Percentage of keypoints that lie within a share of the head's size.

    Args:
        predicted: (N, 16, ≥2) x, y in pixels, one pose a labelled person.
        labelled: (N, 16, 3) x, y, visibility; 0 is not labelled and does not count.
        head_boxes: (N, 4) left, top, right, bottom.
        share: of the head's size; a keypoint exactly so far away is right.

    Returns:
        dict of Head, Shoulder, Elbow, Wrist, Hip, Knee, Ankle and Mean in percent; NaN for a part that nobody has.
    """
    labelled, head_boxes = np.asarray(labelled, np.float64), np.asarray(head_boxes, np.float64)
    heads = HEAD_SHARE * np.linalg.norm(head_boxes[:, 2:] - head_boxes[:, :2], axis=1)
    away = np.linalg.norm(np.asarray(predicted, np.float64)[..., :2] - labelled[..., :2], axis=2)
    counts = labelled[..., 2] > 0
    right = (away <= share * heads[:, None]) & counts
    counts, right = counts.sum(0), right.sum(0)

    def percentage(right, total):
        return 100 * right / total if total else float("nan")

    indices = {part: [MPII.names.index(name) for name in names] for part, names in PARTS.items()}
    table = {part: float(np.mean([percentage(right[index], counts[index]) for index in both]))
             for part, both in indices.items()}
    scored = [index for both in indices.values() for index in both]
    return {**table, "Mean": float(percentage(right[scored].sum(), counts[scored].sum()))}


def pckh_of(annotations, poses):
    """PCKh of poses on the annotated boxes.

    Args:
        annotations: of `train.mpii2coco`: persons with a head_box (left, top, right, bottom).
        poses: image id → Poses, one a person of the image, in the annotations' order.

    Returns:
        {"0.5": table, "0.1": table, "persons": how many count}: those with a head box. A part without any labelled
        keypoint is None.

    Raises:
        BadInput: no person has a head box.
    """
    pairs = [(pose, person) for image, persons in annotations.persons.items()
             for pose, person in zip(poses[image].keypoints, persons, strict=True) if "head_box" in person]
    if not pairs:
        raise BadInput(f"none of the {annotations.person_count} persons of {annotations.path} has a head_box, which "
                       "PCKh measures by; convert MPII anew, python -m train.mpii2coco")
    predicted = np.stack([pose for pose, _ in pairs])
    labelled = np.array([person["keypoints"] for _, person in pairs]).reshape(-1, len(MPII), 3)
    heads = np.array([person["head_box"] for _, person in pairs])
    tables = {f"{share:g}": pckh(predicted, labelled, heads, share) for share in SHARES}
    return {**{share: {part: None if np.isnan(value) else value for part, value in table.items()}
               for share, table in tables.items()}, "persons": len(pairs)}


def pckh_table(scores):
    """The lines that a terminal shows of `pckh_of`."""
    parts = [*PARTS, "Mean"]
    lines = ["            " + "".join(f"{part:>10}" for part in parts)]
    for share in SHARES:
        values = [scores[f"{share:g}"][part] for part in parts]
        lines.append(f"  PCKh@{share:g}  " + "".join("         -" if value is None else f"{value:10.1f}"
                                                     for value in values))
    return "\n".join([*lines, f"  of {scores['persons']} persons with a head box"])


def write_mat(path, annotations, poses):
    """Write the poses for MATLAB. Coordinates are MPII's: the first pixel is 1.

        preds        N × 16 × 2: x, y, as evaluations by array read them (github.com/anibali/eval-mpii-pose)
        scores       N × 16
        image_index  N × 1: which image of RELEASE.annolist
        pred         1 × images, in MPII's own structure: pred(i).image.name, pred(i).imgidx (of RELEASE.annolist) and
                     pred(i).annorect(r).annopoints.point(p) with x, y, id (0 to 15) and score

    Args:
        annotations: of `train.mpii2coco`, whose image ids are places in annolist, from 0.
        poses: image id → Poses.

    Raises:
        BadInput: scipy is not installed, or the file cannot be written.
    """
    try:
        from scipy.io import savemat
    except ModuleNotFoundError as error:
        raise BadInput("scipy is not installed, which result.mat needs; pip install scipy") from error
    images = [image for image in annotations.images if image["id"] in poses]
    persons = [(image["id"] + FIRST_PIXEL, keypoints) for image in images for keypoints in poses[image["id"]].keypoints]
    keypoints = np.array([keypoints for _, keypoints in persons], np.float64).reshape(-1, len(MPII), 3)
    content = {
        "preds": keypoints[..., :2] + FIRST_PIXEL,
        "scores": keypoints[..., 2],
        "image_index": np.array([index for index, _ in persons], np.float64).reshape(-1, 1),
        "pred": _structs([_image(image, poses[image["id"]].keypoints) for image in images]),
    }
    with whole_file(path) as part, part.open("wb") as file:
        savemat(file, content, do_compression=True)


def _image(image, keypoints):
    persons = _structs([{"annopoints": {"point": _points(person)}} for person in keypoints])
    return {"image": {"name": image["file_name"].removeprefix("images/")}, "annorect": persons,
            "imgidx": float(image["id"] + FIRST_PIXEL)}


def _points(keypoints):
    return _structs([{"x": float(x) + FIRST_PIXEL, "y": float(y) + FIRST_PIXEL, "id": float(index),
                      "score": float(score)} for index, (x, y, score) in enumerate(keypoints)])


def _structs(items):
    """Dicts of the same keys → a 1 × N struct array, as savemat takes it."""
    array = np.empty((1, len(items)), [(key, object) for key in (items[0] if items else ())])
    for number, item in enumerate(items):
        array[0, number] = tuple(item.values())
    return array
