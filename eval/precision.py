"""In what precision an engine computes, read off its graph rather than its name."""

from collections import Counter
from math import prod

from runtime.errors import BadInput
from runtime.sidecar import read_sidecar
from runtime.tensorrt_backend import SUFFIXES

FLOATS = {"float32", "float16", "bfloat16", "double"}
NO_WEIGHTS = {"int32", "int64", "bool", "string"}  # shapes, places, the biases of INT8


def precision_of(path):
    """What an engine's weights are stored in, or rounded to.

    Args:
        path: of the engine. Of an .onnx file the graph is read, whatever its metadata say; of TensorRT's the sidecar,
            which knows what it was built with.

    Returns:
        "int8" where the graph quantises (with another type of 8 bits or fewer this type's name in ONNX, such as
        "float8e4m3fn"), else the type of most weights: "float32", "float16", "bfloat16"; "unknown" where nobody says.
        And how many numbers of each floating or quantised type the weights have: dict of ints, empty where unknown.

    Raises:
        BadInput: onnx is not installed, or there is no sidecar.
    """
    if path.suffix.lower() in SUFFIXES:
        precision = read_sidecar(path).precision
        return {"fp32": "float32", "fp16": "float16"}.get(precision, precision), {}
    if path.suffix.lower() != ".onnx":
        return "unknown", {}
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise BadInput("onnx is not installed, which tells the precision of an engine; pip install onnx") from error
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: part.t for node in graph.node if node.op_type == "Constant"
                for part in node.attribute if part.name == "value"}
    types = {name: _type(onnx, tensor) for name, tensor in tensors.items()}
    weights: Counter = Counter()
    for name, tensor in tensors.items():
        if types[name] not in NO_WEIGHTS:
            weights[types[name]] += prod(tensor.dims)
    of_quantisers = {types[name] for node in graph.node if _quantises(node.op_type) for name in node.input
                     if name in types}
    if of_quantisers:
        rounded = {"int8" if kind == "uint8" else kind for kind in of_quantisers - FLOATS - NO_WEIGHTS}
        return "+".join(sorted(rounded)) or "int8", dict(weights)
    return max(weights, key=weights.__getitem__, default="unknown"), dict(weights)


def _quantises(operator):
    return "Quantize" in operator or "QLinear" in operator or operator.endswith("Integer")


def _type(onnx, tensor):
    return {"float": "float32"}.get(name := onnx.TensorProto.DataType.Name(tensor.data_type).lower(), name)
