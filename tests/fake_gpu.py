"""What stands in for a GPU: CUDA's memory in ordinary memory, and a TensorRT whose engine files are ONNX files.

The functions have the names, arguments and results of cuda-python's `cuda.bindings.runtime` and of TensorRT's Python
module, as far as the project calls them; ONNX Runtime computes. Nothing here says that a real GPU does the same.
"""

import ctypes
import enum
import types

import numpy as np
import onnx
import onnxruntime


class cudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700


class FakeCudart:
    """`fails`: {function: cudaError} for what is to go wrong; `memory`: what is allocated, {address: buffer}."""

    cudaHostAllocDefault = 0
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, name="Fake GPU", capability=(8, 6)):
        self.fails: dict[str, cudaError] = {}
        self.memory: dict[int, ctypes.Array] = {}
        self.copies: list[tuple[str, int]] = []
        self.streams = 0
        self.gpu = types.SimpleNamespace(name=name.encode(), major=capability[0], minor=capability[1])

    def __getattribute__(self, name):
        function = super().__getattribute__(name)
        if not callable(function) or name not in super().__getattribute__("fails"):
            return function
        return lambda *arguments: (super(FakeCudart, self).__getattribute__("fails")[name],)

    def _allocate(self, size):
        buffer = ctypes.create_string_buffer(max(size, 1))
        self.memory[ctypes.addressof(buffer)] = buffer
        return cudaError.cudaSuccess, ctypes.addressof(buffer)

    def _free(self, address):
        del self.memory[address]  # KeyError: freed twice
        return (cudaError.cudaSuccess,)

    def cudaHostAlloc(self, size, flags):
        return self._allocate(size)

    def cudaMalloc(self, size):
        return self._allocate(size)

    def cudaFreeHost(self, address):
        return self._free(address)

    def cudaFree(self, address):
        return self._free(address)

    cudaStreamNonBlocking = 1

    def cudaStreamCreateWithFlags(self, flags):
        self.streams += 1
        return cudaError.cudaSuccess, 7

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return (cudaError.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (cudaError.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert {target, source} <= set(self.memory), "memory that was not allocated, or was freed"
        assert size <= min(len(self.memory[target]), len(self.memory[source]))
        ctypes.memmove(target, source, size)
        self.copies.append(("up" if kind == 1 else "down", size))
        return (cudaError.cudaSuccess,)

    def cudaMemGetInfo(self):
        return cudaError.cudaSuccess, 300 << 20, 8192 << 20

    def cudaGetDeviceCount(self):
        return cudaError.cudaSuccess, 1

    def cudaGetDeviceProperties(self, device):
        return cudaError.cudaSuccess, self.gpu

    def cudaDriverGetVersion(self):
        return cudaError.cudaSuccess, 13010

    def cudaRuntimeGetVersion(self):
        return cudaError.cudaSuccess, 13000


def fake_tensorrt(version="10.16.1.11", damage=None):
    """The module `tensorrt`.

    damage: function onnx.ModelProto → None that changes what a build gives.
    """
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    module.Logger = _Logger
    module.Runtime = _Runtime
    module.Builder = lambda logger: _Builder(damage)
    module.OnnxParser = _Parser
    module.IProgressMonitor = object
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    module.MemoryPoolType = types.SimpleNamespace(WORKSPACE=0)
    module.TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
    module.nptype = lambda dtype: dtype
    module.loaded = []
    module.BuilderFlag = types.SimpleNamespace(TF32="TF32")

    def load_library(path):  # None where its plugins are registered already, as the real one
        module.loaded.append(path)
        return len(module.loaded) == 1 or None

    registry = types.SimpleNamespace(load_library=load_library)
    module.get_plugin_registry = lambda: registry
    return module


class _Logger:
    ERROR = 1

    def __init__(self, level):
        pass


class _Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        return _Engine(data)


class _Engine:
    def __init__(self, data):
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self._inputs = {each.name: each for each in self.session.get_inputs()}
        self._all = {**self._inputs, **{each.name: each for each in self.session.get_outputs()}}
        self.num_io_tensors = len(self._all)

    def get_tensor_name(self, index):
        return list(self._all)[index]

    def get_tensor_mode(self, name):
        return 0 if name in self._inputs else 1

    def get_tensor_shape(self, name):
        return [side if isinstance(side, int) else -1 for side in self._all[name].shape]

    def get_tensor_dtype(self, name):
        return {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int32)": np.int32}[self._all[name].type]

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self._engine, self._addresses, self._batch = engine, {}, 1

    def set_input_shape(self, name, shape):
        self._batch = shape[0]
        return True

    def get_tensor_shape(self, name):
        return [self._batch if side == -1 else side for side in self._engine.get_tensor_shape(name)]

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def _array(self, name):
        dtype = np.dtype(self._engine.get_tensor_dtype(name))
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(self._addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream):
        outputs = [each.name for each in self._engine.session.get_outputs()]
        (port,) = [each.name for each in self._engine.session.get_inputs()]
        for name, value in zip(outputs, self._engine.session.run(None, {port: self._array(port)}), strict=True):
            self._array(name)[:] = value
        return True


class _Network:
    def __init__(self):
        self.model = None

    def get_input(self, index):
        port = self.model.graph.input[index]
        sides = [dim.dim_value or -1 for dim in port.type.tensor_type.shape.dim]
        return types.SimpleNamespace(name=port.name, shape=sides)


class _Parser:
    def __init__(self, network, logger):
        self._network = network

    def parse(self, data):
        self._network.model = onnx.ModelProto.FromString(data)
        return True


class _Builder:
    def __init__(self, damage):
        self._damage = damage

    def create_network(self, flags):
        return _Network()

    def create_optimization_profile(self):
        return types.SimpleNamespace(set_shape=lambda name, least, usual, most: None)

    def create_builder_config(self):
        cache = types.SimpleNamespace(serialize=lambda: b"timed")
        return types.SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: None, clear_flag=lambda flag: None,
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=lambda data: cache, set_timing_cache=lambda cache, ignore_mismatch: True,
            get_timing_cache=lambda: cache)

    def build_serialized_network(self, network, config):
        config.progress_monitor.phase_start("building", None, 2)
        for step in range(2):
            if not config.progress_monitor.step_complete("building", step):
                return None
        config.progress_monitor.phase_finish("building")
        if self._damage:
            self._damage(network.model)
        return network.model.SerializeToString()
