"""TensorRT engines at work, with a stand-in for the GPU: batches, memory, plugins, and a GPU that fails."""

import dataclasses
import importlib.util
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.cuda import call
from runtime.detect import PersonDetector
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.files import sha256
from runtime.sidecar import read_sidecar, write_sidecar
from runtime.tensorrt_backend import load_plugin
from tests.conftest import figure
from tests.fake_gpu import FakeCudart, cudaError, fake_tensorrt
from tests.tensorrt_engines import make_engine


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
