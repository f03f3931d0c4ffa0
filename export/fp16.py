"""An engine in FP16 from a float one, FP32 where measuring finds that FP16 drifts.

    python -m export.fp16 --engine models/pose.onnx --set 'data=["data/people"]'
    python -m export.fp16 --engine models/person.onnx --config configs/person.toml

TensorRT 11 knows strongly typed networks only, in which the ONNX says what is computed in which precision; so does
TensorRT 10 where it is asked to. One file serves both. Layers behind the last one with weights (softmax of the maps,
decoding of boxes) stay FP32, as do the squares and means of norms. Then the network runs on real inputs in both
precisions, and the first layer that drifts becomes an island of FP32 as well, until none does: a layer drifts where its
output is further from FP32's than 1 % and several times further than its inputs are, or where its values come so near
to FP16's largest number that other inputs may overflow. A person engine comes out without NMS, which TensorRT does in a
plugin (docs/tensorrt.md).

The file stays an ordinary ONNX engine, half the size. On a CPU it is slower than the float one.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from eval.precision import precision_of
from export.agreement import check_agreement
from export.onnx_graph import behind_weights, checked, for_tensorrt, summary
from export.verify import inputs_for
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import make_folder
from train.config import add_config_arguments

DRIFT = 0.01  # relative error; rounding alone adds up to some 0.004 over 60 layers
GROWTH = 4  # times the error of the inputs: whoever only hands an error on does not drift
LARGEST = float(np.finfo(np.float16).max) / 8  # room for inputs that were not measured
INPUTS = 4  # some 60 MB each
BEHIND = "behind the last one with weights"
SQUARE = "squares and means of norms"
SQUARES = ("Pow", "ReduceMean")  # they overflow first where a picture is unlike those that were measured


@dataclass
class Island:
    """A layer that stays FP32: its name, what it is (an ONNX operator), and why."""

    name: str
    kind: str
    reason: str


def main():
    arguments = parse_arguments()
    out = arguments.out or arguments.engine.with_suffix(".fp16.onnx")
    engine = open_engine(arguments.engine)
    inputs, origin = inputs_for(engine, arguments)
    model, islands = to_fp16(for_tensorrt(load_float(arguments.engine)), inputs)
    for line in described(islands):
        print(line)
    make_folder(out.parent)
    with checked(model, out) as half:
        found = check_agreement(half, engine, inputs, "fp16")
    print(summary(out, f"{found} on {len(inputs)} {origin} inputs"))


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m export.fp16", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="FILE", help="the float .onnx engine")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: FILE.fp16.onnx beside the engine)")
    add_config_arguments(parser)
    return parser.parse_args()


def load_float(path):
    """The model of a float32 .onnx engine; BadInput where the file is another kind of engine."""
    if path.suffix != ".onnx":
        raise BadInput(f"{path} is no .onnx engine: give the float one that it was built from")
    precision = precision_of(path)[0]
    if precision != "float32":
        raise BadInput(f"the weights of {path} are {precision}, not float32: give the float engine")
    return onnx.load(path)


def to_fp16(model, inputs):
    """Convert a model, and find out what has to stay FP32.

    Args:
        model: onnx.ModelProto with float32 weights and no NMS.
        inputs: (N, H, W, 3) uint8 BGR, real ones, of which the first INPUTS are used.

    Returns:
        A new ModelProto, its input and outputs of the same types as before, and the list of Islands.
    """
    model = with_names(model)
    inputs = inputs[:INPUTS]
    islands = [Island(node.name, node.op_type, BEHIND) for node in behind_weights(model.graph)]
    islands += [Island(node.name, node.op_type, SQUARE) for node in model.graph.node if node.op_type in SQUARES]
    wanted = activations(model, inputs)
    while True:
        half = converted(model, islands)
        drifting = first_drift(model.graph, wanted, activations(half, inputs), {island.name for island in islands})
        if drifting is None:
            return half, islands
        islands.append(drifting)


def described(islands):
    """A line on each island that measuring found, and one on each group of the others."""
    for reason in (BEHIND, SQUARE):
        yield f"FP32  {sum(island.reason == reason for island in islands)} layers: {reason}"
    for island in islands:
        if island.reason not in (BEHIND, SQUARE):
            yield f"FP32  {island.kind:<12} {island.name}: {island.reason}"


def with_names(model):
    """A copy in which every node has a name of its own."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(name for name in (f"{node.op_type}_{number}", f"{node.op_type}__{number}")
                             if name not in taken)
    return model


def converted(model, islands):
    """The model in FP16 but for the islands, with casts where the two meet. What a node makes keeps its name."""
    half = convert_float_to_float16(onnx.ModelProto.FromString(model.SerializeToString()), keep_io_types=True,
                                    node_block_list=[island.name for island in islands])
    join_islands(half.graph)
    OnnxModel(half).topological_sort()  # the converter puts its casts last
    onnx.checker.check_model(half, full_check=True)
    return half


def join_islands(graph):
    """Take out the casts to FP16 and back between islands: what the islands are for would overflow there."""
    outputs = {output.name for output in graph.output}
    casts: dict[int, list] = {TensorProto.FLOAT: [], TensorProto.FLOAT16: []}
    for node in graph.node:
        if node.op_type == "Cast" and node.attribute[0].i in casts:
            casts[node.attribute[0].i].append(node)
    made_by = {name: node for node in graph.node for name in node.output}
    dropped = []
    for narrow in casts[TensorProto.FLOAT16]:
        source, value = narrow.input[0], narrow.output[0]
        if source not in made_by or made_by[source].op_type == "Cast":
            continue
        wide = [node for node in casts[TensorProto.FLOAT] if node.input[0] == value]
        name = next((node.output[0] for node in wide if node.output[0] in outputs), value)  # of the value in FP32
        replaced = {node.output[0]: name for node in wide}
        for node in graph.node:
            node.input[:] = [f"{value}_half" if each == value else replaced.get(each, each) for each in node.input]
        made_by[source].output[:] = [name if each == source else each for each in made_by[source].output]
        narrow.input[0], narrow.output[0] = name, f"{value}_half"
        dropped += wide
        if not any(narrow.output[0] in node.input for node in graph.node if node not in dropped):
            dropped.append(narrow)
    for node in dropped:
        graph.node.remove(node)
    del graph.value_info[:]  # types of before


def activations(model, inputs):
    """{name: float64 array} of every value that the nodes compute, without any fusing of nodes."""
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in shown.graph.node for name in node.output if name]
    outputs = {output.name for output in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    size = port.shape[0] if isinstance(port.shape[0], int) else len(inputs)
    runs = [session.run(names, {port.name: inputs[first:first + size]}) for first in range(0, len(inputs), size)]
    return dict(zip(names, (np.concatenate(values) if values[0].ndim else values[0]
                            for values in zip(*runs, strict=True)), strict=True))


def first_drift(graph, wanted, found, islands):
    """The first layer, in the order in which they run, whose FP16 output drifts, as an Island; None without any.

    Args:
        wanted, found: `activations` of the FP32 and of the FP16 model.
        islands: names of nodes that are FP32 already.
    """
    errors: dict[str, float] = {}
    large: dict[str, float] = {}
    for node in graph.node:
        for name in node.output:
            errors[name] = relative_error(found[name], wanted[name])
            if np.issubdtype(wanted[name].dtype, np.floating) and wanted[name].size:
                large[name] = float(np.abs(wanted[name]).max())
        if node.name in islands or node.op_type == "Cast":
            continue
        # Readers of a large value are islands, too: it would be rounded to FP16 on its way to them.
        largest = max((large.get(name, 0) for name in [*node.input, *node.output]), default=0)
        if largest > LARGEST:
            return Island(node.name, node.op_type, f"values up to {largest:.3g} of the {8 * LARGEST:.3g} that FP16 has")
        before = max((errors.get(name, 0) for name in node.input), default=0)
        after = max(errors[name] for name in node.output)
        if not np.isfinite(after) or after > max(DRIFT, GROWTH * before):
            return Island(node.name, node.op_type, f"relative error {after:.2g} where its inputs have {before:.2g}")
    return None


def relative_error(found, wanted):
    """‖found − wanted‖ / ‖wanted‖; infinite where one of them is no number."""
    found, wanted = (np.asarray(values, np.float64) for values in (found, wanted))
    with np.errstate(invalid="ignore"):
        error = float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-30)
    return error if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    run_command(main)
