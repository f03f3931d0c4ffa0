"""Clips and stills on disk, with their truth in COCO's keypoint format."""

import json
from contextlib import closing
from pathlib import Path

import cv2
from tqdm import tqdm

from runtime.errors import BadInput
from runtime.keypoints import COCO
from runtime.walkers.compose import FPS, render_clip, render_still
from runtime.write import VideoWriter


def coco_dataset(images, annotations):
    """COCO's JSON as a dict."""
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO.names),
                "skeleton": [[a + 1, b + 1] for a, b in COCO.limbs]}
    return {"info": {"description": "rendered by runtime.walkers"}, "images": images, "annotations": annotations,
            "categories": [category]}


def write_clip(path, truth, frames=150, size=(640, 480), seed=0, persons=3):
    """Render a clip into a video file, and its truth into a JSON file (image id = frame + 1).

    Whatever breaks it off, Ctrl-C too, the files hold the frames until then.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    try:
        with closing(VideoWriter(Path(path), FPS)) as video:
            clip = render_clip(frames, size, seed, persons)
            for frame, (picture, labelled) in enumerate(tqdm(clip, total=frames, unit=" frames", desc=str(path))):
                video.append(picture)
                images.append(_image(frame + 1, f"frame_{frame:06d}.jpg", size))
                annotations += labelled
    finally:
        _write_file(truth, json.dumps(coco_dataset(images, annotations)).encode())


def write_stills(folder, truth, count, size=(640, 480), seed=0):
    """Render pictures into a folder of JPEGs, with the seeds from `seed` on, and their truth into a JSON file."""
    images: list[dict] = []
    annotations: list[dict] = []
    try:
        for index in tqdm(range(count), unit=" pictures", desc=str(folder)):
            picture, labelled = render_still(seed + index, size)
            name = f"still_{seed + index:06d}.jpg"
            _write_file(Path(folder) / name, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
            images.append(_image(seed + index + 1, name, size))
            for annotation in labelled:
                annotations.append({**annotation, "id": len(annotations) + 1})
    finally:
        _write_file(truth, json.dumps(coco_dataset(images, annotations)).encode())


def _image(image_id, name, size):
    return {"id": image_id, "file_name": name, "width": size[0], "height": size[1]}


def _write_file(path, content):
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; choose another place") from error
