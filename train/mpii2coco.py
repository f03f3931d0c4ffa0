"""MPII Human Pose's own annotations → COCO keypoint JSON: train.json and test.json.

    python -m train.mpii2coco
    python -m train.mpii2coco --mat FOLDER/mpii_human_pose_v1_u12_1.mat --images FOLDER/images --out FOLDER/annotations

Nothing is downloaded. Get two files by hand from http://human-pose.mpi-inf.mpg.de/ (Download) and read the terms
there first: for research; commercial use is not allowed, since the authors do not own the images.

    mpii_human_pose_v1_u12_2.zip  annotations: its mpii_human_pose_v1_u12_1.mat goes to data/MPII/
    mpii_human_pose_v1.tar.gz     images, 13 GB: its images/ goes to data/MPII/images/
"""

import argparse
import math
import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError, mat_struct
from tqdm import tqdm

from runtime.errors import BadInput, run_command
from runtime.keypoints import MPII
from train.coco_file import CocoFile, keypoint_box

PERSON_HEIGHT = 200  # pixels; MPII's scale is a person's height over this
BOX_ENLARGED = 1.2  # a person's box is the extent of the keypoints times this, as TF-SimpleHumanPose has it
FIRST_PIXEL = 1  # MPII counts from 1, as MATLAB does: github.com/microsoft/human-pose-estimation.pytorch/issues/110
SOURCE = "http://human-pose.mpi-inf.mpg.de/ has it, see --help"


def main():
    parser = argparse.ArgumentParser(prog="python -m train.mpii2coco", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mat", default="data/MPII/mpii_human_pose_v1_u12_1.mat", metavar="FILE",
                        help="MPII's annotations (default: %(default)s)")
    parser.add_argument("--images", default="data/MPII/images", metavar="FOLDER",
                        help="MPII's images (default: %(default)s); training looks for them at images/ beside the "
                             "folder of --out")
    parser.add_argument("--out", default="data/MPII/annotations", metavar="FOLDER",
                        help="where train.json and test.json go (default: %(default)s)")
    arguments = parser.parse_args()
    train, test = convert(arguments.mat, arguments.images)
    written = [train.write(Path(arguments.out, "train.json")), test.write(Path(arguments.out, "test.json"))]
    if not any(written):
        raise BadInput(f"nothing of {arguments.mat} could be converted: no labelled image is in {arguments.images}; "
                       "give the folder of the .jpg files as --images")


def convert(mat, images):
    """MPII's RELEASE structure → its training and its test images, two CocoFiles.

    An image's id is its index in RELEASE.annolist, from 0, and its file_name "images/NAME". Coordinates are COCO's: 0
    is the centre of the first pixel, so they are MPII's less 1. Test images have no annotations. Each person of a
    training image becomes an annotation:

    - keypoints: visibility 1 (hidden) where `is_visible` is 0, else 2, also where the file does not say.
    - bbox: left, top, width, height of the labelled keypoints' extent, enlarged by a fifth.
    - scale (person's height over 200 pixels), center ([x, y], rough), head_box ([left, top, right, bottom], for
      PCKh): where given.
    - Without keypoints that span a box, the person is a region to ignore (iscrowd): the square of its height round
      its centre, cut to the image. Where scale or centre is missing too, it is left out and counted.

    Images without any of these are left out, for unlabelled people must not become background.

    Args:
        mat: path of mpii_human_pose_v1_u12_1.mat. images: folder of the .jpg files.

    Raises:
        BadInput: no such file, not MATLAB's format, or another structure than MPII's.
    """
    train, test = CocoFile(MPII), CocoFile(MPII)
    listed, is_training = read_release(mat)
    for index, (item, training) in enumerate(tqdm(zip(listed, is_training, strict=True), total=len(listed),
                                                  desc=str(mat), unit=" images")):
        file = train if training else test
        name = image_name(item, mat, index)
        persons = structs(item, "annorect")
        if not persons:
            file.left_out["images without annotations"] += 1
            continue
        size = file.image_size(Path(images, name))
        if size is None:
            continue
        try:
            annotations = [annotate(person, size, file.left_out) for person in persons] if training else []
        except ValueError as error:
            raise BadInput(f"{mat}: {name}: {error}; {SOURCE}") from error
        found = [annotation for annotation in annotations if annotation]
        if training and not found:
            file.left_out["images with no person that can be located"] += 1
            continue
        file.add_image({"id": index, "file_name": f"images/{name}"}, size)
        for annotation in found:
            file.add_person(index, **annotation)
    return train, test


def read_release(path):
    """RELEASE of MPII's .mat file: its N annolist structs, and (N,) bool, whether each is a training image."""
    if not Path(path).is_file():
        raise BadInput(f"no annotations at {path}; {SOURCE}")
    try:
        content = loadmat(str(path), struct_as_record=False, squeeze_me=True)
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, zlib.error, MatReadError) as error:
        # scipy raises all of these on a damaged file; NotImplementedError on one saved again as MATLAB 7.3.
        raise BadInput(f"{path} is not a .mat file of MATLAB 5, or damaged ({error}); {SOURCE}") from error
    release = content.get("RELEASE")
    if not isinstance(release, mat_struct):
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise BadInput(f"{path} has no struct RELEASE, but {found}; {SOURCE}")
    listed, is_training = structs(release, "annolist"), np.ravel(getattr(release, "img_train", []))
    if not listed or len(listed) != len(is_training):
        raise BadInput(f"{path}: RELEASE has {len(listed)} images in annolist and {len(is_training)} marks in "
                       f"img_train, among {', '.join(release._fieldnames)}; {SOURCE}")
    return listed, is_training == 1


def structs(parent, field):
    """The structs in a field as a list: MATLAB's arrays of one come bare, empty and missing ones as anything."""
    return [item for item in np.ravel(getattr(parent, field, [])) if isinstance(item, mat_struct)]


def number(parent, field):
    """A field as float, from 5, [5] or "5"; None where it is missing or empty."""
    values = np.ravel(getattr(parent, field, [])).tolist()
    if not values:
        return None
    try:
        value, = map(float, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field} should be a number, but is {str(values)[:80]}") from error
    return value if math.isfinite(value) else None


def image_name(item, mat, index):
    names = [image.name for image in structs(item, "image") if isinstance(getattr(image, "name", None), str)]
    if len(names) != 1 or not names[0]:
        raise BadInput(f"{mat}: annolist({index + 1}) should have one image.name, but has {names}; {SOURCE}")
    return names[0]


def annotate(person, size, left_out):
    """An annorect → the fields of its COCO annotation; None, and counted, where nothing tells where the person is."""
    keypoints = read_keypoints(person)
    scale = number(person, "scale")
    center = [(number(place, "x"), number(place, "y")) for place in structs(person, "objpos")][:1]
    head = [number(person, edge) for edge in ("x1", "y1", "x2", "y2")]
    given = {}
    if scale is not None:
        given["scale"] = scale
    if center and None not in center[0]:
        given["center"] = [value - FIRST_PIXEL for value in center[0]]
    if None not in head:
        given["head_box"] = [value - FIRST_PIXEL for value in head]

    box = keypoint_box(keypoints, BOX_ENLARGED)
    if box:
        return {"bbox": box, "keypoints": keypoints, **given}
    box = square_box(given["center"], scale * PERSON_HEIGHT, size) if scale and "center" in given else None
    if box:
        return {"bbox": box, "iscrowd": 1, **given}
    left_out["persons without keypoints, scale or position"] += 1
    return None


def read_keypoints(person):
    """The annopoints of an annorect: (16, 3) float64 x, y, visibility, 0 where not labelled."""
    keypoints = np.zeros((len(MPII), 3))
    for group in structs(person, "annopoints"):
        for point in structs(group, "point"):
            index, x, y = (number(point, field) for field in ("id", "x", "y"))
            if None in (index, x, y):
                continue
            if index not in range(len(MPII)):
                raise ValueError(f"keypoint id {index:g} is none of 0 to {len(MPII) - 1}")
            visibility = 1 if number(point, "is_visible") == 0 else 2
            keypoints[int(index)] = x - FIRST_PIXEL, y - FIRST_PIXEL, visibility
    return keypoints


def square_box(center, side, size):
    """A square cut to the image: [left, top, width, height], or None if nothing is left."""
    low = np.maximum(np.subtract(center, side / 2), 0)
    extent = np.minimum(np.add(center, side / 2), size) - low
    return [*low.tolist(), *extent.tolist()] if (extent > 0).all() else None


if __name__ == "__main__":
    run_command(main)
