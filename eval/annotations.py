"""COCO keypoint annotations, checked before any engine runs, and the images that belong to them."""

import contextlib
import hashlib
import io
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import BadInput
from runtime.frames import decode_labelled, read_bytes

# What pycocotools reads of every annotation; it stops with a bare KeyError where one is missing.
REQUIRED = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "num_keypoints", "keypoints")
LARGEST = sys.float_info.max
UNLABELLED = "; for a test set without persons give --detections or --detector too"


@dataclass(frozen=True)
class Annotations:
    """The persons of a COCO keypoint file, or the images of a test set.

    Attributes:
        path: the file.
        images: its images, dicts of COCO: id, file_name and, where the file has them, width and height.
        persons: image id → the persons to find: annotations with num_keypoints > 0 that are no crowd. Empty for a
            test set.
        keypoint_names: K names in the file's order, or () where its category names none.
        keypoints: K; 0 where a test set does not say.
        category_id: of the persons.
        index: pycocotools' COCO object of these images and this category; None for a test set.
        image_ids: of all images in the file, of which `images` may be the first few.
    """

    path: Path
    images: list[dict[str, Any]]
    persons: dict[int, list[dict[str, Any]]]
    keypoint_names: tuple[str, ...]
    keypoints: int
    category_id: int
    index: Any
    image_ids: frozenset

    @property
    def person_count(self):
        return sum(map(len, self.persons.values()))

    @property
    def images_in_file(self):
        return len(self.image_ids)

    @property
    def is_test_set(self):
        """Whether there is nothing to score against."""
        return not self.persons


def load_annotations(path, limit=None, test_set=False):
    """Read and check a COCO keypoint file.

    Args:
        path: for example person_keypoints_val2017.json.
        limit: only the first so many images of the file.
        test_set: take a file of images without persons too, such as image_info_test-dev2017.json.

    Raises:
        BadInput: the file is missing, is not JSON, has no images, no keypoints, or lacks fields that the score
            needs; or pycocotools or faster_coco_eval is not installed.
    """
    path = Path(path)
    data = _read_json(path)
    if test_set and isinstance(data, dict):
        data.setdefault("annotations", [])
    for part in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            raise BadInput(f"{path} has no list {part!r}; give a COCO person_keypoints_*.json file{UNLABELLED}")
        strange = [item for item in data[part] if not isinstance(item, dict)]
        if strange:
            raise BadInput(f"{path}: {len(strange)} of {len(data[part])} {part} are no objects (first: "
                           f"{str(strange[0])[:60]}); give a COCO person_keypoints_*.json file")
    if not data["images"]:
        raise BadInput(f"{path} has no images; give a COCO person_keypoints_*.json file")
    _need_fields(path, "images", data["images"], ("id", "file_name"))
    strings = sum(isinstance(image["id"], str) for image in data["images"])
    if 0 < strings < len(data["images"]):
        raise BadInput(f"{path}: {strings} of {len(data['images'])} image ids are text and the others are not; make "
                       "them whole numbers")
    _need_sound(path, "images", data["images"], {"id": is_id, "file_name": lambda name: isinstance(name, str)})
    _need_unique_ids(path, "image", data["images"])
    categories = data.get("categories")
    data["categories"] = [item for item in (categories if isinstance(categories, list) else ())
                          if isinstance(item, dict)]
    if test_set and all(item.get("iscrowd") for item in data["annotations"]):
        return _test_set(path, data, limit)  # PoseTrack's have regions to ignore

    total = len(data["annotations"])
    labelled = [item for item in data["annotations"] if item.get("keypoints")]
    if not labelled:
        raise BadInput(f"{path} has {total} annotations but none has keypoints; give the person_keypoints_*.json file"
                       f"{'' if total else UNLABELLED}")
    _need_fields(path, "annotations", labelled, ("category_id",))
    _need_sound(path, "annotations", labelled, {"category_id": is_id})
    category = _person_category(path, data["categories"], labelled)
    of_category = [item for item in data["annotations"] if item.get("category_id") == category["id"]]
    _need_fields(path, "annotations", of_category, REQUIRED)
    keypoints = _keypoint_count(path, of_category, category)
    _need_sound(path, "annotations", of_category, {
        "id": is_number, "image_id": is_id, "bbox": lambda box: are_numbers(box, 4) and min(box[2:]) >= 0,
        "area": is_number, "keypoints": lambda points: are_numbers(points, 3 * keypoints),
        "num_keypoints": lambda count: type(count) is int and count >= 0,
        "iscrowd": lambda crowd: crowd in (0, 1)})
    _need_unique_ids(path, "annotation", of_category)
    listed = {image["id"] for image in data["images"]}
    of_nothing = sum(item["image_id"] not in listed for item in of_category)
    if of_nothing:
        print(f"warning: {path}: {of_nothing} of {len(of_category)} annotations are of images that it does not list",
              file=sys.stderr)

    images = data["images"][:limit]
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    kept = [item for item in of_category if item["image_id"] in of_image]
    for item in kept:
        if item["num_keypoints"] > 0 and not item["iscrowd"]:
            of_image[item["image_id"]].append(item)
    persons = {image: items for image, items in of_image.items() if items}
    if not persons:
        raise BadInput(f"{path} has no person with keypoints on the first {len(images)} of its {len(data['images'])} "
                       "images; take more images, or the person_keypoints_*.json file")
    return Annotations(
        path=path,
        images=images,
        persons=persons,
        keypoint_names=_names_of(path, category),
        keypoints=keypoints,
        category_id=category["id"],
        index=build_index({"info": {}, "images": images, "annotations": kept, "categories": [category]}),
        image_ids=frozenset(image["id"] for image in data["images"]),
    )


def _test_set(path, data, limit):
    """Images without persons; the category is the one called person."""
    categories: list[dict[str, Any]] = data["categories"]
    fallback: dict[str, Any] = {"id": 1}
    category = next((item for item in categories if item.get("name") == "person" and is_id(item.get("id"))), fallback)
    names = _names_of(path, category)
    return Annotations(path=path, images=data["images"][:limit], persons={}, keypoint_names=names, keypoints=len(names),
                       category_id=category["id"], index=None,
                       image_ids=frozenset(image["id"] for image in data["images"]))


def _read_json(path):
    if not path.exists():
        raise BadInput(f"annotations file {path} does not exist; give a COCO person_keypoints_*.json file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read annotations file {path}: {error.strerror}; give a JSON file") from error
    except ValueError as error:  # not JSON, or not even text
        raise BadInput(f"{path} is not JSON ({error}); give a COCO person_keypoints_*.json file") from error


def _need_fields(path, part, items, fields):
    """Every item has every field, or the message names what is missing, where and how often."""
    for field in fields:
        lacking = [number for number, item in enumerate(items) if field not in item]
        if lacking:
            first = items[lacking[0]].get("id", f"at place {lacking[0]}")
            raise BadInput(f"{path}: {len(lacking)} of {len(items)} {part} have no {field!r} (first: {first}); COCO's "
                           f"score needs {', '.join(fields)}")


def _person_category(path, categories, labelled):
    """The one category whose annotations have keypoints."""
    used = sorted({item.get("category_id") for item in labelled}, key=str)
    if len(used) > 1:
        raise BadInput(f"{path} has keypoints of {len(used)} categories ({', '.join(map(str, used))}); keep one")
    for category in categories:
        if category.get("id") == used[0]:
            return category
    raise BadInput(f"{path}: 'categories' has no entry with id {used[0]}, the category of its annotations; add it")


def _keypoint_count(path, items, category):
    """K, the same in every annotation and in the category's names."""
    _need_sound(path, "annotations", items, {"keypoints": lambda points: isinstance(points, list)})
    lengths = Counter(len(item["keypoints"]) for item in items)
    length = lengths.most_common(1)[0][0]
    if len(lengths) > 1 or length % 3:
        found = ", ".join(f"{count} times {size}" for size, count in lengths.items())
        raise BadInput(f"{path}: 'keypoints' must be x, y, visibility of the same points in all annotations, but their "
                       f"lengths differ or are no multiple of 3: {found}; make them equal")
    names = _names_of(path, category)
    if names and len(names) != length // 3:
        raise BadInput(f"{path} names {len(names)} keypoints but its annotations have {length // 3}; make them equal")
    return length // 3


def _names_of(path, category):
    """The keypoints' names, or ()."""
    names = category.get("keypoints", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{path}: 'keypoints' of category {category.get('id')} is {str(names)[:60]}, where a list of "
                       "names should be; put it right or leave it out")
    return tuple(names)


def _need_sound(path, part, items, checks):
    """Every field passes its check, or the message says how often not, and where first."""
    for field, sound in checks.items():
        wrong = [item for item in items if not sound(item[field])]
        if wrong:
            raise BadInput(f"{path}: {field!r} of {len(wrong)} of {len(items)} {part} is not what COCO has there "
                           f"(first: {str(wrong[0][field])[:60]} of {wrong[0].get('id')}); put it right")


def is_id(value):
    """Whether a value of JSON can be the id of an image or category: a whole number or text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_number(value):
    """Whether a value of JSON or TOML is a finite number; a truth value is none."""
    # Compared rather than asked for math.isfinite, which stops at whole numbers that no double holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def are_numbers(values, count):
    """Whether it is a list of so many finite numbers."""
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))


def _need_unique_ids(path, what, items):
    counts = Counter(item["id"] for item in items)
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        raise BadInput(f"{path}: {len(twice)} {what} ids occur twice or more (first: {twice[0]}); number them anew")
    if what == "annotation" and 0 in counts:
        print(f"warning: {path} has an annotation with id 0, which pycocotools counts as found by nobody: number "
              "annotations from 1", file=sys.stderr)


def build_index(data):
    """pycocotools' COCO object of a data set in memory."""
    try:
        import faster_coco_eval  # noqa: F401 -- which the score will need: better said now than after hours
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise BadInput(f"{str(error.name).split('.')[0]} is not installed; pip install -e '.[eval]'") from error
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = data
        index.createIndex()
    return index


def check_images(images, folder):
    """Raise BadInput unless every image is in the folder, with the number missing and the first of them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"images folder {folder} does not exist; give the folder that holds {images[0]['file_name']}")
    missing = [image["file_name"] for image in images if not (folder / image["file_name"]).is_file()]
    if missing:
        raise BadInput(f"{len(missing)} of {len(images)} images are not in {folder} (first: {missing[0]}); give the "
                       "folder that belongs to the annotations")


def load_image(image, folder) -> tuple[np.ndarray, str]:
    """Read an image of the annotations, in the pixels that they mean.

    Returns:
        (H, W, 3) uint8 BGR, and the SHA-256 of the file's bytes as hexadecimal digits.

    Raises:
        BadInput: the file cannot be decoded, or its size is not the one that the annotations were made on.
    """
    path = Path(folder) / image["file_name"]
    sides = image.get("width"), image.get("height")
    data = read_bytes(path)
    return decode_labelled(data, None if None in sides else sides, path)[0], hashlib.sha256(data.data).hexdigest()


def read_image(image, folder) -> np.ndarray:
    """The picture of `load_image` alone."""
    return load_image(image, folder)[0]


def image_sha256(image, folder):
    """The SHA-256 that `load_image` gives, without decoding anything."""
    return hashlib.sha256(read_bytes(Path(folder) / image["file_name"]).data).hexdigest()
