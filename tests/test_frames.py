"""Sources: real files, folders, a server on loopback, and what each says when it is broken."""

import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from runtime.containers import is_file_on_server, is_trimmed
from runtime.errors import BadInput
from runtime.frames import PipedVideo, hide_secrets, natural_order, open_source
from tests.cameras import send_camera, served
from tests.conftest import ROOT, figure, index_first, write_clip


def test_every_frame_of_a_file_in_order(tmp_path):
    source = open_source(video=write_clip(tmp_path / "clip.mp4", frames=20, fps=10))
    assert (source.total, source.fps, source.live) == (20, 10, False)
    frames = list(source)
    source.close()
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(20) / 10, atol=1e-3)
    assert frames[3].name == "000003"
    for frame in (frames[0], frames[19]):
        expected, _, _ = figure(frame.index)
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - expected).mean() < 6  # BGR, through the codec


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "video .*clip.mp4 does not exist"),
    (lambda path: path.mkdir(), "is a folder: give --images"),
    (lambda path: path.write_bytes(b""), "is no video"),
    (lambda path: path.write_text("poses " * 1000), "is no video"),
    (lambda path: path.write_bytes(write_clip(path).read_bytes()[:4000]), "is no video that can be read: an incompl"),
])
def test_what_is_no_video(tmp_path, make, message, capfd):
    make(tmp_path / "clip.mp4")
    with pytest.raises(BadInput, match=message) as caught:
        open_source(video=tmp_path / "clip.mp4")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg keep quiet


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_cut_off_video_gives_its_frames_and_then_says_so(tmp_path, suffix):
    path = write_clip(tmp_path / f"clip{suffix}", frames=60, codec="FMP4" if suffix == ".avi" else "mp4v")
    if suffix == ".mp4":
        index_first(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    frames = []
    with pytest.raises(BadInput, match=r"ended at frame \d+ of 6\d") as caught:
        frames.extend(open_source(video=path))  # extend keeps what came before the error
    assert f"ended at frame {len(frames)} of" in str(caught.value)
    assert 5 < len(frames) < 55


def test_one_frame_missing_in_an_mp4_is_noticed(tmp_path):
    path = index_first(write_clip(tmp_path / "clip.mp4", frames=20))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="ended at frame 19 of 20"):
        list(open_source(video=path))


def test_camera_that_does_not_open():
    with pytest.raises(BadInput, match="camera 63 does not open: .*(/dev/video|--images)"):
        open_source(camera=63)


def test_a_camera_below_0_and_an_address_with_one_slash():
    with pytest.raises(BadInput, match="camera -1 is below 0: give 0 for the first"):
        open_source(camera=-1)
    for address in ("rtsp:/admin:hunter2@cam/s", "admin:hunter2@cam/s", "rtsp:/cam/password=hunter2"):
        with pytest.raises(BadInput, match="video does not exist: .*write the address as rtsp://") as caught:
            open_source(video=address)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("edits", [b"", b"\1" + bytes(22), bytes(15)])
def test_the_letters_of_an_edit_list_at_the_end_of_an_mp4(tmp_path, edits):
    box = b"moov" + b"elst" + edits
    (tmp_path / "clip.mp4").write_bytes((len(box) + 4).to_bytes(4, "big") + box)
    assert not is_trimmed(tmp_path / "clip.mp4")


def test_images_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((8, 8, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(images=tmp_path)
    frames = list(source)
    assert (source.total, source.live) == (3, False)
    assert [frame.name for frame in frames] == ["frame1.png", "frame2.png", "frame10.png"]
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2, 10]
    assert [frame.index for frame in frames] == [0, 1, 2]


def test_natural_order_of_names_with_and_without_numbers(tmp_path):
    names = ["1.jpg", "02.jpg", "2.jpg", "a.jpg", "a1.jpg", "a1b.jpg", "a10.jpg", "b.jpg"]
    assert [path.name for path in sorted((tmp_path / name for name in reversed(names)), key=natural_order)] == names


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_unreadable_image_is_named_after_the_good_ones(tmp_path, damage):
    picture = cv2.imencode(".png", figure()[0])[1].tobytes()
    (tmp_path / "1.png").write_bytes(picture)
    (tmp_path / "2.png").write_bytes({"cut": picture[:len(picture) // 3], "empty": b"", "text": b"hello"}[damage])
    frames = []
    with pytest.raises(BadInput, match="2.png cannot be decoded"):
        frames.extend(open_source(images=tmp_path))
    assert [frame.name for frame in frames] == ["1.png"]


def test_folders_without_images(tmp_path):
    with pytest.raises(BadInput, match="has no images"):
        open_source(images=tmp_path)
    with pytest.raises(BadInput, match="does not exist or is a file"):
        open_source(images=tmp_path / "gone")


@pytest.mark.parametrize(("url", "shown"), [
    ("rtsp://user:secret@camera.local:554/live?token=abc", "rtsp://camera.local:554"),
    ("http://host/clip.mp4", "http://host"),
    ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554"),
    ("rtsp://cam:554/user=admin&password=hunter2&channel=1&stream=0.sdp", "rtsp://cam:554"),
    ("http://host/video?user=admin&pwd=p@ss", "http://host"),
    ("rtsp://user:p@ss@host/live", "rtsp://host"),
    # Nobody knows where these passwords end, so that no host is shown either.
    ("rtsp://user:pa/ss@host/live", "rtsp://…"),
    ("rtsp://user:p#a?s/s@@host:554/live", "rtsp://…"),
    ("rtsp://user:12345/6@host/live", "rtsp://…"),
    ("rtsp://user:p@x#s@host/live", "rtsp://…"),
    ("http://[broken/live?key=secret", "http://[broken"),
])
def test_secrets_of_a_url_are_hidden(url, shown):
    assert hide_secrets(url) == shown


def test_url_that_does_not_open(capfd):
    with pytest.raises(BadInput, match="http://127.0.0.1:1 does not open") as caught:
        open_source(video="http://user:secret@127.0.0.1:1/clip.mp4?token=secret")
    assert "secret" not in str(caught.value)
    assert capfd.readouterr().err == ""


def send_file(path):
    def head(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(path.stat().st_size))
        handler.end_headers()

    def answer(handler):
        head(handler)
        handler.wfile.write(path.read_bytes())

    answer.head = head
    return answer


def test_file_on_a_server_loses_no_frame(tmp_path):
    path = index_first(write_clip(tmp_path / "clip.mp4", frames=30))
    with served(send_file(path)) as address:
        source = open_source(video=f"{address}/clip.mp4")
        assert (source.total, source.live) == (30, False)
        frames = []
        for frame in source:
            frames.append(frame.index)
            time.sleep(0.005)
        source.close()
    assert frames == list(range(30))


def test_a_file_without_duration_on_a_server_is_no_camera(tmp_path):
    """Pictures one after the other, as cameras send them, but with an end."""
    pictures = [cv2.imencode(".jpg", np.full((48, 64, 3), 8 * index, np.uint8))[1].tobytes() for index in range(30)]
    (tmp_path / "clip.mjpeg").write_bytes(b"".join(pictures))
    with served(send_file(tmp_path / "clip.mjpeg")) as address:
        source = open_source(video=f"{address.replace('//', '//user:p%40ss@')}/clip.mjpeg")
        assert (source.total, source.live) == (None, False)
        assert [frame.index for frame in source] == list(range(30))
        source.close()


@pytest.mark.parametrize(("headers", "is_file"), [
    ({"Content-Length": "1000"}, True),
    ({"Accept-Ranges": "bytes"}, True),
    ({"Accept-Ranges": "none"}, False),
    ({}, False),
    ({"Content-Length": "1000", "Content-Type": "multipart/x-mixed-replace; boundary=x"}, False),
    ({"Content-Length": "1000", "Content-Type": "application/vnd.apple.mpegurl"}, False),  # a list of a live stream
])
def test_what_a_server_says_of_a_file(headers, is_file):
    def head(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    def answer(handler):
        handler.send_error(404)

    answer.head = head
    with served(answer) as address:
        assert is_file_on_server(f"{address}/clip", 5) is is_file
    assert not is_file_on_server("http://127.0.0.1:1/clip", 5)


def test_live_stream_is_told_from_a_file_and_its_end_is_an_error():
    with served(send_camera(frames=40, fps=60)) as address:
        source = open_source(video=f"{address}/live")
        assert (source.total, source.live) == (None, True)
        frames = []
        with pytest.raises(BadInput, match=r"http://127.0.0.1:\d+ stopped after \d+ frames: check the camera"):
            frames.extend(source)
        source.close()
    assert len(frames) > 30
    assert frames[0].time == 0
    assert 0.3 < frames[-1].time < 5


def read_from_pipe(path, seconds=20):
    """What a process sees that opens stdin as a source, with the file's content piped in and the pipe left open."""
    script = ("import sys\nfrom runtime.frames import open_source\nsource = open_source(video='-')\n"
              "print(source.label, source.live, source.total)\n"
              "for frame in source: print(frame.index, round(frame.time, 2), frame.image.shape)")
    return subprocess.run([sys.executable, "-c", script], input=path.read_bytes(), capture_output=True, timeout=seconds,
                          cwd=ROOT)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_video_through_a_pipe_loses_no_frame(tmp_path):
    done = read_from_pipe(write_clip(tmp_path / "clip.mkv", frames=40, fps=10))
    assert done.returncode == 0, done.stderr
    first, *frames = done.stdout.decode().splitlines()
    assert first.startswith("stdin False")
    assert frames == [f"{index} {round(index / 10, 2)} (192, 320, 3)" for index in range(40)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
@pytest.mark.parametrize("content", [b"", b"no video " * 1000])
def test_a_pipe_without_video_says_so(tmp_path, content):
    (tmp_path / "garbage").write_bytes(content)
    done = read_from_pipe(tmp_path / "garbage")
    assert b"BadInput: what comes on stdin is no video" in done.stderr and done.stdout == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_pipe_whose_sender_waits_can_be_stopped(tmp_path):
    content = write_clip(tmp_path / "clip.mkv", frames=40).read_bytes()
    inner, outer = os.pipe()
    with open(inner, "rb") as file, open(outer, "wb", buffering=0) as sender:
        threading.Thread(target=sender.write, args=(content[:-2000],), daemon=True).start()
        source = PipedVideo(file)
        frames = iter(source)
        assert next(frames).index == 0
        stopping = threading.Timer(0.3, source.stop)
        stopping.start()
        assert 10 < len(list(frames)) < 40  # it would wait for the rest
        stopping.join()
        source.close()


def test_a_trimmed_file_ends_where_its_edit_list_says(tmp_path):
    """Phones trim by an edit list: the hidden frames are in the file and its count, and are no damage."""
    path = write_clip(tmp_path / "trimmed.mp4", frames=30, fps=10)
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 4
    scale_at = data.index(b"mdhd") + 16
    hidden = 5 * int.from_bytes(data[scale_at:scale_at + 4], "big") // 10
    data[start + 12:start + 16] = hidden.to_bytes(4, "big")
    path.write_bytes(data)
    assert 0 < len(list(open_source(video=path))) < 30
