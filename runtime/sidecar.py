"""What a TensorRT engine was built from and for: `pose.trt.json` beside `pose.trt`, checked before it is loaded.

An engine file is machine code for one GPU and one version of TensorRT. Loaded elsewhere it fails late, or not at all
and is wrong; and nothing in it says which ONNX it is of.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from runtime.errors import BadInput
from runtime.files import sha256, write_json

VERSION = 1
LIBRARIES = {"TensorRT": "tensorrt", "TensorRT for RTX": "tensorrt_rtx"}  # and their Python modules


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to.

    Attributes:
        library: a key of LIBRARIES.
        library_version: "10.16.1.11".
        gpu: its name.
        compute_capability: "8.6"; of an engine for several GPUs, in a sidecar, "7.5 8.6 8.9".
    """

    library: str
    library_version: str
    gpu: str
    compute_capability: str


@dataclass(frozen=True)
class Sidecar:
    """The file's content.

    Attributes:
        machine: Machine that the engine was built on; `gpu` is "" where any of the compute capability will do.
        engine_sha256: of the engine file.
        onnx: path of the ONNX that it was built from, relative to the sidecar's folder.
        onnx_sha256: of that file.
        precision: "fp32", "fp16" or "int8".
        profiles: {input: {"min": shape, "opt": shape, "max": shape}}.
        metadata: of the ONNX: kind, input size, keypoints, licence and so on.
        command: the command that builds the engine again.
        cuda, driver: versions of cuda-python's CUDA and of the driver when it was built; not compared, since engines
            outlive them.
        plugin, plugin_sha256: name of the plugin library in the sidecar's folder, None without one.
        agreement: what the gate measured (`export.agreement`).
        date: when it was built, "2026-11-23".
        version: of this format.
    """

    machine: Machine
    engine_sha256: str
    onnx: str
    onnx_sha256: str
    precision: str
    profiles: dict
    metadata: dict
    command: str
    cuda: str = ""
    driver: str = ""
    plugin: str | None = None
    plugin_sha256: str | None = None
    agreement: dict = field(default_factory=dict)
    date: str = ""
    version: int = VERSION


def sidecar_path(engine):
    """pose.trt → pose.trt.json."""
    engine = Path(engine)
    return engine.with_name(f"{engine.name}.json")


def write_sidecar(engine, sidecar):
    """Write the Sidecar of an engine file beside it."""
    write_json(sidecar_path(engine), asdict(sidecar), indent=1)


def read_sidecar(engine):
    """The Sidecar of an engine file.

    Raises:
        BadInput: there is none, it is damaged, or of another version.
    """
    path = sidecar_path(engine)
    build = "python -m export.tensorrt_engine"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{engine} has no {path.name} beside it, so nobody knows what it was built from and for: copy "
                       f"both, or build it with {build}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is damaged: build the engine again with {build}") from error
    if isinstance(values, dict) and values.get("version") != VERSION:
        raise BadInput(f"{path} is of version {values.get('version')!r}, this program reads {VERSION}: build the "
                       f"engine again with {build}")
    try:
        sidecar = Sidecar(**{**values, "machine": Machine(**values["machine"])})
        _check_types(sidecar)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error}): build the engine again with {build}") from error
    return sidecar


def _check_types(sidecar):
    """TypeError with the name of a value that is of another kind than it should be."""
    plugin = str if sidecar.plugin else type(None)  # both or neither
    kinds = {"machine": Machine, "profiles": dict, "metadata": dict, "agreement": dict, "version": int,
             "plugin": plugin, "plugin_sha256": plugin}
    values = [(each.name, getattr(sidecar, each.name), kinds.get(each.name, str)) for each in fields(Sidecar)]
    values += [(each.name, getattr(sidecar.machine, each.name), str) for each in fields(Machine)]
    values += [(f"metadata {key}", value, str) for key, value in sidecar.metadata.items()]
    for name, profile in sidecar.profiles.items():
        for end in ("min", "opt", "max"):
            sides = profile.get(end) if isinstance(profile, dict) else None
            values += [(f"profile of {name}", sides, list)]
            values += [(f"profile of {name}", side, int) for side in (sides if isinstance(sides, list) else [])]
    for name, value, kind in values:
        if not isinstance(value, kind):
            raise TypeError(name)


def check_sidecar(sidecar, engine, machine):
    """See that an engine is what its sidecar says, and that it is for this machine.

    Args:
        sidecar: from `read_sidecar(engine)`.
        engine: path of the engine file.
        machine: the Machine that is to run it.

    Raises:
        BadInput: one line with everything that differs and the command that builds the engine again.
    """
    wrong = [*_changed_files(sidecar, Path(engine)), *_other_machine(sidecar.machine, machine)]
    if wrong:
        raise BadInput(f"{engine} cannot be used: {'; '.join(wrong)}. Build it again: {sidecar.command}")


def _changed_files(sidecar, engine):
    folder = engine.parent
    if sha256(engine) != sidecar.engine_sha256:
        yield "it is not the file that its sidecar describes, or only a part of it"
    onnx = folder / sidecar.onnx
    if onnx.is_file() and sha256(onnx) != sidecar.onnx_sha256:  # it may be left behind, but not be another
        yield f"{os.path.normpath(onnx)} has changed since it was built"
    if sidecar.plugin is not None:
        plugin = folder / Path(sidecar.plugin).name
        if not plugin.is_file():
            yield f"its plugin {plugin} is missing"
        elif sha256(plugin) != sidecar.plugin_sha256:
            yield f"its plugin {plugin} is not the one that it was built with"


def _other_machine(built, here):
    if here.library != built.library:
        yield f"it is an engine of {built.library}, not of {here.library}"
    elif here.library_version != built.library_version:
        yield f"it was built with {built.library} {built.library_version}, here is {here.library_version}"
    if here.compute_capability not in built.compute_capability.split():
        yield f"it is for compute capability {built.compute_capability}, the GPU here has {here.compute_capability}"
    if built.gpu and here.gpu != built.gpu:
        yield f"it was built on {built.gpu}, here is {here.gpu}"
