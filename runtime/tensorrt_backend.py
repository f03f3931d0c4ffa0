"""Runs engines of TensorRT (.trt) and of TensorRT for RTX (.rtx) on an NVIDIA GPU."""

import contextlib
import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cuda import Buffer, call, cudart, current_gpu, free_memory
from runtime.errors import BadInput
from runtime.files import sha256
from runtime.sidecar import LIBRARIES, Machine, check_sidecar, read_sidecar

SUFFIXES = {".trt": "TensorRT", ".engine": "TensorRT", ".rtx": "TensorRT for RTX"}

_plugins: dict[str, object] = {}  # hash of a plugin library → its handle; TensorRT loads one once a process, for good


def tensorrt_module(library):
    """The Python module of a library in `LIBRARIES`; BadInput where it is not installed."""
    try:
        return importlib.import_module(LIBRARIES[library])
    except (ImportError, OSError) as error:
        advice = {"TensorRT": "pip install -e '.[tensorrt]' into this environment (on a Jetson see docs/tensorrt.md)",
                  "TensorRT for RTX": "pip install tensorrt_rtx_cu13"}[library]
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise BadInput(f"{library} {problem}: {advice}, or run the .onnx engine") from error


def this_machine(library):
    """The Machine that engines run on here; BadInput where the library or a GPU is missing."""
    module = tensorrt_module(library)
    gpu = current_gpu()
    return Machine(library, module.__version__, gpu.name, gpu.compute_capability)


def load_plugin(module, path):
    """Register a plugin library for the rest of the process. BadInput where it does not load."""
    key = sha256(path)
    if key in _plugins:  # TensorRT refuses to register the same plugin twice
        return
    if _plugins:
        raise BadInput(f"another build of the plugin than {path} is in use: start a process of its own for this engine")
    try:
        handle = module.get_plugin_registry().load_library(str(path))
    except RuntimeError as error:
        raise BadInput(f"plugin {path} does not load: {error}; build it anew (docs/tensorrt.md)") from error
    if handle is None:
        raise BadInput(f"plugin {path} does not load: build it anew (docs/tensorrt.md)")
    _plugins[key] = handle


class TensorRt:
    """An engine on the GPU, with the attributes that `runtime.backends` names.

    Its memory on both sides is allocated once, for the largest batch of its profile, and it has a stream of its own:
    two engines in two threads overlap. One run at a time; `run` and `close` may come from any thread.

    Raises:
        BadInput: the sidecar is missing or something differs from it; library, GPU or memory are missing.
    """

    def __init__(self, path):
        path = Path(path)
        sidecar = read_sidecar(path)
        library = SUFFIXES[path.suffix.lower()]
        check_sidecar(sidecar, path, this_machine(library))
        self.metadata = sidecar.metadata
        self._path = path
        self._lock = threading.Lock()
        self._module = module = tensorrt_module(library)
        self._logger = module.Logger(module.Logger.ERROR)
        if sidecar.plugin is not None:  # before the engine, which cannot be read without
            load_plugin(module, path.parent / sidecar.plugin)
        self._runtime = module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise BadInput(f"{path} does not load, though it was built for this machine: either the GPU's memory is "
                           f"full ({free_memory()}), or it has to be built again: {sidecar.command}")
        self._buffers: dict[str, Buffer] = {}
        self._stream: Any = call("cudaStreamCreateWithFlags", cudart().cudaStreamNonBlocking)
        try:
            self._allocate(sidecar.profiles)
        except BaseException:
            self.close()
            raise

    def _allocate(self, profiles):
        """Buffers for the largest shapes, and what `runtime.backends` wants to know of input and outputs."""
        engine, context, module = self._engine, self._context, self._module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        (self._input,) = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
        shape = tuple(engine.get_tensor_shape(self._input))
        if shape[0] < 0 and self._input not in profiles:
            raise BadInput(f"the sidecar of {self._path} has no profile of its input {self._input}: build it again")
        largest = tuple(profiles[self._input]["max"]) if shape[0] < 0 else shape
        self._largest, self._dynamic, self._count = largest[0], shape[0] < 0, 0
        taken = [context.set_input_shape(self._input, largest)]
        for name in names:
            dtype = module.nptype(engine.get_tensor_dtype(name))
            self._buffers[name] = Buffer(tuple(context.get_tensor_shape(name)), dtype)
            taken.append(context.set_tensor_address(name, self._buffers[name].device))
        if not all(taken):
            raise BadInput(f"{self._path} does not take inputs of shape {largest}, which its sidecar names: build it "
                           "again")
        self._sides = largest[1:]
        self.port = self._input, str(self._buffers[self._input].host.dtype), [self._batch(), *self._sides]
        self._given = [name for name in names if name != self._input]
        self._suppressed = "indices" in self._given  # the NMS plugin's outputs, whose size is fixed
        shapes = {name: [self._batch(), *self._buffers[name].host.shape[1:]] for name in self._given}
        kept: dict[str, list] = {"kept_boxes": [None, 4], "kept_scores": [None]}
        self.outputs = kept if self._suppressed else shapes

    def _batch(self):
        return None if self._dynamic else self._largest

    def run(self, batch):
        """Arrays in the order of `outputs`, for (N, H, W, 3) uint8 BGR; more than the largest batch in several runs."""
        if batch.shape[1:] != tuple(self._sides):
            raise ValueError(f"inputs of shape {batch.shape[1:]} where the engine takes {tuple(self._sides)}")
        parts = [self._run(batch[first:first + self._largest]) for first in range(0, max(len(batch), 1), self._largest)]
        return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _run(self, batch):
        with self._lock:
            if self._stream is None:
                raise BadInput(f"{self._path} was closed: open it again")
            count = len(batch)
            if not count:
                return [np.zeros((0, *shape[1:]), np.float32) for shape in self.outputs.values()]
            pixels = self._buffers[self._input]
            pixels.host[:count] = batch
            if self._dynamic and count != self._count:
                self._context.set_input_shape(self._input, (count, *pixels.host.shape[1:]))
                self._count = count
            pixels.upload(count, self._stream)
            if not self._context.execute_async_v3(int(self._stream)):
                # TensorRT tells only its log; CUDA knows more if the GPU is the reason.
                call("cudaStreamSynchronize", self._stream)
                raise BadInput(f"{self._path} failed to run on {count} inputs: build it again, or run the .onnx engine")
            for name in self._given:
                self._buffers[name].download(count, self._stream)
            call("cudaStreamSynchronize", self._stream)
            found = {name: self._buffers[name].host[:count] for name in self._given}
            if self._suppressed:
                kept = int(found["count"][0])
                return [found["boxes"][0, :kept].copy(), found["scores"][0, :kept].copy()]
            # Copied, since the next run writes to the same memory.
            return [found[name].astype(np.float32) for name in self._given]

    def close(self):
        """Give the GPU's memory back, once a run that is under way has ended. Closing twice does nothing."""
        with self._lock:
            if self._stream is None:
                return
            stream, self._stream = self._stream, None
            with contextlib.suppress(BadInput):  # of a GPU that was lost nothing can be freed
                call("cudaStreamSynchronize", stream)
                self._context = self._engine = self._runtime = None  # in this order, which TensorRT asks for
                for buffer in self._buffers.values():
                    buffer.free()
                call("cudaStreamDestroy", stream)
            self._buffers = {}
