"""MQTT: a real broker that comes and goes, and lets in one user only."""

import asyncio
import json
import threading

import pytest

from runtime.lines import poses_json
from runtime.send import open_mqtt
from tests.results import news, result
from tests.servers import SOON, free_port, starting, wait_for

mqtt = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install paho-mqtt")
pytestmark = pytest.mark.usefixtures("no_proxy")


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
    pytest.importorskip("amqtt", reason="needs a broker: pip install amqtt")
    with starting(Broker) as start:
        yield start


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
