"""The pipeline on one source: order, overlap, errors from every stage, and that no thread outlives its loop."""

import threading
import time

import numpy as np
import pytest

from runtime import pipeline
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import open_source
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.smooth import Smoother
from runtime.track import FOLLOWED_FOR, Event, Tracker
from tests.conftest import figure, write_clip
from tests.stages import Frames, points_of, value_box, value_points, walking_box

pytestmark = pytest.mark.usefixtures("no_thread_leaks")


def test_from_file_to_keypoints(tmp_path, person_path, pose_path):
    """The box and the dots of every frame of a real clip, through real engines."""
    source = open_source(video=write_clip(tmp_path / "clip.mp4", frames=30))
    detector = PersonDetector(open_engine(person_path, "person"))
    pose = PoseEstimator(open_engine(pose_path, "pose"))
    results = list(stream(source, detector, pose))
    source.close()
    assert [result.frame.index for result in results] == list(range(30))
    for result in results:
        _, box, dots = figure(result.frame.index)
        assert len(result.poses) == 1
        np.testing.assert_allclose(result.poses.boxes[0], box, atol=2)
        np.testing.assert_allclose(result.poses.keypoints[0, :, :2], dots, atol=1.5)
        assert set(result.timings) == {"capture", "detect", "pose", "latency"}
        assert result.timings["latency"] >= result.timings["detect"] + result.timings["pose"]


def test_persons_are_tracked_and_smoothed():
    tracker, smoother = Tracker([0.05] * 3), Smoother()
    results = list(stream(Frames(12), walking_box, points_of, tracker, smoother))
    # Frame 0 is empty; who appears in frame 1 is shown from frame 2 on.
    assert [result.ids.tolist() for result in results] == [[], []] + [[1]] * 10
    assert [result.events for result in results] == [[], [], [Event("enter", 1)]] + [[]] * 9
    for index, result in enumerate(results):
        assert set(result.timings) == {"capture", "detect", "pose", "track", "latency"}
        assert len(result.poses) == len(result.ids) == len(result.unsmoothed)
        if index > 1:
            np.testing.assert_array_equal(result.unsmoothed, points_of(result.frame.image, result.poses.boxes))
            assert np.abs(result.poses.keypoints - result.unsmoothed).max() < 3
    assert (results[5].poses.keypoints != results[5].unsmoothed).any()


def test_without_a_tracker_everything_found_is_given_out():
    for result in stream(Frames(5), walking_box, points_of):
        assert len(result.poses) == (result.frame.index > 0)
        assert (result.ids, result.events, result.unsmoothed) == (None, [], None)


def test_between_detections_boxes_follow_the_keypoints():
    detected = []

    def detector(image):
        detected.append(int(image[0, 0, 0]))
        return walking_box(image + np.uint8(1))

    results = list(stream(Frames(20), detector, points_of, Tracker([0.05] * 3), detect_every=4))
    assert detected == [0, 4, 8, 12, 16]
    assert [result.frame.index for result in results if "detect" in result.timings] == detected
    for result in results:
        assert result.ids.tolist() == [1]
        expected = walking_box(result.frame.image + np.uint8(1))[0]
        # Three keypoints are too few to lead a box, so it goes by its velocity, unknown at first.
        np.testing.assert_allclose(result.poses.boxes, expected, atol=6)


@pytest.mark.parametrize(("took", "expected"), [
    (0.02, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    (0.15, [0, 3, 6]),  # 0.3 s and no more often
    (9.0, [0]),
])
def test_auto_detects_as_often_as_half_the_sources_time_allows(took, expected):
    schedule, detected = pipeline._Schedule("auto"), []
    for frame in range(9):
        if schedule.is_due(frame / 10):
            detected.append(frame)
            schedule.took(took, frame / 10)
    assert detected == expected


def test_what_is_no_number_is_not_sure():
    def broken(image, boxes):
        points = points_of(image, boxes)
        points[:, 0, 2] = np.nan
        return points

    for result in stream(Frames(5), walking_box, broken, Tracker([0.05] * 3), Smoother()):
        assert np.isfinite(result.poses.keypoints).all() and not result.poses.keypoints[:, 0, 2].any()


def test_auto_detects_before_anybody_is_forgotten():
    schedule = pipeline._Schedule("auto")
    schedule.took(9.0, 0.0)
    assert schedule.is_due(0.95 * FOLLOWED_FOR)


def test_what_needs_a_tracker_says_so():
    for options in ({"smoother": Smoother()}, {"detect_every": 2}, {"detect_every": "auto"}):
        with pytest.raises(ValueError, match="need a tracker"):
            next(stream(Frames(1), walking_box, points_of, **options))


def test_results_belong_to_their_frames_and_come_in_order():
    for index, result in enumerate(stream(Frames(200), value_box, value_points)):
        assert result.frame.index == index
        assert result.poses.boxes[0, 0] == result.poses.keypoints[0, 0, 0] == index
    assert index == 199


def test_stages_overlap():
    """Detection and pose estimation meet: neither goes on before the other is at work too, on another frame."""
    together = threading.Barrier(2, timeout=30)

    def meeting(function, last):
        def wait(image, *values):
            if image[0, 0, 0] != last:  # of the first and the last frame the other stage has none to meet over
                together.wait()
            return function(image, *values)
        return wait

    results = list(stream(Frames(20), meeting(value_box, 0), meeting(value_points, 19)))
    assert len(results) == 20


@pytest.mark.parametrize("stage", ["capture", "detect", "pose"])
def test_error_of_a_stage_comes_after_the_results_before_it(stage):
    def failing(function, name):
        def fail(image, *rest):
            if stage == name and image[0, 0, 0] == 5:
                raise BadInput(f"{name} broke")
            return function(image, *rest)
        return fail

    source = Frames(5, BadInput("capture broke")) if stage == "capture" else Frames(10_000)
    indices = []
    with pytest.raises(BadInput, match=f"{stage} broke"):
        for result in stream(source, failing(value_box, "detect"), failing(value_points, "pose")):
            indices.append(result.frame.index)
    assert indices == [0, 1, 2, 3, 4]
    assert source.given < 20  # the stages before stop, too


def test_leaving_early_stops_all_threads():
    source = Frames(10_000)
    before = threading.active_count()
    results = stream(source, value_box, value_points)
    for result in results:
        assert threading.active_count() > before
        if result.frame.index == 3:
            break
    results.close()
    assert threading.active_count() == before
    assert source.given < 20


def test_waiting_frames_are_bounded():
    source = Frames(1000)
    results = stream(source, value_box, value_points)
    next(results)
    time.sleep(0.2)
    assert source.given <= 1 + 3 * 2 + 3  # one out, two in each queue, one in each stage's hands
    results.close()


def test_exception_in_the_callers_loop_stops_all_threads():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        for _ in stream(Frames(1000), value_box, value_points):
            _ = 1 / 0
    assert threading.active_count() == before
