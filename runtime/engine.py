"""Open an engine: a network exported by `make export`, which carries in one file all that is needed to run it."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from runtime.errors import BadInput
from runtime.keypoints import KeypointSchema

OTHER_BACKENDS = {".trt": "TensorRT", ".engine": "TensorRT", ".rtx": "TensorRT for RTX", ".xml": "OpenVINO",
                  ".bin": "OpenVINO", ".tflite": "LiteRT"}
POSE_OUTPUTS = {"heatmap": {"heatmaps"}, "simcc": {"simcc_x", "simcc_y"}}
PERSON_OUTPUTS = ({"boxes", "scores"}, {"kept_boxes", "kept_scores"})
LOAD_ERRORS = (onnxruntime_errors.Fail, onnxruntime_errors.InvalidArgument, onnxruntime_errors.InvalidGraph,
               onnxruntime_errors.InvalidProtobuf, onnxruntime_errors.NoSuchFile, onnxruntime_errors.NotImplemented,
               onnxruntime_errors.RuntimeException)


def open_engine(path, kind=None, threads=1):
    """Open an engine file.

    Args:
        path: the .onnx file.
        kind: "pose" or "person" where only that kind will do, None to take either.
        threads: CPU threads of one run. More than one shortens a run on an idle machine; in a pipeline two
            engines with several threads each get in each other's way.

    Raises:
        BadInput: no such file, no engine, an engine of the other kind, or one not made by `make export`.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"engine {path} does not exist: make it with `make export`, or name another file")
    backend = OTHER_BACKENDS.get(path.suffix.lower())
    if backend:
        raise BadInput(f"{path} is an engine of {backend}, which this version does not open: give the .onnx file")
    engine = OnnxEngine(path, threads)
    if kind and engine.kind != kind:
        raise BadInput(f"{path} is a {engine.kind} engine where a {kind} engine is needed: give the other file")
    return engine


class OnnxEngine:
    """An engine on the CPU through ONNX Runtime.

    Attributes:
        path: its file.
        kind: "pose" or "person".
        input_size: (width, height) in pixels.
        metadata: dict of strings as stored in the file: who trained it on what, the licence, the version.
        schema: KeypointSchema of a pose engine, None for a person engine.
        aligned_cells: where the cells of its heatmaps lie, see `runtime.decode`.
        outputs: names of the outputs.
    """

    def __init__(self, path, threads=1):
        self.path = path
        self._session = _open_session(path, threads)
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.kind = self.metadata.get("kind")
        try:
            width, height = self.metadata["input_size"].split("x")
            self.input_size = int(width), int(height)
            self.schema = _schema(self.metadata["keypoints"]) if self.kind == "pose" else None
            self.aligned_cells = self.metadata.get("aligned_cells", "true") == "true"
            self._check_ports()
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path} was not made by `make export` (its {_missing(error)}): export it again") from error

    def run(self, batch):
        """Run the network.

        Args:
            batch: (N, H, W, 3) uint8, BGR, H and W those of `input_size`. Normalisation is in the graph.

        Returns:
            dict of float32 arrays by output name: "heatmaps" (N, K, h, w); or "simcc_x" (N, K, W·split) and
            "simcc_y" (N, K, H·split); or "boxes" (N, A, 4) and "scores" (N, A); or, where NMS is in the graph,
            "kept_boxes" (M, 4) and "kept_scores" (M,), best first. Boxes are left, top, right, bottom in input
            pixels.
        """
        values = self._session.run(None, {self._input: np.ascontiguousarray(batch)})
        return dict(zip(self.outputs, values, strict=True))

    def _check_ports(self):
        """Hold the graph's input and outputs against what the metadata says."""
        [port] = self._session.get_inputs()
        self._input = port.name
        width, height = self.input_size
        if port.type != "tensor(uint8)" or port.shape[1:] != [height, width, 3]:
            raise ValueError(f"input is {port.type} {port.shape}, not uint8 [N, {height}, {width}, 3]")
        wanted: tuple[set[str], ...]
        if self.kind == "pose":
            wanted = (POSE_OUTPUTS[self.metadata["head"]],)
        elif self.kind == "person":
            wanted = PERSON_OUTPUTS
        else:
            raise KeyError("kind")
        if set(self.outputs) not in wanted:
            raise ValueError(f"outputs are {', '.join(self.outputs)}")
        channels = self._session.get_outputs()[0].shape[1:2]
        if self.schema is not None and channels[0] != len(self.schema):
            raise ValueError(f"outputs have {channels[0]} channels for {len(self.schema)} keypoints")


def _open_session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).rpartition("failed:")[2].split())
        raise BadInput(f"{path} is not an engine, or only a part of one: export it again "
                       f"(ONNX Runtime {onnxruntime.__version__}: {reason})") from error


def _schema(text):
    """KeypointSchema from its JSON; lists become tuples."""
    fields = json.loads(text)
    return KeypointSchema(
        name=fields["name"],
        names=tuple(fields["names"]),
        flip_pairs=tuple((int(left), int(right)) for left, right in fields["flip_pairs"]),
        limbs=tuple((int(start), int(end)) for start, end in fields["limbs"]),
        sigmas=tuple(float(sigma) for sigma in fields["sigmas"]),
    )


def _missing(error):
    return f"metadata lack {error}" if isinstance(error, KeyError) else f"metadata and graph disagree: {error}"
