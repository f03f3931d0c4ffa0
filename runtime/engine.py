"""Open an engine: a network exported by `make export`, which carries in one file all that is needed to run it."""

import json
from pathlib import Path

import numpy as np

from runtime.backends import DEFAULT_BACKEND, open_backend
from runtime.errors import BadInput
from runtime.keypoints import PERSON_PADDING, KeypointSchema
from runtime.sidecar import LIBRARIES
from runtime.tensorrt_backend import SUFFIXES, TensorRt

OTHER_ENGINES = {".xml": "OpenVINO", ".bin": "OpenVINO", ".tflite": "LiteRT"}
POSE_OUTPUTS = {"heatmap": {"heatmaps"}, "simcc": {"simcc_x", "simcc_y"}}
PERSON_OUTPUTS = ({"boxes", "scores"}, {"kept_boxes", "kept_scores"})


def open_engine(path, kind=None, threads=1, backend=DEFAULT_BACKEND):
    """Open an engine file.

    Args:
        path: the .onnx file; or a .trt or .rtx file, with its sidecar beside it, which runs on the GPU.
        kind: "pose" or "person" where only that kind will do, None to take either.
        threads: of an .onnx, CPU threads of one run. More than one shortens a run on an idle machine; in a pipeline two
            engines with several threads each get in each other's way.
        backend: of an .onnx: "onnxruntime", "openvino", or "openvino-bf16", which computes in bfloat16.
            `runtime.backends` says which are installed.

    Raises:
        BadInput: no such file, no engine, an engine of the other kind, one not made by `make export`, no such backend
            here; or a TensorRT engine that was built for something else than what is here.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"engine {path} does not exist: make it with `make export`, or name another file")
    other = OTHER_ENGINES.get(path.suffix.lower())
    if other:
        raise BadInput(f"{path} is an engine of {other}, which this version does not open: give the .onnx file")
    if path.suffix.lower() in SUFFIXES:
        backend, network = LIBRARIES[SUFFIXES[path.suffix.lower()]], TensorRt(path)
    else:
        network = open_backend(path, backend, threads)
    try:
        engine = Engine(path, network, backend)
    except BadInput:
        network.close()
        raise
    if kind and engine.kind != kind:
        engine.close()
        raise BadInput(f"{path} is a {engine.kind} engine where a {kind} engine is needed: give the other file")
    return engine


class Engine:
    """A network, and what it says of itself.

    Attributes:
        path: its file.
        backend: name of what runs it.
        kind: "pose" or "person".
        input_size: (width, height) in pixels.
        metadata: dict of strings as stored in the file: who trained it on what, the licence, the version.
        schema: KeypointSchema of a pose engine, None for a person engine.
        padding: of a pose engine's crops, see `runtime.crop.crop_region`.
        stretch: of a person engine's frames, see `runtime.crop.letterbox`.
        aligned_cells: where the cells of its heatmaps lie, see `runtime.decode`.
        batch: inputs that the graph takes at once, None for any number; `run` takes any number anyway.
        outputs: names of the outputs.
    """

    def __init__(self, path, network, backend):
        self.path, self.backend = path, backend
        self._network = network
        self.metadata = network.metadata
        self.batch = network.port[2][0]
        self.outputs = tuple(network.outputs)
        self.kind = self.metadata.get("kind")
        try:
            width, height = self.metadata["input_size"].split("x")
            self.input_size = int(width), int(height)
            self.schema = _schema(self.metadata["keypoints"]) if self.kind == "pose" else None
            self.padding = _at_least_one("padding", self.metadata.get("padding", PERSON_PADDING))
            self.stretch = _at_least_one("stretch", self.metadata.get("stretch", 1))
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
        if self.batch in (None, len(batch)):
            return dict(zip(self.outputs, self._network.run(batch), strict=True))
        parts = []
        for first in range(0, len(batch), self.batch):
            part = batch[first:first + self.batch]
            filled = np.zeros((self.batch, *part.shape[1:]), np.uint8)
            filled[:len(part)] = part
            parts.append([values[:len(part)] for values in self._network.run(filled)])
        whole = (np.concatenate(values) for values in zip(*parts, strict=True))
        return dict(zip(self.outputs, whole, strict=True))

    def close(self):
        """Give back what it holds: a TensorRT engine its GPU memory. Others give it back when they are thrown away."""
        self._network.close()

    def _check_ports(self):
        """Hold the graph's input and outputs against what the metadata says."""
        _, kind, shape = self._network.port
        width, height = self.input_size
        if kind != "uint8" or shape[1:] != [height, width, 3]:
            raise ValueError(f"input is {kind} {shape}, not uint8 [N, {height}, {width}, 3]")
        wanted: tuple[set[str], ...]
        if self.kind == "pose":
            wanted = (POSE_OUTPUTS[self.metadata["head"]],)
        elif self.kind == "person":
            wanted = PERSON_OUTPUTS
        else:
            raise KeyError("kind")
        if set(self.outputs) not in wanted:
            raise ValueError(f"outputs are {', '.join(self.outputs)}")
        channels = self._network.outputs[self.outputs[0]][1:2]
        if self.schema is not None and channels[0] != len(self.schema):
            raise ValueError(f"outputs have {channels[0]} channels for {len(self.schema)} keypoints")


def _at_least_one(name, value):
    if not 1 <= float(value) < np.inf:
        raise ValueError(f"{name} is {value}, not 1 or more")
    return float(value)


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
