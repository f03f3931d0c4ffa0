"""Jitter and lag of smoothing: what `python -m runtime.stream … --report jitter` prints."""

from collections import deque

import numpy as np

from runtime.track import SURE, person_sizes

SLOW, FAST = 0.3, 0.5  # person sizes a second: who moves less is at rest, a keypoint that moves more shows lag
LARGEST_GAP = 2.5  # times the usual step: across a longer one there is no jitter to speak of


class JitterReport:
    """Jitter and lag of smoothing, gathered while a run goes on; memory does not grow with it.

    Jitter is the root mean square of the second difference, from frame to frame, of the sure keypoints of persons at
    rest, in per cent of the person's size √area. It depends on the frame rate: compare runs of one clip.
    Lag is the delay, in milliseconds, by which the raw keypoints in motion fit the smoothed ones best (least squares).
    """

    def __init__(self):
        self._windows = {}
        self._smoothed = False
        self._jitter = np.zeros((2, 2))  # raw, smoothed: sum of squares, number
        self._lag = np.zeros(2)  # of x: sum of offset times velocity, sum of velocity squared

    def add(self, result):
        """Take in a Result that has ids and, if it was smoothed, `unsmoothed`."""
        poses = result.poses
        raw = poses.keypoints if result.unsmoothed is None else result.unsmoothed
        self._smoothed |= result.unsmoothed is not None
        sizes = person_sizes(poses.boxes)
        seen = {}
        for id, size, before, after in zip(result.ids.tolist(), sizes, raw, poses.keypoints, strict=True):
            window = seen[id] = self._windows.get(id, deque(maxlen=5))
            window.append((result.frame.time, size, before, after))
            if len(window) == 5:
                self._take(*(np.array(column) for column in zip(*window, strict=True)))
        self._windows = seen  # who was not seen in this frame begins anew

    def _take(self, times, sizes, raw, smoothed):
        """The middle of five frames: times and sizes (5,), keypoints (5, K, 3)."""
        steps = np.diff(times)
        if steps.max() > LARGEST_GAP * np.median(steps):
            return
        sure = (raw[1:4, :, 2] >= SURE).all(0)
        raw, smoothed = raw[:, sure, :2] / sizes[2], smoothed[:, sure, :2] / sizes[2]
        if not sure.any():
            return
        velocities = (raw[4] - raw[0]) / (times[4] - times[0])
        if np.linalg.norm(velocities.mean(0)) < SLOW:
            for sums, points in zip(self._jitter, (raw, smoothed), strict=True):
                bends = points[1] - 2 * points[2] + points[3]
                sums += (bends ** 2).sum(), len(bends)
        moving = np.linalg.norm(velocities, axis=1) > FAST
        # smoothed(t) = raw(t − lag) ≈ raw(t) − lag · velocity
        self._lag += ((raw[2] - smoothed[2])[moving] * velocities[moving]).sum(), (velocities[moving] ** 2).sum()

    @property
    def jitter(self):
        """Raw and smoothed, in per cent of the person's size; nan where nobody was at rest."""
        squares, count = self._jitter.T
        return tuple(100 * np.sqrt(squares / np.where(count, count, np.nan)))

    @property
    def lag(self):
        """Milliseconds; nan where nothing moved."""
        return 1000 * self._lag[0] / self._lag[1] if self._lag[1] else float("nan")

    def __str__(self):
        raw, smoothed = self.jitter
        jitter, lag = f"{raw:>9.2f} % of the person's size", f"{self.lag:>9.1f} ms, keypoints in motion"
        jitter += f" raw, {smoothed:.2f} % smoothed, persons at rest" if self._smoothed else ", persons at rest"
        lines = [f"{'jitter':<12}{jitter if self._jitter[0, 1] else '        –  nobody at rest'}"]
        if self._smoothed:
            lines.append(f"{'lag':<12}{lag if self._lag[1] else '        –  nothing in motion'}")
        return "\n".join(lines)
