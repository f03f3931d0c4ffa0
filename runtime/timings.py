"""What a run took: the table at the end of `python -m runtime.stream`."""

import time
from collections import defaultdict, deque

import numpy as np

from runtime.jitter import JitterReport

KEPT = 100_000  # frames, so that a camera can run for months
RECENT = 300  # frames over which age and FPS are told while the run goes on
FPS_WINDOW = 5.0  # seconds, likewise


class Latest:
    """The latest KEPT seconds, in memory that is allocated once: a list of them would grow for hours."""

    def __init__(self):
        self._seconds = np.empty(KEPT, np.float32)
        self._count = 0

    def append(self, seconds):
        self._seconds[self._count % KEPT] = seconds
        self._count += 1

    def values(self):
        return self._seconds[:self._count]


class Timings:
    """Counts the results of a run, and prints the table.

    Args:
        labels: of the sources, in their order.
        jitter: also measure the smoothing.
        budget: the stream's Budget, or None.
    """

    def __init__(self, labels, jitter=False, budget=None):
        self.frames = self.persons = self.detections = 0
        self._labels = labels
        self._budget = budget
        self._reports = [JitterReport() for _ in labels] if jitter else []
        self._frames_of = [0] * len(labels)
        self._captured_of = [0] * len(labels)
        self._identities: dict[int, int] = {}
        self._states = ["live"] * len(labels)
        self._times_lost = 0
        self._running = False
        self._stages: defaultdict[str, Latest] = defaultdict(Latest)
        self._ages: deque[float] = deque(maxlen=RECENT)
        self._ends: deque[float] = deque(maxlen=RECENT)
        self._started = self._ended = time.perf_counter()

    def start(self):
        self._running = True
        self._started = self._ended = time.perf_counter()

    def report(self, file=None):
        """Print the table to a file, stdout if None, unless an error came before the first frame was asked for."""
        if self._running:
            print(self.table(), file=file, flush=True)

    def add(self, result, output_seconds):
        """Count a result, and the seconds that drawing and writing took."""
        self._ended = time.perf_counter()
        before, self._states[result.source] = self._states[result.source], result.state
        self._times_lost += result.state == "lost" != before
        if result.frame is None:
            return
        self.frames += 1
        self.persons += len(result.poses)
        self.detections += "detect" in result.timings
        self._frames_of[result.source] += 1
        self._captured_of[result.source] = result.frame.index + 1
        if result.ids is not None:
            self._identities[result.source] = max([self._identities.get(result.source, 0), *result.ids.tolist()])
        if self._reports:
            self._reports[result.source].add(result)
        for stage in ("capture", "detect", "pose", "track"):
            if stage in result.timings:
                self._stages[stage].append(result.timings[stage])
        age = result.timings["latency"] + output_seconds
        self._stages["draw, write"].append(output_seconds)
        self._stages["age"].append(age)
        self._ages.append(age)
        self._ends.append(self._ended)

    @property
    def fps(self):
        return self.frames / max(self._ended - self._started, 1e-9)

    @property
    def recent_fps(self):
        """Frames a second over the last FPS_WINDOW seconds, or the last RECENT frames."""
        ends = [end for end in self._ends if end > self._ended - FPS_WINDOW]
        return (len(ends) - 1) / max(ends[-1] - ends[0], 1e-9) if len(ends) > 1 else 0.0

    @property
    def age(self):
        """Seconds: 99 in 100 of the last RECENT frames were no older when their output was done."""
        return float(np.percentile(self._ages, 99)) if self._ages else float("nan")

    def table(self):
        dropped = sum(self._captured_of) - self.frames
        passed_over = f" ({dropped} passed over, the newest are taken)" if dropped else ""
        lines = [f"{'frames':<12}{self.frames:>9}{passed_over}"]
        if len(self._labels) > 1:
            lines += [f"{f'  source {source}':<12}{frames:>9} of {label}"
                      for source, (frames, label) in enumerate(zip(self._frames_of, self._labels, strict=True))]
        lines.append(f"{'persons':<12}{self.persons:>9}")
        if self._identities:
            lines.append(f"{'tracks':<12}{sum(self._identities.values()):>9}")
        if self.detections < self.frames:
            lines.append(f"{'detected on':<12}{self.detections:>9} frames")
        if self._times_lost:
            lines.append(f"{'lost':<12}{self._times_lost:>9} times")
        lines.append(f"{'FPS':<12}{self.fps:>9.1f}")
        if self.frames:
            lines.append(f"{'ms a frame':<12}{'p50':>9}{'p99':>9}")
        for stage, seconds in self._stages.items():
            middle, slow = np.percentile(seconds.values(), [50, 99]) * 1000
            lines.append(f"{stage:<12}{middle:>9.1f}{slow:>9.1f}")
        if self._budget:
            lines.append(str(self._budget))
        return "\n".join([*lines, *map(str, self._reports)])
