"""Keras network → ONNX: uint8 BGR in, engine outputs out, metadata inside.

The graph that tf2onnx gives starts at float NCHW pixels. In front of it goes a block that takes frames as OpenCV
holds them: a transpose on bytes (a quarter of the traffic of one on floats), then a cast. Normalisation and colour
order already live in the network.
"""

import collections
import contextlib
import json
import logging
import os
from dataclasses import asdict
from datetime import date

import numpy as np
import onnx
import onnxslim
from onnx import TensorProto, helper, numpy_helper

import runtime
from export.verify import ExportError, check_boxes, check_nms, check_pose, real_inputs
from runtime.engine import open_engine
from runtime.files import make_folder
from runtime.keypoints import SCHEMAS
from runtime.nms import IOU_THRESHOLD, MAX_BOXES

OPSET = 18  # the highest that tf2onnx writes
WITH_WEIGHTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
NMS_SCORE = 0.05  # lower than anybody wants to see, high enough to keep NMS short


def export(network, config, epoch, folder, trained_on=None):
    """Write the engines of a network to a folder, each under its final name only once it has passed its check.

    Yields a line on each file.
    """
    from train.network_engine import NetworkEngine  # TensorFlow, which the other tools of this file do without

    reference = NetworkEngine(network, config)
    model = to_onnx(reference.network, config, f"{trained_on or ', '.join(config.data)}; epoch {epoch}")
    inputs, source = real_inputs(config)
    make_folder(folder)
    if config.task == "pose":
        with checked(model, folder / "pose.onnx") as engine:
            worst = check_pose(engine, reference, inputs)
        yield summary(folder / "pose.onnx", f"keypoints within {worst:.2g} px of Keras on {len(inputs)} {source} crops")
        return
    with checked(model, folder / "person_raw.onnx") as raw:
        worst = check_boxes(raw, reference, inputs)
        with checked(with_nms(model), folder / "person.onnx") as engine:
            check_nms(engine, raw, inputs, NMS_SCORE)
    yield summary(folder / "person_raw.onnx",
                  f"boxes within {worst:.2g} px of Keras on {len(inputs)} {source} pictures")
    yield summary(folder / "person.onnx", "NMS in the graph keeps the boxes that runtime.nms keeps")


@contextlib.contextmanager
def checked(model, path):
    """Write a model beside its final name, open it as an engine, and rename it if the caller's check passes."""
    partial = path.with_name(f"partial_{path.name}")
    try:
        onnx.save(model, partial)
        yield open_engine(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)


def summary(path, check):
    return f"{path}  {path.stat().st_size / 1e6:.1f} MB, {check}"


def to_onnx(network, config, trained_on):
    """Convert a deployable network (`train.network_engine.deployed`).

    Args:
        network: keras.Model, (B, H, W, 3) float BGR → dict of outputs.
        trained_on: one line on the data, for the metadata.

    Returns:
        onnx.ModelProto with input "pixels" (batch, H, W, 3) uint8 and a dynamic batch.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    width, height = config.input_size
    names = list(network.output)
    signature = [tf.TensorSpec((None, height, width, 3), tf.float32, name="pixels")]

    @tf.function(input_signature=signature)
    def function(pixels):
        outputs = network(pixels, training=False)
        return [outputs[name] for name in names]

    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET,
                                             inputs_as_nchw=["pixels:0"])
    for old, name in zip([output.name for output in model.graph.output], names, strict=True):
        rename(model.graph, old, name)
    model = onnxslim.slim(model)
    merge_convolutions(model.graph)
    take_bytes(model, width, height)
    state_shapes(model, network)
    describe(model, config, trained_on)
    onnx.checker.check_model(model, full_check=True)
    foreign = {node.domain for node in model.graph.node} - {""}
    if foreign:  # tf2onnx leaves operations that it cannot convert in a domain of their own, without an error
        raise ExportError(f"tf2onnx could not convert every operation: domains {foreign} remain")
    return model


def rename(graph, old, new):
    """Rename a value everywhere in a graph."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.name == old:
            value.name = new


def merge_convolutions(graph):
    """Make one 1×1 convolution of two, where that computes the same with less work.

    Of two with nothing between them: MobileNetV2 ends in a projection without activation, and the neck begins with
    another, 960 → 320 → 192 channels. And of two of the same map whose channels are put together: a cell's edges and
    its score, 4 and 1, where a CPU computes 16 at a time.
    """
    kernels = {tensor.name: tensor for tensor in graph.initializer}
    users = collections.Counter([*(name for node in graph.node for name in node.input),
                                 *(output.name for output in graph.output)])
    pointwise = {node.output[0]: node for node in graph.node if _is_pointwise(node, kernels)}
    for place, node in enumerate(list(graph.node)):
        joined = node.op_type == "Concat" and helper.get_attribute_value(node.attribute[0]) == 1
        sources = node.input if joined else node.input[:1]
        former = [pointwise[name] for name in sources if name in pointwise and users[name] == 1]
        if not (joined or node.output[0] in pointwise) or len(former) < len(sources) or len(
                {each.input[0] for each in former}) != 1:
            continue
        weights = [_kernel_and_bias(each, kernels) for each in former]
        if joined:
            kernel, bias = map(np.concatenate, zip(*weights, strict=True))
        else:
            [(inner, before)], (outer, after) = weights, _kernel_and_bias(node, kernels)
            kernel, bias = outer @ inner, outer @ before + after
            if kernel.size >= inner.size + outer.size:
                continue
        name = f"{node.output[0]}_merged"
        tensors = [numpy_helper.from_array(kernel[..., None, None].astype(np.float32), f"{name}_kernel"),
                   numpy_helper.from_array(bias.astype(np.float32), f"{name}_bias")]
        merged = helper.make_node("Conv", [former[0].input[0], *(tensor.name for tensor in tensors)], node.output, name,
                                  kernel_shape=[1, 1])
        graph.node[place].CopyFrom(merged)
        graph.initializer.extend(tensors)
        kernels |= {tensor.name: tensor for tensor in tensors}
        pointwise[node.output[0]] = merged
    _drop_unused(graph)


def _drop_unused(graph):
    """Leave out the nodes and constants that no output needs."""
    wanted = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if wanted & set(node.output):
            wanted |= set(node.input)
        else:
            graph.node.remove(node)
    for tensor in list(graph.initializer):
        if tensor.name not in wanted:
            graph.initializer.remove(tensor)


def _is_pointwise(node, kernels):
    """Whether a node is a 1×1 convolution of stride 1, not grouped, whose weights are constants."""
    settings = {setting.name: helper.get_attribute_value(setting) for setting in node.attribute}
    return (node.op_type == "Conv" and all(name in kernels for name in node.input[1:])
            and list(kernels[node.input[1]].dims[2:]) == [1, 1] and settings.get("group", 1) == 1
            and set(settings.get("strides", [1])) == {1} and not any(settings.get("pads", [])))


def _kernel_and_bias(node, kernels):
    """(outputs, inputs) and (outputs,) of a 1×1 convolution, float64."""
    kernel, *bias = (numpy_helper.to_array(kernels[name]).astype(np.float64) for name in node.input[1:])
    return kernel[..., 0, 0], bias[0] if bias else np.zeros(len(kernel))


def take_bytes(model, width, height):
    """Put the block for uint8 NHWC frames in front of a graph that takes float NCHW."""
    graph = model.graph
    old = graph.input[0].name
    rename(graph, old, "pixels_float")
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", height, width, 3]))
    graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["pixels_planar"], perm=[0, 3, 1, 2]))
    graph.node.insert(1, helper.make_node("Cast", ["pixels_planar"], ["pixels_float"], to=TensorProto.FLOAT))


def state_shapes(model, network):
    """Give every output the network's shape, its first axis named "batch", and forget inner shapes inferred before."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        shape = ["batch", *network.output[value.name].shape[1:]]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))


def describe(model, config, trained_on):
    """Write the metadata that `runtime.engine` reads."""
    metadata = {
        "kind": config.task,
        "input_size": f"{config.input_size[0]}x{config.input_size[1]}",
        "network": f"{config.backbone}, {config.attention_blocks} attention blocks"
                   + ", channel attention" * config.channel_attention + ", pruned" * bool(config.expansions),
        "trained_on": trained_on,
        "date": date.today().isoformat(),
        "version": runtime.__version__,
        "licence": "Apache-2.0",
    }
    if config.task == "pose":
        metadata |= {"head": config.head, "keypoints": json.dumps(asdict(SCHEMAS[config.keypoints])),
                     "padding": str(config.padding), "aligned_cells": str(config.aligned_cells).lower()}
    else:
        metadata["stretch"] = str(config.stretch)
    helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "attention-pose", runtime.__version__


def with_nms(model):
    """The detector with non-maximum suppression in its graph, for one frame at a time.

    Returns:
        A copy whose outputs are "kept_boxes" (M, 4) and "kept_scores" (M,), best first, M ≤ 100.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {"nms_boxes": [MAX_BOXES], "nms_iou": [IOU_THRESHOLD], "nms_score": [NMS_SCORE], "nms_axis": [1],
                 "nms_column": [2], "nms_flat": [-1], "nms_first": [0]}
    for name, value in constants.items():
        kind = "float32" if name in ("nms_iou", "nms_score") else "int64"
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
    graph.node.extend([
        helper.make_node("Unsqueeze", ["scores", "nms_axis"], ["scores_by_class"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores_by_class", "nms_boxes", "nms_iou", "nms_score"],
                         ["selected"]),
        helper.make_node("Gather", ["selected", "nms_column"], ["selected_column"], axis=1),
        helper.make_node("Reshape", ["selected_column", "nms_flat"], ["kept"]),
        helper.make_node("Squeeze", ["boxes", "nms_first"], ["all_boxes"]),
        helper.make_node("Squeeze", ["scores", "nms_first"], ["all_scores"]),
        helper.make_node("Gather", ["all_boxes", "kept"], ["kept_boxes"], axis=0),
        helper.make_node("Gather", ["all_scores", "kept"], ["kept_scores"], axis=0),
    ])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("kept_boxes", TensorProto.FLOAT, ["kept", 4]))
    graph.output.append(helper.make_tensor_value_info("kept_scores", TensorProto.FLOAT, ["kept"]))
    graph.input[0].type.tensor_type.shape.dim[0].Clear()
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.checker.check_model(model, full_check=True)
    return model


def without_nms(model):
    """The detector as it was before `with_nms`: outputs "boxes" (1, A, 4) and "scores" (1, A). Others as they are."""
    if "kept_boxes" not in {output.name for output in model.graph.output}:
        return model
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    del graph.output[:], graph.value_info[:]
    for name in ("boxes", "scores"):
        graph.output.append(inferred[name])
        graph.output[-1].type.tensor_type.shape.dim[0].CopyFrom(graph.input[0].type.tensor_type.shape.dim[0])
    _drop_unused(graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def for_tensorrt(model):
    """The model as TensorRT takes it: without NMS, and bytes cast before they are transposed."""
    model = onnx.ModelProto.FromString(without_nms(model).SerializeToString())
    first, second = model.graph.node[:2]
    if (first.op_type, second.op_type) == ("Transpose", "Cast"):  # TensorRT can do nothing with bytes but cast them
        transpose, cast = list(first.attribute), list(second.attribute)
        del first.attribute[:], second.attribute[:]
        first.op_type, second.op_type = "Cast", "Transpose"
        first.attribute.extend(cast)
        second.attribute.extend(transpose)
    return model


def behind_weights(graph):
    """The nodes that no layer with weights comes after: softmax and similarity of the maps, decoding of boxes, NMS."""
    tables = {constant.name for constant in graph.initializer if len(constant.dims) != 2}
    before: set[str] = set()  # values that lead to such a layer
    behind: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        # A product with a stack of matrices is a computation with fixed figures; a dense layer's matrix is one.
        learnt = node.op_type in WITH_WEIGHTS and not (node.op_type == "MatMul" and tables & set(node.input))
        if learnt or before & set(node.output):
            before |= set(node.input)
        else:
            behind.insert(0, node)
    return behind
