"""Every backend gives what ONNX Runtime gives, and says so where it cannot."""

import sys

import numpy as np
import onnx
import pytest

from runtime.backends import ONNX_BACKENDS, installed_backends
from runtime.engine import open_engine
from runtime.errors import BadInput
from tests import engines

OTHERS = [name for name in installed_backends() if name != "onnxruntime"]
TOLERANCE = {"openvino": 1e-4, "openvino-bf16": 0.05}  # of the largest value; bfloat16 has 8 bits


def test_openvino_is_tested():
    assert "openvino" in OTHERS, "pip install openvino, as the extra [test] does"


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_pose_engines_agree(tmp_path, backend, head):
    path = engines.pose_engine(tmp_path / "pose.onnx", head=head)
    theirs, ours = open_engine(path, "pose"), open_engine(path, "pose", backend=backend)
    assert (ours.metadata, ours.schema, ours.outputs, ours.batch) == (
        theirs.metadata, theirs.schema, theirs.outputs, None)
    assert ours.backend == backend and theirs.backend == "onnxruntime"
    for count in (1, 5):
        crops = np.random.default_rng(count).integers(0, 256, (count, 128, 96, 3), np.uint8)
        check(ours.run(crops), theirs.run(crops), TOLERANCE[backend])


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("kind", ["kept", "raw"])
def test_person_engines_agree(tmp_path, backend, kind):
    path = engines.person_engine(tmp_path / "person.onnx", kind=kind)
    theirs, ours = open_engine(path, "person"), open_engine(path, "person", backend=backend)
    for shade in (255, 60):  # a person, and nobody
        frame = np.full((1, 192, 320, 3), shade, np.uint8)
        check(ours.run(frame), theirs.run(frame), TOLERANCE[backend])


def check(ours, theirs, tolerance):
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape and ours[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], expected, atol=tolerance * np.abs(expected).max(initial=1e-6))


@pytest.mark.parametrize("backend", OTHERS)
def test_a_result_outlives_the_next_run(pose_path, backend):
    engine = open_engine(pose_path, backend=backend)
    first = engine.run(np.full((1, 128, 96, 3), 200, np.uint8))["heatmaps"]
    kept = first.copy()
    engine.run(np.random.default_rng(0).integers(0, 256, (1, 128, 96, 3), np.uint8))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("content", [b"", b"nothing of the kind\n"])
def test_what_is_no_engine(tmp_path, backend, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="net.onnx is not an engine, or only a part of one: export it again") as caught:
        open_engine(path, backend=backend)
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_is_named(pose_path):
    with pytest.raises(BadInput, match="unknown backend 'cuda'; choose one of onnxruntime, openvino, openvino-bf16"):
        open_engine(pose_path, backend="cuda")


def test_without_openvino(monkeypatch, pose_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert installed_backends() == ONNX_BACKENDS[:1]
    with pytest.raises(BadInput, match="OpenVINO is not installed: pip install openvino"):
        open_engine(pose_path, backend="openvino")


@pytest.mark.parametrize("backend", installed_backends())
def test_a_graph_of_a_fixed_batch_takes_any_number(tmp_path, backend):
    free, fixed = engines.pose_engine(tmp_path / "free.onnx"), tmp_path / "fixed.onnx"
    model = onnx.load(free)
    for port in [*model.graph.input, *model.graph.output]:
        port.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, fixed)
    ours, theirs = open_engine(fixed, "pose", backend=backend), open_engine(free, "pose")
    assert ours.batch == 2
    for count in (1, 2, 5):
        crops = np.random.default_rng(count).integers(0, 256, (count, 128, 96, 3), np.uint8)
        check(ours.run(crops), theirs.run(crops), TOLERANCE.get(backend, 1e-6))


@pytest.mark.parametrize("backend", installed_backends())
def test_two_inputs_are_too_many(tmp_path, pose_path, backend):
    model = onnx.load(pose_path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(BadInput, match="was not made by `make export` .it has 2 inputs, not one.: export it again"):
        open_engine(tmp_path / "two.onnx", backend=backend)
