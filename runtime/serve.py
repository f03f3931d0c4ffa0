"""A web page to watch a running stream on: live pictures, states, numbers; `/metrics` and `/healthz` for machines.

    page = WebPage("8080", ["door", "yard"])    # http://127.0.0.1:8080/
    page.write(result, drawn)                   # as often as results come
    page.close()

The web server (uvicorn and Starlette: `pip install starlette uvicorn`) runs in a thread of its own. The stream only
hands over its newest picture and numbers; pictures are encoded while somebody watches, and not otherwise.
"""

import asyncio
import base64
import hashlib
import ipaddress
import re
import secrets
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2

from runtime.connections import MOST_CONNECTIONS, connection_class, listen, reachable
from runtime.errors import BadInput
from runtime.status import BUCKET, SourceStatus, prometheus

PAGE = Path(__file__).with_name("page.html")
MOST_PICTURES = 10  # encoded a second and source
LONGEST_SIDE = 1280  # pixels: larger pictures are shrunk to it
PICTURE_WAIT = 1.0  # seconds a request waits for a new picture; short, as browsers open six connections at a time
WATCHED_FOR = 3.0  # seconds after a request for pictures for which somebody is taken to watch
LEAST_TOKEN = 12  # characters of a token that somebody chose

SIGN_IN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>Token needed</title><h1>This page needs its token</h1>
<p>It was chosen when the program was started, or stands in the address that the program printed then.</p>
<form><label>Token <input name="token" type="password" autocomplete="current-password" required></label>
<button>Watch</button></form></html>"""


class WebPage:
    """Serves the page until `close()`. A writer like those of write.py; it never makes the stream wait.

    Args:
        address: "8080" for loopback alone, or "HOST:PORT": "127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8080" for all of
            the machine's addresses. Port 0: any free one.
        labels: what to call each source, in the order of their numbers; free of passwords.
        token: whoever asks must know it; without one, one is made where others than this machine can ask.
        clock: seconds that only rise, as `time.monotonic`.
        budget: the stream's Budget, to say what it gives up; or None.

    Attributes:
        url: where to look, with the token where it was made here: whoever has it can watch.

    Raises:
        BadInput: the address is none or is taken, the token is too short, or a library is missing.
    """

    def __init__(self, address, labels, token=None, clock=time.monotonic, budget=None):
        uvicorn = _load_libraries()
        self._socket, host = listen(address)
        bound, port = self._socket.getsockname()[:2]
        self._loopback = ipaddress.ip_address(bound.partition("%")[0]).is_loopback
        try:
            self._token = _checked_token(token, needed=not self._loopback)
        except BadInput:
            self._socket.close()
            raise
        self._hosts = {"127.0.0.1", "::1", "localhost", host.strip("[]").lower()}
        self._cookie = f"pose_{port}"  # browsers keep cookies by host, not by port
        made = self._token and token is None  # one that was chosen is known, and must not get into a log
        self.url = f"http://{reachable(host)}:{port}/" + (f"?token={self._token}" if made else "")
        self._run = secrets.token_hex(4)  # tells the page that the server is another one
        self._budget = budget
        self._lock = threading.Lock()
        self._statuses = [SourceStatus(number, label, clock) for number, label in enumerate(labels)]
        self._cameras = [_Camera() for _ in labels]
        self._page, policy = _read_page()
        self._headers = [(name.encode(), value.encode()) for name, value in {
            "content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
            "cache-control": "no-store", "cross-origin-resource-policy": "same-origin"}.items()]
        # Its server is told to stop by close(), not by signals: those are the command's.
        self._server = uvicorn.Server(uvicorn.Config(
            self._application(), http=connection_class(), log_config=None, access_log=False, server_header=False,
            log_level="error",  # warnings are of what clients do wrong, and would let anybody fill the log
            lifespan="off", ws="none", backlog=MOST_CONNECTIONS, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="serve", daemon=True)
        self._thread.start()

    @property
    def watched(self):
        """Somebody looks at pictures just now; where not, `write` does well without."""
        return any(time.monotonic() - camera.asked < WATCHED_FOR for camera in self._cameras)

    def write(self, result, drawn=None):
        """Hand over a result and its (H, W, 3) uint8 BGR picture, which must not change afterwards; None for none."""
        with self._lock:
            self._statuses[result.source].add(result)
        if result.frame is not None:
            self._cameras[result.source].show(drawn)

    def took(self, source, seconds):
        """What drawing and writing the last frame of a source took, in all outputs: part of the next one's age."""
        with self._lock:
            self._statuses[source].output_seconds = seconds

    def close(self):
        """Stop the server; whoever watches is told by the page."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def _application(self):
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = Starlette(routes=[
            Route("/", self._home), Route("/state.json", self._state), Route("/metrics", self._metrics),
            Route("/healthz", self._health), Route("/picture/{source}.jpg", self._picture)])

        async def application(scope, receive, send):
            async def send_safely(message):
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *self._headers]
                await send(message)

            await (self._refusal(scope) or routes)(scope, receive, send_safely)

        return application

    def _refusal(self, scope):
        """A response for whoever may not ask, None for who may."""
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse

        request = Request(scope)
        # A page of another site could have its own name lead here (DNS rebinding), and read what this machine may;
        # but the token it does not know. Reverse proxies come with names of their own.
        if self._loopback and not self._token and _host_name(request.headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("This page answers to localhost only; start it with --serve-token for others.\n",
                                     403)
        path = scope["path"]
        if not self._token or path == "/healthz":
            return None
        asked = request.query_params.get("token")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._knows_token(asked) and path == "/":
            welcome = RedirectResponse("./", 303)  # so that the token is not left in the address bar
            welcome.set_cookie(self._cookie, self._token, max_age=365 * 86400, path=None, httponly=True,
                               samesite="lax", secure=scope["scheme"] == "https")
            return welcome
        if any(map(self._knows_token, (asked, bearer, request.cookies.get(self._cookie)))):
            return None
        refused = {"www-authenticate": "Bearer"}
        if path == "/":
            return HTMLResponse(SIGN_IN, 401, refused)
        return PlainTextResponse("This needs the token: ?token=… or Authorization: Bearer …\n", 401, refused)

    def _knows_token(self, given):
        return secrets.compare_digest((given or "").encode(), self._token.encode())

    async def _home(self, request):
        from starlette.responses import HTMLResponse

        return HTMLResponse(self._page)

    async def _state(self, request):
        from starlette.responses import JSONResponse

        with self._lock:
            sources = [status.report() for status in self._statuses]
        given_up = self._budget.given_up if self._budget else ""
        return JSONResponse({"run": self._run, "bucket": BUCKET, "given_up": given_up, "sources": sources})

    async def _metrics(self, request):
        from starlette.responses import Response

        with self._lock:
            text = prometheus(self._statuses)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _health(self, request):
        """Without the token, and so without what the sources are called."""
        from starlette.responses import JSONResponse

        with self._lock:
            states = [status.state()[0] for status in self._statuses]
        well = "live" in states
        return JSONResponse({"status": "ok" if well else "no live source", "states": states}, 200 if well else 503)

    async def _picture(self, request):
        """The newest picture if it is newer than number `after`; waits for it a little, and 204 where none comes."""
        from starlette.responses import PlainTextResponse, Response

        source, after = request.path_params["source"], request.query_params.get("after", "0")
        known = re.fullmatch("[0-9]{1,4}", source) and int(source) < len(self._cameras)
        if not known or not re.fullmatch("[0-9]{1,15}", after):
            return PlainTextResponse("No such picture.\n", 404)
        camera, until = self._cameras[int(source)], time.monotonic() + PICTURE_WAIT
        while True:
            number, jpeg = await camera.picture()
            if number > int(after):
                return Response(jpeg, media_type="image/jpeg", headers={"x-picture": str(number)})
            if time.monotonic() > until or self._server.should_exit:
                return Response(status_code=204)
            await asyncio.sleep(0.02)  # looking costs this thread less than waking it would cost the stream


class _Camera:
    """The newest picture of a source, and its JPEG for those who ask."""

    def __init__(self):
        self.asked = float("-inf")  # when somebody last asked, on time.monotonic
        self._newest = (0, None)  # its number, from 1, and the picture; replaced as a whole, so that no lock is needed
        self._encoded = (0, b"")
        self._encoded_at = float("-inf")
        self._encoding = asyncio.Lock()

    def show(self, picture):
        """The newest frame's picture, or None where nobody drew it: the one before would pass for it."""
        self._newest = (self._newest[0] + (picture is not None), picture)

    async def picture(self):
        """Number and JPEG of a picture: the newest, or the one before where that was encoded a moment ago.

        (0, b"") where there is none.
        """
        self.asked = time.monotonic()
        async with self._encoding:
            number, picture = self._newest
            if picture is None:
                return 0, b""
            if number > self._encoded[0] and time.monotonic() - self._encoded_at >= 1 / MOST_PICTURES:
                self._encoded_at = time.monotonic()
                self._encoded = number, await asyncio.to_thread(_encode, picture)
        return self._encoded


def _encode(picture):
    scale = LONGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _checked_token(token, needed):
    """The token to ask for; None for none."""
    if token is None:
        return secrets.token_urlsafe(24) if needed else None
    if not re.fullmatch(r"[A-Za-z0-9_.~-]*", token) or len(token) < LEAST_TOKEN:
        raise BadInput(f"the page's token must have {LEAST_TOKEN} or more letters, digits or -_.~ and has {len(token)} "
                       "characters: choose another, or none to have one made")
    return token


def _host_name(header):
    """The host's name of a Host header, in small letters, "" where it has none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _read_page():
    """The page, and a Content-Security-Policy that lets it run its own script and style and nothing else."""
    page = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return page, (f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
                  "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
                  "frame-ancestors 'none'")


def _load_libraries():
    """uvicorn, once it and Starlette are there."""
    try:
        import starlette.applications  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise BadInput(f"--serve needs {error.name}: pip install starlette uvicorn") from error
    return uvicorn
