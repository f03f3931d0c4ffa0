"""COCO-format annotations → persons and photos to train on, and the order in which they come."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BadInput
from runtime.frames import decode_labelled, read_bytes
from runtime.keypoints import SCHEMAS

GOLDEN_RATIO = 0.6180339887498949


@dataclass
class Person:
    """One labelled person.

    Attributes:
        image: path. A packed one's (train.pack) is SHARD/NAME, as if the shard were a folder of the original files.
        box: (4,) left, top, right, bottom in pixels of the image.
        keypoints: (K, 3) x, y in pixels of the image, weight; weight 0 = not labelled, 1 = labelled by a human.
        size: width and height of the image when it was labelled, None where the annotations do not say.
        span: of a packed image, its place in the shard: offset and length in bytes.
    """

    image: str
    box: np.ndarray
    keypoints: np.ndarray
    size: tuple[int, int] | None = None
    span: tuple[int, int] | None = None


@dataclass
class Photo:
    """One image with all its boxes.

    Attributes:
        boxes: (N, 5) left, top, right, bottom, and 1 for a person or -1 for a region to ignore (crowds, doubtful
            persons).
        image, size, span: as a Person's.
    """

    image: str
    boxes: np.ndarray
    size: tuple[int, int] | None = None
    span: tuple[int, int] | None = None


def find_annotations(entry):
    """An entry of `data` or `validation` → its COCO keypoint JSON and the folder that its file names start from.

    The entry is a folder with one person_keypoints*.json beside images/; or a JSON file, whose images lie, as
    TF-SimpleHumanPose lays out data/COCO, data/MPII and data/PoseTrack, in ../images/<split>, ../images or .. of the
    file's folder.
    """
    path, _, root = _open(entry)
    return path, root


def _open(entry):
    entry = Path(entry)
    if entry.suffix != ".json":
        files = sorted(entry.glob("person_keypoints*.json"))
        if len(files) != 1:
            found = f"{len(files)} of them" if files else "none"
            raise BadInput(f"{entry} should hold one person_keypoints*.json beside images/, but has {found}; or name "
                           "the JSON file itself")
        return files[0], _read_json(files[0]), entry / "images"
    if not entry.is_file():
        raise BadInput(f"no annotations at {entry}; `make data` fetches what may be fetched")
    content = _read_json(entry)
    try:
        first = str(content["images"][0]["file_name"])
    except (IndexError, KeyError, TypeError) as error:
        raise BadInput(f"{entry} is no COCO keypoint file: no file_name of a first image ({error!r})") from error
    folder = entry.parent.parent
    split = entry.stem.rpartition("_")[2]  # person_keypoints_train2017 → train2017
    roots = [folder / "images" / split, folder / "images", folder, entry.parent / "images"]
    for root in roots:
        if (root / first).is_file():
            return entry, content, root
    raise BadInput(f"{entry}: its first image {first!r} is in none of {', '.join(map(str, roots))}")


def read_annotations(entry, schema):
    """COCO keypoint JSON of an entry of `data`: for every image listed, where it is and its annotations.

    Returns:
        List of pairs: the fields `image`, `size` and `span` of a Person or Photo as a dict, and a list of dicts.
    """
    path, content, root = _open(entry)
    try:
        images: dict[int, tuple] = {image["id"]: (_whereabouts(image, root), []) for image in content["images"]}
        for annotation in content["annotations"]:
            if len(annotation.get("keypoints") or [0] * 3 * len(schema)) != 3 * len(schema):
                raise BadInput(f"{path}: annotation {annotation['id']} has {len(annotation['keypoints']) / 3:g} "
                               f"keypoints, not the {len(schema)} of keypoints = {schema.name!r}")
            images[annotation["image_id"]][1].append(annotation)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is no COCO keypoint file: {error!r} where images, annotations and their ids "
                       "should be") from error
    return list(images.values())


def _whereabouts(image, root):
    path, span = root / image["file_name"], None
    if "offset" in image:
        path, span = path / Path(image["source"]).name, (image["offset"], image["bytes"])
    sides = image.get("width"), image.get("height")
    return {"image": str(path), "size": None if None in sides else sides, "span": span}


def _read_json(path):
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise BadInput(f"{path} is no COCO keypoint file: it has no list of images")
    return content


def load_persons(config):
    """Every person with enough keypoints in the data of a config."""
    persons = [person_of(*labelled) for labelled in labelled_persons(config)]
    if not persons:
        raise BadInput(f"no person with {config.min_keypoints} keypoints or more in {', '.join(config.data)}")
    return persons


def labelled_persons(config):
    """What `load_persons` loads, as pairs of `read_annotations`' dicts: where the image is, and one annotation."""
    for whereabouts, annotations in _all_annotations(config):
        for annotation in annotations:
            if annotation.get("iscrowd") or not annotation.get("keypoints"):
                continue
            if sum(visibility > 0 for visibility in annotation["keypoints"][2::3]) >= config.min_keypoints:
                yield whereabouts, annotation


def person_of(whereabouts, annotation):
    """A Person from a pair of `labelled_persons`."""
    keypoints = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)
    confidence = np.array(annotation.get("keypoint_scores", np.ones(len(keypoints))), np.float32)
    if len(confidence) != len(keypoints):
        raise BadInput(f"annotation {annotation.get('id')} of {whereabouts['image']} has {len(confidence)} "
                       f"keypoint_scores for {len(keypoints)} keypoints; make them equal")
    keypoints[:, 2] = np.where(keypoints[:, 2] > 0, confidence, 0)
    return Person(box=_edges(annotation["bbox"]), keypoints=keypoints, **whereabouts)


def load_photos(config):
    """Every image of the data of a config, with its boxes."""
    photos = []
    for whereabouts, annotations in _all_annotations(config):
        if whereabouts["span"]:
            raise BadInput(f"{whereabouts['image']} is a packed crop of one person, on which no detector trains; give "
                           "the photos that were packed as data")
        boxes = [[*_edges(item["bbox"]), -1 if item.get("iscrowd") else 1] for item in annotations]
        photos.append(Photo(boxes=np.array(boxes, np.float32).reshape(-1, 5), **whereabouts))
    if not photos:
        raise BadInput(f"no images in {', '.join(config.data)}")
    return photos


def check_images(items):
    """Raise BadInput unless every image is there, with the number missing and the first of them."""
    paths = {_file(item) for item in items}
    missing = sorted(path for path in paths if not Path(path).is_file())
    if missing:
        raise BadInput(f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}; fetch them, or "
                       "take them out of the annotations")


def read_stored(item, reduction=1):
    """The image of a Person or Photo, of a JPEG perhaps fewer pixels: `runtime.frames.decode_labelled`.

    A pixel x of the whole is (x + 0.5) / reduction − 0.5 in it, a box edge x / reduction. A file that is missing is
    BadInput, too.
    """
    offset, length = item.span or (0, -1)
    name = f"{item.image} (at byte {offset})" if item.span else item.image
    return decode_labelled(read_bytes(_file(item), offset, length), item.size, name, reduction)


def _file(item):
    """The file that an image is in."""
    return str(Path(item.image).parent) if item.span else item.image


def _all_annotations(config):
    for entry in config.data:
        for whereabouts, annotations in read_annotations(entry, SCHEMAS[config.keypoints]):
            if not Path(whereabouts["image"]).name.startswith(tuple(config.ignore_prefixes) or ("\0",)):
                yield whereabouts, annotations


def _edges(bbox):
    left, top, width, height = bbox
    return np.array([left, top, left + width, top + height], np.float32)


def sampler(items, config):
    """A function from sample number to item index: weighted by `config.sampling`, even, and without state.

    Multiples of the golden ratio spread evenly over 0..1 (Weyl's equidistribution), so any stretch of samples
    visits the shuffled items evenly, and a resumed run goes on where it stopped.
    """
    weights = np.ones(len(items))
    for prefix, weight in config.sampling.items():
        weights[[Path(item.image).name.startswith(prefix) for item in items]] = weight
    order = np.random.default_rng(config.seed).permutation(len(items))
    cumulative = np.cumsum(weights[order] / weights.sum())
    return lambda number: order[min(np.searchsorted(cumulative, number * GOLDEN_RATIO % 1), len(items) - 1)]
