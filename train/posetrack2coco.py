"""PoseTrack 2018's own annotations → COCO keypoint JSON: train2018.json, val2018.json and test2018.json.

    python -m train.posetrack2coco
    python -m train.posetrack2coco --annotations FOLDER/annotations --images FOLDER --out data/PoseTrack/annotations

Nothing is downloaded. Get PoseTrack 2018 by hand from https://posetrack.net/ (an account there, and its terms) and
unpack it to data/PoseTrack; where the site is down, https://github.com/anDoer/PoseTrack21 says whom to ask.

    posetrack18_v0.45_public_labels.tar.gz     its posetrack_data/annotations/{train,val,test}/*.json go to
                                               data/PoseTrack/original_annotations/{train,val,test}/
    posetrack18_images.tar.aa, .ab, … .ar      images: cat posetrack18_images.tar.a? | tar -xi -C data/PoseTrack
                                               makes data/PoseTrack/images/{train,val,test}/
"""

import argparse
import json
import math
import sys
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from runtime.errors import BadInput, run_command
from runtime.keypoints import POSETRACK
from train.coco_file import CocoFile, keypoint_box

BOX_ENLARGED = 1.3  # PoseTrack's own boxes are the extent of the keypoints times this
SPLITS = ("train", "val", "test")
SOURCE = "https://posetrack.net/ has PoseTrack 2018's, see --help"


def main():
    parser = argparse.ArgumentParser(prog="python -m train.posetrack2coco", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", default="data/PoseTrack/original_annotations", metavar="FOLDER",
                        help="folder of train/, val/ and test/ with one JSON a video (default: %(default)s)")
    parser.add_argument("--images", default="data/PoseTrack", metavar="FOLDER",
                        help="folder that holds images/ (default: %(default)s)")
    parser.add_argument("--out", default="data/PoseTrack/annotations", metavar="FOLDER",
                        help="where train2018.json, val2018.json and test2018.json go (default: %(default)s)")
    arguments = parser.parse_args()
    written = 0
    for split in SPLITS:
        videos = sorted(Path(arguments.annotations, split).glob("*.json"))
        path = Path(arguments.out, f"{split}2018.json")
        if videos:
            written += convert(videos, arguments.images, every_frame=split == "test").write(path)
        else:
            print(f"warning: {path} is not written, for {arguments.annotations}/{split} has no .json files",
                  file=sys.stderr)
    if not written:
        raise BadInput(f"nothing of {arguments.annotations} could be converted: it has no {', '.join(SPLITS)} folders "
                       f"with a JSON a video, or none of their images is in {arguments.images}; {SOURCE}")


def convert(videos, images, every_frame=False):
    """PoseTrack 2018's JSON files of one split → CocoFile.

    Images keep PoseTrack's fields (vid_id, frame_id, is_labeled, nframes, …) but for the regions to ignore, and gain
    width and height. Only every few frames are labelled: the others have people too and would pass for background,
    so they are left out. Each person of a labelled frame becomes an annotation with its track_id and bbox_head (left,
    top, width, height; where given):

    - keypoints: visibility 2 where labelled. PoseTrack writes 1, but does not say whether they are hidden.
    - bbox: PoseTrack's; where it is missing or empty, the extent of the keypoints enlarged as PoseTrack's are.
    - With only a head box, that is a region to ignore (iscrowd); with nothing, the person is left out and counted.

    Each region to ignore becomes an annotation with iscrowd, its polygon as segmentation and the box round it.
    Annotation ids are PoseTrack's; all are numbered anew, with a warning, if they are not unique over the videos.

    Args:
        videos: paths of JSON files. images: folder that holds the images/ of their file names.
        every_frame: keep unlabelled frames too, for a test set.

    Raises:
        BadInput: a file is not JSON or is no PoseTrack 2018, or two files have an image in common.
    """
    file = CocoFile(POSETRACK)
    seen: dict[int, Path] = {}
    for path in tqdm(videos, desc=str(videos[0].parent), unit=" videos"):
        content = read_video(path)
        for image in content["images"]:
            if image["id"] in seen:
                raise BadInput(f"image {image['id']} of {path} is in {seen[image['id']]} already; keep one of the two")
            seen[image["id"]] = path
        try:
            _add_video(file, content, images, every_frame)
        except ValueError as error:
            raise BadInput(f"{path}: {error}; {SOURCE}") from error
    _number(file.annotations)
    return file


def read_video(path):
    """A PoseTrack 2018 JSON: dict with images (id, file_name, …) and annotations (image_id, …), lists of dicts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {SOURCE}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); {SOURCE}") from error
    if not isinstance(content, dict) or "images" not in content:
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise BadInput(f"{path} has no list of images, but {found or 'nothing'}; {SOURCE}")
    content.setdefault("annotations", [])  # a test set's
    for part, fields in (("images", {"id": int, "file_name": str}), ("annotations", {"image_id": int})):
        if not isinstance(content[part], list) or not all(isinstance(item, dict) for item in content[part]):
            raise BadInput(f"{path}: {part} is no list of objects; {SOURCE}")
        for item in content[part]:
            for field, kind in fields.items():
                if not isinstance(item.get(field), kind):
                    raise BadInput(f"{path}: {field} of one of its {part} is {item.get(field)!r} where {kind.__name__} "
                                   f"should be; {SOURCE}")
    for category in content.get("categories", []):
        names = category.get("keypoints") or POSETRACK.names
        if tuple(names) != POSETRACK.names:
            raise BadInput(f"{path} has the keypoints {', '.join(names)}, not {', '.join(POSETRACK.names)}; {SOURCE}")
    return content


def _add_video(file, content, images, every_frame):
    persons: dict[int, list] = {image["id"]: [] for image in content["images"]}
    for person in content["annotations"]:
        if person["image_id"] not in persons:
            raise ValueError(f"annotation {person.get('id')} is of image {person['image_id']}, which it does not list")
        persons[person["image_id"]].append(person)
    for image in content["images"]:
        here = persons[image["id"]]
        if not every_frame and not image.get("is_labeled", here):
            file.left_out["unlabelled frames"] += 1
            if here:
                file.left_out["persons of unlabelled frames"] += len(here)
            continue
        size = file.image_size(Path(images, image["file_name"]))
        if size is None:
            continue
        file.add_image({key: value for key, value in image.items() if not key.startswith("ignore_regions")}, size)
        for person in here:
            _add_person(file, person)
        _add_regions(file, image)


def _add_person(file, person):
    flat = _numbers(person, "keypoints", 3 * len(POSETRACK))
    keypoints = np.reshape(flat or [0.0] * 3 * len(POSETRACK), (-1, 3)).astype(float)
    keypoints = np.where(keypoints[:, 2:] > 0, [1, 1, 0] * keypoints + [0, 0, 2], 0)
    head = _numbers(person, "bbox_head", 4)
    kept = {"id": person.get("id"), **({"bbox_head": head} if head else {}),
            **({"track_id": person["track_id"]} if "track_id" in person else {})}
    box = _solid(_numbers(person, "bbox", 4)) or keypoint_box(keypoints, BOX_ENLARGED)
    if box:
        file.add_person(person["image_id"], box, keypoints, **kept)
    elif _solid(head):
        file.add_person(person["image_id"], head, iscrowd=1, **kept)
    else:
        file.left_out["persons without keypoints or box"] += 1


def _add_regions(file, image):
    for xs, ys in zip_longest(_polygons(image, "ignore_regions_x"), _polygons(image, "ignore_regions_y"), fillvalue=()):
        box = None
        if len(xs) == len(ys) > 2:
            box = _solid([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
        if box:
            polygon = np.array([xs, ys]).T
            file.add_person(image["id"], box, iscrowd=1, id=None, area=cv2.contourArea(polygon.astype(np.float32)),
                            segmentation=[polygon.ravel().tolist()])
        else:
            file.left_out["regions to ignore that are no polygon"] += 1


def _polygons(image, field):
    """The columns or rows of each polygon, a list of lists; a single polygon may come without the outer list."""
    value = image.get(field) or []
    lists = value if isinstance(value, list) and all(isinstance(part, list) for part in value) else [value]
    if not all(isinstance(part, list) and _are_numbers(part) for part in lists):
        raise ValueError(f"image {image['id']}: {field} should be lists of numbers, but is {str(value)[:80]}")
    return lists


def _are_numbers(values):
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _numbers(item, field, count):
    """A field's list of so many numbers; None if it is missing or empty."""
    values = item.get(field)
    if not values:
        return None
    if not (isinstance(values, list) and len(values) == count and _are_numbers(values)):
        raise ValueError(f"annotation {item.get('id')}: {field} should be {count} numbers, but is {str(values)[:80]}")
    return values


def _solid(box):
    return box if box and min(box[2:]) > 0 else None


def _number(annotations):
    """Give the regions ids above the persons', or all of them new ones where the persons' are not unique."""
    ids = [annotation["id"] for annotation in annotations if annotation["id"] is not None]
    usable = all(type(number) is int and number > 0 for number in ids)
    if usable and len(set(ids)) == len(ids):
        following = max(ids, default=0) + 1
        for annotation in annotations:
            if annotation["id"] is None:
                annotation["id"], following = following, following + 1
        return
    print("warning: annotation ids are not unique whole numbers over the videos, so all are numbered anew from 1",
          file=sys.stderr)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number


if __name__ == "__main__":
    run_command(main)
