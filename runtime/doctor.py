"""What this machine has, what works on it, what is missing and how to get it.

    python -m runtime.doctor

A line for each thing: "ok" works; "none" is not here and not needed for streaming on the CPU; "wrong" keeps the
project from working. The exit code is 1 where something is wrong, else 0.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BadInput, run_command

ROOT = Path(__file__).resolve().parents[1]
# Of the flags in /proc/cpuinfo, those that make networks fast: their kernels exist for each of these.
FAST_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
              "asimd", "asimddp", "i8mm", "bf16")
OLDEST_PYTHON = (3, 10)
TIMEOUT = 20  # seconds for another program's answer


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, "ok", "none" or "wrong", what was found, and what to do about it."""

    what: str
    level: str
    text: str
    remedy: str = ""


def main():
    parser = argparse.ArgumentParser(prog="python -m runtime.doctor", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    wrong = 0
    for check in CHECKS:
        for finding in examine(check):
            wrong += finding.level == "wrong"
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            print(f"{finding.what:<14}{finding.level:<7}{finding.text}{remedy}", flush=True)
    print(f"{wrong} wrong" if wrong else "nothing is wrong: make demo")
    return 1 if wrong else 0


def examine(check):
    """The findings of a check. A broken installation can fail in any way, and that it does is a finding too."""
    try:
        return list(check())
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        return [Finding(check.__name__.removeprefix("check_"), "wrong", f"{type(error).__name__}: {reason}",
                        "install it again: rm -rf .venv, then make demo")]


def check_python():
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("Python", "wrong", text, "install Python 3.10 or newer, then make demo PYTHON=python3.10")
    else:
        yield Finding("Python", "ok", text)
    yield Finding("system", "ok", f"{platform.platform()}{_device_model()}")


def _device_model():
    """The name that a board such as a Jetson gives itself."""
    text = _read("/proc/device-tree/model").rstrip("\0")
    return f", {text}" if text else ""


def check_processor():
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    fast = ", ".join(flag for flag in FAST_FLAGS if flag in present) or "unknown"
    yield Finding("CPU", "ok", f"{cpu_name()}, {os.cpu_count()} cores, {fast}")
    if "avx2" in present and not present & {"avx512_vnni", "avx_vnni"}:
        yield Finding("INT8", "none", "no VNNI: ONNX Runtime's sums overflow in INT8 engines, which costs accuracy",
                      "run models/*.int8.onnx with --backend openvino, or the float engines, which are the default")
    total, free = (re.search(rf"^{key}:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
                   for key in ("MemTotal", "MemAvailable"))
    if total and free:
        yield Finding("memory", "ok", f"{int(free[1]) / 1e6:.1f} of {int(total[1]) / 1e6:.1f} GB free")


def cpu_name():
    """What the processor calls itself, or of what kind it is where it has no name."""
    name = re.search(r"^(?:model name|Model)\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def check_gpu():
    answer = _answer("nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap",
                     "--format=csv,noheader")
    release = _read("/etc/nv_tegra_release").partition("\n")[0]
    if answer:
        for number, line in enumerate(answer.splitlines()):
            yield Finding(f"GPU {number}", "ok", "{}, {}, driver {}, compute capability {}".format(
                *(part.strip() for part in line.split(","))))
    elif release:
        yield Finding("GPU", "ok", f"Jetson, {release.lstrip('# ')}")
    elif shutil.which("nvidia-smi"):
        yield Finding("GPU", "none", "nvidia-smi is here but does not answer",
                      "load or install NVIDIA's driver to use a GPU")
    else:
        yield Finding("GPU", "none", "no NVIDIA GPU, engines run on the CPU")


def check_cuda():
    nvcc = shutil.which("nvcc") or ("/usr/local/cuda/bin/nvcc" if Path("/usr/local/cuda/bin/nvcc").is_file() else None)
    release = re.search(r"release ([\d.]+)", _answer(nvcc, "--version")) if nvcc else None
    if release:
        yield Finding("CUDA", "ok", f"nvcc {release[1]} at {nvcc}")
    else:
        yield Finding("CUDA", "none", "no nvcc", "only the NMS plugin for TensorRT is compiled with it")
    yield _gpu_library("TensorRT", "tensorrt", "engines run on the CPU; for .trt engines: pip install -e '.[tensorrt]'")
    yield _gpu_library("TensorRT RTX", "tensorrt_rtx", "only for .rtx engines: pip install tensorrt_rtx_cu13")
    found = _package("cuda-python", "cuda.bindings", "only for .trt and .rtx engines: pip install cuda-python")
    if found.level == "ok":
        from runtime.cuda import current_gpu
        try:
            current_gpu()
        except BadInput as error:
            found = Finding("cuda-python", "none", f"{found.text}, but {error}")
    yield found


def check_inference():
    import onnxruntime

    from runtime.backends import installed_backends

    providers = ", ".join(onnxruntime.get_available_providers())
    yield Finding("ONNX Runtime", "ok", f"{onnxruntime.__version__}: {providers}")
    yield _package("OpenVINO", "openvino", "another way to run on the CPU: pip install openvino")
    yield Finding("backends", "ok", ", ".join(installed_backends()))


def check_engines():
    """Both bundled engines run on a picture."""
    import numpy as np

    from runtime.engine import open_engine

    for name in ("person", "person.int8", "pose", "pose.int8"):
        path, kind = ROOT / "models" / f"{name}.onnx", name.partition(".")[0]
        if not path.is_file():
            yield Finding(f"{kind} engine", "wrong", f"{path} is missing", "git checkout models, or make export")
            continue
        engine = open_engine(path, kind)
        width, height = engine.input_size
        engine.run(np.zeros((1, height, width, 3), np.uint8))
        made = engine.metadata.get("date", "an unknown day")
        yield Finding(f"{kind} engine", "ok", f"{path.name} runs, {width}x{height}, of {made}")


def check_opencv():
    import cv2
    import numpy as np

    build = cv2.getBuildInformation()
    yield Finding("OpenCV", "ok", f"{cv2.__version__}")
    for name, remedy in (("FFMPEG", "videos and URLs cannot be read: pip install opencv-python-headless"),
                         ("GStreamer", "only for pipelines of your own")):
        has = re.search(rf"^\s*{name}:\s+YES", build, re.MULTILINE)
        yield Finding(name, "ok", "in OpenCV") if has else Finding(
            name, "wrong" if name == "FFMPEG" else "none", "not in OpenCV", remedy)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
        for shade in range(5):
            writer.write(np.full((48, 64, 3), 50 * shade, np.uint8))
        writer.release()
        video = cv2.VideoCapture(path)
        frames = sum(video.read()[0] for _ in range(5))
        video.release()
    yield Finding("video", "ok", "MPEG-4 is written and read back") if frames == 5 else Finding(
        "video", "wrong", f"of 5 frames written as MPEG-4 {frames} came back", "pip install opencv-python-headless")
    if re.search(r"GUI:\s+NONE", build):
        yield Finding("window", "none", "OpenCV without windows", "for --show: pip uninstall opencv-python-headless && "
                      "pip install opencv-python")
    elif sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        yield Finding("window", "none", "no display", "for --show run it on a desktop")
    else:
        yield Finding("window", "ok", "--show works")


def check_cameras():
    devices = sorted(Path("/sys/class/video4linux").glob("video*"), key=lambda path: int(path.name[5:]))
    for device in devices:
        node, name = Path("/dev") / device.name, _read(device / "name").strip()
        if os.access(node, os.R_OK | os.W_OK):
            yield Finding("camera", "ok", f"--camera {device.name[5:]}: {name}")
        else:
            yield Finding("camera", "none", f"{node} ({name}) is not yours to open", "sudo usermod -aG video $USER, "
                          "then log in again")
    if not devices:
        yield Finding("camera", "none", "no camera at /dev/video*" if sys.platform.startswith("linux")
                      else "cameras are only listed on Linux", "files, URLs and folders work without")


def check_outputs():
    for name, package, remedy in (("Starlette", "starlette", "only for --serve: pip install -e '.[serve]'"),
                                  ("uvicorn", "uvicorn", "only for --serve: pip install -e '.[serve]'"),
                                  ("httpx", "httpx", "only for --webhook: pip install -e '.[send]'"),
                                  ("paho-mqtt", "paho", "only for --mqtt: pip install -e '.[send]'")):
        yield _package(name, package, remedy)


def check_development():
    for name, package, remedy in (("TensorFlow", "tensorflow", "training needs it: make dev"),
                                  ("tf2onnx", "tf2onnx", "export needs it: make dev"),
                                  ("pycocotools", "pycocotools", "evaluation needs it: make dev")):
        yield _package(name, package, remedy)


CHECKS = (check_python, check_processor, check_gpu, check_cuda, check_inference, check_engines, check_opencv,
          check_cameras, check_outputs, check_development)


def _package(name, module, remedy):
    """A finding on a package, without importing it."""
    parent = module.partition(".")[0]
    if importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None:
        return Finding(name, "none", "not installed", remedy)
    distributions = importlib.metadata.packages_distributions().get(parent, [])
    distributions = sorted(distributions, key=lambda each: each != module.replace(".", "-"))  # cuda is several
    return Finding(name, "ok", importlib.metadata.version(distributions[0]) if distributions else "of unknown version")


def _gpu_library(name, module, remedy):
    """The same of a library that may be installed and yet not load; it is tried in a process of its own."""
    found = _package(name, module, remedy)
    if found.level == "ok" and not _answer(sys.executable, "-c", f"import {module}; print('loads')"):
        return Finding(name, "wrong", f"{found.text}, but it does not load", f"python -c 'import {module}' says why")
    return found


def _read(path):
    """The text of a file of the system, empty where there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _answer(*command):
    """What a program prints, empty where it cannot run, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    run_command(main)
