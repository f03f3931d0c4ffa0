"""How people move: gait cycles, gestures and free poses, as joint angles for `body.bend`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.walkers.body import BONE, BONES

# Degrees over one gait cycle of the left leg, heel strike first; flexion is positive. After the curves of
# Perry and Burnfield, Gait Analysis (2010), rounded.
_GAITS: dict[str, dict[str, Any]] = {
    "walk": {"hip": (30, 28, 20, 8, -2, -10, -6, 12, 27, 33), "knee": (4, 15, 18, 10, 6, 14, 40, 62, 42, 12),
             "ankle": (0, -6, 3, 8, 11, 2, -17, -6, 1, 1), "elbow": (24, 10), "swing": 24, "lean": 3},
    "jog": {"hip": (38, 34, 22, 4, -12, -14, 4, 30, 46, 46), "knee": (18, 38, 42, 26, 14, 40, 92, 104, 66, 24),
            "ankle": (4, 12, 20, 14, -10, -20, -12, 0, 4, 4), "elbow": (88, 12), "swing": 36, "lean": 9},
}
MOTIONS = ("walk", "jog", "stand", "wave", "sit", "turn", "talk")


def _limb(angles, side, arm=None, elbow=0.0, leg=None, knee=0.0, ankle=0.0, wrist=0.0):
    """Set one side's limbs in degrees. arm, leg: (swing forward, spread outward, twist inward)."""
    sign = 1 if side == "left" else -1
    if arm is not None:
        angles[BONE[f"{side}_arm"]] = (-arm[0], -sign * arm[2], sign * arm[1])
        angles[BONE[f"{side}_forearm"]] = (-elbow, 0, 0)
        angles[BONE[f"{side}_hand"]] = (0, 0, -sign * wrist)
    if leg is not None:
        angles[BONE[f"{side}_thigh"]] = (-leg[0], sign * -leg[2], sign * leg[1])
        angles[BONE[f"{side}_shin"]] = (knee, 0, 0)
        angles[BONE[f"{side}_foot"]] = (-ankle, 0, 0)


def _cycle(curve, phase):
    points = np.append(curve, curve[0])
    return float(np.interp(phase % 1.0, np.linspace(0, 1, len(points)), points))


def gait(phase, kind="walk", vigour=1.0):
    """(17, 3) degrees of a walking or jogging person. phase: 0..1 is one cycle of two steps."""
    angles, curves = np.zeros((len(BONES), 3)), _GAITS[kind]
    for side, shift in (("left", 0.0), ("right", 0.5)):
        along = phase + shift
        hip, knee, ankle = [_cycle(curves[joint], along) for joint in ("hip", "knee", "ankle")]
        back = -np.cos(2 * np.pi * along) * curves["swing"] * vigour
        elbow, bounce = curves["elbow"]
        _limb(angles, side, arm=(back + 4, 7, 5), elbow=elbow + bounce * back / curves["swing"],
              leg=(hip * vigour, 1.5, -6), knee=knee * (0.4 + 0.6 * vigour), ankle=ankle)
    turn = np.cos(2 * np.pi * phase)
    angles[BONE["pelvis"]] = (0, -5 * turn, 3 * np.sin(2 * np.pi * phase))
    angles[BONE["spine"]] = (curves["lean"], 4 * turn, 0)
    angles[BONE["chest"]] = (0, 7 * turn, 0)
    angles[BONE["head"]] = (-curves["lean"] + 2, -4 * turn, 0)
    return angles


def standing(rng):
    """(17, 3) degrees of a person at ease: weight on one leg, arms down, on the hips, folded or in use."""
    angles = np.zeros((len(BONES), 3))
    for side in ("left", "right"):
        arm = rng.choice(["down", "hip", "folded", "phone", "behind"], p=[0.55, 0.13, 0.12, 0.13, 0.07])
        swing, spread, twist, elbow = {"down": (rng.normal(3, 6), rng.uniform(4, 16), 8, rng.uniform(5, 30)),
                                       "hip": (-22, 42, 55, 95), "folded": (22, 8, 62, 100),
                                       "phone": (rng.uniform(25, 55), 5, 30, rng.uniform(85, 125)),
                                       "behind": (-25, 14, 60, 45)}[arm]
        _limb(angles, side, arm=(swing, spread, twist), elbow=elbow, wrist=rng.normal(0, 8),
              leg=(rng.normal(2, 4), rng.uniform(1, 9), rng.uniform(-20, 0)), knee=rng.uniform(0, 9))
    angles[BONE["spine"]] = rng.normal((2, 0, 0), (4, 6, 3))
    angles[BONE["chest"]] = rng.normal(0, (3, 5, 2))
    angles[BONE["head"]] = rng.normal((2, 0, 0), (9, 24, 5))
    return angles


def sitting(rng):
    """(17, 3) degrees of a person on a seat."""
    angles = np.zeros((len(BONES), 3))
    for side in ("left", "right"):
        _limb(angles, side, arm=(rng.uniform(5, 45), rng.uniform(3, 20), rng.uniform(0, 35)), elbow=rng.uniform(20, 90),
              leg=(rng.uniform(80, 95), rng.uniform(2, 16), rng.uniform(-10, 5)), knee=rng.uniform(75, 100))
    angles[BONE["spine"]] = rng.normal((6, 0, 0), (9, 5, 3))
    angles[BONE["head"]] = rng.normal((0, 0, 0), (10, 22, 5))
    return angles


def waving(rng, base):
    """`base` with one arm lifted to wave, its forearm upright."""
    angles, spread = base.copy(), rng.uniform(62, 130)
    _limb(angles, rng.choice(["left", "right"]), arm=(rng.uniform(0, 20), spread, -85),
          elbow=165 - spread + rng.uniform(-15, 15))
    return angles


def free_pose(rng):
    """(17, 3) degrees of any pose: mostly upright, else crouching, bending, lunging, sitting, lying."""
    kind = rng.choice(["gait", "stand", "reach", "sit", "crouch", "bend", "lunge", "lie", "any"],
                      p=[0.16, 0.14, 0.22, 0.14, 0.07, 0.07, 0.08, 0.05, 0.07])
    if kind == "gait":
        step = gait(rng.random(), rng.choice(["walk", "jog"]), rng.uniform(0.7, 1.3))
        return step + rng.normal(0, 4, step.shape)
    angles = sitting(rng) if kind == "sit" else standing(rng)
    sides = ["left", "right"]
    if kind in ("reach", "crouch", "lunge", "lie", "any") or (kind == "bend" and rng.random() < 0.5):
        for side in sides:
            if rng.random() < 0.75:
                arm = (rng.uniform(-45, 175), rng.uniform(0, 130) * rng.random(), rng.uniform(-90, 60))
                _limb(angles, side, arm=arm, elbow=rng.uniform(0, 140) * rng.random() ** 0.5, wrist=rng.normal(0, 15))
    if kind == "crouch":
        for side in sides:
            _limb(angles, side, leg=(rng.uniform(75, 120), rng.uniform(3, 30), rng.uniform(-25, 0)),
                  knee=rng.uniform(90, 140), ankle=rng.uniform(5, 30))
        angles[BONE["spine"], 0] += rng.uniform(10, 40)
    if kind == "bend":
        angles[BONE["pelvis"], 0] = rng.uniform(20, 60)
        for side in sides:
            angles[BONE[f"{side}_thigh"], 0] -= angles[BONE["pelvis"], 0]
            angles[BONE[f"{side}_arm"], 0] -= rng.uniform(0, 80)
        angles[BONE["spine"], 0] += rng.uniform(5, 35)
    if kind in ("lunge", "any"):
        front, rear = rng.permutation(sides)
        _limb(angles, front, leg=(rng.uniform(20, 85), rng.uniform(0, 25), rng.uniform(-20, 5)),
              knee=rng.uniform(5, 90))
        _limb(angles, rear, leg=(rng.uniform(-35, 10), rng.uniform(0, 30), rng.uniform(-20, 5)),
              knee=rng.uniform(0, 70))
        angles[BONE["spine"]] += rng.normal(0, (12, 12, 8))
        angles[BONE["pelvis"]] += rng.normal(0, (6, 6, 5))
    if kind == "lie":
        angles[BONE["pelvis"], 0] = rng.choice([-90, 90]) + rng.normal(0, 8)
        angles[BONE["pelvis"], 1] = rng.uniform(-180, 180) if rng.random() < 0.4 else rng.normal(0, 20)
    return angles + rng.normal(0, 2, angles.shape)


@dataclass
class Motion:
    """What one person of a clip does, over time.

    Attributes:
        kind: one of MOTIONS. centre, radii: (x, z) of the ellipse that a walker follows, metres.
        start: metres along the way, or seconds, at time 0. speed: metres per second.
        pose: (17, 3) degrees of a person who stays in place. swing: the same at the gesture's other end.
        heading: radians about the vertical; 0 looks at the camera.
    """

    kind: str
    centre: np.ndarray
    radii: np.ndarray
    start: float
    speed: float
    pose: np.ndarray
    swing: np.ndarray
    heading: float

    def at(self, seconds):
        """(x, z) on the ground, heading in radians and (17, 3) degrees at a time."""
        if self.kind in ("walk", "jog"):
            return self._on_the_way(self.start + seconds * self.speed)
        beat = {"wave": 1.3, "turn": 0.1}.get(self.kind, 0.25)
        mix = 0.5 - 0.5 * np.cos(2 * np.pi * (beat * seconds + self.start))
        heading = self.heading + (2 * np.pi * (seconds / 9) if self.kind == "turn" else 0.0)
        return self.centre, heading, self.pose + mix * (self.swing - self.pose)

    def _on_the_way(self, travelled):
        around = np.linspace(0, 2 * np.pi, 181)
        way = self.centre + self.radii * np.stack([np.cos(around), np.sin(around)], 1)
        lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
        angle = np.interp(travelled % lengths[-1], lengths, around)
        ahead = self.radii * np.array([-np.sin(angle), np.cos(angle)])
        spot = self.centre + self.radii * np.array([np.cos(angle), np.sin(angle)])
        stride = {"walk": 1.35, "jog": 2.0}[self.kind]
        return spot, np.arctan2(ahead[0], ahead[1]), gait(travelled / stride, self.kind)


def random_motion(rng, kind, centre, reach):
    """A Motion around centre (x, z); reach: metres that a walker may go to either side."""
    radii = np.array([rng.uniform(0.6, 1.0) * reach, rng.uniform(0.25, 0.8)]) * rng.choice([-1, 1], 2)
    speed = {"walk": rng.uniform(1.0, 1.5), "jog": rng.uniform(2.2, 2.9)}.get(kind, 0.0)
    pose = sitting(rng) if kind == "sit" else standing(rng)
    pose = waving(rng, pose) if kind == "wave" else pose
    swing = pose + rng.normal(0, 2.5, pose.shape)
    if kind in ("talk", "wave"):
        for side in ("left", "right"):
            raised = abs(pose[BONE[f"{side}_arm"], 2]) > 60
            change = 35 if kind == "wave" and raised else rng.uniform(0, 25)
            swing[BONE[f"{side}_forearm"], 0] -= change
    swing[BONE["head"], 1] += rng.uniform(-45, 45)
    # Whoever sits keeps the legs still: the seat stays where it is.
    legs = [BONE[f"{side}_{bone}"] for side in ("left", "right") for bone in ("thigh", "shin", "foot")]
    swing[[BONE["pelvis"], *legs]] = pose[[BONE["pelvis"], *legs]]
    return Motion(kind, np.asarray(centre, np.float64), radii, rng.uniform(0, 10), speed, pose, swing,
                  rng.uniform(-np.pi, np.pi) if kind == "turn" else rng.normal(0, 1.1))


def needs_seat(angles):
    """Whether a pose of `free_pose` sits rather than crouches."""
    thighs = [BONE["left_thigh"], BONE["right_thigh"]]
    shins = [BONE["left_shin"], BONE["right_shin"]]
    upright = abs(angles[BONE["pelvis"], 0]) < 30
    return bool(upright and (angles[thighs, 0] < -70).all() and (angles[shins, 0] < 108).all())
