"""What runs a network: one class for each library, all with the same few attributes.

Attributes of each:
    metadata: dict of strings as stored in the file.
    port: name, type ("uint8") and shape of the input; None where a side may be of any length.
    outputs: {name: shape} in the file's order.
    run(batch): arrays in the order of `outputs`.
    close(): give back what it holds; nothing runs on it any more.
"""

import importlib.util

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from runtime.errors import BadInput

ONNX_BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")
DEFAULT_BACKEND = "onnxruntime"
LOAD_ERRORS = (onnxruntime_errors.Fail, onnxruntime_errors.InvalidArgument, onnxruntime_errors.InvalidGraph,
               onnxruntime_errors.InvalidProtobuf, onnxruntime_errors.NoSuchFile, onnxruntime_errors.NotImplemented,
               onnxruntime_errors.RuntimeException)


class EngineFailed(BadInput):
    """An engine that opened well fails when it runs."""


def installed_backends():
    """Names of the backends that open an .onnx file on this machine, the default first."""
    if importlib.util.find_spec("openvino") is None:
        return ONNX_BACKENDS[:1]
    return ONNX_BACKENDS if _has_bfloat16() else ONNX_BACKENDS[:2]


def library_of(name):
    """The module that a backend is: "openvino" for "openvino-bf16"."""
    return name.partition("-")[0]


def open_backend(path, name, threads):
    """The network of an .onnx file on a backend; BadInput where the file or the backend cannot be had."""
    if name not in ONNX_BACKENDS:
        raise BadInput(f"unknown backend {name!r}; choose one of {', '.join(ONNX_BACKENDS)}")
    if name == "onnxruntime":
        return OnnxRuntime(path, threads)
    if importlib.util.find_spec("openvino") is None:
        raise BadInput("OpenVINO is not installed: pip install openvino, or choose backend onnxruntime")
    if name == "openvino-bf16" and not _has_bfloat16():
        raise BadInput("this CPU does not compute in bfloat16: choose backend openvino or onnxruntime")
    return OpenVino(path, threads, "bf16" if name == "openvino-bf16" else "f32")


class OnnxRuntime:
    def __init__(self, path, threads):
        self._path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except LOAD_ERRORS as error:
            reason = " ".join(str(error).rpartition("failed:")[2].split())
            raise _no_engine(path, f"ONNX Runtime {onnxruntime.__version__}: {reason}") from error
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        port = _only_input(path, self._session.get_inputs())
        self.port = port.name, port.type.removeprefix("tensor(").removesuffix(")"), _sides(port.shape)
        self.outputs = {output.name: _sides(output.shape) for output in self._session.get_outputs()}

    def run(self, batch):
        try:
            return self._session.run(None, {self.port[0]: np.ascontiguousarray(batch)})
        except LOAD_ERRORS as error:
            raise _failed(self._path, batch, error) from error

    def close(self):
        """Its memory goes when it is thrown away."""


class OpenVino:
    """OpenVINO computes in bfloat16 of its own accord where the CPU can; here only where `precision` says so."""

    def __init__(self, path, threads, precision):
        import openvino

        self._path = path
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
        try:
            model = core.read_model(path)
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise _no_engine(path, f"OpenVINO {openvino.__version__}: {reason}") from error
        # OpenVINO keeps the metadata of an ONNX file under this name.
        stored = model.get_rt_info(["framework"]).astype(dict) if model.has_rt_info(["framework"]) else {}
        self.metadata = {key: value.astype(str) for key, value in stored.items()}
        port = _only_input(path, model.inputs)
        self.port = port.get_any_name(), port.get_element_type().to_dtype().name, _sides(port.partial_shape)
        self.outputs = {output.get_any_name(): _sides(output.partial_shape) for output in model.outputs}

    def run(self, batch):
        try:
            found = self._request.infer({0: np.ascontiguousarray(batch)})
        except RuntimeError as error:
            raise _failed(self._path, batch, error) from error
        # Copied, since the request writes the next run's outputs to the same memory.
        return [np.array(found[place]) for place in range(len(self.outputs))]

    def close(self):
        """Its memory goes when it is thrown away."""


def _has_bfloat16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _only_input(path, inputs):
    if len(inputs) != 1:
        raise BadInput(f"{path} was not made by `make export` (it has {len(inputs)} inputs, not one): export it again")
    return inputs[0]


def _sides(shape):
    """Lengths of a shape, None for those that are not fixed, which each library writes differently."""
    if not isinstance(shape, list):
        shape = [side.get_length() if side.is_static else None for side in shape]
    return [side if isinstance(side, int) else None for side in shape]


def _no_engine(path, reason):
    return BadInput(f"{path} is not an engine, or only a part of one: export it again ({reason})")


def _failed(path, batch, error):
    return EngineFailed(f"{path} failed to run on {len(batch)} inputs: export it again "
                        f"({' '.join(str(error).split())[-200:]})")
