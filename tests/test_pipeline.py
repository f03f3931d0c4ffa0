"""The pipeline: order, overlap, errors from every stage, and that no thread outlives its loop."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import Frame, open_source
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.smooth import Smoother
from runtime.track import Event, Tracker
from tests.conftest import figure, write_clip
from tests.test_frames import send_camera, served


@pytest.fixture(autouse=True)
def no_thread_leaks():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Frames:
    """Frames from memory; the image's value is the index."""

    live = False

    def __init__(self, count, error=None, seconds=0.0):
        self.count, self.error, self.seconds = count, error, seconds
        self.given = 0

    def __iter__(self):
        for index in range(self.count):
            time.sleep(self.seconds)
            self.given += 1
            yield Frame(index, index / 10, np.full((4, 4, 3), index, np.uint8), f"{index:06d}")
        if self.error:
            raise self.error


def value_box(image):
    value = image[0, 0, 0]
    return np.full((1, 4), value, np.float32), np.ones(1, np.float32)


def value_points(image, boxes):
    return np.full((len(boxes), 2, 3), boxes[0, 0], np.float32)


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


def walking_box(image):
    """A box 60×120 that moves 2 pixels a frame; nobody in frame 0."""
    left = 10 + 2.0 * image[0, 0, 0]
    found = int(image[0, 0, 0] > 0)
    return np.array([[left, 20, left + 60, 140]], np.float32)[:found], np.full(found, 0.9, np.float32)


def points_of(image, boxes):
    """Three keypoints in every box, at the places of the walker and not of the box."""
    points = np.full((len(boxes), 3, 3), 0.8, np.float32)
    points[:, :, :2] = np.array([[30, 50], [50, 50], [40, 120]]) + [2 * float(image[0, 0, 0]), 0]
    return points


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


def test_auto_detects_as_often_as_half_the_sources_time_allows():
    """Frames are a second apart: a detector of 20 ms runs on each, one of 0.6 s (twice that: 1.2 s) on every other."""
    class SlowFrames(Frames):
        def __iter__(self):
            return (replace(frame, time=float(frame.index)) for frame in super().__iter__())

    for seconds, expected in ((0.02, [0, 1, 2, 3, 4]), (0.6, [0, 2, 4])):
        detected = []

        def detector(image, seconds=seconds, detected=detected):
            detected.append(int(image[0, 0, 0]))
            time.sleep(seconds)
            return walking_box(image)

        for _ in stream(SlowFrames(5), detector, points_of, Tracker([0.05] * 3), detect_every="auto"):
            pass
        assert detected == expected


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
    """20 frames through four stages of 20 ms each: 1.6 s one after the other, little over 0.4 s in a pipeline."""
    def slow(function):
        def wait(*values):
            time.sleep(0.02)
            return function(*values)
        return wait

    start = time.perf_counter()
    for _ in stream(Frames(20, seconds=0.02), slow(value_box), slow(value_points)):
        time.sleep(0.02)
    assert time.perf_counter() - start < 1.4


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


def test_of_a_live_source_only_the_newest_frames_are_taken():
    """A camera of 50 frames a second and a caller that takes 100 ms: frames are passed over, none is stale."""
    delays = []
    with served(send_camera(frames=80, fps=50)) as address:
        source = open_source(video=f"{address}/live")
        indices = []
        with pytest.raises(BadInput, match="stopped after"):
            for result in stream(source, value_box, value_points):
                indices.append(result.frame.index)
                delays.append(result.timings["latency"])
                time.sleep(0.1)
        source.close()
    assert indices == sorted(set(indices))
    assert len(indices) < 40
    assert max(delays) < 1.0  # bounded by what waits in the queues, not growing with the stream
