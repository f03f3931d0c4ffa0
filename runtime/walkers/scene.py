"""Where walkers walk: camera, light, ground, backdrop and things that stand about, all random and procedural.

World axes in metres: x to the right of the picture, y up from the ground, z towards the camera, which stands
above the origin and looks along -z.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass
class Camera:
    """A pinhole camera. focal and middle (x, y) in pixels, height in metres, pitch (down) and roll in radians."""

    focal: float
    middle: tuple[float, float]
    height: float
    pitch: float
    roll: float = 0.0

    def axes(self):
        """(3, 3) rows: right, up and forward in the world."""
        cosine, sine = np.cos(self.pitch), np.sin(self.pitch)
        right, up = np.array([1.0, 0, 0]), np.array([0, cosine, -sine])
        forward = np.array([0, -sine, -cosine])
        return np.stack([np.cos(self.roll) * right + np.sin(self.roll) * up,
                         np.cos(self.roll) * up - np.sin(self.roll) * right, forward])

    def project(self, points):
        """(..., 3) metres → (..., 2) pixels (whole numbers are pixel centres) and (...) depths in metres."""
        seen = (np.asarray(points) - (0, self.height, 0)) @ self.axes().T
        depth = seen[..., 2]
        safe = np.maximum(depth, 0.05)
        return np.stack([self.middle[0] + self.focal * seen[..., 0] / safe,
                         self.middle[1] - self.focal * seen[..., 1] / safe], -1), depth

    def rays(self, size):
        """(height, width, 3) directions of the pixels, with depth 1."""
        x = (np.arange(size[0]) - self.middle[0]) / self.focal
        y = (self.middle[1] - np.arange(size[1])) / self.focal
        right, up, forward = self.axes()
        return forward + x[None, :, None] * right + y[:, None, None] * up


@dataclass
class Scene:
    """What does not move.

    Attributes:
        camera: where from. backdrop: (H, W, 3) uint8 BGR, ground and all that is far.
        quads: (F, 4, 3) metres, colours: (F, 3) BGR 0..1: things that stand about.
        sun: (3,) unit vector towards the light. direct, ambient: (3,) BGR strengths. shadow: 0..1 darkness.
    """

    camera: Camera
    backdrop: np.ndarray
    quads: np.ndarray
    colours: np.ndarray
    sun: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    shadow: float


def random_light(rng, indoors):
    """Sun direction, direct and ambient BGR strengths, darkness of shadows."""
    # Photographers mostly have the light behind them.
    height, around = rng.uniform(0.5, 1.3), rng.normal(0, 1.2)
    sun = np.array([np.cos(height) * np.sin(around), np.sin(height), np.cos(height) * np.cos(around)])
    share = rng.uniform(0.2, 0.55) if indoors or rng.random() < 0.4 else rng.uniform(0.45, 0.7)
    brightness = rng.uniform(0.85, 1.25)
    warmth = np.array([1 - rng.uniform(-0.05, 0.15), 1.0, 1 + rng.uniform(-0.05, 0.1)])
    return sun, brightness * share * warmth * 1.1, brightness * (1.15 - share) / warmth, share * rng.uniform(0.5, 0.9)


def noise(rng, size, coarsest=8, octaves=5, persistence=0.6):
    """(height, width) float32 fractal noise with mean 0 and deviation 1."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        cells = coarsest * 2 ** octave
        grain = rng.normal(0, 1, (min(cells, size[1]), min(cells, size[0]))).astype(np.float32)
        total += persistence ** octave * cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / max(total.std(), 1e-6)


def muted(rng, low=0.2, high=0.85, strength=0.25):
    """A BGR colour, 0..1, of building materials: near grey, rather warm than cold."""
    warmth, green = rng.normal(strength / 8, strength / 5), rng.normal(0, strength / 10)
    return np.clip(rng.uniform(low, high) + np.array([-warmth, green, warmth]), 0.03, 0.98)


def _ground_texture(rng, kind):
    """(512, 512, 3) uint8 texture of 4 m × 4 m."""
    grain = noise(rng, (512, 512), 6, 7, 0.75)[..., None]
    if kind == "grass":
        base = np.array([0.20, 0.42, 0.36]) * rng.uniform(0.8, 1.4) * rng.uniform(0.85, 1.15, 3)
        picture = base + grain * base * 0.15
    else:
        picture = muted(rng) + grain * rng.uniform(0.01, 0.07)
    if kind in ("tiles", "planks"):
        across, along = (rng.choice([4, 8, 16]), 2) if kind == "planks" else [rng.choice([4, 6, 8, 12])] * 2
        shade = rng.normal(0, rng.uniform(0.01, 0.06), (along, across))
        picture = picture + cv2.resize(shade, (512, 512), interpolation=cv2.INTER_NEAREST)[..., None]
        joint = rng.choice([-0.2, -0.1, 0.12])
        for index in range(across):
            picture[:, index * 512 // across:][:, :4] += joint
        for index in range(along):
            picture[index * 512 // along:][:4] += joint
    return np.clip(picture * 255, 0, 255).astype(np.uint8)


def _rectangle(rng, wall, x, y, width, height, colour, frame=None):
    """Fill a rectangle of a wall texture; with a frame colour, draw it around."""
    corner, opposite = (int(x), int(y)), (int(x + width), int(y + height))
    cv2.rectangle(wall, corner, opposite, [float(v) for v in colour], -1)
    if frame is not None:
        cv2.rectangle(wall, corner, opposite, [float(v) for v in frame], int(rng.integers(2, 6)))


def _facade(rng, wall):
    """Windows, doors and shop fronts on a (512, 1024, 3) wall of 6 m × 12 m; the bottom row is the ground."""
    columns, rows = rng.integers(4, 11), rng.integers(2, 5)
    width, height = 1024 / columns, 512 / rows
    inset, glass, frame = rng.uniform(0.15, 0.3), muted(rng, 0.1, 0.5), muted(rng, 0.3, 0.95)
    if rng.random() < 0.5:
        for y in range(0, 512, 12):
            wall[y: y + 2] *= 0.88
    for row in range(rows):
        for column in range(columns):
            tint = glass * rng.uniform(0.6, 1.6)
            _rectangle(rng, wall, (column + inset) * width, (row + inset * 0.7) * height, (1 - 2 * inset) * width,
                       (1 - 1.6 * inset) * height, tint, frame)
    if rng.random() < 0.5:
        _rectangle(rng, wall, 0, 512 - 250, 1024, 40, muted(rng, 0.1, 0.8, 0.9))
        for _ in range(4):
            _rectangle(rng, wall, rng.integers(0, 900), 512 - 205, rng.integers(80, 260), 190,
                       muted(rng, 0.05, 0.6, 0.5), frame)
    for _ in range(2):
        _rectangle(rng, wall, rng.integers(0, 950), 512 - 190, 85, 190, muted(rng, 0.1, 0.6, 0.6), frame)


def _interior(rng, wall):
    """Doors, windows, pictures and shelves on a wall as in `_facade`."""
    _rectangle(rng, wall, 0, 500, 1024, 12, muted(rng))
    for _ in range(rng.integers(3, 10)):
        kind, x = rng.choice(["picture", "door", "window", "shelf", "curtain"]), rng.integers(0, 950)
        if kind == "door":
            _rectangle(rng, wall, x, 512 - 180, 78, 180, muted(rng, 0.15, 0.9), muted(rng))
        elif kind == "window":
            _rectangle(rng, wall, x, 250, rng.integers(90, 220), 130, muted(rng, 0.6, 1.0), muted(rng, 0.6, 1))
        elif kind == "curtain":
            colour = muted(rng, 0.2, 0.9, 0.8)
            for fold in range(10):
                _rectangle(rng, wall, x + fold * 9, 240, 9, 240, colour * rng.uniform(0.75, 1.1))
        elif kind == "shelf":
            left, top = x, 512 - rng.integers(60, 200)
            _rectangle(rng, wall, left, top, 160, 512 - top, muted(rng, 0.1, 0.6))
            for level in range(top + 6, 505, 32):
                for book in range(left + 4, left + 152, 9):
                    _rectangle(rng, wall, book, level + rng.integers(0, 8), 7, 22, muted(rng, 0.1, 0.9, 1.0))
        else:
            width, height = rng.integers(30, 110, 2)
            y = rng.integers(260, 380)
            _rectangle(rng, wall, x, y, width, height, muted(rng, 0.1, 0.95, 0.9), muted(rng, 0.05, 0.9))


def _sky_and_trees(rng, rays, size, horizon):
    """Sky, hills, a skyline or a wood behind everything, (H, W, 3) float 0..1."""
    width, height = size
    upward = np.clip(rays[..., 1] / np.linalg.norm(rays, axis=-1), 0, 1)[..., None]
    low, high = np.array([0.93, 0.9, 0.87]) * rng.uniform(0.75, 1), np.array([0.85, 0.62, 0.42]) * rng.uniform(0.8, 1.1)
    picture = low + (high - low) * np.sqrt(upward)
    picture = picture + np.clip(noise(rng, size, 3)[..., None], 0, 2) * rng.uniform(0, 0.08)
    level, unit = float(np.median(horizon)), height / 100
    if rng.random() < 0.5:
        for _ in range(rng.integers(6, 24)):
            left, wide = rng.uniform(-0.1, 1) * width, rng.uniform(0.03, 0.2) * width
            top, colour = level - rng.uniform(5, 45) * unit, muted(rng, 0.3, 0.8)
            _rectangle(rng, picture, left, top, wide, level + 5 * unit - top, colour)
            for y in np.arange(top + 2 * unit, level, 3.2 * unit):
                for x in np.arange(left + unit, left + wide - 2 * unit, 3 * unit):
                    _rectangle(rng, picture, x, y, 1.5 * unit, 1.7 * unit, colour * rng.choice([0.5, 0.6, 1.1]))
    if rng.random() < 0.75:
        green = np.array([0.13, 0.30, 0.22]) * rng.uniform(0.6, 1.5)
        for _ in range(rng.integers(2, 14)):
            x, spread, tall = rng.uniform(0, width), rng.uniform(4, 16) * unit, rng.uniform(8, 40) * unit
            cv2.line(picture, (int(x), int(level + 3 * unit)), (int(x), int(level - tall)), (0.12, 0.17, 0.22),
                     max(1, int(spread / 6)))
            for _ in range(60):
                spot = (int(x + rng.normal(0, spread * 0.6)), int(level - tall + rng.normal(0, spread * 0.5)))
                radius = int(rng.uniform(0.1, 0.4) * spread) + 1
                cv2.circle(picture, spot, radius, tuple(green * rng.uniform(0.5, 1.6)), -1)
    return picture


def backdrop(rng, camera, size, place):
    """(H, W, 3) uint8 BGR: ground, wall or landscape as the camera sees them. place: "room", "street" or "park"."""
    rays = camera.rays(size)
    with np.errstate(divide="ignore"):
        to_ground = np.where(rays[..., 1] < -1e-3, -camera.height / rays[..., 1], np.inf)
    far = rng.uniform(7.5, 14) if place == "room" or (place == "street" and rng.random() < 0.6) else np.inf
    # With depth 1 the ray's -z is at most 1; the wall faces the camera.
    to_wall = far / np.maximum(-rays[..., 2], 1e-3)
    horizon = (to_ground < np.inf).argmax(0)
    picture = _sky_and_trees(rng, rays, size, horizon) if np.isinf(far) else np.zeros((size[1], size[0], 3))
    picture = np.clip(picture * 255, 0, 255).astype(np.uint8)
    if np.isfinite(far):
        wall = muted(rng, 0.35, 0.95) + np.zeros((512, 1024, 3))
        (_interior if place == "room" else _facade)(rng, wall)
        wall += noise(rng, (1024, 512))[..., None] * rng.uniform(0.005, 0.03)
        texture = np.clip(wall * 255, 0, 255).astype(np.uint8)
        x, y = rays[..., 0] * to_wall, camera.height + rays[..., 1] * to_wall
        picture = cv2.remap(texture, ((x + 6) * 1024 / 12).astype(np.float32), (511 - y * 512 / 6).astype(np.float32),
                            cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    kinds = {"room": ["tiles", "planks", "plain"], "street": ["plain", "tiles"], "park": ["grass", "plain", "grass"]}
    texture = _ground_texture(rng, rng.choice(kinds[place]))
    reach = np.where(np.isfinite(to_ground), to_ground, 0)
    x, z = rays[..., 0] * reach, rays[..., 2] * reach
    ground = cv2.remap(texture, (x * 128).astype(np.float32), (z * 128).astype(np.float32), cv2.INTER_LINEAR,
                       borderMode=cv2.BORDER_REFLECT)
    # Far away the texture is finer than the pixels: fade to its mean.
    fade = np.clip(reach / 14, 0, 1)[..., None]
    ground = ground * (1 - fade) + texture.mean((0, 1)) * fade
    picture = np.where((to_ground < to_wall)[..., None], ground, picture).astype(np.uint8)
    softness = rng.uniform(0, 0.004) * size[1]
    return cv2.GaussianBlur(picture, (0, 0), softness) if softness > 0.4 else picture


def box(centre, size, colour, heading=0.0, cells=5):
    """Quads (F, 4, 3) and colours (F, 3) of a box: centre (x, z) on the ground, size (x, y, z), base height 0."""
    steps = np.linspace(-0.5, 0.5, cells + 1)
    a, b = np.meshgrid(steps[:-1], steps[:-1], indexing="ij")
    cell = 1 / cells
    corners = np.stack([np.stack([a, b], -1), np.stack([a + cell, b], -1), np.stack([a + cell, b + cell], -1),
                        np.stack([a, b + cell], -1)], 2).reshape(-1, 4, 2)
    faces = []
    for axis in range(3):
        for sign in (-0.5, 0.5):
            face = np.insert(corners if sign > 0 else corners[:, ::-1], axis, sign, axis=2)
            faces.append(face if axis != 1 else face[:, ::-1])
    quads = (np.concatenate(faces) + (0, 0.5, 0)) * size
    cosine, sine = np.cos(heading), np.sin(heading)
    turned = quads @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    return turned + (centre[0], 0, centre[1]), np.broadcast_to(np.asarray(colour), (len(quads), 3)).copy()


def seat(rng, centre, height, heading):
    """A chair, stool or box whose top is at a height, for someone sitting at centre (x, z)."""
    colour, pieces = muted(rng, 0.08, 0.8, 0.7), []
    width, deep = rng.uniform(0.4, 0.9), rng.uniform(0.38, 0.5)
    pieces.append(box(centre, (width, max(height, 0.05), deep), colour, heading))
    if rng.random() < 0.5:
        back = np.array(centre) - 0.27 * np.array([np.sin(heading), np.cos(heading)])
        pieces.append(box(back, (width, height + rng.uniform(0.3, 0.5), 0.06), colour * 0.9, heading))
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def clutter(rng, place, spots):
    """Things at (x, z) spots: posts, boxes, bins, cars, hedges, tables. Returns quads and colours."""
    pieces = [(np.zeros((0, 4, 3)), np.zeros((0, 3)))]
    for spot in spots:
        kinds = {"room": ["box", "table", "post", "plant"], "street": ["post", "car", "box", "bin"],
                 "park": ["post", "hedge", "bin", "plant"]}[place]
        kind, heading = rng.choice(kinds), rng.normal(0, 0.5)
        colour, dark = muted(rng, 0.1, 0.85, 0.8), np.full(3, 0.08)
        if kind == "post":
            pieces.append(box(spot, (0.1, rng.uniform(1.0, 3.5), 0.1), colour, heading, 8))
        elif kind == "car":
            body = box(spot, (4.2, 0.75, 1.7), colour, heading / 5, 14)
            cabin, tint = box(spot, (2.2, 1.42, 1.4), colour * 0.9, heading / 5, 10)
            tint[(cabin.mean(1)[:, 1] > 0.85) & (cabin.mean(1)[:, 1] < 1.3)] = dark * 2
            pieces += [(body[0] + (0, 0.22, 0), body[1]), (cabin, tint)]
            for x, z in ((-1.3, 0.8), (1.3, 0.8)):
                pieces.append(box((spot[0] + x, spot[1] + z), (0.6, 0.6, 0.2), dark, heading / 5, 3))
        elif kind == "table":
            top = box(spot, (1.2, 0.04, 0.7), colour, heading, 8)
            pieces.append((top[0] + (0, 0.72, 0), top[1]))
            pieces += [box((spot[0] + x, spot[1] + z), (0.05, 0.72, 0.05), colour * 0.8, 0, 2)
                       for x in (-0.5, 0.5) for z in (-0.28, 0.28)]
        elif kind in ("hedge", "plant"):
            wide, tall = (1.6, rng.uniform(0.5, 1.1)) if kind == "hedge" else (0.5, rng.uniform(0.6, 1.4))
            middles = rng.uniform(-0.5, 0.5, (500, 1, 3)) * (wide, tall, 0.45) + (spot[0], tall / 2, spot[1])
            # Leaves face anywhere; drawn from both sides.
            a, b = rng.normal(0, 0.035, (2, 500, 1, 3))
            leaves = middles + np.concatenate([a + b, a - b, -a - b, b - a], 1)
            tints = np.array([0.12, 0.36, 0.26]) * rng.uniform(0.6, 1.7, (500, 1))
            pieces += [(leaves, tints), (leaves[:, ::-1], tints)]
        else:
            size = rng.uniform((0.3, 0.3, 0.3), (0.9, 1.1, 0.7)) if kind == "box" else (0.4, 0.9, 0.4)
            pieces.append(box(spot, size, colour, heading, 6))
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]
