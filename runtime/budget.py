"""A budget for the age of live frames, held by giving up what is missed least.

Age is the time from a frame's arrival to the end of its output. Where more than one frame in a hundred is older than
allowed, one thing is given up, and then the ages of the frames that came after it are looked at; where they stay far
below, it is taken back. What is given up, in this order: detections (persons are followed meanwhile), the accuracy of
the pose engine where there are several, and persons: the largest of each frame are posed, the others are not. Those the
tracker loses, and says so: nobody's pose is guessed.
"""

from collections import deque

import numpy as np

INTERVALS = (1, 2, 3, 5, 8)  # one detection in so many is left
WINDOW = 300  # frames whose p99 counts
FEWEST_OVER = 3  # frames too old before anything is given up: one or two are hiccups
FEWEST_UNDER = 30  # frames before anything is taken back
ROOM = 0.85  # of the budget: p99 below which something may be taken back
PATIENCE = 2.0, 60.0  # seconds before something is taken back; doubled, up to the second, where that was too early
START_UP = 1.0  # seconds in which engines warm up and nothing is decided
TOLD_EVERY = 5.0  # seconds between two lines of `news`


class Budget:
    """What may be spent on live frames. One a stream.

    Args:
        max_age: seconds that p99 of the frames' age must not exceed.
        skips_detections: detections may be left out, which needs trackers.
        engines: how many pose engines there are to choose from.

    Attributes:
        detect_every: one of so many detections is left, 1 for all.
        engine: index of the pose engine.
        persons: most persons of a frame that are posed, None for all.
        exhausted: there is nothing left to give up.
    """

    def __init__(self, max_age, skips_detections=True, engines=1):
        self.max_age, self.engines = max_age, engines
        self.skips_detections = skips_detections
        self.detect_every, self.engine, self.persons = 1, 0, None
        self.exhausted = False
        self._ages: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=WINDOW)  # age, posed, left out
        self._patience = PATIENCE[0]
        self._changed_at: float | None = None
        self._took_back = False
        self._told, self._told_at, self._now = "", -TOLD_EVERY, 0.0
        self._frames = self._within = self._skipping = self._coarse = self._limited = 0

    def add(self, arrival, done, posed, left_out):
        """Take in a live frame.

        Args:
            arrival: when it arrived, in seconds on `time.perf_counter`. done: when its output was.
            posed: number of its persons. left_out: number of those that were found but not posed.
        """
        age, self._now = done - arrival, done
        self._ages.append(age)
        self._frames += 1
        self._within += age <= self.max_age
        self._skipping += self.detect_every > 1
        self._coarse += self.engine > 0
        self._limited += self.persons is not None
        if self._changed_at is None:
            self._changed_at = arrival + START_UP
        if arrival < self._changed_at:  # it was on its way before the change
            return
        self._recent.append((age, posed, left_out))
        over = sum(age > self.max_age for age, _, _ in self._recent)
        if over >= FEWEST_OVER and over > 0.01 * len(self._recent):
            self._give_up(done)
        elif len(self._recent) >= FEWEST_UNDER and done - self._changed_at >= self._patience:
            if self.persons is not None and not any(missing for _, _, missing in self._recent):
                self.persons = None  # fewer came anyway
                self._change(done, took_back=True)
            elif self.given_up and _p99([age for age, _, _ in self._recent]) < ROOM * self.max_age:
                self._take_back(done)
            elif not self.given_up:
                self.exhausted = False  # what took so long is over

    @property
    def p99(self):
        """Seconds: 99 in 100 of the last WINDOW live frames were no older; nan before the first."""
        return _p99(self._ages)

    @property
    def given_up(self):
        """What is given up now, in words; empty for nothing."""
        what = []
        if self.detect_every > 1:
            what.append(f"{self.detect_every - 1} of {self.detect_every} detections")
        if self.engine:
            what.append(f"the first {self.engine} of the pose engines" if self.engine > 1 else "the first pose engine")
        if self.persons is not None:
            what.append(f"all but the {self.persons} largest persons of a frame")
        return ", ".join(what)

    def news(self):
        """A line where something changed, at most one in TOLD_EVERY seconds; else None."""
        if not self.exhausted:
            told = self.given_up
        elif self.given_up:
            told = f"{self.given_up}, and more is not possible"
        else:
            told = "nothing, for there is nothing to give up"
        if told == self._told or self._now - self._told_at < TOLD_EVERY:
            return None
        self._told, self._told_at = told, self._now
        ages = f"age p99 {1000 * self.p99:.0f} ms, budget {1000 * self.max_age:g} ms"
        return f"{ages}: gives up {told or 'nothing now'}"

    def __str__(self):
        """Two lines for the table at the end."""
        frames = max(1, self._frames)
        shares = [f"{what} {count / frames:.0%} of the time" for what, count in (
            ("detections", self._skipping), ("the first pose engine", self._coarse),
            ("small persons", self._limited)) if count]
        return (f"{'budget':<12}{1000 * self.max_age:>9.1f} ms, held by {self._within / frames:.1%} of {self._frames} "
                f"live frames\n{'gave up':<12}{', '.join(shares) or 'nothing':>9}")

    def _give_up(self, now):
        if self._took_back and now - self._changed_at < self._patience:
            self._patience = min(2 * self._patience, PATIENCE[1])
        most = max(posed for _, posed, _ in self._recent)
        if self.skips_detections and self.detect_every < INTERVALS[-1]:
            self.detect_every = INTERVALS[INTERVALS.index(self.detect_every) + 1]
        elif self.engine < self.engines - 1:
            self.engine += 1
        elif most > 1 and self.persons != 1:
            self.persons = max(1, min(most, self.persons or most) * 3 // 4)
        else:
            self.exhausted = True
        self._change(now, took_back=False)

    def _take_back(self, now):
        if self._took_back:
            self._patience = max(PATIENCE[0], self._patience / 2)
        if self.persons is not None:
            self.persons += max(1, self.persons // 4)
        elif self.engine:
            self.engine -= 1
        elif self.detect_every > 1:
            self.detect_every = INTERVALS[INTERVALS.index(self.detect_every) - 1]
        self._change(now, took_back=True)

    def _change(self, now, took_back):
        self._changed_at, self._took_back = now, took_back
        self.exhausted &= not took_back
        self._recent.clear()


def _p99(ages):
    return float(np.percentile(ages, 99)) if ages else float("nan")
