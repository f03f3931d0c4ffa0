"""Boxes that somebody else's detector found, from a file in COCO's results format, checked before any engine runs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.annotations import are_numbers, is_number
from runtime.errors import BadInput

FIELDS = ("image_id", "category_id", "bbox", "score")
FORMAT = "give COCO's results format: [{image_id, category_id, bbox: [left, top, width, height], score}, …]"


@dataclass(frozen=True)
class Detections:
    """Boxes of persons.

    Attributes:
        path: the file.
        boxes: image id → (N, 4) float32 left, top, right, bottom in pixels, and (N,) float32 scores, best first; no
            entry for an image without any.
        left_out: boxes of persons, on the images wanted, that the thresholds took.
    """

    path: Path
    boxes: dict[int, tuple[np.ndarray, np.ndarray]]
    left_out: int

    @property
    def count(self):
        return sum(len(scores) for _, scores in self.boxes.values())

    def of(self, image_id):
        """(N, 4) boxes and (N,) scores of an image; N is 0 where there are none."""
        return self.boxes.get(image_id, (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)))


def load_detections(path, annotations, min_score=0.0, min_area=0.0):
    """Read and check human detections, such as data/COCO/dets/human_detection.json.

    Args:
        path: JSON file, a list of dicts with image_id, category_id, bbox (left, top, width, height) and score. Those
            of other categories than the annotations' persons are passed over.
        annotations: `eval.annotations.Annotations`; where they hold the first images of a file only, boxes of the
            file's other images are passed over.
        min_score, min_area: only boxes of a higher score, and larger than so many square pixels.

    Raises:
        BadInput: no such file, no list, missing fields, scores or boxes that are no finite numbers, negative sizes,
            images that the annotations do not know, or nothing left on any of the images.
    """
    path = Path(path)
    items = _read_list(path)
    for field in FIELDS:
        _refuse(path, items, [item for item in items if field not in item], f"have no {field!r}", FORMAT)
    total = len(items)
    items = [item for item in items if item["category_id"] == annotations.category_id]
    if not items:
        raise BadInput(f"{path} has {total} detections but none of category {annotations.category_id}, the person of "
                       f"{annotations.path}; give detections of persons")
    _refuse(path, items, [item for item in items if not is_number(item["score"])], "have a score that is no finite "
            "number", "detect anew")
    _refuse(path, items, [item for item in items if not are_numbers(item["bbox"], 4)],
            "have a bbox that is not four finite numbers", FORMAT)
    _refuse(path, items, [item for item in items if min(item["bbox"][2:]) < 0], "have a negative width or height",
            "bbox is left, top, width, height, not two corners")
    unknown = [item for item in items if not isinstance(item["image_id"], int | str)
               or item["image_id"] not in annotations.image_ids]
    _refuse(path, items, unknown, f"are of images that {annotations.path} does not list",
            "give the detections of these images")

    wanted = {image["id"] for image in annotations.images}
    items = [item for item in items if item["image_id"] in wanted]
    good = [item for item in items if item["score"] > min_score and item["bbox"][2] * item["bbox"][3] > min_area]
    if not good:
        raise BadInput(f"{path} has no detection on any of the {len(wanted)} images: of {len(items)} none has a score "
                       f"above {min_score:g} and more than {min_area:g} square pixels; lower --min-score or "
                       "--min-area, or take more images")
    groups: dict[int, list] = {}
    for item in sorted(good, key=lambda item: -item["score"]):
        groups.setdefault(item["image_id"], []).append(item)
    return Detections(path, {image: _arrays(group) for image, group in groups.items()}, len(items) - len(good))


def _read_list(path):
    if not path.exists():
        raise BadInput(f"detections file {path} does not exist; {FORMAT}")
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read detections file {path}: {error.strerror}; give a JSON file") from error
    except ValueError as error:  # not JSON, or not even text
        raise BadInput(f"{path} is not JSON ({error}); {FORMAT}") from error
    if not isinstance(items, list):
        raise BadInput(f"{path} is no list but {_kind(items)}; {FORMAT}")
    if not items:
        raise BadInput(f"{path} has no detections; {FORMAT}")
    _refuse(path, items, [item for item in items if not isinstance(item, dict)], "are no objects", FORMAT)
    return items


def _kind(value):
    return f"an object with {', '.join(value) or 'nothing'}" if isinstance(value, dict) else type(value).__name__


def _refuse(path, items, wrong, what, remedy):
    if wrong:
        raise BadInput(f"{path}: {len(wrong)} of {len(items)} detections {what} (first: {str(wrong[0])[:120]}); "
                       f"{remedy}")


def _arrays(items):
    boxes = np.array([item["bbox"] for item in items], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([item["score"] for item in items], np.float32)
