"""Smoothing: what rests is steadied, what moves is followed, near as far, and the report's figures are true."""

import numpy as np
import pytest

from runtime.frames import Frame
from runtime.jitter import JitterReport
from runtime.keypoints import Poses
from runtime.pipeline import Result
from runtime.smooth import Smoother
from runtime.track import LOST_AFTER, SURE

EMPTY = np.zeros((4, 4, 3), np.uint8)


def body(scale=1.0, offset=(0.0, 0.0)):
    """(17, 3) keypoints of somebody whose box is 50×200 times the scale, and the box."""
    points = np.random.default_rng(7).uniform((0, 0), (50, 200), (17, 2)) * scale + offset
    box = np.array([0, 0, 50, 200]) * scale + np.tile(offset, 2)
    return np.column_stack([points, np.full(17, 0.8)]), box


def poses(*people):
    points, boxes = zip(*people, strict=True)
    return Poses(np.array(boxes, np.float32), np.ones(len(boxes), np.float32), np.array(points, np.float32))


def smooth(frames, rate=25, smoother=None):
    """(T, 17, 2) smoothed points of one person from (T, 17, 2) points of a person of size 100."""
    smoother = smoother or Smoother()
    out = []
    for index, points in enumerate(frames):
        keypoints = np.column_stack([points, np.full(17, 0.8)])
        out.append(smoother(index / rate, np.array([1]), poses((keypoints, body()[1])))[0, :, :2])
    return np.array(out)


def bends(points):
    return np.sqrt((np.diff(points, 2, axis=0) ** 2).mean())


def test_noise_at_rest_is_at_least_halved():
    rest = body()[0][:, :2]
    noisy = rest + np.random.default_rng(0).normal(0, 1, (100, 17, 2))
    smoothed = smooth(noisy)
    assert bends(smoothed) < 0.5 * bends(noisy)
    assert np.abs(smoothed[20:].mean(0) - rest).max() < 0.6  # the mean of a hundred is not far off


def test_a_walker_is_not_trailed_and_a_fast_hand_hardly():
    """The whole person at two sizes a second stays exact; a hand that swings 20 pixels beside it lags little."""
    time = np.arange(75)[:, None] / 25
    walking = body()[0][:, :2] + np.concatenate([200 * time, 0 * time], axis=1)[:, None]
    np.testing.assert_allclose(smooth(walking), walking, atol=0.01)
    waving = walking.copy()
    waving[:, 9, 1] += 40 * np.sin(2 * np.pi * time[:, 0])
    assert np.abs(smooth(waving)[:, 9] - waving[:, 9]).max() < 12


def test_parameters_mean_what_they_say():
    """At rest the cutoff alone counts: a small step is at 63 % after 1/(2π·cutoff) seconds. Higher beta lags less."""
    step = np.tile(body()[0][:, :2], (400, 1, 1))
    step[20:, 9, 0] += 0.01
    for cutoff in (0.5, 2.0):
        response = (smooth(step, 1000, Smoother(cutoff, 0.0))[:, 9, 0] - step[0, 9, 0]) / 0.01
        assert np.abs(response[:20]).max() < 0.05
        assert response[20 + round(1000 / (2 * np.pi * cutoff))] == pytest.approx(0.63, abs=0.05)
    jump = np.tile(body()[0][:, :2], (30, 1, 1))
    jump[10:, 9, 0] += 40
    behind = [40 - (smooth(jump, 25, Smoother(1.0, beta))[12, 9, 0] - jump[0, 9, 0]) for beta in (0, 2, 8, 40)]
    assert behind == sorted(behind, reverse=True) and behind[0] > 15 > 3 > behind[-1]


def test_near_and_far_are_smoothed_alike_and_each_person_for_itself():
    rng = np.random.default_rng(0)
    smoother, alone = Smoother(), Smoother()
    for index in range(40):
        noise = np.column_stack([rng.normal(0, 1.5, (17, 2)), np.zeros(17)])
        near, far = body(2.0, (500, 50)), body(0.5)
        both = poses((near[0] + 2.0 * noise, near[1]), (far[0] + 0.5 * noise, far[1]))
        order = np.array([0, 1] if index % 3 else [1, 0])  # the order of a frame means nothing
        given = Poses(both.boxes[order], both.box_scores, both.keypoints[order])
        first, second = smoother(index / 25, np.array([5, 9])[order], given)[np.argsort(order)]
        np.testing.assert_allclose((first[:, :2] - (500, 50)) / 2, second[:, :2] * 2, atol=0.01)
        single = alone(index / 25, np.array([9]), poses((far[0] + 0.5 * noise, far[1])))[0]
        np.testing.assert_allclose(single, second, atol=1e-4)
        np.testing.assert_array_equal(second[:, 2], both.keypoints[1, :, 2])


def test_who_returns_begins_anew():
    for away, jumped in ((LOST_AFTER * 0.9, False), (LOST_AFTER * 1.1, True)):
        smoother = Smoother(min_cutoff=0.1, beta=0.0)
        keypoints, box = body()
        smoother(0.0, np.array([1]), poses((keypoints, box)))
        keypoints[9, 0] += 30
        moved = smoother(away, np.array([1]), poses((keypoints, box)))[0, 9, 0] - (keypoints[9, 0] - 30)
        assert (moved == pytest.approx(30, abs=0.01)) == jumped


def test_unsure_keypoints_hold_still():
    keypoints, box = body()
    moved = keypoints.copy()
    moved[[9, 10], 0] += 30
    moved[9, 2], moved[10, 2] = 0.0, SURE / 2
    smoother = Smoother()
    smoother(0.0, np.array([1]), poses((keypoints, box)))
    steps = smoother(0.04, np.array([1]), poses((moved, box)))[0, :, 0] - keypoints[:, 0]
    assert steps[9] == pytest.approx(0, abs=1e-3)
    sure = moved.copy()
    sure[:, 2] = 0.8
    smoother = Smoother()
    smoother(0.0, np.array([1]), poses((keypoints, box)))
    full = smoother(0.04, np.array([1]), poses((sure, box)))[0, 10, 0] - keypoints[10, 0]
    assert steps[10] == pytest.approx(full / 2, rel=1e-3)


def report_of(raw, smoothed, rate=25, gap_at=None):
    """A JitterReport of one person of size 100: (T, 17, 2) points."""
    report = JitterReport()
    for index, (before, after) in enumerate(zip(raw, smoothed, strict=True)):
        before, after = (np.column_stack([points, np.full(17, 0.8)]) for points in (before, after))
        person = poses((after, body()[1]))
        time = index / rate + (5.0 if gap_at is not None and index >= gap_at else 0)
        report.add(Result(Frame(index, time, EMPTY, ""), person, {}, np.array([1]), unsmoothed=before[None]))
    return report


def test_the_report_measures_a_known_lag():
    """Hands that swing at 1 Hz, and the same shifted by 40, 80 and 120 ms."""
    time = np.arange(200)[:, None] / 25
    still = body()[0][:, :2]

    def swing(delay):
        points = np.tile(still, (200, 1, 1))
        points[:, 9:11, 0] += 40 * np.sin(2 * np.pi * (time - delay))
        return points

    for delay in (0.0, 0.04, 0.08, 0.12):
        assert report_of(swing(0), swing(delay)).lag == pytest.approx(1000 * delay, rel=0.15, abs=0.5)


def test_the_report_measures_a_known_jitter():
    """White noise of σ in x and y: the second difference has the variance 6σ² on each axis."""
    still = np.tile(body()[0][:, :2], (300, 1, 1))
    noise = np.random.default_rng(0).normal(0, 0.5, still.shape)
    raw, smoothed = report_of(still + noise, still + noise / 4).jitter
    assert raw == pytest.approx(0.5 * np.sqrt(12), rel=0.05)
    assert smoothed == pytest.approx(raw / 4, rel=0.01)
    # A cut of five seconds is no jitter, and a walker's way is none.
    jump = still.copy()
    jump[150:] += 300
    assert report_of(jump, jump, gap_at=150).jitter == (0, 0)
    walking = still + 4.0 * np.arange(300)[:, None, None]
    assert np.isnan(report_of(walking, walking).jitter).all()
    assert "nobody at rest" in str(report_of(walking, walking)) and "nothing in motion" in str(report_of(still, still))


def test_smoothing_lowers_jitter_and_lags_little_on_noisy_motion():
    time = np.arange(300)[:, None] / 25
    points = np.tile(body()[0][:, :2], (300, 1, 1))
    points[:, 9:11, 0] += 30 * np.sin(2 * np.pi * time)
    noisy = points + np.random.default_rng(0).normal(0, 1, points.shape)
    report = report_of(noisy, smooth(noisy))
    raw, smoothed = report.jitter
    print(report)
    assert smoothed < 0.6 * raw
    assert 0 < report.lag < 60
