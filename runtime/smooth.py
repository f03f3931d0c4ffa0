"""Smoothing over time: the One-Euro filter (Casiez, Roussel and Vogel 2012) for the keypoints of tracked persons.

A low-pass filter whose cutoff rises with speed: what rests is held still, what moves fast is followed at once. The
whole person's movement, the median of its keypoints', is not filtered: a walker's skeleton must not trail behind.
"""

from dataclasses import dataclass

import numpy as np

from runtime.track import FEWEST_SURE, LOST_AFTER, SURE, person_sizes

MIN_CUTOFF, BETA = 1.0, 8.0  # docs/output.md has the figures
SPEED_CUTOFF = 1.0  # Hz, for the speed itself, as in the paper


@dataclass
class _State:
    time: float
    keypoints: np.ndarray  # (K, 3) as they came
    points: np.ndarray  # (K, 2) pixels, smoothed
    speeds: np.ndarray  # (K, 2) person sizes a second, against the whole person


class Smoother:
    """Steadies keypoints, each person's by its id.

    Args:
        min_cutoff: Hz, the cutoff for what rests. Lower jitters less and lags more.
        beta: Hz that the cutoff rises by for each person size a second (the size is the root of the box's area, so
            that near and far persons are steadied alike). Higher lags less in motion and jitters more.

    `python -m runtime.stream … --report jitter` prints what a choice does to a clip.
    """

    def __init__(self, min_cutoff=MIN_CUTOFF, beta=BETA):
        self.min_cutoff = min_cutoff
        self.beta = beta
        self._states: dict[int, _State] = {}
        self._last_time: float | None = None

    def __call__(self, time, ids, poses):
        """Filter one frame.

        Args:
            time: seconds, rising.
            ids: (N,) int, the persons' ids. Who was away for LOST_AFTER seconds begins anew.
            poses: Poses of these persons.

        Returns:
            (N, K, 3) float32 keypoints, x and y smoothed, scores as they were. A keypoint less sure than SURE moves
            less: one of score 0 stays where it was.
        """
        if self._last_time is not None and not time > self._last_time:
            raise ValueError(f"time {time} is not later than that of the frame before, {self._last_time}")
        self._last_time = time
        self._states = {id: state for id, state in self._states.items() if time - state.time <= LOST_AFTER}
        smoothed = poses.keypoints.copy()
        for keypoints, id, size in zip(smoothed, map(int, ids), person_sizes(poses.boxes), strict=True):
            state = self._states.get(id)
            if state is None:
                points = keypoints[:, :2]
                self._states[id] = _State(time, keypoints.copy(), points.copy(), np.zeros_like(points))
            else:
                self._filter(state, time, keypoints, size)
                keypoints[:, :2] = state.points
        return smoothed

    def _filter(self, state, time, keypoints, size):
        passed = time - state.time
        sure = (keypoints[:, 2] >= SURE) & (state.keypoints[:, 2] >= SURE)
        if sure.sum() >= FEWEST_SURE:
            state.points = state.points + np.median(keypoints[sure, :2] - state.keypoints[sure, :2], axis=0)
        speeds = (keypoints[:, :2] - state.points) / (size * passed)
        state.speeds = state.speeds + _weight(SPEED_CUTOFF, passed) * (speeds - state.speeds)
        # One cutoff for x and y, by the length of the velocity, so that diagonal motion is not treated differently.
        cutoffs = self.min_cutoff + self.beta * np.linalg.norm(state.speeds, axis=1, keepdims=True)
        trust = np.clip(keypoints[:, 2:] / SURE, 0, 1)
        state.points = state.points + trust * _weight(cutoffs, passed) * (keypoints[:, :2] - state.points)
        state.time, state.keypoints = time, keypoints.copy()


def _weight(cutoff, passed):
    """Of the new value in exponential smoothing, for a cutoff in Hz after some seconds."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * passed))
