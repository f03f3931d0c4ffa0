"""A public peer: rtmlib's top-down pipeline (https://github.com/Tau-J/rtmlib, Apache-2.0), on the same networks.

rtmlib's classes want what MMPose's and YOLOX's exports have: float pixels, planes of colour first, and boxes with their
score in one output. Our engines take pixels as OpenCV holds them, so copies of their files are made whose graphs begin
after, and end before, what differs. The weights and every layer between are the same.
"""

import contextlib
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.engine import open_engine
from runtime.errors import BadInput

HEAD = ["Cast", "Transpose"]  # what our graphs begin with, in either order: pixels → floats, rows → planes


def open_peer(detector, pose, folder, threads=None):
    """rtmlib's `Custom` of its YOLOX and ViTPose classes, which run any detector with NMS and any heatmaps.

    Its own normalisation, which is in our graphs, is switched off: that spares it time. Its ViTPose class decodes by
    DARK too, and takes one person after the other. Where it finds nobody it poses the whole frame, as one person.

    Args:
        detector, pose: paths of our engines, .onnx.
        folder: where the copies go; they are needed only until this returns.
        threads: of each network; None for what rtmlib has, which is ONNX Runtime's default, one a core.

    Returns:
        Function (H, W, 3) uint8 BGR → keypoints (N, K, 2) in pixels, scores (N, K).

    Raises:
        BadInput: rtmlib or onnx is not installed, or an engine is not of the kind that it can run.
    """
    try:
        import rtmlib
    except ModuleNotFoundError as error:
        # With its dependencies it would bring two more builds of OpenCV, which overwrite the one that is there.
        raise BadInput(f"{error.name} is not installed: pip install --no-deps rtmlib") from error
    person_engine, pose_engine = open_engine(detector, "person"), open_engine(pose, "pose")
    paths = Path(folder, "person.onnx"), Path(folder, "pose.onnx")
    width, height = person_engine.input_size
    _write_copy(detector, paths[0], person_engine)
    _write_copy(pose, paths[1], pose_engine)
    with contextlib.redirect_stdout(sys.stderr):  # it says what it loads
        pipeline = rtmlib.Custom(det_class="YOLOX", det=str(paths[0]), det_input_size=(height, width),
                                 pose_class="ViTPose", pose=str(paths[1]), pose_input_size=pose_engine.input_size,
                                 backend="onnxruntime", device="cpu")
    pipeline.pose_model.mean = None
    if threads is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for tool, path in zip((pipeline.det_model, pipeline.pose_model), paths, strict=True):
            tool.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return pipeline


def peer_name():
    """Name and version for the table."""
    return f"rtmlib {version('rtmlib')}"


def _write_copy(path, target, engine):
    """The engine's graph with an input (N, 3, H, W) float32 BGR 0..255; of a person engine with one output (1, M, 5):
    left, top, right, bottom, score."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise BadInput("onnx is not installed: pip install onnx") from error
    wanted = {"person": {"kept_boxes", "kept_scores"}, "pose": {"heatmaps"}}[engine.kind]
    if Path(path).suffix.lower() != ".onnx":
        raise BadInput(f"{path} is no .onnx file, of which the peer's copy could be made: give one")
    if set(engine.outputs) != wanted:
        raise BadInput(f"{path} has the outputs {', '.join(engine.outputs)}, where the peer's classes can take "
                       f"{' and '.join(sorted(wanted))} only: export such an engine")
    model = onnx.load(path)
    _cut_head(onnx, model.graph, path, engine)
    if engine.kind == "person":
        _join_boxes(onnx, model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _cut_head(onnx, graph, path, engine):
    """Begin the graph where the pixels are planes of floats."""
    name, head = graph.input[0].name, []
    for _ in HEAD:
        head += [node for node in graph.node if name in node.input]
        name = head[-1].output[0]
    if sorted(node.op_type for node in head) != HEAD:
        raise BadInput(f"{path} does not begin with {' and '.join(HEAD)}, after which the peer's "
                       "classes could feed it: give an engine of `make export`")
    for node in head:
        graph.node.remove(node)
    width, height = engine.input_size
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT,
                                                          [engine.batch or "batch", 3, height, width]))


def _join_boxes(onnx, graph):
    helper = onnx.helper
    graph.initializer.extend([onnx.numpy_helper.from_array(np.array([axis], np.int64), f"peer_axis_{axis}")
                              for axis in (0, 1)])
    graph.node.extend([helper.make_node("Unsqueeze", ["kept_scores", "peer_axis_1"], ["peer_scores"]),
                       helper.make_node("Concat", ["kept_boxes", "peer_scores"], ["peer_boxes"], axis=1),
                       helper.make_node("Unsqueeze", ["peer_boxes", "peer_axis_0"], ["dets"])])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("dets", onnx.TensorProto.FLOAT, [1, "kept", 5]))

