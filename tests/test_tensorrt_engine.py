"""Building and checking TensorRT engines, with a stand-in for the GPU; and, where TensorRT for RTX is installed, that
NVIDIA's own parser and builder take our graphs."""

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import tensorrt_engine, trt_check
from export.onnx_graph import NMS_SCORE, for_tensorrt, without_nms
from export.tensorrt_engine import PLUGIN_NODE, with_plugin_nms
from export.verify import ExportError, real_inputs
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.nms import IOU_THRESHOLD, MAX_BOXES
from runtime.sidecar import read_sidecar
from tests import engines
from tests.conftest import ROOT, figure
from tests.fake_gpu import cudaError, fake_tensorrt
from tests.tensorrt_engines import HERE, make_engine
from train.config import load_config


@pytest.fixture
def build_command(tmp_path):
    return ["--engine", str(ROOT / "models/pose.onnx"), "--config", str(ROOT / "configs/pose.toml"), "--set",
            'data=["nowhere"]', "--out", str(tmp_path / "engines" / "pose.trt"), "--timing-cache",
            str(tmp_path / "timing.cache"), "--batch", "8"]


@pytest.fixture
def few_inputs(monkeypatch):
    monkeypatch.setattr(tensorrt_engine, "SAMPLES", 6)


def test_building_ends_in_an_engine_with_its_sidecar(build_command, tmp_path, cuda, few_inputs, capsys):
    tensorrt_engine.main(build_command)
    folder = tmp_path / "engines"
    assert sorted(path.name for path in folder.iterdir()) == ["pose.trt", "pose.trt.json"]
    sidecar = read_sidecar(folder / "pose.trt")
    assert sidecar.machine == HERE and sidecar.precision == "fp16" and sidecar.cuda == "13.0"
    assert sidecar.profiles["pixels"] == {"min": [1, 256, 192, 3], "opt": [4, 256, 192, 3], "max": [8, 256, 192, 3]}
    assert sidecar.agreement["likeness"] > 0.999 and sidecar.agreement["batches"] == [1, 4, 8]
    assert sidecar.command.startswith("python -m export.tensorrt_engine --engine ") and "--batch 8" in sidecar.command
    assert (folder / sidecar.onnx).resolve() == ROOT / "models/pose.onnx"
    assert (tmp_path / "timing.cache").read_bytes() == b"timed"
    out = capsys.readouterr().out
    assert "layers: squares and means of norms" in out and "likeness" in out
    engine = open_engine(folder / "pose.trt", "pose")
    assert engine.run(np.zeros((9, 256, 192, 3), np.uint8))["heatmaps"].shape == (9, 17, 64, 48)


def test_a_build_that_computes_something_else_leaves_the_former_engine(build_command, tmp_path, cuda, few_inputs,
                                                                       monkeypatch):
    tensorrt_engine.main(build_command)
    folder = tmp_path / "engines"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def damage(model):
        weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] == 3)
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))

    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(damage=damage))
    with pytest.raises(ExportError, match="the fp16 engine is not what its ONNX is"):
        tensorrt_engine.main(build_command)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--out", "pose.engine2"], "--out pose.engine2 should end in"),
        (["--batch", "0"], "--batch 0 is not between 1 and 32"),
        (["--workspace", "0"], "--workspace 0 is no size"),
        (["--precision", "int8"], "--precision int8 needs --annotations and --images"),
        (["--engine", str(ROOT / "models/pose.int8.onnx")], "the weights of .*pose.int8.onnx are int8, not float32"),
        (["--engine", "pose.trt"], "pose.trt is no .onnx engine"),
        (["--timing-cache", str(ROOT)], "--timing-cache .* is a folder"),
        (["--annotations", "a.json"], "--annotations and --images belong together"),
        (["--config", str(ROOT / "configs/person.toml")], "is of task 'person' but .*give --config configs/pose.toml"),
    ],
)
def test_wrong_options(build_command, cuda, change, said):
    with pytest.raises(BadInput, match=said):
        tensorrt_engine.main([*build_command, *change])


def test_no_gpu_is_told_before_anything_is_built(build_command, cuda):
    cuda.fails["cudaGetDeviceCount"] = cudaError.cudaErrorInsufficientDriver
    with pytest.raises(BadInput, match="NVIDIA's driver is missing"):
        tensorrt_engine.main(build_command)


def test_ctrl_c_ends_a_build(build_command, tmp_path, cuda, few_inputs, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_engine, "tqdm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tensorrt_engine.main(build_command)
    assert not list((tmp_path / "engines").iterdir())


def test_a_timing_cache_that_cannot_be_kept_is_only_told(build_command, tmp_path, cuda, few_inputs, capsys):
    (tmp_path / "file").write_text("")
    tensorrt_engine.main([*build_command, "--timing-cache", str(tmp_path / "file" / "timing.cache")])
    assert "what was timed is not kept: cannot write" in capsys.readouterr().out
    assert (tmp_path / "engines" / "pose.trt").is_file()


def test_plugins_are_found_or_named(tmp_path, capsys):
    assert tensorrt_engine.find_plugin("auto", "pose", "TensorRT") is None
    assert capsys.readouterr().out == ""
    with pytest.raises(BadInput, match="no NMS plugin at .*nothing.so"):
        tensorrt_engine.find_plugin(str(tmp_path / "nothing.so"), "person", "TensorRT")
    assert tensorrt_engine.find_plugin("auto", "person", "TensorRT for RTX") is None
    assert "NMS runs outside" in capsys.readouterr().out


# make trt-check


def test_times_and_boxes_of_two_detectors(tmp_path, cuda, monkeypatch):
    monkeypatch.setattr(trt_check, "RUNS", 3)
    monkeypatch.setattr(trt_check, "real_inputs", lambda config: (np.stack([figure(each)[0] for each in range(3)]), ""))
    made = []
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        kind = "kept" if name == "inside" else "raw"
        path = engines.person_engine(tmp_path / name / "person.onnx", kind=kind)
        fix_count(path)
        made.append(make_engine(tmp_path / name, path, profiles={}))
    found = trt_check.times(open_engine(made[0]))
    assert list(found) == [1] and 0 < found[1]["p50"] <= found[1]["p99"]
    assert trt_check.compare_boxes(*made, "nowhere") == 0
    monkeypatch.setattr(trt_check, "SURE", 0.95)  # nobody is found, by both
    assert trt_check.compare_boxes(*made, "nowhere") == 0


def fix_count(path):
    """Fixed sizes, as TensorRT's outputs have them: the rectangle is always there."""
    model = onnx.load(path)
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1 if output.name.startswith("kept") else 2
    onnx.save(model, path)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_trt_check_without_tensorrt_is_one_line():
    done = subprocess.run([sys.executable, "-m", "export.trt_check"], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: TensorRT is not installed: ")


# Graphs


def test_nms_is_taken_out_and_put_back_as_the_plugin(tmp_path):
    whole = onnx.load(ROOT / "models/person.onnx")
    raw = without_nms(whole)
    onnx.save(raw, tmp_path / "raw.onnx")
    picture = real_inputs(load_config(ROOT / "configs/person.toml", ['data=["nowhere"]']), 1)[0][0]
    kept, plain = (PersonDetector(open_engine(path), 0.05)(picture)
                   for path in (ROOT / "models/person.onnx", tmp_path / "raw.onnx"))
    assert len(kept[0])
    for one, other in zip(kept, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)

    model = with_plugin_nms(raw)
    node = model.graph.node[-1]
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert node.op_type == PLUGIN_NODE and settings["plugin_version"] == b"1" and settings["max_det"] == MAX_BOXES
    assert settings["iou_threshold"] == pytest.approx(IOU_THRESHOLD)
    assert settings["score_threshold"] == pytest.approx(NMS_SCORE)
    made = {name for each in model.graph.node for name in each.output}
    assert set(node.input) <= made and [output.name for output in model.graph.output] == list(node.output)
    assert [dim.dim_value for dim in model.graph.output[1].type.tensor_type.shape.dim] == [1, MAX_BOXES, 4]


def test_bytes_are_cast_first():
    model = for_tensorrt(onnx.load(ROOT / "models/pose.onnx"))
    assert [node.op_type for node in model.graph.node[:2]] == ["Cast", "Transpose"]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None,
                    reason="needs TensorRT for RTX (pip install tensorrt_rtx_cu13), whose builder runs without a GPU")
@pytest.mark.parametrize("kind", ["pose", "person"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "fp32"])
def test_tensorrt_for_rtx_builds_our_graphs(kind, precision):
    inputs, _ = real_inputs(load_config(ROOT / f"configs/{kind}.toml", ['data=["nowhere"]']), 2)
    model = tensorrt_engine.in_precision(onnx.load(ROOT / f"models/{kind}.onnx"), inputs, precision)
    built, profiles = tensorrt_engine.build(model, "TensorRT for RTX", capabilities=("SM86", "SM89"))
    assert len(built) > 1e6
    assert list(profiles) == (["pixels"] if kind == "pose" else [])


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX")
def test_a_graph_that_tensorrt_cannot_read_is_named(tmp_path):
    model = onnx.load(engines.person_engine(tmp_path / "person.onnx"))
    model.graph.node[1].op_type = "Unheard"
    with pytest.raises(ExportError, match="cannot read node"):
        tensorrt_engine.build(model, "TensorRT for RTX", capabilities=("SM86",))
