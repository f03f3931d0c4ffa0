"""Arrows point down only: runtime needs no training stack, and no floor imports one above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINING_STACK = {"tensorflow", "keras", "onnx", "onnxslim", "tf2onnx", "pycocotools", "matplotlib", "torch"}

# Package → what it must not import anywhere, and what it may import only inside a function, when it needs it.
FORBIDDEN = {
    "runtime": {"train", "export", "eval"} | TRAINING_STACK,
    "eval": {"export"},
    "train": {"export"},
    "export": set(),
}
INSIDE_FUNCTIONS_ONLY = {"train": {"eval"}, "runtime": set(), "eval": {"train", "tensorflow", "keras"},
                         "export": set()}


def modules(package):
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules in {package}"
    return found


def imported(tree):
    """First parts of the names of absolute imports in a tree."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def imported_at_the_top(tree):
    """The same, of what runs on import: not inside functions."""
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return imported(ast.Module(body=body, type_ignores=[]))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction_of_imports(package):
    for path in modules(package):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        wrong = imported(tree) & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"
        early = imported_at_the_top(tree) & INSIDE_FUNCTIONS_ONLY[package]
        assert not early, f"{path.relative_to(ROOT)} imports {', '.join(sorted(early))} at the top of the file"


@pytest.mark.parametrize("module", ["runtime.stream", "eval.coco"])
def test_a_fresh_process_loads_no_training_stack(module):
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert module.split(".")[0] in loaded
    assert not loaded & {"tensorflow", "keras", "tf2onnx", "train", "export"}


def test_every_runtime_module_loads_with_the_runtime_dependencies_alone():
    """In a process where the training stack cannot be imported at all."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules("runtime")]
    names = [name.removesuffix(".__init__") for name in names]
    blocked = sorted(TRAINING_STACK | {"train", "export", "eval"})
    script = (
        f"import importlib, sys\nfor name in {blocked}: sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
