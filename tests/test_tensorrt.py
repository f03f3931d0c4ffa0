"""TensorRT engines: what is refused, by name; how they run, with a stand-in for the GPU; and, where TensorRT for RTX is
installed, that NVIDIA's own parser and builder take our graphs."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import tensorrt_engine, trt_check
from export.onnx_graph import NMS_SCORE, for_tensorrt, without_nms
from export.tensorrt_engine import PLUGIN_NODE, with_plugin_nms, write_sidecar
from export.verify import ExportError, real_inputs
from runtime.cuda import call
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.nms import IOU_THRESHOLD, MAX_BOXES
from runtime.sidecar import Machine, Sidecar, check_sidecar, read_sidecar, sha256, sidecar_path
from runtime.tensorrt_backend import load_plugin
from tests import engines
from tests.conftest import ROOT, figure
from tests.fake_gpu import FakeCudart, cudaError, fake_tensorrt
from train.config import load_config

HERE = Machine("TensorRT", "10.16.1.11", "Fake GPU", "8.6")
COMMAND = "python -m export.tensorrt_engine --engine pose.onnx --out pose.trt"


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a GPU and TensorRT, as far as `tests.fake_gpu` goes."""
    cudart = FakeCudart()
    monkeypatch.setattr("runtime.cuda.cudart", lambda: cudart)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    monkeypatch.setattr("runtime.tensorrt_backend._plugins", {})
    return cudart


def make_engine(folder, onnx_path, **changes):
    """An engine file from an ONNX file, with its sidecar."""
    path = folder / f"{onnx_path.stem}.trt"
    path.write_bytes(onnx_path.read_bytes())
    metadata = {entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}
    port = onnx.load(onnx_path).graph.input[0]
    sides = [dim.dim_value for dim in port.type.tensor_type.shape.dim][1:]
    profile = {"min": [1, *sides], "opt": [4, *sides], "max": [5, *sides]}
    sidecar = Sidecar(machine=HERE, engine_sha256=sha256(path), onnx=onnx_path.name, onnx_sha256=sha256(onnx_path),
                      precision="fp16", profiles={port.name: profile}, metadata=metadata, command=COMMAND)
    write_sidecar(path, dataclasses.replace(sidecar, **changes))
    return path


@pytest.fixture
def pose_trt(tmp_path, pose_path):
    (tmp_path / "pose.onnx").write_bytes(pose_path.read_bytes())
    return make_engine(tmp_path, tmp_path / "pose.onnx")


# The sidecar


def test_a_sidecar_comes_back_as_it_was_written(pose_trt):
    sidecar = read_sidecar(pose_trt)
    assert sidecar.machine == HERE and sidecar.precision == "fp16" and sidecar.plugin is None
    assert sidecar.metadata["kind"] == "pose"
    check_sidecar(sidecar, pose_trt, HERE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(library_version="11.4.0"), "it was built with TensorRT 10.16.1.11, here is 11.4.0"),
        (dict(library="TensorRT for RTX"), "it is an engine of TensorRT, not of TensorRT for RTX"),
        (dict(gpu="Orin"), "it was built on Fake GPU, here is Orin"),
        (dict(compute_capability="8.7"), "it is for compute capability 8.6, the GPU here has 8.7"),
    ],
)
def test_another_machine_is_refused(pose_trt, change, said):
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        check_sidecar(read_sidecar(pose_trt), pose_trt, dataclasses.replace(HERE, **change))
    assert str(refused.value).endswith(f"Build it again: {COMMAND}") and "\n" not in str(refused.value)


def test_everything_that_differs_is_said_at_once(pose_trt):
    with pytest.raises(BadInput, match="11.0.*9.0.*H100"):
        check_sidecar(read_sidecar(pose_trt), pose_trt, Machine("TensorRT", "11.0", "H100", "9.0"))


def test_an_engine_for_several_gpus(pose_trt):
    sidecar = read_sidecar(pose_trt)
    many = dataclasses.replace(sidecar, machine=dataclasses.replace(HERE, gpu="", compute_capability="7.5 8.6"))
    check_sidecar(many, pose_trt, HERE)
    with pytest.raises(BadInput, match="compute capability 7.5 8.6, the GPU here has 8.0"):
        check_sidecar(many, pose_trt, dataclasses.replace(HERE, compute_capability="8.0"))


def test_changed_files_are_refused(pose_trt, tmp_path):
    sidecar = read_sidecar(pose_trt)
    whole = pose_trt.read_bytes()
    pose_trt.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match="not the file that its sidecar describes, or only a part"):
        check_sidecar(sidecar, pose_trt, HERE)
    pose_trt.write_bytes(whole)
    (tmp_path / "pose.onnx").write_bytes(whole + b"more")
    with pytest.raises(BadInput, match="pose.onnx has changed since it was built"):
        check_sidecar(sidecar, pose_trt, HERE)
    (tmp_path / "pose.onnx").unlink()  # a device needs the engine only
    check_sidecar(sidecar, pose_trt, HERE)


def test_a_plugin_that_is_missing_or_another(pose_trt, tmp_path):
    plugin = tmp_path / "libattention_pose_nms.so"
    plugin.write_bytes(b"code")
    sidecar = dataclasses.replace(read_sidecar(pose_trt), plugin=plugin.name, plugin_sha256=sha256(plugin))
    check_sidecar(sidecar, pose_trt, HERE)
    plugin.write_bytes(b"other code")
    with pytest.raises(BadInput, match="libattention_pose_nms.so is not the one that it was built with"):
        check_sidecar(sidecar, pose_trt, HERE)
    plugin.unlink()
    with pytest.raises(BadInput, match="libattention_pose_nms.so is missing"):
        check_sidecar(sidecar, pose_trt, HERE)


def test_sidecars_that_cannot_be_read(pose_trt):
    path = sidecar_path(pose_trt)
    values = json.loads(path.read_text())
    for text, said in (("{", "is damaged"), ("[]", "is damaged"), ('{"version": 1}', "is damaged"),
                       ('{"version": 2}', "is of version 2, this program reads 1"),
                       (json.dumps({**values, "precision": 5}), "damaged .precision"),
                       (json.dumps({**values, "new": 5}), "is damaged"), ("\xff", "is damaged"),
                       (json.dumps({**values, "profiles": {"images": {}}}), "damaged .profile of images"),
                       (json.dumps({**values, "profiles": {"images": {"min": [], "opt": [], "max": "x"}}}), "damaged"),
                       (json.dumps({**values, "machine": {**values["machine"], "gpu": 5}}), "damaged .gpu"),
                       (json.dumps({**values, "metadata": {"input_size": 5}}), "damaged .metadata input_size"),
                       (json.dumps({**values, "plugin": ""}), "damaged")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(BadInput, match=said):
            read_sidecar(pose_trt)
    path.unlink()
    with pytest.raises(BadInput, match="pose.trt has no pose.trt.json beside it.*python -m export.tensorrt_engine"):
        open_engine(pose_trt)


def test_an_engine_is_refused_before_anything_of_it_is_loaded(pose_trt, cuda):
    cuda.gpu.name = b"Orin"
    pose_trt.write_bytes(b"this would crash a parser")
    with pytest.raises(BadInput, match="not the file that its sidecar describes.*built on Fake GPU, here is Orin"):
        open_engine(pose_trt, "pose")
    assert not cuda.memory


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_remedy_is_told(pose_trt):
    with pytest.raises(BadInput, match="TensorRT is not installed: pip install .*or run the .onnx engine"):
        open_engine(pose_trt)


# Running, with a stand-in for the GPU


def test_an_engine_runs_like_its_onnx(pose_trt, pose_path, cuda):
    engine, reference = open_engine(pose_trt, "pose"), open_engine(pose_path)
    assert engine.backend == "tensorrt" and engine.schema == reference.schema and engine.batch is None
    allocated = len(cuda.memory)
    crops = np.random.default_rng(0).integers(0, 256, (13, 128, 96, 3), np.uint8)
    for count in (1, 4, 5, 13, 2):  # more than 5 go in several runs
        found = engine.run(crops[:count])
        assert list(found) == ["heatmaps"]
        np.testing.assert_allclose(found["heatmaps"], reference.run(crops[:count])["heatmaps"], atol=1e-6)
    assert len(cuda.memory) == allocated == 4, "input and output on both sides, and nothing for a run"
    assert cuda.copies[0] == ("up", 128 * 96 * 3), "only the crops that there are"
    first = engine.run(crops[:1])["heatmaps"]
    kept = first.copy()
    engine.run(crops[1:2])
    np.testing.assert_array_equal(first, kept)
    engine.close()
    engine.close()
    assert not cuda.memory and not cuda.streams
    with pytest.raises(BadInput, match="pose.trt was closed"):
        engine.run(crops[:1])


def test_closing_waits_for_a_run(pose_trt, cuda, monkeypatch):
    engine = open_engine(pose_trt)
    running, go_on = threading.Event(), threading.Event()
    plain = FakeCudart.cudaStreamSynchronize

    def slow(self, stream):
        running.set()
        assert go_on.wait(30)
        return plain(self, stream)

    monkeypatch.setattr(FakeCudart, "cudaStreamSynchronize", slow)
    found = []
    run = threading.Thread(target=lambda: found.append(engine.run(np.zeros((1, 128, 96, 3), np.uint8))))
    run.start()
    assert running.wait(30)
    close = threading.Thread(target=engine.close)
    close.start()
    close.join(0.2)
    assert close.is_alive() and cuda.memory
    go_on.set()
    run.join(30)
    close.join(30)
    assert found and not cuda.memory


def test_boxes_of_the_plugin(tmp_path, cuda):
    """Its outputs have a fixed size, of which `count` says how much is meant."""
    boxes = np.zeros((1, 100, 4), np.float32)
    boxes[0, :2] = [[10, 20, 60, 120], [100, 30, 160, 150]]
    scores = np.zeros((1, 100), np.float32)
    scores[0, :2] = 0.9, 0.5
    values = {"count": np.array([2], np.int32), "boxes": boxes, "scores": scores,
              "indices": np.full((1, 100), -1, np.int32)}
    kinds = {"count": TensorProto.INT32, "indices": TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(each))
         for name, each in values.items()], "fixed",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 192, 320, 3])],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), each.shape)
         for name, each in values.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"input_size": "320x192", "kind": "person"})
    onnx.save(model, tmp_path / "person.onnx")
    plugin = tmp_path / "libattention_pose_nms.so"
    plugin.write_bytes(b"code")
    path = make_engine(tmp_path, tmp_path / "person.onnx", plugin=plugin.name, plugin_sha256=sha256(plugin),
                       profiles={})
    engine = open_engine(path, "person")
    again = open_engine(path, "person")  # TensorRT registers a plugin once
    again.close()
    assert sys.modules["tensorrt"].loaded == [str(plugin)]
    plugin.write_bytes(b"another build")
    with pytest.raises(BadInput, match="another build of the plugin"):
        load_plugin(sys.modules["tensorrt"], plugin)
    assert engine.batch == 1 and set(engine.outputs) == {"kept_boxes", "kept_scores"}
    found, found_scores = PersonDetector(engine)(figure()[0])
    np.testing.assert_allclose(found, boxes[0, :2])
    np.testing.assert_allclose(found_scores, [0.9, 0.5])


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("cudaMalloc", cudaError.cudaErrorMemoryAllocation, "the GPU's memory is full .cudaMalloc.*smaller --batch"),
        ("cudaGetDeviceCount", cudaError.cudaErrorInsufficientDriver, "driver is missing or older .*'cuda-python<13'"),
    ],
)
def test_gpu_errors_at_the_start_are_named(pose_trt, cuda, function, error, said):
    cuda.fails[function] = error
    with pytest.raises(BadInput, match=said):
        open_engine(pose_trt)
    assert not cuda.memory and not cuda.streams


def test_a_refused_engine_holds_no_memory(pose_trt, cuda):
    with pytest.raises(BadInput, match="is a pose engine where a person engine is needed"):
        open_engine(pose_trt, "person")
    sidecar = read_sidecar(pose_trt)
    for changes, said in ((dict(metadata={"kind": "pose"}), "metadata lack 'input_size'"),
                          (dict(profiles={}), "no profile of its input images")):
        write_sidecar(pose_trt, dataclasses.replace(sidecar, **changes))
        with pytest.raises(BadInput, match=said):
            open_engine(pose_trt)
    assert not cuda.memory and not cuda.streams


def test_inputs_of_another_shape_and_none(pose_trt, cuda):
    engine = open_engine(pose_trt)
    with pytest.raises(ValueError, match="where the engine takes"):
        engine.run(np.zeros((2, 128, 96, 1), np.uint8))
    assert engine.run(np.zeros((0, 128, 96, 3), np.uint8))["heatmaps"].shape == (0, 3, 32, 24)


def test_a_gpu_that_is_lost_is_named(pose_trt, cuda):
    engine = open_engine(pose_trt)
    cuda.fails["cudaStreamSynchronize"] = cudaError.cudaErrorIllegalAddress
    with pytest.raises(BadInput, match="the GPU failed or was lost .*cudaErrorIllegalAddress.*start again"):
        engine.run(np.zeros((1, 128, 96, 3), np.uint8))
    engine.close()  # nothing can be freed, and that is no second error


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="needs cuda-python")
def test_cuda_python_has_what_is_called():
    from cuda.bindings import runtime
    for name in dir(FakeCudart):
        assert name.startswith("_") or name in ("fails", "memory", "copies", "streams", "gpu") or hasattr(runtime, name)
    error = runtime.cudaGetDeviceCount()[0]
    if int(error):
        with pytest.raises(BadInput, match="NVIDIA's driver is missing or older|no GPU that CUDA can use"):
            call("cudaGetDeviceCount")


def test_a_plugin_that_does_not_load(tmp_path):
    module = fake_tensorrt()
    module.get_plugin_registry = lambda: type("Registry", (), {"load_library": lambda self, path: None})()
    (tmp_path / "empty.so").write_bytes(b"")
    with pytest.raises(BadInput, match="empty.so does not load: build it anew"):
        load_plugin(module, tmp_path / "empty.so")


# Building, with the stand-in


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
        (["--engine", str(ROOT / "models/pose.int8.onnx")], "the weights of .*pose.int8.onnx are not float32"),
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
