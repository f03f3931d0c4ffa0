"""Who may reach the page, and what they can do to it: tokens, hosts, addresses, connections and logs."""

import contextlib
import http.client
import logging
import re
import socket
import subprocess
import sys
import time

import pytest

from runtime import connections
from runtime.errors import BadInput
from runtime.serve import WebPage
from tests.conftest import ROOT
from tests.pages import ask, port_of, state_of
from tests.results import noise, result

pytest.importorskip("starlette", reason="needs starlette: pip install starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")

TOKEN = "correct-horse-battery"


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
