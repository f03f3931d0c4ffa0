"""CUDA's runtime, as far as an engine needs it: memory on both sides, a stream, and errors that say what to do.

Through NVIDIA's cuda-python: it has wheels where pycuda has to be compiled, and its calls use the device's primary
context, so that threads and other libraries share it without pushing and popping. The GPU is the first that
CUDA_VISIBLE_DEVICES leaves.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

from runtime.errors import BadInput

LOST = ("cudaErrorDevicesUnavailable", "cudaErrorECCUncorrectable", "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress",
        "cudaErrorNvlinkUncorrectable", "cudaErrorUnknown", "cudaErrorContained")
NO_GPU = ("cudaErrorNoDevice", "cudaErrorInitializationError", "cudaErrorStubLibrary")


def cudart():
    """NVIDIA's module, imported when it is first needed; BadInput where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BadInput("TensorRT engines need cuda-python: pip install 'attention-pose[tensorrt]', or run the .onnx "
                       "engine") from error
    return runtime


def call(name, *arguments):
    """Call a function of CUDA's runtime: what it returns beside the error code, None, one value or several.

    Raises:
        BadInput: it failed.
    """
    error, *values = getattr(cudart(), name)(*arguments)
    if int(error):
        raise BadInput(_explain(name, getattr(error, "name", str(error))))
    return values[0] if len(values) == 1 else tuple(values) or None


def _explain(function, error):
    if error == "cudaErrorMemoryAllocation":
        return (f"the GPU's memory is full ({function}: {error}): end other programs on it (nvidia-smi lists them), or "
                "build the engine for a smaller --batch")
    if error == "cudaErrorInsufficientDriver":
        return (f"NVIDIA's driver is missing or older than cuda-python's CUDA ({error}): see that nvidia-smi answers; "
                "a driver of CUDA 12, as JetPack 6 has, needs pip install 'cuda-python<13'")
    if error in NO_GPU:
        return (f"no GPU that CUDA can use ({error}): see that nvidia-smi lists one and that its driver is as new as "
                "CUDA, or run the .onnx engine")
    if error in LOST:
        return (f"the GPU failed or was lost ({function}: {error}): start again; if it comes back, look at dmesg and "
                "nvidia-smi for the reason")
    return f"CUDA's {function} failed: {error}"


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, its compute capability ("8.6"), the CUDA version its driver knows and that of the runtime."""

    name: str
    compute_capability: str
    driver_cuda: str
    runtime_cuda: str


def current_gpu():
    """The Gpu that engines run on; BadInput where there is none."""
    call("cudaGetDeviceCount")
    properties = call("cudaGetDeviceProperties", 0)
    name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
    versions = (call(function) for function in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"))
    return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}",
               *(f"{number // 1000}.{number % 1000 // 10}" for number in versions))


def free_memory():
    """The GPU's memory in words: "310 of 8192 MB are free"."""
    free, total = call("cudaMemGetInfo")
    return f"{free >> 20} of {total >> 20} MB are free"


class Buffer:
    """An array in page-locked host memory, which the GPU copies from and to on its own, and its twin on the GPU.

    Attributes:
        host: the NumPy array.
        device: address on the GPU.
    """

    def __init__(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        self._host_address = int(call("cudaHostAlloc", size, cudart().cudaHostAllocDefault))
        try:
            self.device = int(call("cudaMalloc", size))
        except BadInput:
            call("cudaFreeHost", self._host_address)
            raise
        memory = (ctypes.c_byte * size).from_address(self._host_address)
        self.host = np.frombuffer(memory, dtype).reshape(shape)

    def upload(self, count, stream):
        """Begin to copy the first `count` rows to the GPU."""
        kind = cudart().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.device, self._host_address, self.host[:count].nbytes, kind, stream)

    def download(self, count, stream):
        """Begin to copy the first `count` rows back; they are here once the stream is synchronised."""
        kind = cudart().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", self._host_address, self.device, self.host[:count].nbytes, kind, stream)

    def free(self):
        call("cudaFree", self.device)
        call("cudaFreeHost", self._host_address)
