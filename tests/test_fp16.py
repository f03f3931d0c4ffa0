"""FP16 engines: what drifts is found and stays FP32; what agrees with the float engine is told from what does not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.agreement import SURE, TOLERANCES, check_agreement
from export.fp16 import (
    BEHIND,
    SQUARE,
    activations,
    converted,
    described,
    first_drift,
    load_float,
    relative_error,
    to_fp16,
)
from export.int8 import quantise_for_tensorrt
from export.onnx_graph import behind_weights, for_tensorrt
from export.verify import ExportError, real_inputs
from runtime.engine import open_engine
from runtime.errors import BadInput
from tests.conftest import ROOT
from train.config import load_config

POSE, PERSON = (ROOT / "models" / f"{kind}.onnx" for kind in ("pose", "person"))


def small_network(gain):
    """Two 1x1 convolutions, the first `gain` times too large and the second so much too small, between a cast and a
    softmax."""
    rng = np.random.default_rng(0)
    first, second = (rng.uniform(0.5, 1, (8, channels, 1, 1)).astype(np.float32) for channels in (3, 8))
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planar"], "planar", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planar", "first"], ["large"], "large"),
        helper.make_node("Relu", ["large"], ["positive"], "positive"),
        helper.make_node("Conv", ["positive", "second"], ["small"], "small"),
        helper.make_node("Conv", ["small", "third"], ["sum"], "sum"),
        helper.make_node("Softmax", ["sum"], ["heatmaps"], "softmax", axis=1),
    ]
    constants = {"first": first * gain, "second": second / gain / 1000, "third": np.eye(8)[..., None, None]}
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["batch", 8, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": inputs})[0]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)


def test_layers_that_overflow_are_found_and_kept(noise):
    model = small_network(gain=1000)
    wanted = run(model, noise)
    assert np.isinf(activations(converted(model, []), noise)["large"]).any(), "the test needs a network that overflows"
    half, islands = to_fp16(model, noise)
    assert [island.name for island in islands if island.reason != BEHIND] == ["large", "positive", "small"]
    np.testing.assert_allclose(run(half, noise), wanted, atol=2e-3)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds["first"] == kinds["second"] == TensorProto.FLOAT
    assert kinds["third"] == TensorProto.FLOAT16


def test_values_near_the_largest_number_are_kept_before_they_overflow(noise):
    model = small_network(gain=30)  # some 20 000 of FP16's 65 504
    assert np.isfinite(activations(converted(model, []), noise)["large"]).all()
    _, islands = to_fp16(model, noise)
    assert {"large", "positive"} <= {island.name for island in islands if "of the 6.55e+04" in island.reason}


def test_a_network_without_drift_gets_no_islands(noise):
    half, islands = to_fp16(small_network(gain=1), noise)
    assert [island.reason for island in islands] == [BEHIND]  # the softmax
    assert list(described(islands)) == [f"FP32  1 layers: {BEHIND}", f"FP32  0 layers: {SQUARE}"]
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_first_layer_that_drifts_is_named_and_those_that_hand_it_on_are_not(noise):
    model = small_network(gain=1)
    wanted = activations(model, noise)
    found = {name: values.copy() for name, values in wanted.items()}
    for name in ("positive", "small", "sum"):
        found[name] = found[name] * 1.03
    island = first_drift(model.graph, wanted, found, set())
    assert (island.name, island.kind) == ("positive", "Relu") and "0.03 where its inputs have 0" in island.reason
    assert first_drift(model.graph, wanted, found, {"positive"}) is None


def test_relative_error():
    assert relative_error(np.float16([3, 4]), np.float32([3, 4])) == 0
    assert relative_error(np.array([3, 4.5]), np.array([3, 4])) == pytest.approx(0.1)
    assert relative_error(np.array([3, np.inf]), np.array([3, 4])) == float("inf")


def test_engines_that_are_not_float_are_refused(noise, tmp_path):
    half, _ = to_fp16(small_network(gain=1), noise)
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(BadInput, match="the weights of .*half.onnx are float16, not float32"):
        load_float(tmp_path / "half.onnx")


# The bundled engines


@pytest.fixture(scope="module")
def crops():
    return real_inputs(load_config(ROOT / "configs/pose.toml", ['data=["nowhere"]']), 12)[0]


@pytest.fixture(scope="module")
def pose():
    return open_engine(POSE)


def saved(model, path):
    onnx.save(model, path)
    return open_engine(path)


def test_the_bundled_pose_engine_in_fp16_agrees(pose, crops, tmp_path):
    model = for_tensorrt(onnx.load(POSE))
    half, islands = to_fp16(model, crops[:2])
    assert {"Softmax", "Pow", "ReduceMean"} <= {island.kind for island in islands}
    assert [node.op_type for node in behind_weights(model.graph)] == [
        "Reshape", "Softmax", "Reshape", "MatMul", "MatMul"]
    engine = saved(half, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * POSE.stat().st_size
    assert engine.metadata == pose.metadata
    found = check_agreement(engine, pose, crops, "fp16")
    assert found.batches == (1, 4, 32)
    assert 0.999 < found.likeness < 1, "equal numbers would mean that nothing was converted"


def test_the_bundled_detector_in_fp16_agrees(tmp_path):
    pictures, _ = real_inputs(load_config(ROOT / "configs/person.toml", ['data=["nowhere"]']), 6)
    reference = open_engine(PERSON)
    half, _ = to_fp16(for_tensorrt(onnx.load(PERSON)), pictures[:1])
    engine = saved(half, tmp_path / "half.onnx")
    assert engine.outputs == ("boxes", "scores")
    found = check_agreement(engine, reference, pictures, "fp16")
    assert found.batches == (1,) and 0.99 < found.likeness < 1
    damaged = saved(scale_weights(PERSON, "prediction8"), tmp_path / "damaged.onnx")
    with pytest.raises(ExportError, match="not what its ONNX is"):
        check_agreement(damaged, reference, pictures, "fp16")


def scale_weights(path, layer, by=1.1):
    """The model with the weights of the first layer of this name scaled."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Conv" and layer in node.input[1] + node.name)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(by), weights.name))
    return model


def swap_channels(path):
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    model.graph.node.insert(0, helper.make_node("Gather", ["pixels", "order"], ["swapped"], axis=3))
    model.graph.node[1].input[0] = "swapped"
    return model


def darken(path):
    """The wrong normalisation: as if pixels were divided by 155 instead of 127.5."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Mul" and "normalise" in node.name)
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    factor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(factor) * np.float32(127.5 / 155), factor.name))
    return model


@pytest.mark.parametrize("damage", [
    lambda path: scale_weights(path, "Conv1"), lambda path: scale_weights(path, "block_8_expand"),
    lambda path: scale_weights(path, "mix8_pw"), swap_channels, darken,
], ids=["first layer", "middle layer", "last layer", "channels", "normalisation"])
def test_the_gate_refuses_damaged_engines(pose, crops, tmp_path, damage):
    engine = saved(damage(POSE), tmp_path / "damaged.onnx")
    with pytest.raises(ExportError, match="the fp16 engine is not what its ONNX is: .* is beyond the m"):
        check_agreement(engine, pose, crops, "fp16")


def test_no_number_and_nobody_are_refused(pose, crops):
    class Broken:
        kind, batch, input_size, schema, aligned_cells = "pose", None, pose.input_size, pose.schema, True

        def run(self, batch):
            return {"heatmaps": np.full((len(batch), 17, 64, 48), np.nan, np.float32)}

    with pytest.raises(ExportError, match="not what its ONNX is"):
        check_agreement(Broken(), pose, crops[:2], "int8")
    class Inventive(Broken):
        """Sure of what the other one is not, and elsewhere."""

        def run(self, batch):
            maps = pose.run(batch)["heatmaps"]
            unsure = maps.max((2, 3)) < SURE
            maps[unsure] = 0
            maps[unsure, 5, 5] = 0.95
            return {"heatmaps": maps}

    assert (pose.run(crops)["heatmaps"].max((2, 3)) < SURE).any(), "the test needs keypoints that nobody is sure of"
    with pytest.raises(ExportError, match="not what its ONNX is"):
        check_agreement(Inventive(), pose, crops, "fp16")
    with pytest.raises(ExportError, match="sure of no keypoint"):
        check_agreement(pose, pose, np.zeros((2, 256, 192, 3), np.uint8), "fp16")


def test_tolerances_are_those_of_the_documentation():
    assert TOLERANCES["fp16"].likeness >= 0.995 and TOLERANCES["fp16"].ap_loss <= 0.003
    assert TOLERANCES["int8"].ap_loss <= 0.01


def test_ap_decides_where_annotated_images_are_given(pose, crops, monkeypatch):
    """AP itself is measured in the tests of evaluation; here the gate has to act on it."""
    measured = {"engine": 0.380, "reference": 0.384}
    monkeypatch.setattr("export.agreement.accuracy",
                        lambda one, *data: {"AP": measured["reference" if one is pose else "engine"]})
    engine = open_engine(POSE)
    with pytest.raises(ExportError, match="AP 0.38 is beyond the minimum 0.381"):
        check_agreement(engine, pose, crops[:2], "fp16", ("annotations", "images"))
    found = check_agreement(engine, pose, crops[:2], "int8", ("annotations", "images"))
    assert (found.ap, found.ap_reference) == (0.380, 0.384)


class ExactSums(onnxruntime.SessionOptions):
    """Computes INT8 graphs in float: a CPU without VNNI adds products of bytes in 16 bits, which overflow."""

    def __init__(self):
        super().__init__()
        self.add_session_config_entry("session.disable_quant_qdq", "1")


def test_int8_for_tensorrt_stays_near_its_float_engine(pose, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "SessionOptions", ExactSums)
    engine = saved(quantise_for_tensorrt(for_tensorrt(onnx.load(POSE)), crops), tmp_path / "int8.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert TensorProto.INT8 in kinds.values() and TensorProto.UINT8 not in kinds.values()
    found = check_agreement(engine, pose, crops, "int8")
    assert 0.9 < found.likeness < 0.9999
    with pytest.raises(ExportError, match="the fp16 engine is not what its ONNX is"):
        check_agreement(engine, pose, crops, "fp16")
