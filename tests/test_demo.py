"""The demo against real servers on the loopback, and its measure against poses of known quality."""

import hashlib
import json
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from runtime import demo
from runtime.errors import BadInput
from runtime.walkers import write_clip

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.path == "/missing.mp4":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/silent.mp4":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/half.mp4":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
        elif self.path == "/endless.mp4":
            self.wfile.write(CONTENT * 2)
        elif self.path == "/silent.mp4":
            self.wfile.write(CONTENT[:1000])
            self.server.answered.wait(10)
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.answered = 0, threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.answered.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def refused(monkeypatch):
    """A URL at which nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/clip.mp4"


def test_a_download_is_kept_and_then_taken_without_network(server, tmp_path):
    folder = tmp_path / "new" / "cache"
    path = demo.fetch(f"{server.url}/clip.mp4", SHA256, len(CONTENT), folder)
    assert path.read_bytes() == CONTENT and list(folder.iterdir()) == [path]
    server.shutdown()
    server.server_close()
    assert demo.fetch(f"{server.url}/clip.mp4", SHA256, len(CONTENT), folder) == path
    assert server.requests == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(CONTENT[:100])
    path = demo.fetch(f"{server.url}/clip.mp4", SHA256, len(CONTENT), tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "sha256", "said"), [
    ("clip.mp4", "0" * 64, "not the file expected"), ("missing.mp4", SHA256, "404 Not Found"),
    ("half.mp4", SHA256, f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
    ("silent.mp4", SHA256, "broke off after"), ("endless.mp4", "0" * 64, "not the file expected"),
])
def test_a_bad_download_is_told_in_one_line_and_leaves_nothing(server, tmp_path, monkeypatch, name, sha256, said):
    monkeypatch.setattr(demo, "TIMEOUT", 0.5)
    with pytest.raises(BadInput, match=said) as caught:
        demo.fetch(f"{server.url}/{name}", sha256, len(CONTENT), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_folder_are_told(refused, tmp_path):
    with pytest.raises(BadInput, match="cannot be reached: .*refused"):
        demo.fetch(refused, SHA256, len(CONTENT), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="set XDG_CACHE_HOME"):
        demo.fetch(refused, SHA256, len(CONTENT), tmp_path / "file" / "cache")


def test_without_network_people_are_rendered_and_the_poses_are_measured(refused, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "FOOTAGE_URL", refused)
    monkeypatch.setattr(demo, "write_clip", partial(write_clip, frames=6, size=(320, 240)))
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path / "demo.mp4"), "--jsonl", str(tmp_path / "d.jsonl")])
    assert not demo.main()
    printed = capsys.readouterr().out
    assert "no public footage:" in printed and "refused" in printed and "against the rendered truth:" in printed
    assert cv2.VideoCapture(str(tmp_path / "demo.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "walkers.mp4").is_file() and (tmp_path / "walkers.json").is_file()


def test_own_footage_needs_no_network(refused, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FOOTAGE_URL", refused)
    write_clip(tmp_path / "own.mp4", tmp_path / "own.json", frames=3, size=(320, 240))
    monkeypatch.setattr("sys.argv", ["demo", "--video", str(tmp_path / "own.mp4"), "--out", str(tmp_path / "o.mp4"),
                                     "--jsonl", str(tmp_path / "o.jsonl")])
    assert not demo.main()
    assert "no public footage" not in capsys.readouterr().out
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    write_clip(folder / "clip.mp4", folder / "truth.json", frames=3, size=(320, 240))
    return folder / "truth.json"


def poses_of(truth, shift=0.0, extra=False):
    """JSON lines with the truth's own poses, all keypoints moved to the right by `shift` pixels."""
    dataset, lines = json.loads(truth.read_text()), []
    for image in dataset["images"]:
        persons = []
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = annotation["bbox"]
                points = np.reshape(annotation["keypoints"], (-1, 3)) + (shift, 0, 0)
                persons.append({"box": [left, top, left + width, top + height], "keypoints": points.tolist()})
        persons += [{"box": [0, 0, 9, 9], "keypoints": [[0, 0, 1]] * 17}] if extra else []
        lines.append(json.dumps({"frame": image["id"] - 1, "persons": persons}))
    return "\n".join(lines)


def test_exact_poses_rate_1_and_worse_ones_less(truth, tmp_path):
    lines = tmp_path / "poses.jsonl"
    ratings = {}
    for name, options in {"exact": {}, "near": {"shift": 2.0}, "far": {"shift": 9.0}, "extra": {"extra": True}}.items():
        lines.write_text(poses_of(truth, **options))
        ratings[name] = demo.rate(lines, truth)
    exact = ratings["exact"]
    assert exact.persons == exact.found > 0 and exact.extra == 0 and exact.oks == pytest.approx(1.0, abs=1e-4)
    assert exact.oks > ratings["near"].oks > ratings["far"].oks
    assert exact.pck == 1 and exact.pck >= ratings["near"].pck > ratings["far"].pck
    assert ratings["extra"].extra == 3 and ratings["extra"].found == exact.found
    lines.write_text("\n".join(json.dumps({"frame": frame, "persons": []}) for frame in range(3)))
    nobody = demo.rate(lines, truth)
    assert (nobody.found, nobody.persons) == (0, exact.persons) and np.isnan(nobody.oks)


def test_similarity_agrees_with_pycocotools(truth):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    dataset = coco.COCO(str(truth))
    annotation = next(iter(dataset.anns.values()))
    moved = (np.reshape(annotation["keypoints"], (-1, 3)) + np.random.default_rng(0).normal(0, 3, (17, 3))).tolist()
    result = {"image_id": annotation["image_id"], "category_id": 1, "score": 1.0,
              "keypoints": np.ravel(moved).tolist()}
    evaluation = cocoeval.COCOeval(dataset, dataset.loadRes([result]), "keypoints")
    evaluation.evaluate()
    similarities = evaluation.ious[annotation["image_id"], 1]
    column = [a["id"] for a in dataset.imgToAnns[annotation["image_id"]]].index(annotation["id"])
    assert demo.similarity(moved, annotation) == pytest.approx(similarities[0, column], abs=1e-6)
