"""The pipeline on several sources and on live ones: whose turn it is, breaks, and frames that do not grow old."""

import itertools
import threading
import time

import numpy as np
import pytest

from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.frames import open_source
from runtime.pipeline import stream
from runtime.pose import PoseEstimator
from runtime.reconnect import Reconnecting
from runtime.smooth import Smoother
from runtime.track import Event, Tracker
from tests.cameras import send_camera, served
from tests.conftest import figure, write_clip
from tests.stages import Camera, Frames, points_of, value_box, value_points, walking_box

pytestmark = pytest.mark.usefixtures("no_thread_leaks")


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
