"""Rendered people with exact keypoints: a rehearsal clip for machines without camera or data, and training pictures.

    python -m runtime.walkers --out walkers.mp4 --truth walkers.json          a clip and its truth
    python -m runtime.walkers --stills 500 --out pictures --truth truth.json  a folder of pictures and theirs

The truth is COCO's keypoint format, see `walker_render`.
"""

import argparse
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from runtime.errors import BadInput, run_command
from runtime.keypoints import COCO
from runtime.walker_body import BODY_HEIGHT, BONE
from runtime.walker_clothes import random_person
from runtime.walker_motion import MOTIONS, free_pose, needs_seat, random_motion
from runtime.walker_render import place, random_look, render
from runtime.walker_scene import Camera, Scene, backdrop, clutter, random_light, seat
from runtime.write import CODECS, VideoWriter

FPS = 25
FACET_PIXELS = 2.8  # a quad's edge in the picture


def facet_size(camera, distance):
    """Edge of a body's quads in metres for someone at a distance."""
    return float(np.clip(FACET_PIXELS * distance / camera.focal, 0.012, 0.04))


def render_clip(frames=150, size=(640, 480), seed=0, persons=3):
    """People who walk, jog, stand, wave, sit, talk and turn before a fixed camera, at 25 frames per second.

    Args:
        frames: how many. size: (width, height) in pixels. persons: how many; the same seed gives the same pixels.

    Yields:
        (H, W, 3) uint8 BGR and its list of COCO annotations (image_id = frame + 1, ids counted up from 1).
    """
    rng = np.random.default_rng(seed)
    camera = Camera(size[1] * rng.uniform(1.15, 1.5), ((size[0] - 1) / 2, (size[1] - 1) / 2),
                    rng.uniform(1.2, 2.4), 0.0)
    # The nearest lane fits into the picture from head to foot.
    nearest = 2.2 * camera.focal / size[1]
    camera.pitch = float(np.arctan2(camera.height - 0.95, nearest + 1.0))
    people, quads, colours = [], [np.zeros((0, 4, 3))], [np.zeros((0, 3))]
    kinds = np.concatenate([["walk"], rng.permutation(MOTIONS), rng.choice(MOTIONS, max(0, persons))])[:persons]
    # A lane each, so that nobody walks through another.
    for number, (kind, lane) in enumerate(zip(kinds, rng.permutation(persons), strict=True)):
        distance = nearest + 0.5 + lane * max(0.8, 3.0 / persons)
        reach = 0.5 * size[0] / camera.focal * distance
        # Side by side too; those who walk cross the others.
        side = rng.uniform(-0.25, 0.25) if kind in ("walk", "jog") else 1.5 * (number + 0.5) / persons - 0.75
        motion = random_motion(rng, kind, (side * reach, -distance), reach)
        person = random_person(rng, facet_size(camera, distance - 0.5))
        people.append((person, motion))
        if kind == "sit":
            spot, heading, angles = motion.at(0.0)
            add_seat(rng, place(person, angles, spot, heading), heading, quads, colours)
    scene = furnish(rng, camera, size, nearest, quads, colours)
    look, count = random_look(rng, size), 0
    for frame in range(frames):
        posed = [place(person, angles, spot, heading) for person, (spot, heading, angles) in
                 [(person, motion.at(frame / FPS)) for person, motion in people]]
        picture, annotations = render(scene, posed, look, rng, frame + 1)
        for annotation in annotations:
            count += 1
            annotation["id"] = count
        yield picture, annotations


def add_seat(rng, posed, heading, quads, colours):
    """Put a seat under someone who sits."""
    hips = posed.keypoints[[11, 12]].mean(0)
    height = max(0.05, hips[1] - 0.10 * posed.body.scales[BONE["pelvis"]])
    seat_quads, seat_colours = seat(rng, (hips[0], hips[2]), height, heading)
    quads.append(seat_quads)
    colours.append(seat_colours)


def furnish(rng, camera, size, nearest, quads, colours):
    """A Scene around the people: backdrop, light, and things behind and now and then before them."""
    kind = str(rng.choice(["room", "street", "park"]))
    count = rng.integers(1, 6)
    spots = np.stack([rng.uniform(-4, 4, count), -nearest - rng.uniform(3.5, 8, count)], 1)
    if rng.random() < 0.4:
        spots = np.concatenate([spots, [(rng.choice([-1, 1]) * rng.uniform(0.8, 1.8), 0.4 - nearest)]])
    things, tints = clutter(rng, kind, spots)
    sun, direct, ambient, shadow = random_light(rng, kind == "room")
    return Scene(camera, backdrop(rng, camera, size, kind), np.concatenate([*quads, things]),
                 np.concatenate([*colours, tints]), sun, direct, ambient, shadow)


def render_still(seed, size=(640, 480)):
    """One picture for training: one to six people in any pose, often cut by the picture's edge.

    Args:
        seed: same seed, same pixels. size: (width, height) in pixels.

    Returns:
        (H, W, 3) uint8 BGR and its list of COCO annotations (image_id = seed + 1).
    """
    rng = np.random.default_rng(seed)
    height = rng.uniform(0.6, 2.6)
    camera = Camera(size[1] * rng.uniform(0.9, 2.2), ((size[0] - 1) / 2, (size[1] - 1) / 2), height, 0.0,
                    rng.normal(0, 0.03))
    # The first person fills a chosen share of the picture's height; the others stand around.
    share = rng.choice([rng.uniform(0.25, 0.6), rng.uniform(0.6, 1.0), rng.uniform(1.0, 2.0)], p=[0.35, 0.45, 0.2])
    distance = camera.focal * BODY_HEIGHT / (share * size[1])
    people, spots, quads, colours = [], [], [np.zeros((0, 4, 3))], [np.zeros((0, 3))]
    span = 0.5 * size[0] / camera.focal
    for index in range(rng.choice([1, 2, 3, 4, 6], p=[0.35, 0.25, 0.2, 0.12, 0.08])):
        away = distance if index == 0 else distance * rng.uniform(0.9, 2.2)
        spot = np.array([span * away * rng.uniform(-0.9, 0.9) * (0.6 if index == 0 else 1.0), -away])
        if any(np.linalg.norm(spot - other) < 0.8 for other in spots):
            continue
        spots.append(spot)
        angles, heading = free_pose(rng), rng.uniform(-np.pi, np.pi)
        posed = place(random_person(rng, facet_size(camera, away)), angles, spot, heading)
        if needs_seat(angles):
            add_seat(rng, posed, heading, quads, colours)
        people.append(posed)
    first = people[0].keypoints
    aim = first[rng.integers(len(COCO))] if share > 1 else (first.min(0) + first.max(0)) / 2
    camera.pitch = float(np.arctan2(height - aim[1], -aim[2])) + rng.normal(0, 0.04)
    scene = furnish(rng, camera, size, distance, quads, colours)
    look = random_look(rng, size)
    picture, annotations = render(scene, people, replace(look, blur=look.blur * rng.uniform(0, 2)), rng, seed + 1)
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return picture, annotations


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
    images, annotations = [], []
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
    images, annotations = [], []
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


def main():
    parser = argparse.ArgumentParser(prog="python -m runtime.walkers",
                                     description="Render people with exact keypoints, in COCO's format.")
    parser.add_argument("--out", required=True, metavar="PATH", help="video (.mp4, .mov, .avi); with --stills a folder")
    parser.add_argument("--truth", required=True, metavar="FILE", help="COCO keypoint JSON to write")
    parser.add_argument("--stills", type=int, metavar="N", help="pictures in any pose instead of a clip")
    parser.add_argument("--frames", type=int, default=150, help="frames of the clip, 25 a second (default: 150)")
    parser.add_argument("--persons", type=int, default=3, help="people in the clip, 1..20 (default: 3)")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="width x height in pixels (default: 640x480)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pixels (default: 0)")
    arguments = parser.parse_args()
    matched = re.fullmatch(r"(\d+)x(\d+)", arguments.size)
    size = (int(matched[1]), int(matched[2])) if matched else (0, 0)
    if not all(64 <= side <= 4096 for side in size):
        raise BadInput(f"--size {arguments.size} is not WIDTHxHEIGHT of 64 to 4096 pixels: give for example 640x480")
    for option, value, most in (("--frames", arguments.frames, 10 ** 6), ("--persons", arguments.persons, 20),
                                ("--stills", arguments.stills, 10 ** 6)):
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"{option} {value} is not in 1..{most}")
    if arguments.seed < 0:
        raise BadInput(f"--seed {arguments.seed} is negative: give 0 or more")
    if arguments.stills:
        write_stills(arguments.out, arguments.truth, arguments.stills, size, arguments.seed)
    elif Path(arguments.out).suffix.lower() not in CODECS:
        raise BadInput(f"--out {arguments.out} is no video name: end it in {', '.join(CODECS)}")
    else:
        write_clip(arguments.out, arguments.truth, arguments.frames, size, arguments.seed, arguments.persons)


if __name__ == "__main__":
    run_command(main)
