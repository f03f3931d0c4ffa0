"""Pack the persons of a config: one JPEG crop each, as large as training needs it, in a few big files.

    python -m train.pack --config configs/pose.toml --out data/people-packed
    python -m train --config configs/pose.toml --set 'data=["data/people-packed"]'

OUT/images/shard_000.bin holds JPEGs one behind the other, OUT/person_keypoints_packed.json says where each begins:
COCO keypoint JSON in the crops' pixels, whose images have file_name (the shard), offset, bytes, and source, the name of
the photo, which `sampling` and `ignore_prefixes` go by.

What it brings: of COCO's photos training needs a quarter of the pixels for each person, so that decoding takes a third
of the time, and some 30 KB, so that the data set fits into memory where the photos did not. Photos of some 300 pixels
are as fast unpacked, and take less room. What it does not bring is reading in sequence: training draws persons in
random order, and each is one read at a random place, of few files instead of one a photo; an SSD likes that, and a hard
disk does not.

What it costs: pixels go through JPEG once more, and where a rotated or enlarged crop reaches beyond the margin it is
black. With the default margin and the augmentation of configs/pose.toml or coco.toml that is 0.1 % of what the crops
show of their photos, and more than 1 % in 2 of 100 crops; --margin 2 leaves nothing out. A config with a larger scale,
shift, rotation or padding, another input_size, half bodies or fewer min_keypoints wants a pack of its own.
"""

import argparse
import collections
import json
import os
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from runtime.crop import crop_region
from runtime.errors import BadInput, run_command
from runtime.keypoints import SCHEMAS
from train.augment import half_body
from train.config import add_config_arguments, load_config
from train.datasets import check_images, labelled_persons, person_of, read_stored
from train.loader import AHEAD, PROCESS_KILLED, check_unreadable, reduction_for, start_processes, worker_count

SHARD_BYTES = 256 << 20
QUALITY = 92  # of the JPEGs
MARGIN = 1.6  # of what is stored to what the network sees of a person that is neither moved nor turned
KEPT = ("iscrowd", "num_keypoints", "keypoint_scores", "score")  # of annotations; the rest may be in the photo's pixels
PHOTOS = 8  # that a process cuts at a time


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m train.pack", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    parser.add_argument("--margin", type=float, default=MARGIN,
                        help="sides of what is stored, by those of the crop that shows the person in the middle "
                             "(default: %(default)s)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    persons, shards, size = pack(config, arguments.out, arguments.quality, arguments.margin)
    print(f"{arguments.out}: {persons} persons in {shards} shards, {size / 1e6:.0f} MB; train on it with "
          f"--set 'data=[\"{arguments.out}\"]'")


def pack(config, out, quality=QUALITY, margin=MARGIN):
    """Write the persons that a config trains on to a folder, which is there in the end, whole, or not at all.

    Args:
        out: Path of a folder that is not there yet.
        quality: of the JPEGs, 1 to 100.
        margin: sides of what is stored of a photo, by those of `runtime.crop.crop_region`.

    Returns:
        persons, shards, bytes of all shards.

    Raises:
        BadInput: `out` is there already or cannot be written, the disk is full, more than `config.max_unreadable`
            photos cannot be read, or the task is not pose.
    """
    if config.task != "pose":
        raise BadInput(f"task = {config.task!r} trains on whole photos; only persons of task = 'pose' are packed")
    if not 1 <= quality <= 100 or margin < 1:
        raise BadInput(f"--quality {quality} --margin {margin:g}: quality is 1 to 100, margin 1 or more")
    if out.exists():
        raise BadInput(f"{out} is there already; remove it, or choose another --out")
    photos = _photos(config)
    partial = out.with_name(out.name + ".packing")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a pack that was killed
        partial.mkdir(parents=True)
        written = _write(partial, config, photos, quality, margin)
        os.replace(partial, out)
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}; make room, or choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _photos(config):
    """Pairs of where a photo is and the annotations of its persons."""
    photos: dict[tuple, tuple] = {}
    for whereabouts, annotation in labelled_persons(config):
        photos.setdefault((whereabouts["image"], whereabouts["span"]), (whereabouts, []))[1].append(annotation)
    if not photos:
        raise BadInput(f"no person with {config.min_keypoints} keypoints or more in {', '.join(config.data)}")
    found = list(photos.values())
    check_images([person_of(whereabouts, annotations[0]) for whereabouts, annotations in found])
    return found


def _write(folder, config, photos, quality, margin):
    """Cut, and write shards and annotations; what `pack` returns."""
    schema = SCHEMAS[config.keypoints]
    images: list[dict] = []
    annotations: list[dict] = []
    unreadable: set[str] = set()
    with Shards(folder / "images") as shards, tqdm(total=len(photos), unit="photo", desc=folder.stem) as progress:
        for crops, reasons, count in _cut_all(config, photos, quality, margin):
            for jpeg, image, annotation in crops:
                number = len(images) + 1
                images.append({"id": number, **shards.add(jpeg), **image})
                annotations.append({**annotation, "id": number, "image_id": number, "category_id": 1})
            for reason in sorted(reasons):
                progress.write(f"skipped: {reason}", file=sys.stderr)
            unreadable |= reasons
            check_unreadable(unreadable, config)
            progress.update(count)
        if not images:
            raise BadInput(f"none of {len(photos)} photos can be read, for example: {min(unreadable)}")
        packed = {"data": config.data, "input_size": config.input_size, "padding": config.padding,
                  "scale": config.scale, "margin": margin, "quality": quality}
        category = {"id": 1, "name": "person", "keypoints": list(schema.names)}
        (folder / "person_keypoints_packed.json").write_text(json.dumps(
            {"info": {"packed": packed}, "images": images, "annotations": annotations, "categories": [category]}))
    return len(images), shards.count, shards.bytes


class Shards:
    """Files shard_000.bin … of some 256 MB in a folder, which is made, closed at the end of `with`."""

    def __init__(self, folder):
        self.folder, self.count, self.bytes = folder, 0, 0
        folder.mkdir()
        self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file:
            self._file.close()

    def add(self, data):
        """Append bytes; returns where they are, as the fields of an image in the annotations."""
        if not self._file or self._file.tell() + len(data) > SHARD_BYTES:
            if self._file:
                self._file.close()
            self._file = open(self.folder / f"shard_{self.count:03d}.bin", "wb")  # noqa: SIM115, closed at the end
            self.count += 1
        place = {"file_name": Path(self._file.name).name, "offset": self._file.tell(), "bytes": len(data)}
        self._file.write(data)
        self.bytes += len(data)
        return place


def _cut_all(config, photos, quality, margin):
    """What `cut_photos` returns, and the number of photos, for a few at a time, in order."""
    jobs = ((config, photos[start:start + PHOTOS], quality, margin) for start in range(0, len(photos), PHOTOS))
    workers = worker_count(config)
    if not workers:
        for job in jobs:
            yield *cut_photos(*job), len(job[1])
        return
    pool = start_processes(workers)
    ahead: collections.deque[tuple] = collections.deque()
    try:
        for job in jobs:
            ahead.append((len(job[1]), pool.submit(cut_photos, *job)))
            if len(ahead) == AHEAD * workers:
                yield _oldest(ahead)
        while ahead:
            yield _oldest(ahead)
    except BrokenProcessPool as error:
        raise BadInput(PROCESS_KILLED) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _oldest(ahead):
    count, future = ahead.popleft()
    return *future.result(), count


def cut_photos(config, photos, quality, margin):
    """The persons of some photos.

    Returns:
        List of JPEG bytes, image (width, height, source) and annotation in its pixels; and a set of what was wrong
        with photos that cannot be read.
    """
    crops, unreadable = [], set()
    for whereabouts, annotations in photos:
        persons = [person_of(whereabouts, annotation) for annotation in annotations]
        scales = [needed_scale(person, config) for person in persons]
        try:
            image, reduction = read_stored(persons[0], reduction_for(max(scales)))
        except BadInput as error:
            unreadable.add(str(error))
            continue
        for person, annotation, scale in zip(persons, annotations, scales, strict=True):
            pixels, low, factors = cut(image, reduction, person, scale, config, margin)
            jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            record = {"width": pixels.shape[1], "height": pixels.shape[0], "source": Path(person.image).name}
            crops.append((jpeg, record, _moved(annotation, low, factors)))
    return crops, unreadable


def needed_scale(person, config):
    """Crop pixels by photo pixels where the augmentation goes nearest, at most 1: more does not tell more."""
    boxes = [person.box] + [half_body(person, config, upper) for upper in (True, False) if config.half_body]
    smallest = crop_region(boxes, config.input_size, config.padding)[1][:, 0].min() * (1 - config.scale)
    return min(1.0, config.input_size[0] / smallest)


def cut(image, reduction, person, scale, config, margin):
    """Cut a person with its margin and shrink it.

    Args:
        image: (H, W, 3) uint8 BGR, the photo divided by `reduction`.
        scale: pixels to have by pixels of the photo.

    Returns:
        Pixels (h, w, 3); the cut's left and top edge in pixels of the photo; its pixels by those of the photo in x, y.
    """
    (centre,), (extent,) = crop_region(person.box, config.input_size, config.padding)
    size = np.array(image.shape[1::-1])
    low = np.clip(np.floor((centre - margin * extent / 2) / reduction), 0, size - 1).astype(int)
    high = np.clip(np.ceil((centre + margin * extent / 2) / reduction), low + 1, size).astype(int)
    pixels = image[low[1]:high[1], low[0]:high[0]]
    target = np.minimum(high - low, np.ceil((high - low) * reduction * scale)).astype(int)
    if (target < high - low).any():
        pixels = cv2.resize(pixels, target.tolist(), interpolation=cv2.INTER_AREA)
    return pixels, low * reduction, target / ((high - low) * reduction)


def _moved(annotation, low, factors):
    """An annotation in pixels of a cut."""
    left, top, width, height = annotation["bbox"]
    points = np.array(annotation["keypoints"], float).reshape(-1, 3)
    # Box edges lie at whole numbers, pixel middles half a pixel further.
    points[:, :2] = np.where(points[:, 2:] > 0, (points[:, :2] + 0.5 - low) * factors - 0.5, 0)
    corner = (np.array([left, top]) - low) * factors
    moved = {key: annotation[key] for key in KEPT if key in annotation}
    moved["bbox"] = [*corner.round(2).tolist(), *(np.array([width, height]) * factors).round(2).tolist()]
    moved["keypoints"] = [int(value) if index % 3 == 2 else round(value, 2)
                          for index, value in enumerate(points.ravel().tolist())]
    if "area" in annotation:
        moved["area"] = round(float(annotation["area"] * factors.prod()), 1)
    return moved


if __name__ == "__main__":
    run_command(main)
