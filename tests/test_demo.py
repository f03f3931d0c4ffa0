"""The demo against a real server on the loopback, and its measure against poses of known quality."""

import hashlib
import json
import socket
from functools import partial

import cv2
import numpy as np
import pytest

from runtime import demo
from runtime.rate import rate, similarity
from runtime.walkers import write_clip
from tests.test_download import serve

CONTENT = bytes(range(256)) * 2000


@pytest.fixture
def refused(monkeypatch):
    """A URL at which nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/clip.mp4"


def test_the_footage_is_fetched_once_and_credited(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "FOOTAGE_BYTES", len(CONTENT))
    monkeypatch.setattr(demo, "FOOTAGE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    with serve({"/clip.mp4": CONTENT}) as server:
        monkeypatch.setattr(demo, "FOOTAGE_URL", f"{server.url}/clip.mp4")
        for _ in range(2):
            clip, truth = demo.choose_clip(tmp_path / "out")
            assert clip.read_bytes() == CONTENT and clip.parent == tmp_path / "attention-pose" and truth is None
            assert demo.FOOTAGE_CREDIT in capsys.readouterr().out
    assert len(server.log) == 1


def test_a_cache_that_cannot_be_written_is_told_and_people_are_rendered(refused, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(demo, "FOOTAGE_URL", refused)
    monkeypatch.setattr(demo, "write_clip", partial(write_clip, frames=2, size=(320, 240)))
    clip, truth = demo.choose_clip(tmp_path)
    assert "set XDG_CACHE_HOME to another" in capsys.readouterr().out
    assert clip.is_file() and truth.is_file()


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
        ratings[name] = rate(lines, truth)
    exact = ratings["exact"]
    assert exact.persons == exact.found > 0 and exact.extra == 0 and exact.oks == pytest.approx(1.0, abs=1e-4)
    assert exact.oks > ratings["near"].oks > ratings["far"].oks
    assert exact.pck == 1 and exact.pck >= ratings["near"].pck > ratings["far"].pck
    assert ratings["extra"].extra == 3 and ratings["extra"].found == exact.found
    lines.write_text("\n".join(json.dumps({"frame": frame, "persons": []}) for frame in range(3)))
    nobody = rate(lines, truth)
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
    assert similarity(moved, annotation) == pytest.approx(similarities[0, column], abs=1e-6)
