"""An INT8 engine for the CPU from a float one, kept only where it is nearly as good and clearly faster.

    python -m export.int8 --engine models/pose.onnx --set 'data=["data/people"]' \\
        --annotations person_keypoints_val2017.json --images val2017
    python -m export.int8 --engine models/person.onnx --config configs/person.toml …

Static quantisation (Jacob et al. 2018) in ONNX's QDQ form: weights as int8 with a scale for each channel, activations
as uint8 within the range that they had on real inputs from --config's data. Softmax, norms, resizing, attention and the
heatmap's deconvolution stay float: they are what drifts, or have no INT8 kernel. If AP on --annotations (of a person
engine that of its boxes) falls by more than --loss, the activations that rounding hurts most stay float too,
and it is tried again. An engine that loses more, or is not --faster times as fast on one thread, is refused, and
nothing is left under the final name.
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, qdq_loss_debug, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from eval import latency
from eval.annotations import check_images, load_annotations
from eval.bench import accuracy
from eval.gate import Gate
from eval.options import positive
from eval.subject import Subject, check_schema
from export.onnx_graph import behind_weights
from export.verify import inputs_for
from runtime.backends import DEFAULT_BACKEND, ONNX_BACKENDS
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import make_folder
from train.config import add_config_arguments

CALIBRATION = 256  # inputs
QUANTISED = ("Conv", "Clip", "Relu", "Add")  # kinds of nodes; others stay float
FEWER = 6  # activations that stay float, more with every attempt
ATTEMPTS = 5
SECONDS = 4.0  # of runs, for the ratio of times


class Inputs(CalibrationDataReader):
    """Inputs (N, H, W, 3) uint8, one at a time, for a graph's input of this name."""

    def __init__(self, inputs, name):
        self._left = iter(inputs)
        self._name = name

    def get_next(self):
        pixels = next(self._left, None)
        return None if pixels is None else {self._name: pixels[None]}


def main():
    arguments = parse_arguments()
    out = arguments.out or arguments.engine.with_suffix(".int8.onnx")
    engine = open_engine(arguments.engine, backend=arguments.backend)
    annotations = load_annotations(arguments.annotations)
    if engine.kind == "pose":
        check_schema(Subject(engine, arguments.engine, engine.metadata["head"], arguments.engine.stem), annotations)
    check_images(annotations.images, arguments.images)
    inputs, origin = inputs_for(engine, arguments, arguments.inputs)
    print(f"{len(inputs)} {origin} inputs to calibrate on", flush=True)
    make_folder(out.parent)
    before = accuracy(engine, annotations, arguments.images)["AP"]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        ready, quantised = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(arguments.engine), str(ready), skip_symbolic_shape=True)
        kept: list[str] = []
        for attempt in range(ATTEMPTS):
            quantise(ready, inputs, quantised, kept)
            after = accuracy(open_engine(quantised, backend=arguments.backend), annotations, arguments.images)["AP"]
            print(f"AP {before:.3f} → {after:.3f}, {len(kept)} activations more left float", flush=True)
            if Gate("AP", after, "minimum", before - arguments.loss).holds:
                break
            if attempt + 1 == ATTEMPTS:
                raise BadInput(f"INT8 loses {before - after:.3f} AP, more than --loss {arguments.loss:g}; {out} "
                               "was not written")
            kept += worst_activations(ready, quantised, inputs[:32], FEWER * (attempt + 1), kept)
        times = time_ratio(arguments.engine, quantised, inputs[:32], Path(folder), arguments.backend)
        if times > 1 / arguments.faster:
            raise BadInput(f"INT8 is {1 / times:.2f} times as fast, less than --faster {arguments.faster:g}; {out} was "
                           "not written")
        stamp(quantised, {"precision": "int8", "calibration": f"{len(inputs)} {origin} inputs"})
        os.replace(quantised, out)
    print(f"{out}  {out.stat().st_size / 1e6:.1f} MB, AP {before:.3f} → {after:.3f}, {1 / times:.2f} times as "
          "fast")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m export.int8", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=Path("models/pose.onnx"), help="(default: %(default)s)")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO keypoint file to measure AP on")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--backend", choices=ONNX_BACKENDS, default=DEFAULT_BACKEND,
                        help="that both engines are measured with; ONNX Runtime's sums of bytes overflow on a CPU "
                             "without VNNI, where OpenVINO loses less (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="(default: NAME.int8.onnx beside the engine NAME.onnx)")
    parser.add_argument("--inputs", type=positive, default=CALIBRATION, metavar="N",
                        help="to calibrate on (default: %(default)s)")
    parser.add_argument("--loss", type=float, default=0.01, help="AP that it may cost (default: %(default)s)")
    parser.add_argument("--faster", type=positive_number, default=1.3,
                        help="times as fast at least (default: %(default)s)")
    add_config_arguments(parser)
    return parser.parse_args()


def positive_number(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def quantise(path, inputs, out, kept, symmetric=False):
    """Write the INT8 graph of a float one (from `quant_pre_process`); nodes that make the tensors `kept` stay float.

    symmetric: as TensorRT wants it: activations as int8 around 0 instead of as uint8, biases float.
    """
    graph = onnx.load(path).graph
    decoding = {node.name for node in behind_weights(graph)}  # a byte is too coarse for a box in pixels
    float_nodes = [node.name for node in graph.node
                   if set(node.output) & set(kept) or _in_attention(node) or node.name in decoding]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # of norms, which stay float, it says that they have no channels
    try:
        quantize_static(str(path), str(out), Inputs(inputs, graph.input[0].name), quant_format=QuantFormat.QDQ,
                        per_channel=True, weight_type=QuantType.QInt8,
                        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                        op_types_to_quantize=list(QUANTISED), nodes_to_exclude=float_nodes,
                        extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if symmetric else {})
    finally:
        logging.getLogger().setLevel(level)


def quantise_for_tensorrt(model, inputs):
    """A float model as TensorRT's explicit quantisation wants it (Q and DQ nodes), calibrated as for the CPU.

    Args:
        model: onnx.ModelProto, from `export.onnx_graph.for_tensorrt`.
        inputs: (N, H, W, 3) uint8 BGR, real ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "int8"))
        onnx.save(model, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantise(ready, inputs, quantised, [], symmetric=True)
        return onnx.load(quantised)


def _in_attention(node):
    return any(part in node.name for part in ("attention", "feedforward", "tokens"))


def worst_activations(float_path, quantised_path, inputs, count, kept):
    """Names of the activations that quantisation keeps least of: the ratio of signal to the error of rounding."""
    name = onnx.load(float_path).graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        for number, path in enumerate((float_path, quantised_path)):
            shown = Path(folder) / f"{number}.onnx"
            qdq_loss_debug.modify_model_output_intermediate_tensors(str(path), str(shown))
            seen.append(qdq_loss_debug.collect_activations(str(shown), Inputs(inputs, name)))
        matched = qdq_loss_debug.create_activation_matching(seen[1], seen[0])
        errors = qdq_loss_debug.compute_activation_error(matched)
    ranked = sorted((error["qdq_err"], tensor) for tensor, error in errors.items() if tensor not in kept)
    return [tensor for _, tensor in ranked[:count]]


def time_ratio(reference, quantised, inputs, folder, backend):
    """Time of the quantised engine over that of the reference, on one thread, in turns."""
    saved = folder / "inputs.npy"
    np.save(saved, inputs)
    measured: list[latency.Measured] = []
    latency.measure([latency.Combination(path, backend, 1, 1, saved) for path in (reference, quantised)],
                    SECONDS, measured)
    ratio = latency.time_ratio(measured[1], measured[0])
    assert ratio is not None  # there were rounds
    return ratio[0]


def stamp(path, metadata):
    """Add metadata to an ONNX file, and drop what the quantiser left in it."""
    model = onnx.load(path)
    entries = {entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith("onnx.")}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**entries, **metadata})
    onnx.save(model, path)


if __name__ == "__main__":
    run_command(main)
