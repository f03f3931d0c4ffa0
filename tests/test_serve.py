"""The page: a real server on loopback, real requests, and a real browser where there is one."""

import contextlib
import http.client
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import connections
from runtime.budget import Budget
from runtime.errors import BadInput
from runtime.serve import MOST_PICTURES, WebPage
from runtime.status import SILENT_AFTER, SourceStatus
from runtime.track import Event
from tests.pages import open_pages, plain, port_of
from tests.results import news, noise, result

pytest.importorskip("starlette", reason="needs starlette: pip install starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "correct-horse-battery"


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def pages():
    with open_pages() as open_one:
        yield open_one


def ask(page, path, headers=None, method="GET", host="127.0.0.1"):
    """Status, headers and body of an answer; the path goes out exactly as given."""
    connection = http.client.HTTPConnection(host, port_of(page), timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"{host}:{port_of(page)}", **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def state_of(page):
    return json.loads(ask(page, "/state.json")[2])["sources"]


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


def test_stuck_clients_do_not_hold_the_stream_up(pages):
    """Clients that ask for large pictures and never read, or never finish asking: writing goes on, and so do others."""
    page = pages()
    stuck = []
    for index in range(20):
        client = socket.create_connection(("127.0.0.1", port_of(page)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host = f"Host: 127.0.0.1:{port_of(page)}\r\n"
        client.sendall((f"GET /picture/0.jpg HTTP/1.1\r\n{host}\r\n" * 20 if index % 2 else
                        f"GET / HTTP/1.1\r\n{host}X: ").encode())
        stuck.append(client)
    large = noise((1280, 960))
    slowest = 0.0
    for index in range(40):
        began = time.perf_counter()
        page.write(result(index), large)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.01)
    # A write that waited would wait for as long as the clients are stuck: until the end of the test.
    assert slowest < 5
    assert ask(page, "/picture/0.jpg")[0] == 200 and state_of(page)[0]["frames"] == 40
    began = time.monotonic()
    page.close()
    assert time.monotonic() - began < 10
    for client in stuck:
        client.close()


def connect(page, count, said=b""):
    clients = [socket.create_connection(("127.0.0.1", port_of(page)), timeout=20) for _ in range(count)]
    for client in clients:
        client.sendall(said)
    return clients


def is_closed(client):
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_many_silent_connections_shut_nobody_out(pages):
    page = pages(token=TOKEN)
    silent = connect(page, 2 * connections.MOST_CONNECTIONS, b"GET / HT")
    for _ in range(3):
        assert ask(page, "/healthz")[0] == 503 and ask(page, f"/state.json?token={TOKEN}")[0] == 200
    assert is_closed(silent[0])
    assert len(page._server.server_state.connections) <= connections.MOST_CONNECTIONS
    for client in silent:
        client.close()


def test_a_connection_without_a_whole_request_is_closed(pages, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.6)
    page = pages()
    host = f"Host: 127.0.0.1:{port_of(page)}\r\n".encode()
    silent, slow, idle = connect(page, 1)[0], connect(page, 1)[0], connect(page, 1)[0]
    whole = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=20)
    idle.sendall(b"GET /healthz HTTP/1.1\r\n" + host + b"\r\n")
    assert idle.recv(9) == b"HTTP/1.1 "
    slow.sendall(b"GET / HTTP/1.1\r\n" + host)
    for _ in range(10):  # for longer than silence is borne
        time.sleep(0.1)
        whole.request("GET", "/healthz")
        assert whole.getresponse().read()
        with contextlib.suppress(ConnectionError):
            slow.sendall(b"X")
    assert is_closed(silent) and is_closed(slow)
    while idle.recv(4096):  # what was left of the answer
        pass
    whole.close()


def test_nobody_can_fill_the_log(pages, caplog):
    page = pages()
    for nonsense in (b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                     f"GET / HTTP/1.1\r\nHost: localhost:{port_of(page)}\r\n"
                     "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n".encode()):
        (client,) = connect(page, 1, nonsense)
        assert client.recv(9) == b"HTTP/1.1 "
        client.close()
    assert ask(page, f"/picture/{'9' * 5000}.jpg")[0] == 404
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_answers_are_kept_by_nobody_and_run_nothing_foreign(pages):
    page = pages(token=TOKEN)
    good = {"Authorization": f"Bearer {TOKEN}"}
    for path, headers in (("/", good), ("/", {}), ("/state.json", good), ("/healthz", {}), ("/nothing", good)):
        _, headers, _ = ask(page, path, headers)
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and "server" not in headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in headers["content-security-policy"]


def test_the_page_needs_nothing_else(pages):
    status, headers, body = ask(pages(), "/")
    text = body.decode()
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|https?://(?!www\.w3\.org)', text)


@pytest.mark.parametrize("headers, path, status", [
    ({}, "/", 401), ({}, "/state.json", 401), ({}, "/metrics", 401), ({}, "/picture/0.jpg", 401), ({}, "/nothing", 401),
    ({}, "/healthz", 200),
    ({}, "/?token=wrong-horse-battery", 401), ({}, f"/state.json?token={TOKEN}x", 401), ({}, "/metrics?token=", 401),
    ({"Authorization": f"Bearer {TOKEN}"}, "/state.json", 200), ({"Authorization": "Bearer nope"}, "/state.json", 401),
    ({"Authorization": "Bearer "}, "/state.json", 401), ({"Authorization": "Bearer \xe9"}, "/state.json", 401),
    ({}, f"/metrics?token={TOKEN}", 200), ({}, f"/state.json?token={TOKEN}", 200),
    ({"Cookie": f"pose={TOKEN}"}, "/state.json", 401), ({"Cookie": "pose_PORT=wrong"}, "/state.json", 401),
    ({"Cookie": f"pose_PORT={TOKEN}"}, "/state.json", 200), ({"Cookie": f"pose_PORT={TOKEN}"}, "/", 200),
])
def test_the_token_is_asked_for(pages, headers, path, status):
    page = pages(labels=["secret yard"], token=TOKEN)
    page.write(result(0))
    headers = {name: value.replace("PORT", str(port_of(page))) for name, value in headers.items()}
    answered, _, body = ask(page, path, headers)
    assert answered == status
    if "state" not in path and "metrics" not in path or status == 401:
        assert b"secret yard" not in body and TOKEN.encode() not in body


def test_the_address_with_the_token_leaves_a_cookie_and_no_token(pages):
    page = pages(token=TOKEN)
    status, headers, _ = ask(page, f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "./")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
    assert ask(page, "/", {"Cookie": cookie.split(";")[0]})[0] == 200


def test_a_token_that_was_chosen_is_not_printed(pages):
    assert TOKEN not in pages(token=TOKEN).url and TOKEN not in pages("0.0.0.0:0", token=TOKEN).url


def test_a_reverse_proxy_may_come_with_its_own_name_where_a_token_is_asked_for(pages):
    page = pages(token=TOKEN)
    proxied = {"Host": "poses.example", "X-Forwarded-Proto": "https"}
    assert ask(page, "/state.json", proxied)[0] == 401
    assert ask(page, "/state.json", {**proxied, "Authorization": f"Bearer {TOKEN}"})[0] == 200
    assert "secure" in ask(page, f"/?token={TOKEN}", proxied)[1]["set-cookie"].lower()


def test_others_than_this_machine_need_a_token(pages):
    page = pages("0.0.0.0:0")
    token = page.url.partition("?token=")[2]
    assert len(token) >= 32
    assert ask(page, "/state.json")[0] == 401
    assert ask(page, f"/state.json?token={token}", {"Host": "camera.example:8080"})[0] == 200
    assert pages("0.0.0.0:0").url.partition("?token=")[2] != token


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:8080", 200), ("localhost", 200), ("LOCALHOST:9", 200), ("[::1]:8080", 200),
    ("evil.example", 403), ("127.0.0.1.evil.example:8080", 403), ("localhost.evil.example", 403), ("", 403),
    ("127.0.0.1@evil.example", 403), ("[::1", 403),
])
def test_names_that_others_lead_here_are_refused(pages, host, status):
    page = pages()
    page.write(result(0))
    for path in ("/", "/state.json", "/healthz", "/picture/0.jpg?after=9"):
        assert ask(page, path, {"Host": host})[0] == (204 if status == 200 and "picture" in path else status), path


@pytest.mark.parametrize("path", [
    "/page.html", "/../serve.py", "/..%2f..%2fetc/passwd", "/picture/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/picture/..%2f..%2fserve.py", "//etc/passwd", "/picture/0.jpg/../../serve.py", "/static/serve.py", "/docs",
    "/openapi.json", "/picture/-1.jpg", "/picture/1e0.jpg", "/picture/99999999999999999999.jpg",
])
def test_no_file_of_the_host_is_reachable(pages, path):
    status, _, body = ask(pages(), path)
    assert status == 404 and len(body) < 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(pages, method):
    assert ask(pages(), "/state.json", {"Content-Length": "0"}, method)[0] == 405


def test_ipv6(pages):
    try:
        page = pages("[::1]:0")
    except BadInput:
        pytest.skip("no IPv6 on this machine")
    assert page.url.startswith("http://[::1]:") and "token" not in page.url
    assert ask(page, "/state.json", {"Host": f"[::1]:{port_of(page)}"}, host="::1")[0] == 200


@pytest.mark.parametrize("address, said", [
    ("port", "--serve port is no address: give a port, 8080, or HOST:PORT"), ("", "is no address"),
    ("70000", "is no address"),
    (":8080", "is no address"), ("0.0.0.0", "is no address"), ("::1:8080", "is no address"),
    ("http://0.0.0.0:8080", "is no address"), ("192.0.2.1:8080", "give an address of this machine"),
    ("no.such.host.invalid:8080", "check the address"),
])
def test_bad_addresses(address, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        WebPage(address, ["door"])


def test_a_port_that_is_taken(pages):
    port = port_of(pages())
    with pytest.raises(BadInput, match=f"--serve {port} cannot be listened on: Address already in use; end the program "
                                       f"that has it, or choose another port, as {port + 1}"):
        WebPage(str(port), ["door"])


@pytest.mark.parametrize("token", ["short", "with space and more", "x" * 11, "ümlaut-ümlaut-ümlaut", ""])
def test_a_token_that_is_too_easy(token):
    with pytest.raises(BadInput, match="the page's token must have 12 or more letters") as caught:
        WebPage("0", ["door"], token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_without_the_libraries(module):
    script = (f"import sys; sys.modules[{module!r}] = None\nfrom runtime.errors import run_command\n"
              "from runtime.serve import WebPage\nrun_command(lambda: WebPage('0', ['door']))")
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: --serve needs {module}\S*: pip install starlette uvicorn\n", ended.stderr)
