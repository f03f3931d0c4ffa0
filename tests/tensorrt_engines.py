"""Engine files for the TensorRT of `tests.fake_gpu`, each with its sidecar."""

import dataclasses

import onnx

from runtime.files import sha256
from runtime.sidecar import Machine, Sidecar, write_sidecar

HERE = Machine("TensorRT", "10.16.1.11", "Fake GPU", "8.6")
COMMAND = "python -m export.tensorrt_engine --engine pose.onnx --out pose.trt"


def make_engine(folder, onnx_path, **changes):
    """An engine file from an ONNX file, with its sidecar."""
    path = folder / f"{onnx_path.stem}.trt"
    path.write_bytes(onnx_path.read_bytes())
    metadata = {entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}
    port = onnx.load(onnx_path).graph.input[0]
    sides = [dim.dim_value for dim in port.type.tensor_type.shape.dim][1:]
    profile = {"min": [1, *sides], "opt": [4, *sides], "max": [5, *sides]}
    sidecar = Sidecar(machine=HERE, engine_sha256=sha256(path), onnx=onnx_path.name, onnx_sha256=sha256(onnx_path),
                      precision="fp16", profiles={port.name: profile}, metadata=metadata, command=COMMAND)
    write_sidecar(path, dataclasses.replace(sidecar, **changes))
    return path
