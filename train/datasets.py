"""COCO-format annotations → lists of persons and photos, and tf.data pipelines over them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from runtime.errors import BadInput
from runtime.frames import read_image
from runtime.keypoints import COCO
from train.augment import augment_mosaic, augment_person, augment_photo

MAX_BOXES = 64  # persons of one input that a detector trains on
GOLDEN_RATIO = 0.6180339887498949


@dataclass
class Person:
    """One labelled person: image path, box (4,) left, top, right, bottom, keypoints (K, 3) x, y, weight in
    pixels of the image; weight 0 = not labelled, 1 = labelled by a human."""

    image: str
    box: np.ndarray
    keypoints: np.ndarray


@dataclass
class Photo:
    """One image with all its boxes (N, 5): left, top, right, bottom, and 1 for a person or -1 for a region to
    ignore (crowds, doubtful persons)."""

    image: str
    boxes: np.ndarray


def read_annotations(folder):
    """COCO keypoint JSON of a data folder: {path: annotations}, for every image listed.

    The folder holds `images/` and one `person_keypoints*.json`.
    """
    folder = Path(folder)
    files = sorted(folder.glob("person_keypoints*.json"))
    if len(files) != 1:
        found = f"{len(files)} of them" if files else "none"
        raise BadInput(f"{folder} should hold one person_keypoints*.json beside images/, but has {found}")
    try:
        content = json.loads(files[0].read_text())
        images = {image["id"]: str(folder / "images" / image["file_name"]) for image in content["images"]}
        annotations: dict[str, list] = {path: [] for path in images.values()}
        for annotation in content["annotations"]:
            if len(annotation.get("keypoints") or [0] * 3 * len(COCO)) != 3 * len(COCO):
                raise BadInput(f"{files[0]}: annotation {annotation['id']} has {len(annotation['keypoints']) / 3:g} "
                               f"keypoints, not COCO's {len(COCO)}")
            annotations[images[annotation["image_id"]]].append(annotation)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{files[0]} is not JSON ({error}); fetch it again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{files[0]} is no COCO keypoint file: {error!r} where images, annotations and their ids "
                       "should be") from error
    return annotations


def load_persons(config):
    """Every person with enough keypoints in the data folders of a config."""
    persons = []
    for path, annotations in _all_annotations(config):
        for annotation in annotations:
            if annotation.get("iscrowd") or not annotation.get("keypoints"):
                continue
            if sum(visibility > 0 for visibility in annotation["keypoints"][2::3]) < config.min_keypoints:
                continue
            keypoints = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)
            confidence = np.array(annotation.get("keypoint_scores", np.ones(len(keypoints))), np.float32)
            keypoints[:, 2] = np.where(keypoints[:, 2] > 0, confidence, 0)
            persons.append(Person(path, _edges(annotation["bbox"]), keypoints))
    if not persons:
        raise BadInput(f"no person with {config.min_keypoints} keypoints or more in {', '.join(config.data)}")
    return persons


def load_photos(config):
    """Every image of the data folders of a config, with its boxes."""
    photos = []
    for path, annotations in _all_annotations(config):
        boxes = [[*_edges(item["bbox"]), -1 if item.get("iscrowd") else 1] for item in annotations]
        photos.append(Photo(path, np.array(boxes, np.float32).reshape(-1, 5)))
    if not photos:
        raise BadInput(f"no images in {', '.join(config.data)}")
    return photos


def _all_annotations(config):
    for folder in config.data:
        for path, annotations in read_annotations(folder).items():
            if not Path(path).name.startswith(tuple(config.ignore_prefixes) or ("\0",)):
                yield path, annotations


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


def training_data(config, first_sample=0):
    """Endless batches from sample number `first_sample` on.

    Returns:
        tf.data.Dataset of (pixels, labels): pixels (B, H, W, 3) uint8 BGR; labels (B, K, 3) keypoints x, y,
        weight in crop pixels, or (B, MAX_BOXES, 5) boxes in input pixels as in Photo, 0 = none.
    """
    items: list = load_persons(config) if config.task == "pose" else load_photos(config)
    label_shape = items[0].keypoints.shape if config.task == "pose" else (MAX_BOXES, 5)
    paths = {item.image for item in items}
    missing = sorted(path for path in paths if not Path(path).is_file())
    if missing:
        raise BadInput(f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}")
    pick = sampler(items, config)

    def load(number):
        item = items[pick(int(number))]
        rng = np.random.default_rng((config.seed, int(number)))
        if config.task == "pose":
            pixels, labels = augment_person(read_image(item.image), item, config, rng)
        else:
            if rng.random() < config.mosaic:
                four = [item, *(items[pick(other)] for other in rng.integers(1 << 40, size=3))]
                pixels, labels = augment_mosaic([read_image(each.image) for each in four], four, config, rng)
            else:
                pixels, labels = augment_photo(read_image(item.image), item, config, rng)
            labels = np.pad(labels[:MAX_BOXES], ((0, max(0, MAX_BOXES - len(labels))), (0, 0)))
        return pixels, labels.astype(np.float32)

    def tensors(number):
        pixels, labels = tf.numpy_function(load, [number], [tf.uint8, tf.float32], stateful=False)
        pixels.set_shape((config.input_size[1], config.input_size[0], 3))
        labels.set_shape(label_shape)
        return pixels, labels

    numbers = tf.data.Dataset.range(first_sample, np.iinfo(np.int64).max)
    data = numbers.map(tensors, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return data.batch(config.batch, drop_remainder=True).prefetch(4)
