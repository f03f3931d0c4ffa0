"""The budget of age: a loop that settles, says what it gave up, and gives it back."""

import re
import time

import numpy as np
import pytest

from runtime.budget import PATIENCE, Budget
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import Frame
from runtime.options import duration
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.track import Tracker
from tests.conftest import figure


class Machine:
    """A machine on paper: it takes so many milliseconds a frame, and its own clock tells what a budget makes of it."""

    def __init__(self, budget, detection=30, person=10, second_engine=5, rest=10, fps=25):
        self.budget, self.fps = budget, fps
        self.detection, self.rest = detection, rest
        self.person = [person, second_engine]
        self.frame = 0

    def run(self, seconds, persons, noise=0.0):
        """Ages in seconds, and what was given up after each frame."""
        ages, given_up = [], []
        chance = np.random.default_rng(0)
        for _ in range(round(seconds * self.fps)):
            self.frame += 1
            arrival = self.frame / self.fps
            posed = min(persons, self.budget.persons or persons)
            detects = self.frame % self.budget.detect_every == 0
            age = self.rest + detects * self.detection + posed * self.person[self.budget.engine]
            age *= 1 + noise * abs(chance.normal())
            self.budget.add(arrival, arrival + age / 1000, posed, persons - posed)
            ages.append(age / 1000)
            given_up.append(self.budget.given_up)
        return np.array(ages), given_up


def changes(given_up):
    return sum(before != after for before, after in zip(given_up, given_up[1:], strict=False))


def test_nothing_is_given_up_while_the_budget_holds():
    budget = Budget(0.08)
    _, given_up = Machine(budget).run(60, persons=3, noise=0.03)
    assert set(given_up) == {""} and budget.news() is None
    assert "gave up       nothing" in str(budget) and "held by 100.0% of 1500 live frames" in str(budget)
    assert 0.07 <= budget.p99 <= 0.08


def test_the_budget_is_held_as_persons_come_and_go():
    budget = Budget(0.08)
    machine = Machine(budget)
    ages, given_up = machine.run(120, persons=12, noise=0.05)
    assert given_up[-1].startswith("7 of 8 detections, all but the ")
    assert 2 <= budget.persons <= 5  # 10 + 30 + 10 a person, some more by noise
    late = ages[len(ages) // 2:]
    assert (late <= 0.08).mean() > 0.99
    assert changes(given_up[len(given_up) // 2:]) <= 6  # it settles
    ages, given_up = machine.run(200, persons=2, noise=0.02)
    assert given_up[-1] == "" and (ages <= 0.08).mean() > 0.99


def test_what_is_given_up_goes_in_order():
    budget = Budget(0.05, engines=2)
    _, given_up = Machine(budget).run(60, persons=9)
    assert [what for what in dict.fromkeys(given_up) if "persons" not in what] == [
        "", "1 of 2 detections", "2 of 3 detections", "4 of 5 detections", "7 of 8 detections",
        "7 of 8 detections, the first pose engine"]
    assert "the first pose engine, all but the" in given_up[-1]
    untracked = Budget(0.05, skips_detections=False)
    _, given_up = Machine(untracked).run(60, persons=9)
    assert all("detections" not in what for what in given_up) and untracked.detect_every == 1


def test_a_hiccup_gives_up_nothing():
    budget = Budget(0.08)
    machine = Machine(budget)
    machine.run(10, persons=1)
    for late in (0.5, 0.5):
        machine.frame += 1
        budget.add(machine.frame / 25, machine.frame / 25 + late, 1, 0)
    assert set(machine.run(60, persons=1)[1]) == {""}


def test_what_cannot_be_held_is_said():
    budget = Budget(0.02)
    machine = Machine(budget, rest=30)
    machine.run(30, persons=4)
    assert budget.exhausted and budget.persons == 1
    assert budget.news().endswith("all but the 1 largest persons of a frame, and more is not possible")
    assert "held by 0.0% of 750 live frames" in str(budget)
    assert re.search(r"gave up     detections 9\d% of the time, small persons \d\d% of the time", str(budget))


def test_patience_grows_where_taking_back_was_too_early():
    """With 3 persons 70 ms are just enough room to try a fourth, which is one too many: tried ever more rarely."""
    budget = Budget(0.1, skips_detections=False)
    machine = Machine(budget, detection=0, person=20, rest=8)
    _, given_up = machine.run(600, persons=8)
    tries = [number for number, (before, after) in enumerate(zip(given_up, given_up[1:], strict=False))
             if before != after]
    pauses = np.diff(tries) / machine.fps
    assert max(pauses) < 2 * PATIENCE[1]
    assert changes(given_up[len(given_up) // 2:]) <= changes(given_up[:len(given_up) // 2])


def test_news_come_rarely():
    budget = Budget(0.05)
    machine = Machine(budget)
    lines = []
    for _ in range(30 * 25):
        machine.run(1 / 25, persons=9)
        lines += [line for line in [budget.news()] if line]
    assert 1 <= len(lines) <= 6
    assert all(line.startswith("age p99 ") and "budget 50 ms: gives up" in line for line in lines)


@pytest.mark.parametrize(("text", "seconds"), [("80ms", 0.08), ("0.2s", 0.2), (" 1 s", 1.0), (".5s", 0.5), (None,) * 2])
def test_durations(text, seconds):
    assert duration("--max-age", text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("text", ["80", "0ms", "-5ms", "ms", "", "1m", "nan s", "80ms later"])
def test_what_is_no_duration(text):
    with pytest.raises(BadInput, match="--max-age .*is no time: give a number above 0 with its unit, as 80ms or 0.2s"):
        duration("--max-age", text)


class Hall:
    """A live source of 25 frames a second, of a walker who comes back and forth."""

    live, fps, total = True, 25.0, None

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        start, index = time.perf_counter(), 0
        while (now := time.perf_counter() - start) < self.seconds:
            yield Frame(index, now, figure(50 - abs(index % 100 - 50))[0], f"{index:06d}")
            index += 1
            time.sleep(max(0.0, start + index / self.fps - time.perf_counter()))


def test_a_crowd_before_a_slow_engine(pose_path):
    """A real engine, made slow: 20 ms a person, of whom there are eight, where 100 ms are allowed."""
    slow = open_engine(pose_path, "pose")
    run = slow.run

    def slow_run(crops):
        time.sleep(0.02 * len(crops))
        return run(crops)

    slow.run = slow_run
    heights = np.linspace(40, 110, 8)

    def detector(image):
        left = np.arange(8) * 35.0
        boxes = np.stack([left, 150 - heights, left + heights / 3, np.full(8, 150.0)], 1)
        return boxes.astype(np.float32), np.full(8, 0.9, np.float32)

    budget = Budget(0.1)
    results = list(stream(Hall(7), detector, PoseEstimator(slow), Tracker(slow.schema.sigmas), budget=budget))
    assert budget.persons is not None and budget.persons < 8
    assert np.median([result.timings["latency"] for result in results[-20:]]) < 0.16  # what eight take at the least
    limited = [result for result in results if result.left_out]
    assert limited
    for result in limited:
        assert 1 <= result.left_out <= 7 and len(result.poses) <= 8 - result.left_out
        smallest = (result.poses.boxes[:, 3] - result.poses.boxes[:, 1]).min(initial=110)
        assert smallest > np.sort(heights)[result.left_out] - 1  # the largest were kept
    lost = {event.id for result in results for event in result.events if event.kind == "lost"}
    assert lost  # it is said of those who were left out


def test_the_engine_that_the_budget_chooses_is_used():
    def estimator(score):
        return lambda image, boxes: np.full((len(boxes), 3, 3), score, np.float32)

    def nobody(image):
        return np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32)

    budget = Budget(10, skips_detections=False, engines=2)
    scores = []
    for result in stream(Hall(0.6), nobody, [estimator(0.25), estimator(0.5)], budget=budget):
        scores.append(result.poses.keypoints[0, 0, 2])
        budget.engine = 1 if len(scores) >= 4 else 0
    assert scores[:4] == [0.25] * 4 and scores[-1] == 0.5


def test_skipping_detections_needs_trackers():
    with pytest.raises(ValueError, match="need a tracker"):
        next(stream(Hall(0.1), None, None, budget=Budget(0.1)))


def test_where_nothing_can_be_given_up_the_news_say_so_and_then_that_it_is_over():
    budget = Budget(0.05, skips_detections=False)
    machine = Machine(budget)
    machine.run(10, persons=1, noise=0.02)  # 10 + 30 + 10 ms, and some more
    assert budget.exhausted
    assert budget.news().endswith(": gives up nothing, for there is nothing to give up")
    machine.detection = 5
    machine.run(60, persons=1)
    assert not budget.exhausted and budget.news().endswith(": gives up nothing now")


def test_more_is_possible_again_once_something_was_taken_back():
    """Of twelve persons one is left, and then there are fewer anyway."""
    budget = Budget(0.03, skips_detections=False)
    machine = Machine(budget)
    machine.run(60, persons=12)
    assert budget.exhausted and budget.news().endswith("largest persons of a frame, and more is not possible")
    machine.detection = 0
    machine.run(60, persons=1)
    assert not budget.exhausted and budget.given_up == ""
