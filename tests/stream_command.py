"""The stream's command as a process of its own, and what can be read of it."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "runtime.stream"]


def stream(*arguments, cwd=ROOT, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=100,
                          env=environment, **options)


def start(tmp_path, *arguments):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for(running, path, enough, seconds=60):
    """Until the lines of a file are enough."""
    deadline = time.monotonic() + seconds
    while True:
        lines = [json.loads(line) for line in (path.read_text() if path.exists() else "").splitlines()
                 if line.endswith("}")]
        if enough(lines):
            return lines
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(f"not enough in {path.name}: {running.communicate()}")
        time.sleep(0.05)


def error_of(ended):
    """The error's one line; the progress bar before it ends in a line of its own."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def table_of(ended):
    return {line[:12].strip(): line[12:].split() for line in ended.stdout.splitlines()}
