"""What webhook and MQTT have in common: the queue before them, addresses that are none, libraries that are missing."""

import json
import subprocess
import sys

import pytest

from runtime.errors import BadInput
from runtime.send import Sender, open_mqtt, open_webhook
from tests.conftest import ROOT
from tests.results import result
from tests.servers import SOON, wait_for

pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install paho-mqtt")


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
