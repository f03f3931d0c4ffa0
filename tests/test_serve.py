"""The page on a real server on loopback: what its numbers, its metrics and its pictures show."""

import json
import re
import threading
import time

import cv2
import numpy as np
import pytest

from runtime.budget import Budget
from runtime.serve import MOST_PICTURES
from runtime.status import SILENT_AFTER, SourceStatus
from runtime.track import Event
from tests.pages import ask, plain, state_of
from tests.results import news, noise, result

pytest.importorskip("starlette", reason="needs starlette: pip install starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_numbers_follow_what_is_written(pages):
    clock = Clock()
    page = pages(clock=clock)
    for index in range(0, 200, 2):  # every second frame was passed over
        page.write(result(index, persons=3, age=0.1 if index < 196 else 0.9, source=1))
        clock.now += 0.1
    page.write(result(200, persons=1, source=1, events=[Event("enter", 7), Event("lost", 5)]))
    door, yard = state_of(page)
    assert (door["state"], door["reason"], door["frames"], door["persons"]) == ("stale", "no picture yet", 0, None)
    assert (yard["label"], yard["state"], yard["reason"], yard["persons"]) == ("yard", "live", None, 1)
    assert (yard["frames"], yard["dropped"], yard["entered"]) == (101, 100, 1)
    assert yard["fps"] == pytest.approx(10, abs=0.3)
    assert yard["age_p50"] == pytest.approx(0.1) and yard["age_p99"] == pytest.approx(0.9)
    assert yard["events"] == [{"kind": "lost", "id": 5, "ago": 0}, {"kind": "enter", "id": 7, "ago": 0}]
    assert len(yard["history"]) == 120
    assert yard["history"][-3:-1] == [3, 3] and yard["history"][0] is None and yard["history"][-1] == 1
    clock.now += 300
    yard = state_of(page)[1]
    assert yard["fps"] == 0 and yard["age_p50"] is None
    assert yard["history"][-63:-61] == [3, 3] and yard["history"][-60:] == [None] * 60
    assert yard["events"][0]["ago"] == 300


def test_state_changes_show_with_their_reason(pages):
    clock = Clock()
    page = pages(labels=["door"], clock=clock)
    assert ask(page, "/healthz")[0] == 503
    page.write(result(0))
    assert ask(page, "/healthz")[0] == 200
    clock.now += 4
    page.write(news("lost", "no answer within 10 s"))
    clock.now += 30
    (door,) = state_of(page)
    assert (door["state"], door["reason"], door["for"], door["persons"]) == ("lost", "no answer within 10 s", 30, None)
    status, headers, body = ask(page, "/healthz")
    assert (status, headers["content-type"]) == (503, "application/json")
    assert json.loads(body) == {"status": "no live source", "states": ["lost"]}
    page.write(result(1))
    assert json.loads(ask(page, "/healthz")[2]) == {"status": "ok", "states": ["live"]}
    assert state_of(page)[0]["for"] == 0


def test_a_stream_that_has_stopped_is_not_called_live(pages):
    clock = Clock()
    page = pages(labels=["door"], clock=clock)
    page.write(result(0))
    clock.now += SILENT_AFTER + 5
    (door,) = state_of(page)
    assert (door["state"], door["reason"], door["for"]) == ("stale", "nothing has come out of the stream", 15)
    assert ask(page, "/healthz")[0] == 503


def read_metrics(page):
    """{row: value} of the metrics, once their form has been seen to be right."""
    _, headers, body = ask(page, "/metrics")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    rows = {}
    for line in body.decode().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) pose_\w+ .+", line)
            continue
        label = r'"(?:[^"\\]|\\.)*"'
        matched = re.fullmatch(rf'(pose_\w+{{source="\d+",label={label}(?:,\w+="[^"]*")?}}) ([0-9.e+-]+)', line)
        assert matched, line
        assert matched[1] not in rows
        rows[matched[1]] = float(matched[2])
    return rows


def test_a_file_that_is_over_is_not_called_stale(pages):
    clock = Clock()
    page = pages(clock=clock)
    page.write(result(0))
    page.write(news("ended", None))
    clock.now += SILENT_AFTER + 5
    page.write(result(0, source=1))
    door, yard = state_of(page)
    assert (door["state"], door["persons"], door["for"], yard["state"]) == ("ended", None, 15, "live")
    assert json.loads(ask(page, "/healthz")[2]) == {"status": "ok", "states": ["ended", "live"]}
    assert read_metrics(page)['pose_state{source="0",label="door",state="ended"}'] == 1


def test_where_nobody_knows_no_persons_are_counted(pages):
    """Neither before the first frame, nor while a source is away, nor when it is back but has no frame yet."""
    clock = Clock()
    page = pages(labels=["door"], clock=clock)
    row = 'pose_persons{source="0",label="door"}'
    assert row not in read_metrics(page)
    page.write(result(0, persons=0))
    assert read_metrics(page)[row] == 0
    page.write(result(1, persons=3))
    assert read_metrics(page)[row] == 3
    page.write(news("lost", "gone"))
    assert row not in read_metrics(page)
    page.write(news("live", "back"))
    assert row not in read_metrics(page) and state_of(page)[0]["persons"] is None
    page.write(result(2, persons=2))
    assert read_metrics(page)[row] == 2
    clock.now += SILENT_AFTER + 1
    assert row not in read_metrics(page)


def test_ages_include_drawing_and_writing(pages):
    page = pages()
    page.took(1, 0.03)
    for source in (0, 1):
        page.write(result(0, age=0.05, source=source))
    door, yard = state_of(page)
    assert door["age_p50"] == pytest.approx(0.05) and yard["age_p50"] == pytest.approx(0.08)
    assert read_metrics(page)['pose_age_seconds_sum{source="1",label="yard"}'] == pytest.approx(0.08)


def test_what_a_budget_costs_is_said(pages):
    budget = Budget(0.08, engines=2)
    page = pages(labels=["door"], budget=budget)
    page.write(result(0, persons=2, left_out=3))
    state = json.loads(ask(page, "/state.json")[2])
    assert (state["given_up"], state["sources"][0]["left_out"]) == ("", 3)
    assert read_metrics(page)['pose_left_out_persons{source="0",label="door"}'] == 3
    budget.engine = 1
    assert json.loads(ask(page, "/state.json")[2])["given_up"] == "the first pose engine"


def test_metrics(pages):
    clock = Clock()
    page = pages(labels=['the "back"\\door', "yard"], clock=clock)
    before = read_metrics(page)
    for index in (0, 1, 5):
        clock.now += 0.5
        page.write(result(index, persons=2, age=0.03 * (index + 1), events=[Event("enter", index)]))
    after = read_metrics(page)
    source = r'{source="0",label="the \"back\"\\door"'
    assert {name: value for name, value in after.items() if source in name and "bucket" not in name} == {
        f"pose_frames_total{source}}}": 3, f"pose_dropped_frames_total{source}}}": 3,
        f"pose_entered_total{source}}}": 3, f"pose_persons{source}}}": 2, f"pose_fps{source}}}": 2,
        f"pose_left_out_persons{source}}}": 0,
        f'pose_state{source},state="live"}}': 1, f'pose_state{source},state="ended"}}': 0,
        f'pose_state{source},state="stale"}}': 0, f'pose_state{source},state="lost"}}': 0,
        f"pose_age_seconds_sum{source}}}": pytest.approx(0.27), f"pose_age_seconds_count{source}}}": 3}
    buckets = [value for name, value in after.items() if f"pose_age_seconds_bucket{source}" in name]
    assert buckets == sorted(buckets) and (buckets[0], buckets[-1]) == (0, 3)
    page.write(news("lost", "gone"))
    page.write(result(0))  # a source opened anew counts from 0
    last = read_metrics(page)
    for name in before:
        if re.search("_total|_bucket|_sum|_count", name):
            assert before[name] <= after[name] <= last[name], f"{name} fell"
    assert last[f"pose_dropped_frames_total{source}}}"] == 3


def test_history_of_weeks_takes_no_more_room_than_that_of_minutes():
    clock = Clock()
    status = SourceStatus(0, "door", clock)
    frame = result(0, events=[Event("enter", 1)])

    def size():
        return sum(len(kept) for kept in vars(status).values() if hasattr(kept, "__len__"))

    for index in range(8000):
        frame.frame.index = index
        status.add(frame)
        clock.now += 0.2
    full = size()
    for index in range(8000, 12000):
        frame.frame.index = index
        status.add(frame)
        clock.now += 60
    assert size() == full and status.frames == 12000


def test_pictures(pages):
    page = pages()
    assert ask(page, "/picture/1.jpg?after=0")[0] == 204  # none yet
    page.write(result(0, source=1), plain(200, (2560, 1920)))
    status, headers, body = ask(page, "/picture/1.jpg")
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (status, headers["content-type"], headers["x-picture"]) == (200, "image/jpeg", "1")
    assert picture.shape == (960, 1280, 3) and abs(picture.mean() - 200) < 2
    assert ask(page, "/picture/1.jpg?after=1")[0] == 204
    page.write(result(1, source=1), plain(50))
    _, headers, body = ask(page, "/picture/1.jpg?after=1")
    assert abs(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).mean() - 50) < 2
    assert headers["x-picture"] == "2"
    assert ask(page, "/picture/2.jpg")[0] == ask(page, "/picture/1.jpg?after=x")[0] == 404
    page.write(news("lost", "gone", source=1))
    assert ask(page, "/picture/1.jpg")[0] == 200  # the last one stays


def test_an_old_picture_does_not_pass_for_a_live_one(pages):
    """While nobody watches frames are not drawn; who comes then waits for one that is."""
    page = pages(labels=["door"])
    page.write(result(0), plain(200))
    assert ask(page, "/picture/0.jpg")[1]["x-picture"] == "1"
    page.write(result(1))
    assert ask(page, "/picture/0.jpg")[0] == 204
    page.write(result(2), plain(50))
    _, headers, body = ask(page, "/picture/0.jpg")
    assert abs(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).mean() - 50) < 2
    assert headers["x-picture"] == "2"


def test_a_request_waits_for_the_next_picture(pages):
    page = pages()
    page.write(result(0), plain(0))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(page, "/picture/0.jpg?after=1")))
    asking.start()
    while not page.watched:
        time.sleep(0.01)
    page.write(result(1), plain(90))
    asking.join(20)
    assert answers[0][0] == 200 and answers[0][1]["x-picture"] == "2"


def test_pictures_are_encoded_for_watchers_only_and_not_too_often(pages):
    page = pages()
    encoded = set()
    for index in range(50):
        page.write(result(index), noise(seed=index))
    assert not page.watched and page._cameras[0]._encoded == (0, b"")
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < 1:
        page.write(result(50), noise())
        encoded.add(ask(page, "/picture/0.jpg")[1]["x-picture"])
    assert page.watched
    assert 2 <= len(encoded) <= seconds * MOST_PICTURES + 1
