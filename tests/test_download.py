"""Downloads from a real server on the loopback that breaks off, lies, changes its mind or is not there."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime.download import checksum, download, readable
from runtime.errors import BadInput

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 2000
OTHER = CONTENT[::-1]
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.log.append((self.path, asked))
        if self.path in server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved[self.path])
            self.end_headers()
            return
        content = server.files.get(self.path)
        if content is None or server.errors:
            self.send_error(server.errors.pop(0) if server.errors else 404)
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.announce:
            self.send_header("Content-Length", str((server.claim or len(content)) - start))
        if server.etag and not start:  # RFC 9110 lets a 206 be sparing with headers
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(content[start:][:server.breaks.pop(0) if server.breaks else None])
        if server.silent:
            self.wfile.flush()
            server.answered.wait(20)

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def serve(files):
    """A server of {path: bytes} on the loopback.

    Its attributes: url; log of (path, Range header); breaks: bytes after which the next answers break off; errors:
    status codes of the next answers; ranges: whether it knows them; etag: None for a server without; announce: whether
    it tells the length; claim: a length that it claims; silent: whether it keeps quiet instead of closing; moved: paths
    and where they lead.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.url, running.files, running.log = f"http://127.0.0.1:{running.server_port}", files, []
        running.breaks, running.errors, running.ranges, running.etag, running.moved = [], [], True, '"one"', {}
        running.announce, running.claim, running.silent, running.answered = True, None, False, threading.Event()
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running
        finally:
            running.answered.set()
            running.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({"/clip.mp4": CONTENT}) as running:
        yield running


@pytest.fixture
def refused(monkeypatch):
    """A URL at which nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/clip.mp4"


def ranges(server):
    return [asked for _, asked in server.log]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def break_at(server, path, landed, **options):
    """A first try that breaks off after so many bytes and leaves them."""
    server.breaks = [landed]
    with pytest.raises(BadInput, match=f"broke off after {landed} of .*what has arrived is kept"):
        download(f"{server.url}/clip.mp4", path, pauses=(), **options)
    assert path.with_name("clip.mp4.part").stat().st_size == landed and not path.exists()
    server.log.clear()


def test_a_download_is_kept_and_then_taken_without_network(server, tmp_path):
    path = tmp_path / "new" / "cache" / "clip.mp4"
    assert download(f"{server.url}/clip.mp4", path, SIZE, SHA256) == path
    assert path.read_bytes() == CONTENT and names(path.parent) == ["clip.mp4"]
    server.shutdown()
    server.server_close()
    assert download(f"{server.url}/clip.mp4", path, SIZE, SHA256) == path
    assert len(server.log) == 1


@pytest.mark.parametrize(("size", "sha256", "requests"), [(SIZE, SHA256, 1), (SIZE, None, 1), (None, None, 0)])
def test_a_damaged_file_is_fetched_again_where_its_damage_can_be_known(server, tmp_path, size, sha256, requests):
    path = tmp_path / "clip.mp4"
    path.write_bytes(CONTENT[:100])
    download(f"{server.url}/clip.mp4", path, size, sha256)
    assert len(server.log) == requests and path.read_bytes() == (CONTENT if requests else CONTENT[:100])


def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path, capsys):
    server.breaks = [200_000, 100_000]
    path = download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", pauses=(0,))
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["clip.mp4"]
    # One pause for two breaks: whoever gets further may try again as often.
    assert ranges(server) == [None, "bytes=200000-", "bytes=300000-"]
    assert f"broke off after 300000 of {SIZE} bytes" in capsys.readouterr().out


def test_another_call_goes_on_where_the_last_one_broke(server, tmp_path):
    path = tmp_path / "clip.mp4"
    break_at(server, path, 200_000)
    assert download(f"{server.url}/clip.mp4", path, SIZE, SHA256).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=200000-"] and names(tmp_path) == ["clip.mp4"]


def test_a_redirection_is_followed_into_the_middle_of_a_file(server, tmp_path):
    path = tmp_path / "clip.mp4"
    server.files, server.moved = {"/store/1": CONTENT}, {"/clip.mp4": "/store/1"}
    break_at(server, path, 200_000)
    assert download(f"{server.url}/clip.mp4", path, SIZE, SHA256).read_bytes() == CONTENT
    assert server.log == [("/clip.mp4", "bytes=200000-"), ("/store/1", "bytes=200000-")]


def test_a_connection_that_gets_no_further_is_given_up(server, tmp_path):
    path = tmp_path / "clip.mp4"
    server.breaks = [1000, 0, 0, 0]
    with pytest.raises(BadInput, match=f"after 1000 of {SIZE} bytes: the server closed .*; what has arrived") as caught:
        download(f"{server.url}/clip.mp4", path, pauses=(0, 0))
    assert ranges(server) == [None] + 2 * ["bytes=1000-"] and "\n" not in str(caught.value)


def test_a_server_without_ranges_starts_over_and_that_is_said(server, tmp_path, capsys):
    server.ranges = False
    break_at(server, tmp_path / "clip.mp4", 200_000)
    assert download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4").read_bytes() == CONTENT
    assert "the server sends whole files only: starting over" in capsys.readouterr().out
    assert ranges(server) == ["bytes=200000-"]


def test_a_server_without_ranges_that_always_breaks_is_given_up(server, tmp_path):
    server.ranges, server.breaks = False, [200_000] * 9
    with pytest.raises(BadInput, match="broke off after 200000"):
        download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", pauses=(0, 0))
    assert len(server.log) == 3


@pytest.mark.parametrize(("etag", "new_etag", "content", "requests"), [
    ('"one"', '"two"', OTHER, 1),  # If-Range: the whole new file comes at once
    (None, None, OTHER[:400_000], 2),  # only its size tells
    ('W/"one"', 'W/"two"', OTHER[:400_000], 2),  # a weak ETag must not be sent as If-Range
    ('W/"one"', 'W/"two"', OTHER[:400_000], 2),  # a weak ETag must not be sent as If-Range
    ('W/"one"', 'W/"two"', OTHER[:400_000], 2),  # a weak ETag must not be sent as If-Range
    (None, None, OTHER[:1000], 2),  # nothing is left where the first try stopped: status 416
])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path, capsys, etag, new_etag, content, requests):
    path = tmp_path / "clip.mp4"
    server.etag = etag
    break_at(server, path, 200_000)
    server.etag, server.files["/clip.mp4"] = new_etag, content
    assert download(f"{server.url}/clip.mp4", path).read_bytes() == content
    assert "clip.mp4 has changed: starting over" in capsys.readouterr().out
    assert ranges(server) == ["bytes=200000-", None][:requests]


def test_a_change_after_several_tries_is_noticed_too(server, tmp_path):
    path = tmp_path / "clip.mp4"
    break_at(server, path, 200_000)
    server.breaks = [1000]
    with pytest.raises(BadInput, match="broke off after 201000"):
        download(f"{server.url}/clip.mp4", path, pauses=())
    server.etag, server.files["/clip.mp4"] = '"two"', OTHER
    assert download(f"{server.url}/clip.mp4", path).read_bytes() == OTHER


def test_a_whole_file_that_was_not_moved_to_its_place_is_not_fetched_again(server, tmp_path):
    path = tmp_path / "clip.mp4"
    server.announce = False
    path.mkdir()
    with pytest.raises(BadInput, match="cannot be read or written"):
        download(f"{server.url}/clip.mp4", path)
    path.rmdir()
    assert download(f"{server.url}/clip.mp4", path).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={SIZE}-"]


def test_a_part_file_of_unknown_origin_is_not_built_upon(server, tmp_path, capsys):
    (tmp_path / "clip.mp4.part").write_bytes(OTHER[:1000])
    assert download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4").read_bytes() == CONTENT
    assert "starting over" in capsys.readouterr().out


def test_a_wrong_checksum_removes_what_arrived(server, tmp_path):
    with pytest.raises(BadInput, match=f"not the file expected: its SHA-256 is {SHA256[:16]}…, not 0000") as caught:
        download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", SIZE, "0" * 64)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_wrong_size_is_refused_before_its_bytes_and_costs_nothing_that_arrived(server, tmp_path):
    path = tmp_path / "clip.mp4"
    break_at(server, path, 200_000, size=SIZE)
    server.files["/clip.mp4"], server.etag = b"<html>Please log in to this network</html>", None
    server.ranges = False
    with pytest.raises(BadInput, match=f"not the file expected: it has 42 bytes, not {SIZE}"):
        download(f"{server.url}/clip.mp4", path, SIZE)
    server.files["/clip.mp4"], server.etag, server.ranges = CONTENT, '"one"', True
    assert download(f"{server.url}/clip.mp4", path, SIZE).read_bytes() == CONTENT
    assert ranges(server) == 2 * ["bytes=200000-"]


def test_a_file_without_end_is_cut_off(server, tmp_path):
    server.announce, server.files["/clip.mp4"] = False, CONTENT * 2
    with pytest.raises(BadInput, match=f"it has more than {SIZE} bytes"):
        download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", SIZE)
    assert names(tmp_path) == []


def test_an_error_of_the_server_is_told_and_a_passing_one_is_tried_again(server, tmp_path, capsys):
    with pytest.raises(BadInput, match="404 Not Found to http"):
        download(f"{server.url}/missing.mp4", tmp_path / "missing.mp4")
    assert len(server.log) == 1
    server.errors = [503]
    assert download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", pauses=(0,)).read_bytes() == CONTENT
    assert "503 Service Unavailable" in capsys.readouterr().out
    server.errors = [503, 503]
    with pytest.raises(BadInput, match="503"):
        download(f"{server.url}/clip.mp4", tmp_path / "again.mp4", pauses=(0,))


def test_silence_is_a_broken_connection(server, tmp_path):
    server.silent, server.breaks = True, [1000]
    with pytest.raises(BadInput, match=f"broke off after 1000 of {SIZE} bytes: .*timed out"):
        download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", timeout=0.3, pauses=())


def test_no_server_is_told_at_once(refused, tmp_path, capsys):
    with pytest.raises(BadInput, match="cannot be reached: .*refused"):
        download(refused, tmp_path / "clip.mp4", pauses=(0,))
    assert "trying again" not in capsys.readouterr().out


def test_a_server_that_goes_away_is_tried_again_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"

    def serve_once():
        connection = listener.accept()[0]
        connection.recv(10_000)
        listener.close()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5000\r\n\r\n" + CONTENT[:1000])
        connection.close()

    thread = threading.Thread(target=serve_once)
    thread.start()
    with pytest.raises(BadInput, match="cannot be reached: .*refused.*what has arrived is kept"):
        download(url, tmp_path / "clip.mp4", pauses=(0, 0))
    thread.join()
    first, second = capsys.readouterr().out.splitlines()
    assert "broke off after 1000 of 5000 bytes" in first and "cannot be reached" in second
    assert (tmp_path / "clip.mp4.part").read_bytes() == CONTENT[:1000]


def test_a_full_disk_is_told_before_and_while_writing(server, tmp_path):
    resource = pytest.importorskip("resource")
    server.claim = 10**17
    with pytest.raises(BadInput, match=r"has \S+ GB free, and clip.mp4 needs 100000000.0 GB more; make room, or move"):
        download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", elsewhere="move")
    server.claim = None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(BadInput, match="clip.mp4 cannot be read or written: File too large; .* or move"):
            download(f"{server.url}/clip.mp4", tmp_path / "clip.mp4", elsewhere="move")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_folder_is_told(refused, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Not a directory; see to the folder, or set THAT"):
        download(refused, tmp_path / "file" / "cache" / "clip.mp4", elsewhere="set THAT")


def test_ctrl_c_keeps_what_has_arrived(server, tmp_path):
    path, part = tmp_path / "clip.mp4", tmp_path / "clip.mp4.part"
    server.silent, server.breaks = True, [200_000]
    script = ("from runtime.download import download\nfrom runtime.errors import run_command\n"
              f"run_command(lambda: download({server.url + '/clip.mp4'!r}, {str(path)!r}, {SIZE}, {SHA256!r}))")
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 200_000):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "stopped by Ctrl-C" in told and "Traceback" not in told, told
    server.silent = False
    assert download(f"{server.url}/clip.mp4", path, SIZE, SHA256).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=200000-"]


def test_checksum_agrees_with_hashlib_and_sizes_read_well(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT * 5)
    assert checksum(tmp_path / "file") == hashlib.sha256(CONTENT * 5).hexdigest()
    words = [readable(count) for count in (0, 99, 512_000, 95_073_259, 815_585_330, 19_336_861_798)]
    assert words == ["0 bytes", "99 bytes", "0.5 MB", "95.1 MB", "0.8 GB", "19.3 GB"]
    assert all(re.fullmatch(r"[\d.]+ \w+", word) for word in words)
