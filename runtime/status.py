"""How a running stream is doing, source by source: the numbers of the page and of Prometheus.

Every figure is over a window of time that is named here, so that weeks take no more memory than minutes.
"""

import time
from collections import deque

import numpy as np

FPS_WINDOW = 5.0  # seconds
AGE_WINDOW = 60.0  # seconds
MOST_AGES = 6000  # kept: a minute at 100 frames a second
BUCKET = 5  # seconds a point of the history stands for
HISTORY = 120  # of them: ten minutes
MOST_EVENTS = 20  # kept
SILENT_AFTER = 10.0  # seconds without any result, after which a source that says it is live is not believed
AGE_BOUNDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)  # seconds, for the histogram
STATES = ("live", "stale", "lost", "ended")


class SourceStatus:
    """Counts one source's results. Not for several threads at once: whoever shares it locks it.

    Args:
        number: of the source, from 0.
        label: what people call it; free of passwords.
        clock: seconds that only rise, as `time.monotonic`.

    Attributes:
        persons: in the newest frame; None where nobody knows.
        left_out: persons of it that were not posed, to hold a budget.
        output_seconds: what drawing and writing took at last, to be set by whoever knows: part of a frame's age.
    """

    def __init__(self, number, label, clock=time.monotonic):
        self.number, self.label = number, label
        self._clock = clock
        self.frames = self.dropped = self.entered = 0
        self.persons: int | None = None
        self.left_out = 0
        self.output_seconds = 0.0
        self.age_counts = [0] * len(AGE_BOUNDS)  # ages up to each bound
        self.age_sum = 0.0
        self._state, self._reason, self._since = "stale", "no picture yet", clock()
        self._heard: float | None = None
        self._last_index = -1
        self._ages: deque[tuple[float, float]] = deque(maxlen=MOST_AGES)  # when, seconds
        self._history: deque[list] = deque(maxlen=HISTORY + 1)  # [number of the bucket, persons × frames, frames]
        self._events: deque[tuple[float, str, int]] = deque(maxlen=MOST_EVENTS)

    def add(self, result):
        """Count a result of this source."""
        now = self._clock()
        silent_since = self._heard
        self._heard = now
        if result.state != self._state or self._was_silent(silent_since, now):
            self._since = now
        self._state, self._reason = result.state, result.reason
        for event in result.events:
            self._events.append((now, event.kind, event.id))
            self.entered += event.kind == "enter"
        if result.frame is None:
            self.persons, self.left_out = None, 0
            return
        self.persons, self.left_out = len(result.poses), result.left_out
        self.frames += 1
        # A source that is opened anew may count from 0 again.
        if result.frame.index > self._last_index:
            self.dropped += result.frame.index - self._last_index - 1
        self._last_index = result.frame.index
        self._add_age(now, result.timings["latency"] + self.output_seconds)
        bucket = int(now // BUCKET)
        if not self._history or self._history[-1][0] != bucket:
            self._history.append([bucket, 0, 0])
        self._history[-1][1] += self.persons
        self._history[-1][2] += 1

    def _add_age(self, now, age):
        self._ages.append((now, age))
        self.age_sum += age
        for place, bound in enumerate(AGE_BOUNDS):
            self.age_counts[place] += age <= bound

    def _was_silent(self, heard, now):
        return heard is not None and now - heard > SILENT_AFTER

    def state(self):
        """"live", "stale", "lost" or "ended", the reason (None where live), and for how many seconds it has been so."""
        now = self._clock()
        if self._state == "live" and self._was_silent(self._heard, now):
            return "stale", "nothing has come out of the stream", now - self._heard
        return self._state, self._reason, now - self._since

    def report(self):
        """Everything that the page shows of it, for JSON. Ages are in seconds, None where the last minute had none.

        "persons" is None where the source is not live or has no frame yet. "history" is the mean number of persons in
        each of the last HISTORY buckets of BUCKET seconds, oldest first, None where there was no frame. "events" are
        the newest first, with how many seconds ago they were.
        """
        now = self._clock()
        state, reason, seconds = self.state()
        ages = [age for when, age in self._ages if when > now - AGE_WINDOW]
        middle, slow = np.percentile(ages, [50, 99]).tolist() if ages else (None, None)
        means = {bucket: persons / frames for bucket, persons, frames in self._history}
        newest = int(now // BUCKET)
        return {
            "source": self.number, "label": self.label, "state": state, "reason": reason, "for": round(seconds, 1),
            "frames": self.frames, "dropped": self.dropped, "fps": round(self.fps(), 2), "age_p50": middle,
            "age_p99": slow, "persons": self.persons if state == "live" else None, "left_out": self.left_out,
            "entered": self.entered,
            "history": [means.get(bucket) for bucket in range(newest - HISTORY + 1, newest + 1)],
            "events": [{"kind": kind, "id": id, "ago": round(now - when, 1)}
                       for when, kind, id in reversed(self._events)],
        }

    def fps(self):
        """Frames a second, over the last FPS_WINDOW seconds or as long as it has run."""
        now = self._clock()
        recent = [when for when, _ in self._ages if when > now - FPS_WINDOW]
        if len(recent) < len(self._ages):
            return len(recent) / FPS_WINDOW
        return (len(recent) - 1) / max(now - recent[0], 1e-3) if recent else 0.0


def prometheus(sources):
    """The numbers of SourceStatuses in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting)."""
    def family(name, kind, help, rows):
        return [f"# HELP pose_{name} {help}", f"# TYPE pose_{name} {kind}",
                *(f"pose_{name}{suffix}{{{_names(source)}{labels}}} {number}"
                  for source in sources for suffix, labels, number in rows(source))]

    return "\n".join([
        *family("frames_total", "counter", "Frames with a result.", lambda source: [("", "", source.frames)]),
        *family("dropped_frames_total", "counter", "Frames passed over because a newer one was there.",
                lambda source: [("", "", source.dropped)]),
        *family("entered_total", "counter", "Persons who came.", lambda source: [("", "", source.entered)]),
        *family("persons", "gauge", "Persons in the newest frame, while it is live.",
                lambda source: _while_live(source, source.persons)),
        *family("left_out_persons", "gauge", "Persons of the newest frame not posed, to hold the budget.",
                lambda source: _while_live(source, source.left_out)),
        *family("fps", "gauge", f"Frames a second over the last {FPS_WINDOW:g} seconds.",
                lambda source: [("", "", round(source.fps(), 3))]),
        *family("state", "gauge", "1 for the state that the source is in, 0 for the others.", _state_rows),
        *family("age_seconds", "histogram", "Seconds from a frame's arrival to the end of its output.", _age_rows),
    ]) + "\n"


def _while_live(source, number):
    """No row where nobody knows: 0 persons would be a count."""
    return [("", "", number)] if source.state()[0] == "live" and source.persons is not None else []


def _state_rows(source):
    now = source.state()[0]
    return [("", f',state="{state}"', int(state == now)) for state in STATES]


def _age_rows(source):
    return [*(("_bucket", f',le="{bound:g}"', count)
              for bound, count in zip(AGE_BOUNDS, source.age_counts, strict=True)),
            ("_bucket", ',le="+Inf"', source.frames), ("_sum", "", round(source.age_sum, 6)),
            ("_count", "", source.frames)]


def _names(source):
    label = source.label.replace("\\", r"\\").replace('"', r'\"').replace("\n", r"\n")
    return f'source="{source.number}",label="{label}"'
