"""Scenes with people in them: a clip in motion, and stills in any pose."""

from dataclasses import replace

import numpy as np

from runtime.keypoints import COCO
from runtime.walkers.body import BODY_HEIGHT, BONE
from runtime.walkers.clothes import random_person
from runtime.walkers.motion import MOTIONS, free_pose, needs_seat, random_motion
from runtime.walkers.render import place, random_look, render
from runtime.walkers.scene import Camera, Scene, backdrop, clutter, random_light, seat

FPS = 25  # of a clip
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
    people: list = []
    spots: list[np.ndarray] = []
    quads, colours = [np.zeros((0, 4, 3))], [np.zeros((0, 3))]
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
