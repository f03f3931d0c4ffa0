"""A COCO keypoint file, written by a converter."""

import sys
from collections import Counter

import imagesize
import numpy as np

from runtime.files import write_json


class CocoFile:
    """A COCO keypoint file under way: what goes in, and what is left out and why.

    Attributes:
        images, annotations: COCO's lists of dicts.
        left_out: Counter, reason → how many.
        missing: paths of images that are not there or are no pictures.
    """

    def __init__(self, schema):
        self.schema = schema
        self.images, self.annotations = [], []
        self.left_out: Counter[str] = Counter()
        self.missing = []

    def image_size(self, path):
        """(width, height) as stored, from the file's header alone; None, and noted, if there is no such picture."""
        size = imagesize.get(path, exif_rotation=False)  # (-1, -1) where there is no such file too
        if min(size) < 1:
            self.missing.append(str(path))
            return None
        return size

    def add_image(self, image, size):
        self.images.append({**image, "width": size[0], "height": size[1]})

    def add_person(self, image_id, bbox, keypoints=None, iscrowd=0, **more):
        """Add an annotation: bbox as COCO's, keypoints (K, 3) x, y, visibility, or none of them; more fields."""
        keypoints = np.zeros((len(self.schema), 3)) if keypoints is None else keypoints
        # Ids from 1: pycocotools counts an annotation with id 0 as found by nobody.
        self.annotations.append({
            "id": len(self.annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": iscrowd,
            "bbox": bbox, "area": bbox[2] * bbox[3], "num_keypoints": int((keypoints[:, 2] > 0).sum()),
            "keypoints": keypoints.ravel().tolist(), **more})

    def write(self, path):
        """Write the file whole or not at all, and say what is in it. False, and nothing written, without images."""
        if self.missing:
            print(f"warning: {len(self.missing)} images are missing or unreadable, the first is {self.missing[0]}; "
                  f"they are not in {path}", file=sys.stderr)
            self.left_out["images missing or unreadable"] = len(self.missing)
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items())) or "nothing"
        if not self.images:
            print(f"warning: {path} is not written, for it would have no images; left out: {left_out}", file=sys.stderr)
            return False
        category = {"supercategory": "person", "id": 1, "name": "person", "keypoints": list(self.schema.names),
                    "skeleton": [[start + 1, end + 1] for start, end in self.schema.limbs]}
        write_json(path, {"images": self.images, "annotations": self.annotations, "categories": [category]})
        ignored = sum(annotation["iscrowd"] for annotation in self.annotations)
        labelled = sum(annotation["num_keypoints"] > 0 for annotation in self.annotations)
        print(f"{path}: {len(self.images)} images, {labelled} persons with keypoints, "
              f"{len(self.annotations) - labelled - ignored} without, {ignored} regions to ignore; "
              f"left out: {left_out}")
        return True


def keypoint_box(keypoints, enlarged):
    """Extent of the labelled of (K, 3) keypoints times a factor: [left, top, width, height]; None if it is flat.

    TF-SimpleHumanPose takes a pixel off the extent first. That is its slip: points at 10 and 20 are 10 apart, and
    PoseTrack's own boxes are the plain extent, enlarged.
    """
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    if not len(labelled):
        return None
    low, high = labelled.min(0), labelled.max(0)
    extent = (high - low) * enlarged
    return [*((low + high - extent) / 2).tolist(), *extent.tolist()] if extent.all() else None
