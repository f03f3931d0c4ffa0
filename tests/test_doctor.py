"""python -m runtime.doctor says what is here and what is missing, whatever the machine, and never with a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import doctor
from tests.conftest import ROOT


def run(*, before="", path=None, cwd=ROOT):
    """The command in a process of its own, after some Python that spoils it: exit code and {what: line}."""
    code = f"{before}\nimport runpy; runpy.run_module('runtime.doctor', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"PATH": path} if path else {})}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, {line[:14].strip(): line[14:] for line in done.stdout.splitlines()}, done.stdout


def test_this_machine_works(tmp_path):
    code, lines, text = run(cwd=tmp_path)
    assert code == 0 and text.endswith("nothing is wrong: make demo\n"), text
    assert "ok     pose.onnx runs, 192x256" in text
    assert lines["video"].startswith("ok     MPEG-4 is written and read back")
    assert lines["CPU"].startswith("ok") and lines["Python"].startswith("ok")


def test_a_missing_library_is_named_and_the_rest_still_checked():
    code, lines, text = run(before="import sys; sys.modules['cv2'] = None")
    assert code == 1 and text.endswith("1 wrong\n"), text
    assert lines["opencv"].startswith("wrong") and "install it again" in lines["opencv"]
    assert lines["pose engine"].startswith("ok") and "camera" in lines


def test_a_machine_without_any_program_is_no_error(tmp_path):
    code, lines, _ = run(path=str(tmp_path))
    assert code == 0
    assert lines["GPU"].startswith(("none", "ok"))


@pytest.mark.parametrize(("script", "expected"), [
    ("echo 'NVIDIA Example, 24564 MiB, 580.1, 8.9'", "NVIDIA Example, 24564 MiB, driver 580.1, compute capability 8.9"),
    ("exit 9", "nvidia-smi is here but does not answer"),
])
def test_what_nvidia_smi_says(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    [finding] = doctor.check_gpu()
    assert finding.text == expected


def test_missing_engines_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", Path(tmp_path))
    assert [(finding.what, finding.level) for finding in doctor.examine(doctor.check_engines)] == [
        ("person engine", "wrong")] * 2 + [("pose engine", "wrong")] * 2


@pytest.mark.parametrize("flags, told", [("avx2 fma", True), ("avx2 avx512f avx512_vnni", False),
                                         ("avx2 avx_vnni", False), ("asimd asimddp", False)])
def test_a_processor_that_int8_suffers_on_is_told(flags, told, monkeypatch):
    monkeypatch.setattr(doctor, "_read", lambda path: f"model name\t: Some CPU\nflags\t\t: fpu {flags} rdtscp\n")
    findings = {finding.what: finding for finding in doctor.check_processor()}
    assert ("INT8" in findings) == told and "Some CPU" in findings["CPU"].text
    assert not told or "--backend openvino" in findings["INT8"].remedy
