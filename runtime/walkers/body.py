"""A rendered person's skeleton and skin: bones, tubes of quads around them, and the pose that bends both.

Metres; the person's own axes are x to its left, y up, z forward. The body is modelled once, upright with hanging
arms, and every vertex follows its bones by linear blend skinning.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# name: (parent, pivot in the upright body of 1.75 m; left side, the right one is mirrored)
_BONES: dict[str, Any] = {
    "pelvis": (None, (0, 0.97, 0)), "spine": ("pelvis", (0, 1.07, -0.01)), "chest": ("spine", (0, 1.22, -0.02)),
    "neck": ("chest", (0, 1.47, -0.015)), "head": ("neck", (0, 1.57, 0)),
    "left_arm": ("chest", (0.178, 1.42, -0.015)), "left_forearm": ("left_arm", (0.178, 1.13, -0.015)),
    "left_hand": ("left_forearm", (0.178, 0.875, -0.015)),
    "right_arm": ("chest", None), "right_forearm": ("right_arm", None), "right_hand": ("right_forearm", None),
    "left_thigh": ("pelvis", (0.092, 0.925, 0)), "left_shin": ("left_thigh", (0.088, 0.495, 0.005)),
    "left_foot": ("left_shin", (0.088, 0.085, -0.02)),
    "right_thigh": ("pelvis", None), "right_shin": ("right_thigh", None), "right_foot": ("right_shin", None),
}
BONES = tuple(_BONES)
BONE = {name: index for index, name in enumerate(BONES)}
PARENTS = [None if parent is None else BONE[parent] for parent, _ in _BONES.values()]
BODY_HEIGHT = 1.75

PARTS = ("torso", "head", "hair", "left_arm", "right_arm", "left_leg", "right_leg", "skirt", "luggage")
PART = {name: index for index, name in enumerate(PARTS)}


def pivots():
    """(17, 3) where each bone turns, in the upright body."""
    points = []
    for name, (_, pivot) in _BONES.items():
        if pivot is None:  # the right side mirrors the left
            x, y, z = _BONES[name.replace("right", "left")][1]
            pivot = -x, y, z
        points.append(pivot)
    return np.array(points, np.float64)


@dataclass
class Mesh:
    """V vertices and F quads of a body.

    Attributes:
        vertices: (V, 3) metres, upright. weights: (V, 17) share of each bone, summing to 1.
        quads: (F, 4) vertex indices, anticlockwise from outside. parts: (F,) index into PARTS.
        colours: (F, 3) BGR 0..1 before lighting. bias: (F,) metres by which a quad counts as nearer than it is,
            for what is painted on a surface. gloss: (F,) 0..1.
        middles: (F, 3) upright centres of the quads, by which clothes are coloured.
    """

    vertices: np.ndarray
    weights: np.ndarray
    quads: np.ndarray
    parts: np.ndarray
    colours: np.ndarray
    bias: np.ndarray
    gloss: np.ndarray

    @property
    def middles(self):
        return self.vertices[self.quads].mean(1)


@dataclass
class MeshBuilder:
    """Collects surfaces. `facet` is the edge length in metres that quads should have."""

    facet: float
    rng: np.random.Generator
    count: int = 0
    pieces: list = field(default_factory=list)

    def tube(self, part, controls, weights, colour, axis="y", square=2.2, wrinkles=0.0, thicken=None, bias=0.0,
             gloss=0.05, keep=None):
        """A closed tube along an axis.

        Args:
            controls: rows (position on the axis, x centre, depth centre, half width, depth in front, behind).
            weights: function of (V, 3) vertices → (V, 17), or a bone's name.
            colour: BGR 0..1, or a function of the (F, 3) middles of the quads → (F, 3).
            axis: "y" for upright tubes (depth is z), "z" for feet (depth is y).
            square: exponent of the outline; 2 is an ellipse, larger is boxier.
            wrinkles: amplitude in metres of the folds.
            thicken: function of the ring's position → metres added to its radii: clothes over the body.
            keep: function of the (F, 3) middles → (F,) bool, which quads to draw.
        """
        controls = np.array(controls, np.float64)
        controls = controls[np.argsort(controls[:, 0])]
        length = controls[-1, 0] - controls[0, 0]
        girth = 2.1 * (2 * controls[:, 3].max() + controls[:, 4:].max(0).sum()) / 1.4
        rings = int(np.clip(round(length / self.facet), 4, 80)) + 1
        sides = int(np.clip(round(girth / self.facet), 6, 40))
        along = np.linspace(controls[0, 0], controls[-1, 0], rings)
        smooth = [np.interp(along, controls[:, 0], controls[:, column]) for column in range(1, 6)]
        x_centre, depth_centre, *radii = [_soften(values) for values in smooth]
        if thicken is not None:
            radii = [radius + thicken(along) for radius in radii]
        width, front, behind = [radius[:, None] for radius in radii]

        angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)[None]
        cosine, sine = np.cos(angles), np.sin(angles)
        folds = _folds(self.rng, angles, along[:, None], wrinkles) if wrinkles else 0.0
        across = np.sign(cosine) * np.abs(cosine) ** (2 / square)
        outward = np.sign(sine) * np.abs(sine) ** (2 / square)
        x = x_centre[:, None] + across * (width + folds)
        depth = depth_centre[:, None] + outward * (np.where(sine > 0, front, behind) + folds)
        height = np.broadcast_to(along[:, None], x.shape)
        # Both ends close in a point.
        x[[0, -1]], depth[[0, -1]] = x_centre[[0, -1], None], depth_centre[[0, -1], None]
        vertices = np.stack([x, height, depth] if axis == "y" else [x, depth, height], -1)
        self.grid(part, vertices, weights, colour, wrap=True, flip=axis != "y", bias=bias, gloss=gloss, keep=keep)

    def grid(self, part, points, weights, colour, wrap=False, flip=False, bias=0.0, gloss=0.05, keep=None):
        """A surface of (rows, columns, 3) points: rows upwards, columns anticlockwise seen from above."""
        rows, columns = points.shape[:2]
        index = np.arange(rows * columns).reshape(rows, columns)
        right = np.roll(index, -1, 1) if wrap else index[:, 1:]
        left = index if wrap else index[:, :-1]
        quads = np.stack([left[:-1], left[1:], right[1:], right[:-1]], -1).reshape(-1, 4)
        quads = quads[:, ::-1] if flip else quads
        vertices = points.reshape(-1, 3)
        middles = vertices[quads].mean(1)
        if keep is not None:
            kept = keep(middles)
            quads, middles = quads[kept], middles[kept]
        colours = colour(middles) if callable(colour) else np.tile(np.asarray(colour, np.float64), (len(quads), 1))
        table = rigid(weights)(vertices) if isinstance(weights, str) else weights(vertices)
        faces = len(quads)
        self.pieces.append((vertices, table, quads + self.count, np.full(faces, PART[part]), colours,
                            np.full(faces, bias), np.full(faces, gloss)))
        self.count += len(vertices)

    def finish(self):
        return Mesh(*[np.concatenate(column) for column in zip(*self.pieces, strict=True)])


def _soften(values):
    padded = np.concatenate([values[:1], values, values[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _folds(rng, angles, along, amplitude):
    """Cloth folds: waves around and along the tube, in metres."""
    total = 0.0
    for _ in range(5):
        around, rate, phase = rng.integers(1, 5), rng.normal(0, 26), rng.uniform(0, 2 * np.pi)
        total = total + np.sin(around * angles + rate * along + phase)
    return amplitude * total / 2.5


def rigid(bone):
    """Weights of a piece that follows one bone."""
    def weights(vertices):
        table = np.zeros((len(vertices), len(BONES)))
        table[:, BONE[bone]] = 1
        return table
    return weights


def chained(bones, soft=0.05, axis=1):
    """Weights of a tube along a chain of bones, from the top: each hands over to the next around its pivot."""
    heights = [pivots()[BONE[bone], axis] for bone in bones[1:]]

    def weights(vertices):
        table = np.zeros((len(vertices), len(BONES)))
        rest = np.ones(len(vertices))
        for bone, height in zip(bones[:-1], heights, strict=True):
            above = np.clip((vertices[:, axis] - height) / (2 * soft) + 0.5, 0, 1)
            table[:, BONE[bone]], rest = rest * above, rest * (1 - above)
        table[:, BONE[bones[-1]]] = rest
        return table
    return weights


def hanging(vertices):
    """Weights of a skirt or a coat: it hangs from trunk and pelvis, and each half follows its thigh."""
    table = chained(("chest", "spine", "pelvis"), 0.06)(vertices)
    falls = np.clip((0.98 - vertices[:, 1]) / 0.3, 0, 1) * 0.85
    left = np.clip(vertices[:, 0] / 0.16 + 0.5, 0, 1)
    table *= (1 - falls)[:, None]
    table[:, BONE["left_thigh"]] += falls * left
    table[:, BONE["right_thigh"]] += falls * (1 - left)
    return table


def rotations(angles):
    """(N, 3) degrees about x, y, z → (N, 3, 3) matrices Rx·Rz·Ry: a limb is twisted, then spread, then swung."""
    cosine, sine = np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))
    (cx, cy, cz), (sx, sy, sz) = cosine.T, sine.T
    zero, one = np.zeros_like(cx), np.ones_like(cx)

    def stack(*entries):
        return np.stack(entries, -1).reshape(-1, 3, 3)

    about_x = stack(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    about_y = stack(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_z = stack(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    return about_x @ about_z @ about_y


@dataclass
class Body:
    """A person to draw: skin, face points and size.

    Attributes:
        mesh: the upright body of 1.75 m. face: (5, 3) nose, eyes (left, right), ears (left, right) on it.
        scales: (17,) size of each bone and its flesh against that body: a child's head is large, its legs short.
    """

    mesh: Mesh
    face: np.ndarray
    scales: np.ndarray


def bend(body, angles):
    """Pose a body.

    Args:
        angles: (17, 3) degrees of each bone against its parent, about x, y, z (see `rotations`).

    Returns:
        vertices (V, 3) and COCO keypoints (17, 3) in metres, the lowest vertex at height 0, pelvis at x = z = 0.
    """
    local, rest = rotations(angles), pivots()
    # `turn` rotates and scales: from the upright body's axes to the posed bone's.
    turn, origin = np.empty((len(BONES), 3, 3)), np.empty((len(BONES), 3))
    for bone, parent in enumerate(PARENTS):
        if parent is None:
            turn[bone], origin[bone] = local[bone] * body.scales[bone], 0
            continue
        offset = rest[bone] - rest[parent]
        if BONES[bone].endswith("_arm"):
            # A raised arm lifts its shoulder.
            raised = (1 - local[bone][1, 1]) / 2
            offset = offset + raised * np.array([-0.025 * np.sign(rest[bone, 0]), 0.06, 0])
        turn[bone] = turn[parent] @ local[bone] * (body.scales[bone] / body.scales[parent])
        origin[bone] = origin[parent] + turn[parent] @ offset
    shift = origin - np.einsum("bij,bj->bi", turn, rest)

    mesh = body.mesh
    matrices = mesh.weights @ np.concatenate([turn.reshape(-1, 9), shift], 1)
    vertices = np.einsum("vij,vj->vi", matrices[:, :9].reshape(-1, 3, 3), mesh.vertices) + matrices[:, 9:]
    face = body.face @ turn[BONE["head"]].T + shift[BONE["head"]]
    joints = [BONE[f"{side}_{bone}"] for bone in ("arm", "forearm", "hand", "thigh", "shin", "foot")
              for side in ("left", "right")]
    keypoints = np.concatenate([face, origin[joints]])
    floor = vertices[:, 1].min()
    for points in (vertices, keypoints):
        points[:, 1] -= floor
    return vertices, keypoints
