"""Results over the network: to a web server (webhook) or an MQTT broker, as the JSON lines that write.py describes.

    sender = open_webhook("https://example.org/poses")    # or open_mqtt("mqtt://user:password@broker/hall/poses")
    sender.write(result)
    sender.close()

What cannot be delivered in time waits in a queue of bounded size, whose oldest lines go first. The stream never waits,
and user, password, path and query of an address are never printed.
"""

import contextlib
import ssl
import sys
import threading
import time
import traceback
from collections import deque
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from runtime.errors import BadInput
from runtime.lines import poses_json

MOST_WAITING = 1000  # lines: 40 seconds at 25 frames a second
BATCH = 100  # lines delivered at a time
TIMEOUT = 10.0  # seconds without an answer
BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds between tries, the last one again and again
DRAIN = 5.0  # seconds that close() gives to what still waits
AGAIN_LATER = {408, 425, 429}  # besides 5xx: HTTP answers after which another try makes sense


class NotDelivered(Exception):
    """A delivery failed; another try may succeed."""


class Refused(Exception):
    """The other side does not want these lines; another try would end alike."""


class Sender:
    """A writer that delivers each result as a line of JSON, in a thread of its own.

    Args:
        receiver: has `label` (for messages, without secrets), `deliver(lines)`, which raises NotDelivered or
            Refused, and `close()`. All of it is called in the sender's thread. What else it raises is said, and counts
            as NotDelivered.
        back_off: seconds between tries, the last again and again.

    Attributes:
        delivered, dropped: lines so far. Dropped are the oldest of a full queue, and those that were refused.
    """

    def __init__(self, receiver, back_off=BACK_OFF):
        self._receiver = receiver
        self._back_off = back_off
        self._lines: deque[tuple[int, str]] = deque()  # with their numbers, by which delivered ones are told
        self._written = self.delivered = self.dropped = 0
        self._changed = threading.Condition()
        self._end: float | None = None  # when to stop trying, once close() has been called
        self._told: set[str] = set()  # complaints since the last delivery
        self._thread = threading.Thread(target=self._run, name="send", daemon=True)
        self._thread.start()

    def write(self, result, drawn=None):
        """Queue a result; returns at once."""
        line = poses_json(result)
        with self._changed:
            if len(self._lines) == MOST_WAITING:
                self._lines.popleft()
                self.dropped += 1
            self._written += 1
            self._lines.append((self._written, line))
            self._changed.notify()

    def close(self, drain=DRAIN):
        """Deliver what still waits, for at most `drain` seconds and a try under way; say what was not delivered."""
        with self._changed:
            self._end = time.monotonic() + drain
            self._changed.notify()
        self._thread.join(timeout=drain + 1)  # a try that hangs ends with the process
        lost = self._written - self.delivered
        if lost:
            self._say(f"{lost} of {self._written} lines were not delivered")

    def _run(self):
        failures = 0
        while batch := self._next_batch():
            try:
                self._receiver.deliver([line for _, line in batch])
            except Refused as error:
                self._complain(f"{error}; lines are dropped until that changes")
                self._remove(batch, delivered=False)
                self._wait(self._back_off[0])
                continue
            except Exception as error:  # a thread that ended would lose the lines of weeks
                why = str(error) if isinstance(error, NotDelivered) else _surprise(error)
                self._complain(f"{why}; trying again, the newest {MOST_WAITING} lines wait")
                if not self._wait(self._back_off[min(failures, len(self._back_off) - 1)]):
                    break
                failures += 1
                continue
            failures = 0
            self._remove(batch, delivered=True)
            if self._told:
                self._say(f"delivers again, {self.dropped} lines have been dropped so far")
                self._told.clear()
        self._receiver.close()

    def _next_batch(self):
        """The oldest lines, which stay queued until they are delivered; empty in the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._end)
            if self._end and time.monotonic() > self._end:
                return []
            return [self._lines[place] for place in range(min(BATCH, len(self._lines)))]

    def _remove(self, batch, delivered):
        with self._changed:
            removed = 0
            while self._lines and self._lines[0][0] <= batch[-1][0]:
                self._lines.popleft()
                removed += 1
            if delivered:
                self.dropped -= len(batch) - removed  # overtaken by the queue's end, but they did arrive
                self.delivered += len(batch)
            else:
                self.dropped += removed

    def _wait(self, seconds):
        """Let some time pass, less where close() is called meanwhile. False where its time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._end, timeout=seconds)
            if self._end is None:
                return True
            left = self._end - time.monotonic()
        if left > 0:
            time.sleep(min(left, 0.5))
        return left > 0

    def _complain(self, text):
        """Once for each cause, not once a try: it may go on for days."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def _say(self, text):
        tqdm.write(f"{self._receiver.label}: {text}", file=sys.stderr)


def open_webhook(url, back_off=BACK_OFF):
    """A Sender that POSTs to http://… or https://…, `user:password@` for basic authentication.

    Each request holds a JSON array of one or more of the objects that are lines elsewhere: those that waited.

    Raises:
        BadInput: no such address, or httpx is missing.
    """
    return Sender(Webhook(url), back_off)


def open_mqtt(url, back_off=BACK_OFF):
    """A Sender that publishes to mqtt://[user:password@]host[:1883]/topic, or mqtts:// (8883), one message a line.

    Raises:
        BadInput: no such address, or paho-mqtt is missing.
    """
    return Sender(Mqtt(url), back_off)


class Webhook:
    """Delivers lines by HTTP POST."""

    def __init__(self, url):
        parts, self.label = _parse(url, "--webhook", {"http": 80, "https": 443}, "https://example.org/poses")
        try:
            import httpx
        except ImportError as error:
            raise BadInput("--webhook needs httpx: pip install httpx") from error
        self._httpx = httpx
        user = (unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        try:
            self._client = httpx.Client(auth=user, timeout=TIMEOUT, verify=ssl.create_default_context())
            self._client.build_request("POST", self._url)
        except (httpx.InvalidURL, ValueError) as error:
            raise BadInput(f"--webhook for {self.label} is no address: {error}") from error

    def deliver(self, lines):
        body = f"[{','.join(lines)}]"
        try:
            answer = self._client.post(self._url, content=body.encode(), headers={"content-type": "application/json"})
        except self._httpx.HTTPError as error:
            raise NotDelivered(_reason(error)) from error
        if answer.is_success:
            return
        said = f"answers {answer.status_code} {answer.reason_phrase}"
        if answer.is_server_error or answer.status_code in AGAIN_LATER:
            raise NotDelivered(said)
        # Redirects are not followed: whoever can redirect must not get user and password.
        raise Refused(f"{said}: give its new address" if answer.is_redirect else said)

    def close(self):
        self._client.close()


class Mqtt:
    """Publishes lines, quality of service 1: each arrives once or, after a broken connection, twice.

    TOPIC/status holds "online", and "offline" once the connection is gone (retained, by MQTT's last will).
    """

    def __init__(self, url):
        parts, self.label = _parse(url, "--mqtt", {"mqtt": 1883, "mqtts": 8883}, "mqtt://broker/hall/poses")
        self._topic = unquote(parts.path).strip("/")
        if not self._topic or set(self._topic) & set("#+\0") or parts.query or "#" in str(url):
            raise BadInput(f"--mqtt {self.label} needs a topic without # and +, as mqtt://broker/hall/poses")
        try:
            import paho.mqtt.client as mqtt
        except ImportError as error:
            raise BadInput("--mqtt needs paho-mqtt: pip install paho-mqtt") from error
        self._mqtt = mqtt
        self._secure = parts.scheme == "mqtts"
        self._place = parts.hostname, parts.port or (8883 if self._secure else 1883)
        self._user = None
        if parts.username is not None:
            self._user = unquote(parts.username), None if parts.password is None else unquote(parts.password)
        self._client = None

    def deliver(self, lines):
        client = self._client
        if client is None or not client.is_connected():
            client = self._connect()
        end = time.monotonic() + TIMEOUT
        try:
            waiting = [client.publish(self._topic, line, qos=1) for line in lines]
            while waiting and client.is_connected() and time.monotonic() < end:
                waiting[0].wait_for_publish(0.2)
                waiting = [message for message in waiting if not message.is_published()]
        except (RuntimeError, ValueError) as error:  # what paho raises where the connection broke
            self.close()
            raise NotDelivered("the connection broke") from error
        if waiting:
            why = f"no answer within {TIMEOUT:g} s" if client.is_connected() else "the connection broke"
            self.close()
            raise NotDelivered(why)

    def _connect(self):
        """A new client each time: an old one would deliver again what it still holds."""
        self.close()
        self._client = client = self._mqtt.Client(self._mqtt.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        answered = threading.Event()
        answers = []

        def on_connect(client, userdata, flags, reason, properties):
            answers.append(reason)
            answered.set()

        client.on_connect = on_connect
        client.connect_timeout = TIMEOUT
        if self._user:
            client.username_pw_set(*self._user)
        if self._secure:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        try:
            client.connect(*self._place)
        except (OSError, ValueError) as error:
            self._client = None
            raise NotDelivered(_reason(error)) from error
        client.loop_start()
        if not answered.wait(TIMEOUT):
            self.close()
            raise NotDelivered(f"no answer within {TIMEOUT:g} s")
        if answers[0].is_failure:
            self.close()
            raise NotDelivered(f"answers {answers[0]}")
        client.publish(f"{self._topic}/status", "online", qos=1, retain=True)
        return client

    def close(self):
        if self._client is None:
            return
        if self._client.is_connected():
            with contextlib.suppress(RuntimeError, ValueError):  # just disconnected: the last will says the same
                self._client.publish(f"{self._topic}/status", "offline", qos=1, retain=True).wait_for_publish(1)
        self._client.disconnect()
        self._client.loop_stop()
        self._client = None


def _parse(url, option, ports, example):
    """The parts of an address and what to call it: scheme, host and port, since even a path may be a secret."""
    # Nothing of a wrong one is repeated: mistyped, it may be all password.
    kinds = " or ".join(f"{name}://" for name in ports)
    wrong = BadInput(f"{option} is no address that begins with {kinds}: give one, as {example}")
    try:
        parts = urlsplit(str(url))
        port = parts.port or ports.get(parts.scheme)
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ports or not parts.hostname:
        raise wrong
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts, f"{parts.scheme}://{host}:{port}"


def _surprise(error):
    """What was raised and where; its own words may hold an address's secrets."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.filename}, line {place.lineno}, which is a fault of this program"


def _reason(error):
    """Why a connection failed, in a few words."""
    return str(error) or type(error).__name__
