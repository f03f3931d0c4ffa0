"""Accuracy against speed: real engines in processes of their own, on pictures of coloured dots."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eval import bench, bench_report
from eval.latency import (
    Combination,
    EngineProcess,
    Measured,
    energy_obstacle,
    measure,
    memory_obstacle,
    read_energy,
    statistics,
    time_ratio,
    used_energy,
)
from eval.scoring import METRICS
from runtime.errors import BadInput
from tests import engines
from tests.coco_data import ROOT, read_metrics, run_main, write_walker_data


def heavier(path, source, convolutions=2):
    """An engine with the same outputs as `source` for tens of times the work: convolutions that add 0 to it."""
    model = onnx.load(source)
    graph = model.graph
    [pool] = [node for node in graph.node if node.output[0] == "heatmaps"]
    pool.input[0] = "sum"
    channels = 17
    nodes, last = [], "alike"
    for number in range(convolutions):
        weights = np.zeros((channels, channels, 3, 3), np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f"weights{number}"))
        nodes.append(helper.make_node("Conv", [last, f"weights{number}"], [f"deep{number}"], pads=[1, 1, 1, 1]))
        last = f"deep{number}"
    nodes.append(helper.make_node("Add", ["alike", last], ["sum"]))
    place = list(graph.node).index(pool)
    for node in reversed(nodes):
        graph.node.insert(place, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run_bench(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.bench", *map(str, arguments)])
    bench.main()


def data_of(coco):
    return ["--annotations", coco / "annotations.json", "--images", coco / "images"]


@pytest.fixture(scope="module")
def measured(coco, person_path, tmp_path_factory):
    """What one run of the command leaves: its folder, its terminal, its engines."""
    out = tmp_path_factory.mktemp("bench")
    paths = {"light": coco / "coco.onnx", "heavy": heavier(out / "heavy.onnx", coco / "coco.onnx"),
             "person": person_path}
    command = [*paths.values(), *data_of(coco), "--batch", "1,2", "--backend", "onnxruntime", "--seconds", "0.25",
               "--out", out / "new" / "out"]
    done = subprocess.run([sys.executable, "-m", "eval.bench", *map(str, command)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out / "new" / "out", done.stdout, {name: str(path) for name, path in paths.items()}


def rows_of(measured):
    out, _, paths = measured
    names = {path: name for name, path in paths.items()}
    return {(names[row["engine"]], row["batch"]): row for row in json.loads((out / "bench.json").read_text())["rows"]}


def test_a_row_for_every_combination(measured):
    rows = rows_of(measured)
    assert list(rows) == [("light", 1), ("light", 2), ("heavy", 1), ("heavy", 2), ("person", 1)]
    for (_, batch), row in rows.items():
        assert (row["backend"], row["threads"], row["rounds"]) == ("onnxruntime", 1, 5)
        assert row["runs"] >= 5
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["ms_per_item"] == pytest.approx(row["p50_ms"] / batch)
        assert 0 < row["items_per_second"] <= 1000 * batch * row["runs"] / row["p50_ms"]
        assert row["cold_ms"] == pytest.approx(row["open_ms"] + row["first_run_ms"])
        assert row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
        assert (row["memory_mb"] is None) == (memory_obstacle() is not None)
        assert (row["joules_per_item"] is None) == (energy_obstacle() is not None)
    assert rows["light", 1]["ratio"] == rows["light", 2]["ratio"] == rows["person", 1]["ratio"] == 1


def test_the_heavier_engine_is_slower_and_as_accurate(measured):
    rows = rows_of(measured)
    for batch in (1, 2):
        assert rows["heavy", batch]["ratio"] > 2
        assert rows["heavy", batch]["p50_ms"] > 2 * rows["light", batch]["p50_ms"]
        assert rows["heavy", batch]["AP"] == rows["light", batch]["AP"]


def test_accuracy_is_that_of_eval_coco(measured, coco, monkeypatch, tmp_path):
    rows, (_, _, paths) = rows_of(measured), measured
    run_main(monkeypatch, "--engine", paths["light"], "--detector", paths["person"], *data_of(coco), "--out", tmp_path)
    found = read_metrics(tmp_path)["protocol"]["detector_recall"]
    assert 0 < found < 1
    assert rows["person", 1]["found"] == found
    run_main(monkeypatch, "--engine", paths["light"], *data_of(coco), "--out", tmp_path)
    metrics = read_metrics(tmp_path)
    assert 0.05 < metrics["AP"] < 1
    for batch in (1, 2):
        assert [rows["light", batch][name] for name in METRICS] == [metrics[name] for name in METRICS]


def test_protocol_table_and_picture(measured):
    out, printed, paths = measured
    protocol = json.loads((out / "bench.json").read_text())["protocol"]
    assert [engine["path"] for engine in protocol["engines"]] == list(paths.values())
    assert all(len(engine["sha256"]) == 64 for engine in protocol["engines"])
    assert (protocol["rounds"], protocol["seconds"], protocol["images"], protocol["persons"]) == (5, 0.25, 12, 18)
    assert protocol["cores"] == os.cpu_count()
    assert "onnxruntime" in protocol["versions"]
    assert f"{paths['person']} takes a batch of 1 only: measured with that, not with 2" in printed
    row = rows_of(measured)["heavy", 2]
    [line] = [line for line in printed.splitlines() if re.match(rf"{paths['heavy']} +onnxruntime +1 +2 ", line)]
    assert f"{row['p99_ms']:.2f}" in line.split()
    assert line.endswith(f"{row['AP']:.3f}")
    assert (f"no J: {energy_obstacle()}" in printed) == (energy_obstacle() is not None)
    picture = cv2.imread(str(out / "pareto.png"))
    assert picture is not None
    assert picture.shape[1] > 1.5 * picture.shape[0] > 600  # two panels
    assert picture.std() > 5  # and something in them


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_ctrl_c_keeps_what_was_measured(coco, tmp_path):
    """As in a terminal, where Ctrl-C goes to the command and to its processes alike."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows and columns: a bar needs some
    command = [coco / "coco.onnx", *data_of(coco), "--threads", "1,2", "--seconds", "10", "--out", tmp_path]
    process = subprocess.Popen([sys.executable, "-m", "eval.bench", *map(str, command)], cwd=ROOT, stderr=theirs,
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    os.close(theirs)
    shown = ""
    while " 3/12 " not in shown:  # both were opened, and one had its first turn
        shown += os.read(ours, 4096).decode(errors="replace")
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"kept 2 rows in {tmp_path}/bench.json" in printed
    first, second = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (first["threads"], first["rounds"], second["threads"], second["rounds"]) == (1, 1, 2, 0)
    assert first["p50_ms"] > 0
    assert first["AP"] is second["p50_ms"] is None
    assert second["cold_ms"] > 0
    assert not (tmp_path / "pareto.png").exists()
    left = b""
    while chunk := _read_rest(ours):
        left += chunk
    os.close(ours)
    assert "Traceback" not in shown + left.decode(errors="replace")


def _read_rest(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody is at the other end any more
        return b""


def test_a_file_that_changes_is_refused(coco, tmp_path):
    path = tmp_path / "pose.onnx"
    path.write_bytes((coco / "coco.onnx").read_bytes())
    contestant = bench.open_contestant(path, None, [1])
    report: dict = {"protocol": {}, "rows": []}
    bench.keep(tmp_path, [contestant], report)
    assert (tmp_path / "bench.json").is_file()
    (tmp_path / "bench.json").unlink()
    heavier(path, coco / "coco.onnx")
    with pytest.raises(BadInput, match=rf"{path} changed while it was measured .* measure again"):
        bench.keep(tmp_path, [contestant], report)
    path.unlink()
    with pytest.raises(BadInput, match="gone"):
        bench.keep(tmp_path, [contestant], report)
    assert not (tmp_path / "bench.json").exists()


def test_bad_input_ends_before_anything_is_measured(coco, pose_path, tmp_path, monkeypatch):
    good, data, out = coco / "coco.onnx", data_of(coco), ["--out", tmp_path / "out"]
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "no.onnx").write_text("no engine")
    for arguments, message in (
        ([tmp_path / "none.onnx", *data, *out], "none.onnx does not exist"),
        ([tmp_path / "no.onnx", *data, *out], "no.onnx is not an engine"),
        ([good, "--annotations", coco / "annotations.json", *out], "belong together"),
        ([good, "--images", coco / "images", *out], "belong together"),
        ([good, *data, "--backend", "abacus", *out], "abacus"),
        ([pose_path, *data, *out], "finds 3 keypoints"),
        ([good, "--annotations", coco / "annotations.json", "--images", tmp_path, *out], "images are not in"),
        ([good, *data, "--out", tmp_path / "file"], f"cannot write {tmp_path}/file"),
    ):
        with pytest.raises(BadInput, match=message):
            run_bench(monkeypatch, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "message"), [
    (["--threads", "0"], "0 is less than 1"),
    (["--threads", "1,-2"], "-2 is less than 1"),
    (["--batch", "one"], "'one' is no list of whole numbers such as 1,8"),
    (["--seconds", "0"], "0 is no number above 0"),
])
def test_bad_options(monkeypatch, capsys, option, message):
    with pytest.raises(SystemExit) as stopped:
        run_bench(monkeypatch, *option)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_engine_that_went_away_ends_its_process_with_one_line(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((1, 128, 96, 3), np.uint8))
    measured: list = []
    with pytest.raises(BadInput, match="gone.onnx does not exist"):
        measure([Combination(tmp_path / "gone.onnx", "onnxruntime", 1, 1, tmp_path / "inputs.npy")], 1, measured)
    assert not measured


def test_a_process_that_is_killed_is_named(coco, tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((1, 128, 96, 3), np.uint8))
    combination = Combination(coco / "coco.onnx", "onnxruntime", 1, 3, tmp_path / "inputs.npy")
    with closing(EngineProcess(combination)) as process:
        assert min(process.cold()) > 0
        times, _, memory = process.turn(0)
        assert len(times) == 1
        assert memory is None or memory > 0
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(BadInput, match=r"coco.onnx \(onnxruntime, threads 1, batch 3\) ended with exit code -9"):
            process.turn(1)


@pytest.mark.parametrize(("points", "front"), [
    ([(1, 0.5)], [0]),
    ([(2, 0.5), (1, 0.4), (3, 0.6)], [1, 0, 2]),        # each faster or better than each other
    ([(1, 0.5), (2, 0.5), (2, 0.4)], [0]),              # as good but slower, as slow but worse
    ([(2, 0.5), (1, 0.5), (1, 0.3), (4, 0.9)], [1, 3]),
    ([(1, 0.5), (1, 0.5), (3, 0.2)], [0, 1]),           # two alike beat neither
    ([], []),
])
def test_pareto_front(points, front):
    assert bench_report.pareto_front(points) == front


def combination(batch=1):
    return Combination(Path("pose.onnx"), "onnxruntime", 1, batch, Path("inputs.npy"))


def test_statistics_of_known_times():
    times = [number / 1000 for number in range(1, 102)]  # 1 … 101 ms: the median is 51
    figures = statistics(Measured(combination(batch=4), 0.2, 0.05, [times[:50], times[50:]], [3.0, 5.08], 7_000_000))
    assert figures == pytest.approx({
        "open_ms": 200, "first_run_ms": 50, "cold_ms": 250, "rounds": 2, "runs": 101, "p50_ms": 51, "p90_ms": 91,
        "p99_ms": 100, "ms_per_item": 12.75, "items_per_second": 4 / 0.051, "memory_mb": 7,
        "joules_per_item": 8.08 / 404})


def test_ratio_is_taken_round_by_round():
    """A machine that turns four times as slow after the first round does not touch it."""
    ours = Measured(combination(), 0, 0, [[2, 2, 9], [8, 8], [12, 12]])
    first = Measured(combination(), 0, 0, [[1, 1], [4, 4, 4], [4]])
    assert time_ratio(ours, first) == (2, 2, 3)
    assert time_ratio(Measured(combination(), 0, 0), first) is None


def test_energy_of_whole_processors_through_an_overflow(tmp_path):
    for folder, name, joules in (("intel-rapl:0", "package-0", 90), ("intel-rapl:0:0", "core", 30),
                                 ("intel-rapl:1", "package-1", 5), ("intel-rapl:2", "psys", 200)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "energy_uj").write_text(f"{joules * 1_000_000}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("99999999\n")
    before = read_energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # 12 J on, past 100 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("6500000\n")
    assert energy_obstacle(tmp_path) is None
    assert used_energy(before, read_energy(tmp_path)) == pytest.approx(13.5)
    assert "no energy counter" in energy_obstacle(tmp_path / "intel-rapl:0")
    assert read_energy(tmp_path / "intel-rapl:0") is None


@pytest.mark.skipif(memory_obstacle() is not None, reason="the system does not tell")
def test_memory_is_the_peak_since_the_start_of_counting():
    script = """
from eval.latency import _memory, _start_counting_memory
def take(megabytes):
    bytearray(megabytes << 20)[::1024] = bytes(megabytes << 10)
take(200)
before = _start_counting_memory()
take(50)
print(_memory("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 45 << 20 < int(done.stdout) < 60 << 20  # Linux counts by batches of pages


def test_a_detector_alone_and_a_batch_that_is_not_in_the_picture(tmp_path, person_path, monkeypatch, capsys):
    """Rows of a person engine whose graph lacks NMS; people are found, and the picture needs batch 1."""
    raw = engines.person_engine(tmp_path / "raw.onnx", kind="raw")
    data = write_walker_data(tmp_path / "data", ["person", "person", "unseen", "false"])
    run_bench(monkeypatch, raw, person_path, *data, "--batch", "3", "--seconds", "0.1")
    rows = json.loads((tmp_path / "data" / "out" / "bench.json").read_text())["rows"]
    assert [(row["batch"], row["found"]) for row in rows] == [(1, pytest.approx(2 / 3))] * 2
    assert 0 < rows[0]["AP"] <= rows[0]["AP50"] <= 1  # of its boxes
    assert capsys.readouterr().out.count("takes a batch of 1 only") == 2
