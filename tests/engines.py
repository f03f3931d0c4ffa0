"""Tiny engines for exact tests: real ONNX graphs that find a bright rectangle, and the coloured dots in it."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Three keypoints by colour: pure blue, green and red dots (BGR channels 0, 1, 2).
DOTS = {"name": "dots", "names": ["left_hand", "right_hand", "nose"], "flip_pairs": [[0, 1]],
        "limbs": [[0, 2], [1, 2]], "sigmas": [0.05, 0.05, 0.05]}


def person_engine(path, size=(320, 192), kind="kept", **metadata):
    """Person engine that finds the bounding box of all pixels brighter than 200 in any channel, score 0.9.

    kind: "kept" with NMS in the graph, "raw" with the box twice, of scores 0.9 and 0.6, for NMS to sort out.
    """
    width, height = size
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats", "channel"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "limit"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["bright"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["bright", "one"], ["columns"], keepdims=0),
        helper.make_node("ReduceMax", ["bright", "two"], ["rows"], keepdims=0),
        helper.make_node("ReduceMax", ["rows", "one"], ["any"], keepdims=1),
    ]
    for line, first, last in (("columns", "left", "right"), ("rows", "top", "bottom")):
        nodes += [
            helper.make_node("ArgMax", [line], [f"{first}_index"], axis=1, keepdims=1),
            helper.make_node("ArgMax", [line], [f"{last}_index"], axis=1, keepdims=1, select_last_index=1),
            helper.make_node("Cast", [f"{first}_index"], [first], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"{last}_index"], [f"{last}_pixel"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{last}_pixel", "edge"], [last]),
        ]
    box = ["left", "top", "right", "bottom"]
    if kind == "kept":
        nodes += [helper.make_node("Concat", box, ["kept_boxes"], axis=1),
                  helper.make_node("Mul", ["any", "score"], ["scores_2d"]),
                  helper.make_node("Reshape", ["scores_2d", "flat"], ["kept_scores"])]
        outputs = [("kept_boxes", [None, 4]), ("kept_scores", [None])]
    else:
        nodes += [helper.make_node("Concat", box * 2, ["both"], axis=1),
                  helper.make_node("Reshape", ["both", "pairs"], ["boxes"]),
                  helper.make_node("Mul", ["any", "scores_of_two"], ["scores"])]
        outputs = [("boxes", [1, None, 4]), ("scores", [1, None])]
    constants = {"channel": [3], "one": [1], "two": [2], "flat": [-1], "pairs": [1, 2, 4], "limit": np.float32(200),
                 "edge": np.float32(1), "score": np.float32(0.9), "scores_of_two": np.float32([[0.6, 0.9]])}
    return _save(path, nodes, constants, [1, height, width, 3], outputs, {"kind": "person", **metadata}, size)


def pose_engine(path, size=(96, 128), head="heatmap", **metadata):
    """Pose engine whose maps peak at pure blue, green and red dots, and are 0 on grey and white."""
    width, height = size
    # channel − the two others: positive for a pure colour, negative for grey and white
    mix = (2 * np.eye(3) - 1).astype(np.float32)[:, :, None, None] / 50
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels_first", "mix"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["pure"]),
        # three box filters are nearly a Gaussian: one peak, in the middle of the dot
        *(helper.make_node("AveragePool", [source], [target], kernel_shape=[7, 7], strides=[1, 1], pads=[3, 3, 3, 3])
          for source, target in (("pure", "blurred1"), ("blurred1", "blurred2"), ("blurred2", "blurred"))),
    ]
    constants = {"mix": mix}
    if head == "heatmap":
        nodes.append(helper.make_node("AveragePool", ["blurred"], ["heatmaps"], kernel_shape=[4, 4], strides=[4, 4]))
        outputs = [("heatmaps", ["N", 3, height // 4, width // 4])]
    else:
        constants |= {"rows": [2], "columns": [3]}
        nodes += [helper.make_node("ReduceMean", ["blurred", "rows"], ["simcc_x"], keepdims=0),
                  helper.make_node("ReduceMean", ["blurred", "columns"], ["simcc_y"], keepdims=0)]
        outputs = [("simcc_x", ["N", 3, width]), ("simcc_y", ["N", 3, height])]
    metadata = {"kind": "pose", "head": head, "keypoints": json.dumps(DOTS), **metadata}
    return _save(path, nodes, constants, ["N", height, width, 3], outputs, metadata, size)


def _save(path, nodes, constants, shape, outputs, metadata, size):
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"input_size": f"{size[0]}x{size[1]}", **metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
