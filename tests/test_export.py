"""Checkpoint → ONNX: same keypoints, right metadata, and a wrong graph is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tensorflow")

import keras  # noqa: E402

from export.onnx_graph import NMS_SCORE, checked, export, merge_convolutions, to_onnx, with_nms  # noqa: E402
from export.verify import ExportError, check_boxes, check_nms, check_pose, left_by_nms, real_inputs, undecided  # noqa: E402
from runtime.engine import open_engine  # noqa: E402
from runtime.errors import BadInput  # noqa: E402
from runtime.keypoints import COCO  # noqa: E402
from runtime.nms import MAX_BOXES  # noqa: E402
from train.backbone import TAPS, BackboneWeightsError, build_backbone  # noqa: E402
from train.checkpoint import build_network, load_snapshot  # noqa: E402
from train.config import Config  # noqa: E402
from train.network_engine import NetworkEngine  # noqa: E402

TINY = dict(backbone_weights="", attention_blocks=1, attention_width=32, decoder_width=16, data=["nowhere"])


@pytest.fixture(scope="module")
def person():
    """An untrained detector whose scores and boxes spread, so that NMS has work."""
    config = Config(task="person", input_size=[96, 64], stretch=1.2, **TINY)
    keras.utils.set_random_seed(0)
    network = build_network(config)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if layer.name.startswith("score"):
            layer.set_weights([rng.normal(0, 0.5, layer.kernel.shape), np.zeros(1)])
        if layer.name.startswith("edges"):
            layer.set_weights([rng.normal(0, 1, layer.kernel.shape), np.full(4, 2.0)])
    return network, config


def test_export_command_gives_an_engine_like_the_network(tiny_run, tmp_path):
    subprocess.run([sys.executable, "-m", "export", "--run", str(tiny_run / "output/model_dump/tiny"), "--epoch", "2",
                    "--out", str(tmp_path)], check=True, timeout=300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pose.onnx", "pose.weights.h5"]
    engine = open_engine(tmp_path / "pose.onnx", kind="pose")
    assert engine.schema == COCO and engine.input_size == (64, 64)
    assert engine.metadata["trained_on"] == "people; epoch 2" and engine.metadata["date"] and engine.metadata["version"]
    assert json.loads(engine.metadata["keypoints"])["limbs"]

    network, config, _ = load_snapshot(tiny_run / "output/model_dump/tiny", 2)
    config.data = [str(tiny_run / "people")]
    inputs, source = real_inputs(config, 7)
    assert source == "training" and inputs.shape == (7, 64, 64, 3)
    assert check_pose(engine, NetworkEngine(network, config), inputs) < 0.1
    one_by_one = np.concatenate([engine.run(crop[None])["heatmaps"] for crop in inputs])
    np.testing.assert_allclose(engine.run(inputs)["heatmaps"], one_by_one, atol=1e-4)


def test_colour_order_and_normalisation_are_in_the_graph(tmp_path):
    """The backbone takes BGR bytes, keras.applications' RGB in -1..1: same weights file, same features."""
    original = keras.applications.MobileNetV2(input_shape=(64, 64, 3), include_top=False, weights=None)
    original.save_weights(tmp_path / "imagenet.weights.h5")
    original = keras.Model(original.inputs, [original.get_layer(tap).output for tap in TAPS["mobilenetv2"]])
    backbone = build_backbone("mobilenetv2", (64, 64), weights=str(tmp_path / "imagenet.weights.h5"))
    bgr = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    for ours, theirs in zip(backbone(bgr), original(bgr[..., ::-1] / 127.5 - 1), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    with pytest.raises(BackboneWeightsError, match="does not hold resnet50 weights"):
        build_backbone("resnet50", (64, 64), weights=str(tmp_path / "imagenet.weights.h5"))


@pytest.mark.parametrize("changes", [dict(head="simcc"), dict(backbone="resnet50"), dict(attention_blocks=0),
                                     dict(channel_attention=True, padding=1.1, expansions=[16, 40] + [48] * 15)])
def test_other_networks_export_too(changes, tmp_path):
    """Untrained, so their maps are compared and not their keypoints, which are undecided."""
    config = Config(input_size=[64, 64], **{**TINY, **changes})
    keras.utils.set_random_seed(1)
    network = build_network(config)
    for variable in network.trainable_variables:
        if "excite_out" in variable.path:  # zeros at first: gates that do nothing
            variable.assign(np.random.default_rng(2).normal(size=variable.shape))
    reference = NetworkEngine(network, config)
    onnx.save(to_onnx(reference.network, config, "test"), tmp_path / "pose.onnx")
    inputs = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    engine = open_engine(tmp_path / "pose.onnx", "pose")
    assert engine.padding == reference.padding == config.padding
    assert engine.metadata["network"].endswith(", pruned") == bool(config.expansions)
    outputs, expected = engine.run(inputs), reference.run(inputs)
    assert {name: value.shape for name, value in outputs.items()} == (
        {"simcc_x": (3, 17, 128), "simcc_y": (3, 17, 128)} if config.head == "simcc" else {"heatmaps": (3, 17, 16, 16)})
    for name, value in outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4)


def test_channel_attention_starts_as_none_and_weighs_channels():
    """Gates of zeros leave the network as it is without them; a gate shut altogether takes the mixed maps out."""
    config = Config(input_size=[64, 64], **TINY)
    plain, gated = build_network(config), build_network(replace(config, channel_attention=True))
    known = {variable.path: variable for variable in plain.variables}
    gates = [variable for variable in gated.variables if variable.path not in known]
    assert gates and all("excite" in variable.path for variable in gates)
    for variable in gated.variables:
        if variable.path in known:
            variable.assign(known[variable.path])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(gated(pixels), plain(pixels), rtol=1e-4, atol=1e-4)
    for variable in gated.variables:
        if "excite_out" in variable.path and variable.path.endswith("bias"):
            variable.assign(np.full(variable.shape, -50))
    for variable in plain.variables:  # what the gates of 0 shut out
        if "mix" in variable.path and variable.path.endswith(("gamma", "beta")):
            variable.assign(np.zeros(variable.shape))
    np.testing.assert_allclose(gated(pixels), plain(pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="channel_attention = true needs decoder = 'pyramid'"):
        build_network(replace(config, channel_attention=True, decoder="deconvolution"))


def test_a_graph_that_computes_something_else_is_refused(tiny_run, tmp_path):
    network, config, _ = load_snapshot(tiny_run / "output/model_dump/tiny")
    config = replace(config, data=["nowhere"])
    reference = NetworkEngine(network, config)
    model = to_onnx(reference.network, config, "test")
    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    broken = numpy_helper.to_array(kernels[-1]) * np.float32(-1)
    kernels[-1].CopyFrom(numpy_helper.from_array(broken, kernels[-1].name))
    inputs, source = real_inputs(config, 6)
    assert source == "rendered"
    with pytest.raises(ExportError, match="nothing was exported"), checked(model, tmp_path / "pose.onnx") as engine:
        check_pose(engine, reference, inputs)
    assert not list(tmp_path.iterdir()), "a refused engine must not stay, under any name"


def test_detector_raw_and_with_nms(person, tmp_path):
    network, config = person
    lines = list(export(network, config, 1, tmp_path))
    assert len(lines) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["person.onnx", "person_raw.onnx"]
    raw, with_suppression = (open_engine(tmp_path / name, "person") for name in ("person_raw.onnx", "person.onnx"))
    assert raw.stretch == with_suppression.stretch == config.stretch == 1.2
    kernels = [tensor.dims for tensor in onnx.load(raw.path).graph.initializer if len(tensor.dims) == 4]
    assert sum(shape[0] == 5 for shape in kernels) == 3, "edges and score of a stride are one convolution"
    inputs = np.random.default_rng(3).integers(0, 256, (5, 64, 96, 3), np.uint8)
    assert check_boxes(raw, NetworkEngine(network, config), inputs) < 0.1
    check_nms(with_suppression, raw, inputs, NMS_SCORE)
    kept = with_suppression.run(inputs[:1])
    candidates = (raw.run(inputs[:1])["scores"] > NMS_SCORE).sum()
    assert 0 < len(kept["kept_boxes"]) < candidates, "the test needs boxes that NMS drops"
    assert (np.diff(kept["kept_scores"]) <= 0).all()


def convolution(rng, source, target, channels, kernel=1, **settings):
    """A node and its weights."""
    shape = (channels[1], channels[0], kernel, kernel)
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{target}_w"),
               numpy_helper.from_array(rng.normal(size=channels[1]).astype(np.float32), f"{target}_b")]
    return helper.make_node("Conv", [source, f"{target}_w", f"{target}_b"], [target], target, **settings), weights


@pytest.mark.parametrize(("layers", "outputs", "left"), [
    ([("x", "a", (8, 6)), ("a", "y", (6, 4))], ["y"], 1),
    ([("x", "a", (8, 6)), ("a", "b", (6, 4)), ("b", "y", (4, 2))], ["y"], 1),
    ([("x", "a", (8, 2)), ("a", "y", (2, 8))], ["y"], 2),  # a bottleneck is cheaper as it is
    ([("x", "a", (8, 6)), ("a", "y", (6, 4))], ["y", "a"], 2),  # wanted by others too
    ([("x", "a", (8, 6)), ("a", "y", (6, 4)), ("a", "z", (6, 4))], ["y", "z"], 3),
    ([("x", "a", (8, 6)), ("a", "y", (6, 4), 3)], ["y"], 2),
    ([("x", "a", (8, 6)), ("a", "y", (6, 4), 1, [2, 2])], ["y"], 2),
    ([("x", "a", (8, 4)), ("x", "b", (8, 1)), "concat"], ["y"], 1),
    ([("x", "a", (8, 4)), ("x", "b", (8, 1)), "concat"], ["y", "b"], 2),
    ([("x", "c", (8, 8)), ("c", "a", (8, 4)), ("x", "b", (8, 1)), "concat"], ["y"], 1),
    ([("x", "c", (8, 2)), ("c", "a", (2, 8)), ("x", "b", (8, 1)), "concat"], ["y"], 3),  # of two maps
])
def test_convolutions_that_are_merged_compute_what_they_did(layers, outputs, left):
    rng, nodes, weights = np.random.default_rng(0), [], []
    for layer in layers:
        if layer == "concat":
            nodes.append(helper.make_node("Concat", ["a", "b"], ["y"], axis=1))
            continue
        source, target, channels, *rest = layer
        kernel = rest[0] if rest else 1
        node, values = convolution(rng, source, target, channels, kernel, strides=rest[1] if rest[1:] else [1, 1])
        nodes.append(node)
        weights += values
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in outputs]
    source = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8, 5, 7])
    model = helper.make_model(helper.make_graph(nodes, "convolutions", [source], ports, weights), ir_version=9,
                              opset_imports=[helper.make_opsetid("", 18)])
    pixels = rng.normal(size=(1, 8, 5, 7)).astype(np.float32)
    wanted = ReferenceEvaluator(model).run(None, {"x": pixels})
    merge_convolutions(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("Conv") == left
    assert {tensor.name for tensor in model.graph.initializer} == {
        name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for before, after in zip(wanted, ReferenceEvaluator(model).run(None, {"x": pixels}), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4)


def test_wrong_nms_is_refused(person, tmp_path):
    network, config = person
    model = to_onnx(NetworkEngine(network, config).network, config, "test")
    suppressing = with_nms(model)
    for tensor in suppressing.graph.initializer:
        if tensor.name == "nms_iou":
            tensor.CopyFrom(numpy_helper.from_array(np.array([0.05], np.float32), "nms_iou"))
    onnx.save(model, tmp_path / "raw.onnx")
    onnx.save(suppressing, tmp_path / "kept.onnx")
    inputs = np.random.default_rng(3).integers(0, 256, (5, 64, 96, 3), np.uint8)
    raw, kept = open_engine(tmp_path / "raw.onnx"), open_engine(tmp_path / "kept.onnx")
    with pytest.raises(ExportError, match="NMS in the graph"):
        check_nms(kept, raw, inputs, NMS_SCORE)


@pytest.mark.parametrize("kept, wanted", [
    ([0, 1, 2], True),
    ([1, 0, 2], True),  # scores alike but for rounding: either may come first
    ([0, 2, 1], False),  # not alike
    ([0, 1], False),  # one that nothing suppresses is missing
    ([0, 1, 2, 3], False),  # one that another suppresses
    ([0, 2, 3], False),  # suppressed by what is not there
    ([0, 1, 2, 5], False),  # alike to one that is kept already
    ([0, 5, 2], True),  # alike to the one it overlaps: again either may come first
    ([0, 1, 2, 4], False),  # below the threshold
    ([], False),
])
def test_what_greedy_nms_leaves(kept, wanted):
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [20, 0, 30, 9], [60, 0, 70, 10],
                      [20, 0, 30, 10.5]], np.float32)
    scores = np.array([0.9, 0.9 - 1e-6, 0.5, 0.4, 0.04, 0.9 - 2e-6], np.float32)
    assert left_by_nms(boxes[kept], scores[kept], boxes, scores, 0.05) == wanted
    if wanted:
        assert not left_by_nms(boxes[kept] + 1, scores[kept], boxes, scores, 0.05), "boxes of nowhere"
        assert not left_by_nms(boxes[kept], scores[kept] - 0.01, boxes, scores, 0.05), "other scores"


def test_greedy_nms_leaves_so_many_at_most():
    boxes = np.stack([np.arange(150) * 20, np.zeros(150), np.arange(150) * 20 + 10, np.full(150, 10)], 1)
    scores = np.linspace(0.9, 0.1, 150)
    for kept, wanted in ((slice(MAX_BOXES), True), (slice(1, MAX_BOXES + 1), False), (slice(MAX_BOXES - 1), False),
                         (slice(150), False)):
        assert left_by_nms(boxes[kept], scores[kept], boxes, scores, 0.05) == wanted


def test_missing_epoch_names_those_that_exist(tiny_run, tmp_path):
    folder = tiny_run / "output/model_dump/tiny"
    with pytest.raises(BadInput, match=r"no snapshot of epoch 140; it has 1 … 3"):
        load_snapshot(folder, 140)
    with pytest.raises(BadInput, match="no snapshots in"):
        load_snapshot(tmp_path)


def test_undecided_maps_are_those_with_two_highest_cells():
    maps = np.zeros((1, 3, 4, 4), np.float32)
    maps[0, :, 1, 1] = 0.5
    maps[0, 1, 3, 2] = 0.49995
    maps[0, 2, 3, 2] = 0.49
    assert undecided({"heatmaps": maps}).tolist() == [[False, True, False]]
    assert undecided({"simcc_x": maps.reshape(1, 3, 16), "simcc_y": np.ones((1, 3, 8))}).all()
