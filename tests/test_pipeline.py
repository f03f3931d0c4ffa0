"""The pipeline: order, overlap, errors from every stage, and that no thread outlives its loop."""

import itertools
import threading
import time

import numpy as np
import pytest

from runtime import pipeline
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import Frame, open_source
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.reconnect import Reconnecting
from runtime.smooth import Smoother
from runtime.track import FOLLOWED_FOR, Event, Tracker
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
    label = "frames"

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


def test_the_caller_is_called_while_nothing_comes_and_can_end_the_stream():
    """As a window needs it whose camera is silent."""
    threads, over = set(), threading.Event()

    class Silent(Camera):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 3)
            over.wait(20)

    def idle():
        threads.add(threading.current_thread())
        calls.append(time.perf_counter())
        if len(calls) == 5:
            over.set()
        return len(calls) >= 5

    calls: list[float] = []
    assert len(list(stream(Silent(10), value_box, value_points, idle=idle))) <= 3
    assert len(calls) == 5 and threads == {threading.current_thread()}


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


def test_sources_are_taken_in_turn_and_each_keeps_its_order():
    """Two files and a folder's worth, of different lengths: nothing is lost, nothing is mixed up."""
    counts = [30, 7, 50]
    seen = [[], [], []]
    ended = []
    for result in stream([Frames(count) for count in counts], value_box, value_points):
        if result.frame is None:
            assert (result.state, result.reason) == ("ended", "frames is over") and len(result.poses) == 0
            assert len(seen[result.source]) == counts[result.source]
            ended.append(result.source)
            continue
        seen[result.source].append(result.frame.index)
        assert result.poses.boxes[0, 0] == result.poses.keypoints[0, 0, 0] == result.frame.index
        assert result.state == "live" and result.time == result.frame.time
    assert seen == [list(range(count)) for count in counts]
    assert sorted(ended) == [0, 1, 2] and ended[0] == 1


def test_every_source_has_its_own_persons():
    sources = [Frames(12), Frames(12)]
    results = [result for result in
               stream(sources, walking_box, points_of, [Tracker([0.05] * 3), None], [Smoother(), None]) if result.frame]
    tracked, found = ([result for result in results if result.source == source] for source in (0, 1))
    assert [result.ids.tolist() for result in tracked] == [[], []] + [[1]] * 10
    assert all(result.unsmoothed is not None for result in tracked)
    assert all(result.ids is None and result.unsmoothed is None for result in found)
    with pytest.raises(ValueError, match="2 sources need 2 trackers"):
        next(stream(sources, walking_box, points_of, Tracker([0.05] * 3)))
    with pytest.raises(ValueError, match="need a tracker"):
        next(stream(sources, walking_box, points_of, [Tracker([0.05] * 3), None], detect_every=2))


def test_persons_of_several_sources_share_a_batch(tmp_path, pose_path):
    """While the pose engine is at work, frames of three sources come to wait; their crops are its next batch."""
    batches = []
    engine = open_engine(pose_path, "pose")
    run = engine.run

    def slow_run(crops):
        batches.append(len(crops))
        time.sleep(0.02)
        return run(crops)

    engine.run = slow_run
    clip = write_clip(tmp_path / "clip.mp4", frames=20)

    def found(image):
        bright = np.argwhere(image.max(2) > 150)[:, ::-1]
        boxes = np.array([[*bright.min(0), *bright.max(0) + 1]] * 2, np.float32)
        return boxes, np.ones(2, np.float32)

    sources = [open_source(video=clip) for _ in range(3)]
    results = [result for result in stream(sources, found, PoseEstimator(engine)) if result.frame]
    for source in sources:
        source.close()
    assert sum(batches) == 3 * 20 * 2 and set(batches) <= {2, 4, 6} and batches.count(6) >= 10
    assert len(results) == 60
    for result in results:
        dots = figure(result.frame.index)[2]
        np.testing.assert_allclose(result.poses.keypoints[:, :, :2], [dots, dots], atol=1.5)


def test_a_source_that_breaks_off_is_no_end_for_the_others():
    sources = [Frames(3, BadInput("cut off")), Frames(40)]
    results = []
    with pytest.raises(BadInput, match="cut off"):
        results.extend(stream(sources, value_box, value_points))
    seen = [[result for result in results if result.source == source] for source in (0, 1)]
    *others, end = seen[1]
    assert [result.frame.index for result in others] == list(range(40)) and end.state == "ended"
    *frames, last = seen[0]
    assert [result.frame.index for result in frames] == [0, 1, 2]
    assert (last.frame, last.state, last.reason, last.time) == (None, "lost", "cut off", 0.2)
    assert len(last.poses) == 0 and last.poses.keypoints.shape[0] == 0


def test_a_bug_in_one_source_is_the_end():
    with pytest.raises(ZeroDivisionError):
        list(stream([Frames(3, ZeroDivisionError()), Frames(10_000)], value_box, value_points))


class Camera(Frames):
    """Frames at their own pace; then it is unplugged."""

    live = True
    fps = 50.0

    def __init__(self, count, fps=50):
        super().__init__(count, BadInput("unplugged"), 1 / fps)

    def close(self):
        pass


def test_after_a_break_persons_are_new_and_numbers_go_on():
    cameras = iter([Camera(10), Camera(10), Camera(10)])
    source = Reconnecting(lambda: next(cameras), "the camera", pauses=(0.05,))
    results = []
    for result in stream(source, walking_box, points_of, Tracker([0.05] * 3), Smoother()):
        results.append(result)
        if result.state == "lost" and len(results) > 20:
            break
    source.close()
    states = [result for result in results if result.frame is None]
    assert [(result.state, result.events) for result in states] == [
        ("lost", [Event("lost", 1)]), ("live", []), ("lost", [Event("lost", 2)])]
    assert "unplugged" in states[0].reason and all(len(result.poses) == len(result.ids) == 0 for result in states)
    ids = [id for result in results for id in result.ids.tolist()]
    assert ids == sorted(ids) and set(ids) == {1, 2}
    times = [result.time for result in results]
    assert times == sorted(times)


def test_a_break_that_nobody_had_time_for_still_parts_persons():
    """The camera breaks off again and again while the reader rests: whoever comes after that is a new person."""
    cameras = iter([Camera(8, fps=200) for _ in range(12)])

    def reopen():
        camera = next(cameras, None)
        if camera is None:
            raise BadInput("no camera")
        return camera

    source, ids, states = Reconnecting(reopen, "the camera", pauses=(0.02,)), [], []
    for result in stream(source, walking_box, points_of, Tracker([0.05] * 3)):
        ids += result.ids.tolist()
        states.append(result.state if result.frame is None else "frame")
        if "no camera" in str(result.reason):
            break
        if len(states) == 6:
            time.sleep(0.5)  # in which several cameras come and go
    source.close()
    assert ids == sorted(ids) and len(set(ids)) > 3
    assert "frame" in states[6:] and states.count("live") < 11  # some came and went unseen


def test_frames_of_a_camera_do_not_queue_up_before_a_slow_reader():
    """One frame a stage is on its way at most, and a stage begins as late as it can: a frame's age is near the sum of
    its stages, some 10 ms here, where queues of two before each stage would make it 500."""
    ages = []
    with pytest.raises(BadInput, match="unplugged"):
        for result in stream(Camera(120), value_box, value_points):
            ages.append(result.timings["latency"])
            time.sleep(0.1)
    assert len(ages) >= 10
    assert np.median(ages[5:]) < 0.2


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
    assert max(delays) < 3.0  # bounded by what waits in the queues, not growing with the stream
