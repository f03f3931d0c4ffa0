"""Webhook and MQTT: real servers, among them some that are away, slow, wrong or unfriendly."""

import asyncio
import base64
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime import send
from runtime.errors import BadInput
from runtime.send import Sender, open_mqtt, open_webhook
from runtime.write import poses_json
from tests.results import news, result

pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
mqtt = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install paho-mqtt")

ROOT = Path(__file__).resolve().parents[1]
SOON = (0.05,)  # back-off of the tests


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy of the machine does not lead to its own servers."""
    monkeypatch.setenv("NO_PROXY", "*")


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


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
    """Starts Receivers, and ends them."""
    started = []

    def start(*arguments, **more):
        started.append(Receiver(*arguments, **more))
        return started[-1]

    yield start
    for receiver in started:
        receiver.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def test_a_surprise_does_not_end_the_sender(capsys):
    """Whatever a receiver raises, its lines are tried again, and what it said, which may be secret, is not printed."""
    class Moody:
        label = "moody://host"
        taken: list[int] = []
        calls = 0

        def deliver(self, lines):
            self.calls += 1
            if self.calls < 3:
                raise UnicodeError("https://cam:p4ss@host")
            self.taken += [json.loads(line)["frame"] for line in lines]

        def close(self):
            pass

    receiver = Moody()
    sender = Sender(receiver, SOON)
    sender.write(result(0))
    wait_for(lambda: sender.delivered == 1)
    sender.write(result(1))
    sender.close()
    assert receiver.taken == [0, 1]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("moody://host: UnicodeError in ") and "trying again" in said[0]
    assert "p4ss" not in said[0] and said[1] == "moody://host: delivers again, 0 lines have been dropped so far"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that signs itself, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


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


class Broker:
    """An MQTT broker (amqtt) on loopback that lets in "cam" with "p@ss" only."""

    def __init__(self, port=0, certificate=None):
        self.port = port or free_port()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        tls = {"ssl": True, "certfile": str(certificate), "keyfile": str(certificate)} if certificate else {}
        self._config = {"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}", **tls}},
                        "plugins": {"tests.broker_access.Password": {}}}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self):
        from amqtt.broker import Broker as AmqttBroker

        asyncio.set_event_loop(self._loop)
        self._broker = AmqttBroker(self._config, loop=self._loop)
        self._loop.run_until_complete(self._broker.start())
        self._ready.set()
        self._loop.run_forever()

    def close(self):
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._broker.shutdown(), self._loop).result(20)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(20)


class Subscriber:
    """Keeps the messages under a topic."""

    def __init__(self, port, topic):
        self.messages = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.username_pw_set("cam", "p@ss")
        subscribed = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda client, data, message: self.messages.append(
            (message.topic, message.payload.decode(), bool(message.retain)))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert subscribed.wait(20)

    def on(self, topic):
        return [payload for where, payload, _ in list(self.messages) if where == topic]

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def brokers():
    """Starts Brokers, and ends them."""
    pytest.importorskip("amqtt", reason="needs a broker: pip install amqtt")
    started = []

    def start(*arguments, **more):
        started.append(Broker(*arguments, **more))
        return started[-1]

    yield start
    for broker in started:
        broker.close()


def test_mqtt_gets_every_line_in_order(brokers, capsys):
    broker = brokers()
    subscriber = Subscriber(broker.port, "hall/#")
    sender = open_mqtt(f"mqtt://cam:p%40ss@127.0.0.1:{broker.port}/hall/poses")
    written = [result(0), result(1, persons=2), news("stale", "no picture for 3 s", 1.5),
               *(result(index, persons=0) for index in range(2, 60))]
    for one in written:
        sender.write(one)
    sender.close()
    assert (sender.delivered, sender.dropped) == (len(written), 0)
    wait_for(lambda: len(subscriber.on("hall/poses")) >= len(written))
    assert subscriber.on("hall/poses") == [poses_json(one) for one in written]
    wait_for(lambda: subscriber.on("hall/poses/status") == ["online", "offline"])
    subscriber.close()
    assert capsys.readouterr().err == ""


def test_mqtt_broker_that_goes_and_returns(brokers, capsys):
    broker = brokers()
    sender = open_mqtt(f"mqtt://cam:p%40ss@127.0.0.1:{broker.port}/poses", SOON)
    sender.write(result(0))
    wait_for(lambda: sender.delivered == 1)
    broker.close()
    sender.write(result(1))
    wait_for(lambda: sender._told)
    broker = brokers(port=broker.port)
    subscriber = Subscriber(broker.port, "poses")
    wait_for(lambda: [json.loads(line)["frame"] for line in subscriber.on("poses")] == [1])
    sender.write(result(2))
    wait_for(lambda: sender.delivered == 3)
    sender.close()
    wait_for(lambda: [json.loads(line)["frame"] for line in subscriber.on("poses")] == [1, 2])
    subscriber.close()
    assert "delivers again, 0 lines have been dropped so far" in capsys.readouterr().err


def test_mqtt_with_a_wrong_password(brokers, capsys):
    broker = brokers()
    sender = open_mqtt(f"mqtt://cam:wr0ng@127.0.0.1:{broker.port}/poses", SOON)
    sender.write(result(0))
    wait_for(lambda: sender._told)
    sender.close(drain=0)
    error = capsys.readouterr().err
    assert f"mqtt://127.0.0.1:{broker.port}: answers Bad user name or password; trying again" in error \
        or f"mqtt://127.0.0.1:{broker.port}: answers Not authorized; trying again" in error
    assert "1 of 1 lines were not delivered" in error and "wr0ng" not in error and "cam" not in error


def test_mqtt_over_tls(brokers, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    broker = brokers(certificate=certificate)
    sender = open_mqtt(f"mqtts://cam:p%40ss@127.0.0.1:{broker.port}/poses", SOON)
    sender.write(result(0))
    wait_for(lambda: sender.delivered == 1)
    sender.close()


@pytest.mark.parametrize("open_it, url, said", [
    (open_webhook, "example.org/hook", "--webhook is no address that begins with http:// or https://"),
    (open_webhook, "ftp://cam:p4ss@host/", "--webhook is no address"),
    (open_webhook, "http://cam:p4ss@/x", "--webhook is no address"),
    (open_webhook, "http://cam:p4ss@host:99999/", "--webhook is no address"),
    (open_mqtt, "http://cam:p4ss@host/topic", "--mqtt is no address that begins with mqtt:// or mqtts://"),
    (open_mqtt, "mqtt://cam:p4ss@host", "--mqtt mqtt://host:1883 needs a topic"),
    (open_mqtt, "mqtts://cam:p4ss@host/all/#", "--mqtt mqtts://host:8883 needs a topic"),
    (open_mqtt, "mqtt://cam:p4ss@host/a/+/b", "needs a topic without # and +"),
])
def test_no_address(open_it, url, said):
    with pytest.raises(BadInput) as caught:
        open_it(url)
    assert said in str(caught.value)
    assert "p4ss" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("module, call, said", [
    ("httpx", "open_webhook('http://host/')", "error: --webhook needs httpx: pip install httpx"),
    ("paho", "open_mqtt('mqtt://host/topic')", "error: --mqtt needs paho-mqtt: pip install paho-mqtt"),
])
def test_without_the_library(module, call, said):
    script = (f"import sys; sys.modules[{module!r}] = None\n"
              "from runtime.errors import run_command\nfrom runtime.send import *\n"
              f"run_command(lambda: {call})")
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (2, said)
