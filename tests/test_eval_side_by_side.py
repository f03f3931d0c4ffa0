"""Runs beside each other, of engines that differ in precision only: the command's columns, the page, and the stamp."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval.bootstrap import differences
from eval.compare import annotations_of, read_run
from eval.precision import precision_of
from eval.side_by_side import check_alike, column_names
from runtime.errors import BadInput
from runtime.sidecar import Machine, Sidecar, write_sidecar
from tests.coco_data import ROOT, read_metrics, run_main


def command(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)


def half_engine(source, path):
    """The engine with its weights as float16, computing in float16."""
    model = onnx.load(source)
    for constant in model.graph.initializer:
        if constant.name in ("mix", "bias"):
            values = numpy_helper.to_array(constant).astype(np.float16)
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT16
    model.graph.node[-1].output[0] = "half"
    model.graph.node.append(helper.make_node("Cast", ["half"], ["heatmaps"], to=TensorProto.FLOAT))
    onnx.save(model, path)
    return path


def int8_engine(source, path):
    """The engine with QDQ round its weights, in steps so coarse that poses move."""
    model = onnx.load(source)
    nodes, graph = list(model.graph.node), model.graph
    weights = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    step = np.float32(np.abs(weights["mix"]).max() / 5)
    graph.initializer.remove(next(constant for constant in graph.initializer if constant.name == "mix"))
    graph.initializer.extend([
        numpy_helper.from_array(np.rint(weights["mix"] / step).astype(np.int8), "rounded"),
        numpy_helper.from_array(step, "step"), numpy_helper.from_array(np.int8(0), "zero")])
    del graph.node[:]
    graph.node.extend([helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["mix"]), *nodes])
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def three_runs(coco, tmp_path_factory):
    """eval.coco of the same engine in three precisions; no metadata say which is which."""
    folder = tmp_path_factory.mktemp("precisions")
    engines = [coco / "coco.onnx", half_engine(coco / "coco.onnx", folder / "half.onnx"),
               int8_engine(coco / "coco.onnx", folder / "int8.onnx")]
    with pytest.MonkeyPatch.context() as patch:
        for number, engine in enumerate(engines):
            run_main(patch, "--engine", engine, "--annotations", coco / "annotations.json", "--images",
                     coco / "images", "--out", folder / str(number))
    return [folder / str(number) for number in range(3)]


def test_stamp_tells_the_precision_of_the_graph(three_runs):
    protocols = [read_metrics(run)["protocol"] for run in three_runs]
    assert [protocol["precision"] for protocol in protocols] == ["float32", "float16", "int8"]
    assert protocols[1]["weights"] == {"float16": 17 * 3 + 17}
    assert protocols[2]["weights"] == {"float32": 17 + 1, "int8": 17 * 3 + 1}
    assert check_alike([read_run(run) for run in three_runs]) == []


def test_precision_of_other_files(tmp_path, coco):
    machine = Machine("TensorRT", "10.16.1.11", "a GPU", "8.6")
    for said, precision in (("fp16", "float16"), ("fp32", "float32"), ("int8", "int8")):
        write_sidecar(tmp_path / "engine.trt", Sidecar(machine, "a" * 64, "pose.onnx", "b" * 64, said, {}, {}, "make"))
        assert precision_of(tmp_path / "engine.trt") == (precision, {})
    assert precision_of(tmp_path / "engine.tflite") == ("unknown", {})
    model = onnx.load(coco / "coco.onnx")
    helper.set_model_props(model, {"precision": "int8"})  # a lie
    onnx.save(model, tmp_path / "coco.onnx")
    assert precision_of(tmp_path / "coco.onnx")[0] == "float32"
    bundled = ROOT / "models"
    names = ("pose.onnx", "pose.int8.onnx", "person.onnx", "person.int8.onnx")
    assert [precision_of(bundled / name)[0] for name in names] == ["float32", "int8", "float32", "int8"]


def test_columns_and_differences_are_those_of_compare(three_runs, coco):
    done = command("eval.errors", *three_runs, "--resamples", 100)
    assert done.returncode == 0, done.stderr
    content = json.loads((three_runs[0] / "side_by_side.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["float32", "float16", "int8"]
    runs = [read_run(folder) for folder in three_runs]
    annotations = annotations_of(runs[0])
    assert content["runs"][0]["differences"] is None
    for run, column in zip(runs[1:], content["runs"][1:], strict=True):
        wanted = differences(runs[0].results, run.results, annotations, resamples=100)
        for name, interval in column["differences"].items():
            assert interval == pytest.approx(vars(wanted[name]), abs=1e-12)
            assert interval["value"] == pytest.approx(run.metrics[name] - runs[0].metrics[name], abs=1e-9)
    drop = content["runs"][2]["differences"]["AP"]
    assert drop["high"] < 0, "so coarse that it is beyond chance"
    lines = done.stdout.splitlines()
    [heads] = [line for line in lines if line.startswith("ten numbers")]
    assert heads.split()[2:] == ["float32", "float16", "int8"]
    [ap] = [line for line in lines if line.startswith("  AP ")]
    assert f"{runs[0].metrics['AP']:.3f}" in ap
    assert f"{runs[2].metrics['AP']:.3f} {drop['value']:+.3f} [{drop['low']:+.3f} {drop['high']:+.3f}] *" in ap
    [misses] = [line for line in lines if line.startswith("  miss ")][:1]
    shares = [run["report"]["keypoints"]["miss"] for run in content["runs"]]
    assert f"{shares[2]:.3f} {shares[2] - shares[0]:+.3f}" in misses
    for name in ("left_wrist", "medium", "cut off by the edge"):
        assert any(line.startswith(f"  {name} ") for line in lines)


def test_page_of_several_runs(three_runs):
    done = command("eval.page", *three_runs, "--out", three_runs[0] / "three.html")
    assert done.returncode == 0, done.stderr
    text = (three_runs[0] / "three.html").read_text()
    assert text.count("<svg") == 5, "three charts of the first run, a curve of each other"
    first, other = (read_run(folder).metrics["AP"] for folder in (three_runs[0], three_runs[2]))
    assert "<h2>Side by side</h2>" in text and "half.onnx" in text
    assert f"<td>{other:.3f} {other - first:+.3f} [" in text


def test_other_protocols_are_refused_unless_told(three_runs, coco, tmp_path, monkeypatch):
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", tmp_path / "flipped", "--flip-test")
    for module in ("eval.errors", "eval.page"):
        done = command(module, *three_runs[:2], tmp_path / "flipped", "--out", tmp_path / "file")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "flipped: flip_test: False / True); run all with the same options" in done.stderr
        assert not (tmp_path / "file").exists()
        done = command(module, three_runs[0], tmp_path / "flipped", "--out", tmp_path / "file", "--anyway")
        assert done.returncode == 0, done.stderr
        assert "warning: different protocols, " in done.stdout and "flip_test: False / True" in done.stdout
        (tmp_path / "file").unlink()


def test_names_tell_runs_apart(three_runs):
    def named(*protocols):
        run = read_run(three_runs[0])
        return column_names([type(run)(three_runs[0].parent / str(number) / "out", {}, protocol, [])
                             for number, protocol in enumerate(protocols)])

    float32, int8 = {"precision": "float32", "backend": "onnxruntime"}, {"precision": "int8", "backend": "onnxruntime"}
    assert named(float32, int8) == ["float32", "int8"]
    assert named(float32, {**float32, "backend": "openvino"}) == ["float32, onnxruntime", "float32, openvino"]
    assert named(float32, float32) == [str(three_runs[0].parent / name / "out") for name in "01"]
    with pytest.raises(BadInput, match="boxes: none / person.onnx"):
        run = read_run(three_runs[0])
        check_alike([type(run)(run.folder, {}, protocol, []) for protocol in ({}, {"boxes": "person.onnx"})])
