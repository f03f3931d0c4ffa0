"""Draws people in a scene, far surfaces first, and labels what can be seen of them in COCO's keypoint format.

A keypoint that another surface covers, be it the person's own, has v = 1; one outside the picture has v = 0; the
box is that of the person's visible pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from runtime.keypoints import COCO
from runtime.walkers.body import BONE, PART, PARTS, Body, bend

SUPERSAMPLING = 2

# Parts that may lie over a keypoint without hiding it, and how deep it may lie beneath them, metres.
_REACH = {"nose": 0.03, "eye": 0.03, "ear": 0.035, "shoulder": 0.18, "elbow": 0.10, "wrist": 0.08, "hip": 0.20,
          "knee": 0.13, "ankle": 0.10}


def _covers():
    """(17, parts) bool, which parts are a keypoint's own, and (17,) metres of flesh and cloth over it."""
    own = np.zeros((len(COCO), len(PARTS)), bool)
    reach = np.zeros(len(COCO))
    for index, name in enumerate(COCO.names):
        side, _, joint = name.rpartition("_")
        parts = {"shoulder": ("torso", f"{side}_arm"), "elbow": (f"{side}_arm",), "wrist": (f"{side}_arm",),
                 "hip": ("torso", "skirt", f"{side}_leg"), "knee": ("skirt", f"{side}_leg"),
                 "ankle": (f"{side}_leg",)}.get(joint, ("head",))
        own[index, [PART[part] for part in parts]] = True
        reach[index] = _REACH[joint]
    return own, reach


_OWN_PARTS, _FLESH = _covers()


@dataclass
class Posed:
    """A person at one moment: body, its (V, 3) vertices and (17, 3) keypoints in metres of the world."""

    body: Body
    vertices: np.ndarray
    keypoints: np.ndarray


def place(body, angles, spot, heading):
    """Pose a body and put it at (x, z) on the ground, turned by `heading` radians."""
    vertices, keypoints = bend(body, angles)
    cosine, sine = np.cos(heading), np.sin(heading)
    turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    offset = np.array([spot[0], 0, spot[1]])
    return Posed(body, vertices @ turn + offset, keypoints @ turn + offset)


@dataclass
class Facets:
    """Projected quads that face the camera, far ones first.

    Attributes:
        points: (F, 4, 2) in pixels of the picture. low, high: (2, F) their bounds, x and y.
        depths: (F,) metres. colours: (F, 3) BGR 0..255, lit.
        owners: (F,) 0 for things, else person's number + 1. parts: (F,) index into PARTS, -1 for things.
    """

    points: np.ndarray
    low: np.ndarray
    high: np.ndarray
    depths: np.ndarray
    colours: np.ndarray
    owners: np.ndarray
    parts: np.ndarray


def gather(scene, people):
    """All visible quads of a scene as Facets."""
    pieces = [(scene.quads, scene.colours, np.full(len(scene.quads), 0.02), np.zeros(len(scene.quads)),
               np.full(len(scene.quads), -1), np.zeros(len(scene.quads)))]
    for number, person in enumerate(people, start=1):
        mesh = person.body.mesh
        pieces.append((person.vertices[mesh.quads], mesh.colours, mesh.gloss, np.full(len(mesh.quads), number),
                       mesh.parts, mesh.bias))
    quads, colours, gloss, owners, parts, bias = [np.concatenate(column) for column in zip(*pieces, strict=True)]
    points, depths = scene.camera.project(quads)
    diagonals = points[:, 2:] - points[:, :2]
    towards = diagonals[:, 0, 0] * diagonals[:, 1, 1] - diagonals[:, 0, 1] * diagonals[:, 1, 0] < 0
    width, height = scene.backdrop.shape[1::-1]
    # Corner by corner, since NumPy is slow at reducing short axes.
    low = np.minimum.reduce([points[:, corner].T for corner in range(4)])
    high = np.maximum.reduce([points[:, corner].T for corner in range(4)])
    middle = depths @ np.full(4, 0.25)
    inside = (high[0] > -1) & (high[1] > -1) & (low[0] < width) & (low[1] < height)
    shown = np.flatnonzero(towards & inside & (middle > 0.3))
    shown = shown[np.argsort(bias[shown] - middle[shown], kind="stable")]
    lit = light(scene, quads[shown], colours[shown], gloss[shown])
    return Facets(points[shown], low[:, shown], high[:, shown], middle[shown], lit, owners[shown].astype(int),
                  parts[shown].astype(int))


def light(scene, quads, colours, gloss):
    """Lambert with a soft terminator, more ambient light from above than from below, a little gloss → BGR 0..255."""
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    facing = normals @ scene.sun
    soft = np.clip((facing + 0.25) / 1.25, 0, 1)[:, None]
    above = 0.72 + 0.28 * normals[:, 1:2]
    halfway = scene.sun + (0, 0, 1)
    shine = gloss * np.clip(normals @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 20
    lit = colours * (scene.ambient * above + scene.direct * soft) + shine[:, None] * scene.direct
    return np.clip(lit * 255, 0, 255)


def draw(facets, background):
    """Paint the facets, far ones first, over a (H, W, 3) uint8 picture.

    Returns:
        The picture, and (2H, 2W) uint8 owners of the pixels at twice the size.
    """
    height, width = background.shape[:2]
    # The owner travels as the fourth channel.
    large = cv2.resize(background, (width * SUPERSAMPLING, height * SUPERSAMPLING), interpolation=cv2.INTER_LINEAR)
    canvas = cv2.cvtColor(large, cv2.COLOR_BGR2BGRA)
    canvas[..., 3] = 0
    points = np.round((facets.points + 0.5) * SUPERSAMPLING - 0.5).astype(np.int32)
    colours = np.concatenate([facets.colours, facets.owners[:, None]], 1).tolist()
    for quad, colour in zip(points, colours, strict=True):
        cv2.fillConvexPoly(canvas, quad, colour)
    shrunk = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(shrunk, cv2.COLOR_BGRA2BGR), canvas[..., 3]


def shade_ground(scene, people):
    """The backdrop with the shadows that the people cast on the ground."""
    height, width = scene.backdrop.shape[:2]
    shrink = 4
    mask = np.zeros((height // shrink + 1, width // shrink + 1), np.uint8)
    for person in people:
        points = person.keypoints
        on_ground = points - scene.sun * (points[:, 1:2] / scene.sun[1])
        pixels, depths = scene.camera.project(on_ground)
        if depths.min() < 0.5:
            continue
        flat = np.clip(pixels / shrink, -2000, 2000).astype(np.int32)
        unit = scene.camera.focal / depths.mean() / shrink
        cv2.fillConvexPoly(mask, cv2.convexHull(flat[[5, 6, 11, 12]]), 255)
        for a, b in ((5, 7), (6, 8), (7, 9), (8, 10), (11, 13), (12, 14), (13, 15), (14, 16)):
            cv2.line(mask, flat[a].tolist(), flat[b].tolist(), 255, max(1, round(0.13 * unit)))
        cv2.circle(mask, flat[:5].mean(0).astype(int).tolist(), max(1, round(0.1 * unit)), 255, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.004 * height)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    brightness = (255 - scene.shadow * mask).astype(np.uint8)
    return cv2.multiply(scene.backdrop, cv2.merge([brightness] * 3), scale=1 / 255)


def annotate(facets, people, scene, owners, image_id):
    """COCO annotations (list of dicts, without "id") of the people that can be seen at all."""
    height, width = scene.backdrop.shape[:2]
    annotations = []
    for number, person in enumerate(people, start=1):
        visible = owners == number
        if not visible.any():
            continue
        mask = cv2.resize(visible.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 127
        area = int(np.count_nonzero(mask))
        if not area:
            continue
        left, top, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
        keypoints = label_keypoints(facets, person, number, scene.camera, (width, height))
        annotations.append({
            "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": area, "track_id": number,
            "bbox": [left, top, box_width, box_height], "num_keypoints": int((keypoints[:, 2] > 0).sum()),
            "keypoints": np.round(keypoints, 2).ravel().tolist()})
    return annotations


def label_keypoints(facets, person, number, camera, size):
    """(17, 3) x, y in pixels and COCO's v."""
    pixels, depths = camera.project(person.keypoints)
    inside = ((pixels > -0.5) & (pixels < np.array(size) - 0.5)).all(1) & (depths > 0.15)
    flesh = _FLESH * person.body.scales[BONE["pelvis"]]
    low, high = facets.low, facets.high
    labelled = np.zeros((len(COCO), 3))
    for index in np.flatnonzero(inside):
        point = pixels[index]
        near = np.flatnonzero((low[0] <= point[0]) & (high[0] >= point[0]) & (low[1] <= point[1])
                              & (high[1] >= point[1]))
        corners = facets.points[near] - point
        following = np.roll(corners, -1, 1)
        sides = corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]
        over = near[(sides <= 0).all(1)]
        # Far ones are painted first: the last one shows.
        shows = not len(over) or (facets.owners[over[-1]] == number and _OWN_PARTS[index, facets.parts[over[-1]]]
                                  and depths[index] - facets.depths[over[-1]] < flesh[index])
        labelled[index] = (*point, 2 if shows else 1)
    return labelled


@dataclass
class Look:
    """What camera and light do to a picture: (256, 1, 3) tone curve, blur in pixels, noise in grey levels."""

    curve: np.ndarray
    blur: float
    grain: np.ndarray

    def apply(self, picture, rng):
        if self.blur > 0.3:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur)
        picture = cv2.LUT(picture, self.curve)
        # A patch from a larger field: new noise for every frame at the price of a copy.
        height, width = picture.shape[:2]
        y, x = rng.integers(0, self.grain.shape[0] - height), rng.integers(0, self.grain.shape[1] - width)
        return cv2.add(picture, self.grain[y: y + height, x: x + width], dtype=cv2.CV_8U)


def random_look(rng, size):
    levels = np.arange(256) / 255
    contrast, gamma, tint = rng.uniform(0.8, 1.15), rng.uniform(0.65, 1.2), rng.uniform(0.95, 1.05, 3)
    curve = np.clip((levels ** gamma - 0.5) * contrast + 0.5 + rng.uniform(-0.04, 0.04), 0, 1)
    curve = np.clip(curve[:, None, None] * tint * 255, 0, 255).astype(np.uint8)
    grain = rng.normal(0, rng.uniform(1, 5), (size[1] + 32, size[0] + 32, 3)).astype(np.int16)
    return Look(curve, rng.uniform(0, 0.0013) * size[1], grain)


def render(scene, people, look, rng, image_id):
    """One picture (H, W, 3) uint8 BGR and its COCO annotations."""
    facets = gather(scene, people)
    picture, owners = draw(facets, shade_ground(scene, people))
    return look.apply(picture, rng), annotate(facets, people, scene, owners, image_id)
