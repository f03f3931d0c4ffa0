"""Sidecars of TensorRT engines: what is refused because of them, by name."""

import dataclasses
import importlib.util
import json
import re

import pytest

from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.files import sha256
from runtime.sidecar import Machine, check_sidecar, read_sidecar, sidecar_path
from tests.tensorrt_engines import COMMAND, HERE


def test_a_sidecar_comes_back_as_it_was_written(pose_trt):
    sidecar = read_sidecar(pose_trt)
    assert sidecar.machine == HERE and sidecar.precision == "fp16" and sidecar.plugin is None
    assert sidecar.metadata["kind"] == "pose"
    check_sidecar(sidecar, pose_trt, HERE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(library_version="11.4.0"), "it was built with TensorRT 10.16.1.11, here is 11.4.0"),
        (dict(library="TensorRT for RTX"), "it is an engine of TensorRT, not of TensorRT for RTX"),
        (dict(gpu="Orin"), "it was built on Fake GPU, here is Orin"),
        (dict(compute_capability="8.7"), "it is for compute capability 8.6, the GPU here has 8.7"),
    ],
)
def test_another_machine_is_refused(pose_trt, change, said):
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        check_sidecar(read_sidecar(pose_trt), pose_trt, dataclasses.replace(HERE, **change))
    assert str(refused.value).endswith(f"Build it again: {COMMAND}") and "\n" not in str(refused.value)


def test_everything_that_differs_is_said_at_once(pose_trt):
    with pytest.raises(BadInput, match="11.0.*9.0.*H100"):
        check_sidecar(read_sidecar(pose_trt), pose_trt, Machine("TensorRT", "11.0", "H100", "9.0"))


def test_an_engine_for_several_gpus(pose_trt):
    sidecar = read_sidecar(pose_trt)
    many = dataclasses.replace(sidecar, machine=dataclasses.replace(HERE, gpu="", compute_capability="7.5 8.6"))
    check_sidecar(many, pose_trt, HERE)
    with pytest.raises(BadInput, match="compute capability 7.5 8.6, the GPU here has 8.0"):
        check_sidecar(many, pose_trt, dataclasses.replace(HERE, compute_capability="8.0"))


def test_changed_files_are_refused(pose_trt, tmp_path):
    sidecar = read_sidecar(pose_trt)
    whole = pose_trt.read_bytes()
    pose_trt.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match="not the file that its sidecar describes, or only a part"):
        check_sidecar(sidecar, pose_trt, HERE)
    pose_trt.write_bytes(whole)
    (tmp_path / "pose.onnx").write_bytes(whole + b"more")
    with pytest.raises(BadInput, match="pose.onnx has changed since it was built"):
        check_sidecar(sidecar, pose_trt, HERE)
    (tmp_path / "pose.onnx").unlink()  # a device needs the engine only
    check_sidecar(sidecar, pose_trt, HERE)


def test_a_plugin_that_is_missing_or_another(pose_trt, tmp_path):
    plugin = tmp_path / "libattention_pose_nms.so"
    plugin.write_bytes(b"code")
    sidecar = dataclasses.replace(read_sidecar(pose_trt), plugin=plugin.name, plugin_sha256=sha256(plugin))
    check_sidecar(sidecar, pose_trt, HERE)
    plugin.write_bytes(b"other code")
    with pytest.raises(BadInput, match="libattention_pose_nms.so is not the one that it was built with"):
        check_sidecar(sidecar, pose_trt, HERE)
    plugin.unlink()
    with pytest.raises(BadInput, match="libattention_pose_nms.so is missing"):
        check_sidecar(sidecar, pose_trt, HERE)


def test_sidecars_that_cannot_be_read(pose_trt):
    path = sidecar_path(pose_trt)
    values = json.loads(path.read_text())
    for text, said in (("{", "is damaged"), ("[]", "is damaged"), ('{"version": 1}', "is damaged"),
                       ('{"version": 2}', "is of version 2, this program reads 1"),
                       (json.dumps({**values, "precision": 5}), "damaged .precision"),
                       (json.dumps({**values, "new": 5}), "is damaged"), ("\xff", "is damaged"),
                       (json.dumps({**values, "profiles": {"images": {}}}), "damaged .profile of images"),
                       (json.dumps({**values, "profiles": {"images": {"min": [], "opt": [], "max": "x"}}}), "damaged"),
                       (json.dumps({**values, "machine": {**values["machine"], "gpu": 5}}), "damaged .gpu"),
                       (json.dumps({**values, "metadata": {"input_size": 5}}), "damaged .metadata input_size"),
                       (json.dumps({**values, "plugin": ""}), "damaged")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(BadInput, match=said):
            read_sidecar(pose_trt)
    path.unlink()
    with pytest.raises(BadInput, match="pose.trt has no pose.trt.json beside it.*python -m export.tensorrt_engine"):
        open_engine(pose_trt)


def test_an_engine_is_refused_before_anything_of_it_is_loaded(pose_trt, cuda):
    cuda.gpu.name = b"Orin"
    pose_trt.write_bytes(b"this would crash a parser")
    with pytest.raises(BadInput, match="not the file that its sidecar describes.*built on Fake GPU, here is Orin"):
        open_engine(pose_trt, "pose")
    assert not cuda.memory


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_remedy_is_told(pose_trt):
    with pytest.raises(BadInput, match="TensorRT is not installed: pip install .*or run the .onnx engine"):
        open_engine(pose_trt)
