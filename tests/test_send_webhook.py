"""The webhook: real servers, among them some that are away, slow, wrong or unfriendly."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runtime import send
from runtime.lines import poses_json
from runtime.send import open_webhook
from tests.results import news, result
from tests.servers import SOON, free_port, starting, wait_for

pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
pytestmark = pytest.mark.usefixtures("no_proxy")


class Receiver:
    """A web server that keeps what it is sent.

    answers: status codes to give, the last again and again. may_answer: an event that holds answers back.
    """

    def __init__(self, answers=(200,), port=0, certificate=None):
        self.requests, self.answers, self.may_answer = [], list(answers), threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.may_answer.wait(20)
                status = receiver.answers[0] if len(receiver.answers) == 1 else receiver.answers.pop(0)
                receiver.requests.append((status, self.path, dict(self.headers), body))
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if certificate:
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def taken(self):
        """The lines that were accepted, as objects, in their order."""
        return [line for status, _, _, body in self.requests if status == 200 for line in json.loads(body)]

    def close(self):
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receivers():
    with starting(Receiver) as start:
        yield start


def test_webhook_gets_every_line_once_and_in_order(receivers, capsys):
    receiver = receivers()
    sender = open_webhook(f"http://cam:p%40ss@127.0.0.1:{receiver.port}/hook/a?key=1")
    written = [result(0), result(1, persons=2, left_out=3), news("lost", "no answer", 1.5),
               *(result(index) for index in range(2, 300))]
    for one in written:
        sender.write(one)
    sender.close()
    assert receiver.taken() == [json.loads(poses_json(one)) for one in written]
    assert [line.get("left_out") for line in receiver.taken()[:3]] == [None, 3, None]
    assert (sender.delivered, sender.dropped) == (len(written), 0)
    _, path, headers, body = receiver.requests[0]
    assert path == "/hook/a?key=1"
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["content-type"] == "application/json"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"cam:p@ss"
    assert max(len(json.loads(body)) for *_, body in receiver.requests) <= send.BATCH
    assert capsys.readouterr().err == ""


def test_webhook_tries_again_and_says_so_once(receivers, capsys):
    receiver = receivers(answers=(503, 503, 429, 200))
    sender = open_webhook(f"http://cam:p4ss@127.0.0.1:{receiver.port}/secret-path?key=hidden", SOON)
    sender.write(result(7))
    wait_for(lambda: sender.delivered)
    sender.close()
    assert [status for status, *_ in receiver.requests] == [503, 503, 429, 200]
    assert [line["frame"] for line in receiver.taken()] == [7]
    said = capsys.readouterr().err.splitlines()
    assert [line.count("503") for line in said] == [1, 0, 0]
    assert said[0].startswith(f"http://127.0.0.1:{receiver.port}: answers 503 Service Unavailable; trying again")
    assert said[2] == f"http://127.0.0.1:{receiver.port}: delivers again, 0 lines have been dropped so far"
    assert not any(secret in line for line in said for secret in ("cam", "p4ss", "secret-path", "hidden"))


def test_webhook_that_is_away_at_first(receivers, capsys):
    port = free_port()
    sender = open_webhook(f"http://127.0.0.1:{port}/", SOON)
    sender.write(result(0))
    wait_for(lambda: sender._told)
    receiver = receivers(port=port)
    sender.write(result(1))
    wait_for(lambda: sender.delivered == 2)
    sender.close()
    assert [line["frame"] for line in receiver.taken()] == [0, 1]
    assert "refused" in capsys.readouterr().err


def test_a_stuck_webhook_holds_nobody_up_and_the_oldest_lines_go(receivers, capsys):
    receiver = receivers()
    receiver.may_answer.clear()
    sender = open_webhook(f"http://127.0.0.1:{receiver.port}/")
    for index in range(send.MOST_WAITING + 250):
        sender.write(result(index, persons=0))  # would wait for ever if it waited: the answer comes after the loop only
    assert receiver.requests == []
    assert sender.dropped == 250
    receiver.may_answer.set()
    sender.close()
    frames = [line["frame"] for line in receiver.taken()]
    # What was under way when it got stuck did arrive, though the queue had dropped it meanwhile.
    under_way = frames[:len(frames) - send.MOST_WAITING]
    assert under_way == list(range(len(under_way))) and 1 <= len(under_way) <= send.BATCH
    assert frames[len(under_way):] == list(range(250, send.MOST_WAITING + 250))
    assert sender.delivered == len(frames) and sender.dropped == 250 - len(under_way)
    assert f"{250 - len(under_way)} of {send.MOST_WAITING + 250} lines were not delivered" in capsys.readouterr().err


@pytest.mark.parametrize("status, said", [(404, "answers 404 Not Found; lines are dropped until that changes"),
                                          (302, "answers 302 Found: give its new address; lines are dropped")])
def test_webhook_that_refuses(receivers, capsys, status, said):
    receiver = receivers(answers=(status, 200))
    sender = open_webhook(f"http://127.0.0.1:{receiver.port}/", SOON)
    sender.write(result(0))
    wait_for(lambda: sender.dropped == 1)
    sender.write(result(1))
    wait_for(lambda: sender.delivered == 1)
    sender.close()
    assert [line["frame"] for line in receiver.taken()] == [1]
    assert [path for _, path, *_ in receiver.requests] == ["/", "/"]
    error = capsys.readouterr().err
    assert said in error and "delivers again, 1 lines have been dropped so far" in error
    assert "1 of 2 lines were not delivered" in error


def test_close_says_what_was_not_delivered(capsys):
    sender = open_webhook(f"http://cam:p4ss@127.0.0.1:{free_port()}/", SOON)
    for index in range(3):
        sender.write(result(index))
    began = time.monotonic()
    sender.close(drain=0.3)
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith(": 3 of 3 lines were not delivered")
    assert "p4ss" not in error and "cam" not in error


def test_webhook_over_tls(receivers, certificate, monkeypatch, capsys):
    """A certificate that nobody vouches for is not accepted; SSL_CERT_FILE makes one known."""
    receiver = receivers(certificate=certificate)
    sender = open_webhook(f"https://127.0.0.1:{receiver.port}/", SOON)
    sender.write(result(0))
    wait_for(lambda: sender._told)
    sender.close(drain=0)
    assert receiver.requests == [] and "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    sender = open_webhook(f"https://127.0.0.1:{receiver.port}/", SOON)
    sender.write(result(1))
    sender.close()
    assert [line["frame"] for line in receiver.taken()] == [1]
