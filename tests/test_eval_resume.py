"""Evaluations that are stopped and gone on with, or shared out to processes, end as one that did it in one go."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eval.predictions import ImagePoses, Journal, Predictions, json_parts, write_results
from eval.workers import worker_gpus
from runtime.errors import BadInput
from runtime.files import write_json
from runtime.gpus import gpu_numbers
from runtime.keypoints import Poses
from tests.coco_data import ROOT, read_metrics, run_command, run_main

# Stopped and gone on with


def without_times(out):
    """keypoints.json as bytes, and metrics.json but for times, the date and how many shared the work."""
    metrics = read_metrics(out)
    for key in ("ms_per_person", "detector_ms_per_frame", "date", "workers"):
        metrics["protocol"].pop(key, None)
    return (out / "keypoints.json").read_bytes(), json.dumps(metrics)


@pytest.fixture(scope="module")
def long_set(coco, tmp_path_factory):
    """The twelve images over and over under other ids, so that a run lasts, and what comes of it in one go."""
    folder = tmp_path_factory.mktemp("long")
    data = json.loads((coco / "annotations.json").read_text())
    images, people = data["images"], data["annotations"]
    data["images"] = [{**image, "id": image["id"] + 1000 * copy} for copy in range(60) for image in images]
    data["annotations"] = [{**person, "id": person["id"] + 1000 * copy, "image_id": person["image_id"] + 1000 * copy}
                           for copy in range(60) for person in people]
    (folder / "annotations.json").write_text(json.dumps(data))
    command = ["--engine", coco / "coco.onnx", "--annotations", folder / "annotations.json", "--images",
               coco / "images", "--flip-test"]
    done = run_command([*command, "--out", folder / "out"])
    assert done.returncode == 0, done.stderr
    return command, without_times(folder / "out")


def start(command, out):
    """The command as a process group of its own, in the middle of its work."""
    process = subprocess.Popen([sys.executable, "-m", "eval.coco", *map(str, command), "--out", str(out)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: process.poll() is not None or lines_of(out / "journal.jsonl") > 10)
    assert process.poll() is None, process.communicate()
    return process


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_killed_in_the_middle_of_a_line_and_gone_on_with(long_set, tmp_path):
    command, wanted = long_set
    process = start(command, tmp_path)
    process.kill()
    process.communicate()
    done = lines_of(tmp_path / "journal.jsonl") - 1
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"image_id": 1234, "boxes": ["<f4", [')
    again = run_command([*command, "--out", tmp_path, "--continue", "--workers", "2"])
    assert again.returncode == 0, again.stderr
    assert f"going on after {done} of 540 images" in again.stdout
    assert without_times(tmp_path) == wanted
    assert not (tmp_path / "journal.jsonl").exists()


def test_ctrl_c_ends_all_workers_and_the_run_goes_on_with_another_number(long_set, tmp_path):
    command, wanted = long_set
    process = start([*command, "--workers", 3], tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped by Ctrl-C" and "Traceback" not in errors
    wait_for(lambda: is_gone(process.pid))
    done = lines_of(tmp_path / "journal.jsonl") - 1
    assert f"of {done} images in {tmp_path}/keypoints.json; the same command with --continue goes on there" in out
    again = run_command([*command, "--out", tmp_path, "--continue"])
    assert again.returncode == 0, again.stderr
    assert without_times(tmp_path) == wanted


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in Linux's /proc")
def test_a_worker_that_is_killed_ends_the_run_and_keeps_the_journal(long_set, tmp_path):
    command, _ = long_set
    process = start([*command, "--workers", 2], tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: one of 2 workers was killed") and "Traceback" not in errors
    assert lines_of(tmp_path / "journal.jsonl") > 10
    wait_for(lambda: is_gone(process.pid))


# Of a small set with an image that cannot be read


@pytest.fixture
def stopped(coco, tmp_path, monkeypatch, capsys):
    """Options of a run that stopped at the seventh image, whose picture is good again."""
    images = tmp_path / "images"
    images.mkdir()
    for path in (coco / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    good = (images / "6.png").read_bytes()
    options = {"--engine": coco / "coco.onnx", "--annotations": coco / "annotations.json", "--images": images,
               "--out": tmp_path / "out"}
    (images / "6.png").write_bytes(b"not a picture")
    with pytest.raises(BadInput, match="6.png"):
        run_main(monkeypatch, *words(options))
    (images / "6.png").write_bytes(good)
    assert "kept 7 poses of 4 images" in capsys.readouterr().out
    return options


def words(options, *more):
    return [*(word for pair in options.items() for word in pair), *more]


def test_goes_on_after_an_image_that_was_repaired(coco, stopped, tmp_path, monkeypatch, capsys):
    run_main(monkeypatch, *words(stopped, "--continue"))
    assert "going on after 4 of 9 images" in capsys.readouterr().out
    run_main(monkeypatch, *words({**stopped, "--out": tmp_path / "other"}, "--continue"))
    assert f"nothing to continue in {tmp_path}/other: starting from the beginning" in capsys.readouterr().out
    assert without_times(tmp_path / "out") == without_times(tmp_path / "other")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"keypoints.json", "metrics.json"}


def test_a_journal_is_replaced_without_continue_and_that_is_said(stopped, tmp_path, monkeypatch, capsys):
    run_main(monkeypatch, *words(stopped))
    out = capsys.readouterr().out
    assert f"replacing {tmp_path}/out/journal.jsonl of a run that stopped after 4 images; --continue would have" in out
    assert "going on" not in out
    assert read_metrics(tmp_path / "out")["protocol"]["poses"] == 18


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--flip-test"], "flip_test: False / True"),
        (["--decoding", "plain"], "decoding: dark / plain"),
        (["--limit", "8"], "images: 12 / 8"),
        (["--threads", "2"], "threads: 1 / 2"),
        (["--oks-nms", "0.9"], "oks_nms: None / 0.9"),
    ],
)
def test_other_options_are_refused_by_name(stopped, tmp_path, monkeypatch, more, message):
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    with pytest.raises(BadInput, match=f"journal.jsonl is of a run that measured something else .*{message}"):
        run_main(monkeypatch, *words(stopped, "--continue", *more))
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == before


def test_other_files_are_refused_and_other_places_of_the_same_are_not(coco, stopped, tmp_path, monkeypatch):
    changed = tmp_path / "changed.json"
    changed.write_text((coco / "annotations.json").read_text() + "\n")
    with pytest.raises(BadInput, match="annotations_sha256: [0-9a-f]{12} / [0-9a-f]{12}"):
        run_main(monkeypatch, *words({**stopped, "--annotations": changed}, "--continue"))
    found = tmp_path / "found.json"
    found.write_text(json.dumps([{"image_id": 101, "category_id": 1, "bbox": [1, 2, 60, 90], "score": 0.9}]))
    with pytest.raises(BadInput, match="boxes: ground truth / .*found.json; .*oks_nms: None / 0.9"):
        run_main(monkeypatch, *words({**stopped, "--detections": found}, "--continue"))
    picture = tmp_path / "images" / "1.png"
    good = picture.read_bytes()
    picture.write_bytes(good[:-1] + b"!")  # as large as before
    with pytest.raises(BadInput, match=r"1.png in .*images is not the picture that was evaluated \(SHA-256 "):
        run_main(monkeypatch, *words(stopped, "--continue"))
    picture.write_bytes(good)
    engine = tmp_path / "elsewhere.onnx"
    engine.write_bytes((coco / "coco.onnx").read_bytes())
    run_main(monkeypatch, *words({**stopped, "--engine": engine}, "--continue"))
    assert read_metrics(tmp_path / "out")["protocol"]["engine"] == str(engine)


def test_a_finished_run_is_left_as_it_is(stopped, tmp_path, monkeypatch, capsys):
    run_main(monkeypatch, *words(stopped, "--continue"))
    out = tmp_path / "out"
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    capsys.readouterr()
    assert not run_main(monkeypatch, *words(stopped, "--continue"))  # exit code 0
    date = read_metrics(out)["protocol"]["date"]
    assert capsys.readouterr().out == (f"the run in {out} was finished on {date}, with 18 poses: nothing to do; leave "
                                       "--continue out to measure anew\n")
    with pytest.raises(BadInput, match="metrics.json is of a run that measured something else .*flip_test: False / "):
        run_main(monkeypatch, *words(stopped, "--continue", "--flip-test"))
    picture = tmp_path / "images" / "7.png"
    good = picture.read_bytes()
    picture.write_bytes(good + b"more")
    with pytest.raises(BadInput, match="images_sha256: [0-9a-f]{12} / [0-9a-f]{12}"):
        run_main(monkeypatch, *words(stopped, "--continue"))
    picture.write_bytes(good)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == files
    (out / "metrics.json").write_text("[]")
    with pytest.raises(BadInput, match="metrics.json is no metrics.json of an evaluation"):
        run_main(monkeypatch, *words(stopped, "--continue"))
    (out / "metrics.json").unlink()  # as of a run that was stopped long ago, and whose journal somebody removed
    run_main(monkeypatch, *words(stopped, "--continue"))
    assert f"nothing to continue in {out}: starting from the beginning" in capsys.readouterr().out
    assert without_times(out)[0] == files[out / "keypoints.json"][0]


def test_a_damaged_journal_is_named(stopped, tmp_path, monkeypatch):
    journal = tmp_path / "out" / "journal.jsonl"
    whole = journal.read_bytes()
    for damaged, message in ((whole.replace(b'"scores"', b'"scared"', 1), "journal.jsonl: line 2 is damaged"),
                             (b"a shopping list\n" + whole, "journal.jsonl is no journal of an evaluation"),
                             (b"5\n" + whole, "journal.jsonl is no journal of an evaluation")):
        journal.write_bytes(damaged)
        with pytest.raises(BadInput, match=message):
            run_main(monkeypatch, *words(stopped, "--continue"))


# Shared out


def test_an_image_that_does_not_decode_ends_workers_as_it_ends_one(stopped, tmp_path):
    (tmp_path / "images" / "6.png").write_bytes(b"not a picture")
    done = run_command(words({**stopped, "--out": tmp_path / "shared"}, "--workers", "3"))
    assert done.returncode == 2
    assert "6.png cannot be decoded" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert "kept 7 poses of 4 images" in done.stdout
    one, three = ((tmp_path / name / "keypoints.json").read_bytes() for name in ("out", "shared"))
    assert one == three


def test_a_worker_that_fails_ends_the_run_in_one_line(coco, tmp_path):
    """An engine that takes one crop at a time, though its file says any number: two make ONNX Runtime fail."""
    model = onnx.load(coco / "coco.onnx")
    model.graph.node[-1].output[0] = "any"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 17, 32, 24]), "one"))
    model.graph.node.append(helper.make_node("Reshape", ["any", "one"], ["heatmaps"]))
    onnx.save(model, tmp_path / "one.onnx")
    done = run_command(["--engine", tmp_path / "one.onnx", "--annotations", coco / "annotations.json", "--images",
                        coco / "images", "--out", tmp_path / "out", "--workers", "2"])
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "error: " in line]  # ONNX Runtime logs its own in colour
    assert "error: a worker failed at 2.png: " in line and line.endswith("--continue goes on where this ended")
    assert "Traceback" not in done.stderr
    assert "kept 1 poses of 1 images" in done.stdout
    assert lines_of(tmp_path / "out" / "journal.jsonl") == 2


@pytest.mark.parametrize(
    ("gpus", "visible", "wanted"),
    [
        (None, None, []),
        ("cpu", None, []),
        ("1", None, []),  # one worker, this process
        ("0-1", None, ["0", "1"]),
        ("0,2-3", "", ["0", "2", "3"]),
        ("0-1", "2,3", ["2", "3"]),
        ("1,0", "GPU-8932f937,GPU-1b2c", ["GPU-1b2c", "GPU-8932f937"]),
    ],
)
def test_each_gpu_is_one_workers(gpus, visible, wanted):
    assert worker_gpus(gpus, visible) == wanted


def test_gpus_that_are_none(tmp_path, monkeypatch):
    for text, message in (("first", "are neither numbers such as 0,1 or 0-1 nor cpu"), ("0,0-1", "name one twice"),
                          ("1-0", "name none"), ("0,", "are neither")):
        with pytest.raises(BadInput, match=message):
            gpu_numbers(text)
    with pytest.raises(BadInput, match="--gpu 0-1 gives each GPU one worker: leave --workers 3 out"):
        run_main(monkeypatch, "--checkpoint", tmp_path, "--gpu", "0-1", "--workers", 3)


@pytest.mark.parametrize("shape", [(3, 17), (0, 17), (2, 16)])
def test_what_a_journal_holds_comes_back_bit_for_bit(tmp_path, shape):
    generator = np.random.default_rng(0)
    poses = Poses(generator.normal(0, 100, (shape[0], 4)).astype(np.float32),
                  generator.random(shape[0]).astype(np.float32), generator.normal(0, 1, (*shape, 3)).astype(np.float32))
    image = ImagePoses("a/1", 7, poses, generator.random(shape[0]), 2, 1, 0.125, 0.1, "9" * 64)
    journal = Journal(tmp_path / "journal.jsonl", {"flip_test": True})
    journal.append(image)
    journal.append(image)
    for kept in list(Journal(tmp_path / "journal.jsonl", {"flip_test": True}, resume=True)):
        assert [(name, value) for name, value in vars(kept).items() if name not in ("poses", "scores")] == [
            (name, value) for name, value in vars(image).items() if name not in ("poses", "scores")]
        for there, here in ((kept.scores, image.scores), *((getattr(kept.poses, name), getattr(poses, name))
                                                           for name in ("boxes", "box_scores", "keypoints"))):
            assert there.dtype == here.dtype
            np.testing.assert_array_equal(there, here)
    predictions = Predictions(journal)
    assert (predictions.images, predictions.persons, predictions.suppressed) == (2, 2 * shape[0], 4)
    assert predictions.images_sha256 == hashlib.sha256(b"9" * 128).hexdigest()
    write_results(tmp_path / "keypoints.json", predictions)
    write_json(tmp_path / "plain.json", predictions.results)
    assert (tmp_path / "keypoints.json").read_bytes() == (tmp_path / "plain.json").read_bytes()
    assert "".join(json_parts(iter([]))) == "[]"
