"""The TensorRT plugin's NMS: the kernel's phases, built for the CPU, against runtime.nms and a second NumPy program."""

import ctypes
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from export.gpu_check import ARGUMENTS, build, find_nvcc, make_cases
from export.onnx_graph import without_nms
from export.tensorrt_engine import with_plugin_nms
from runtime.crop import letterbox
from runtime.engine import open_engine
from runtime.nms import IOU_THRESHOLD, MAX_BOXES, box_iou, nms
from runtime.walkers import render_still
from tests.conftest import ROOT

SOURCES = ROOT / "export" / "nms_plugin"
COMPILER = shutil.which("g++")
NVCC = find_nvcc()
TENSORRT_ROOT = os.environ.get("TENSORRT_ROOT")
FLAGS = ["-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
KINDS = ("random", "crowded", "equal scores", "all the same", "disjoint", "whole numbers", "degenerate", "no numbers",
         "at the threshold", "huge", "none good enough", "many")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ (apt install g++)")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc, of NVIDIA's CUDA toolkit")


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    """The CPU build: takes boxes (B, A, 4) and scores (B, A), gives count, boxes, scores and indices."""
    if COMPILER is None:
        pytest.skip("needs g++ (apt install g++)")
    path = tmp_path_factory.mktemp("nms") / "libnms_cpu.so"
    subprocess.run([COMPILER, "-std=c++17", "-O2", *FLAGS, "-fPIC", "-shared", SOURCES / "nms_cpu.cpp", "-o", path],
                   check=True, timeout=120)
    function = ctypes.CDLL(str(path)).attention_pose_nms_cpu
    function.argtypes = [*ARGUMENTS, ctypes.c_int, ctypes.c_uint]

    def run(boxes, scores, iou_threshold=IOU_THRESHOLD, score_threshold=0.05, max_det=MAX_BOXES, top_k=4096,
            threads=64, order=0, expected_code=0):
        boxes, scores = np.ascontiguousarray(boxes, np.float32), np.ascontiguousarray(scores, np.float32)
        batch, candidates = scores.shape
        assert boxes.shape == (batch, candidates, 4)
        slots = max(max_det, 1)
        # Filled with what must not stay.
        outputs = (np.full(batch, -7, np.int32), np.full((batch, slots, 4), -7, np.float32),
                   np.full((batch, slots), -7, np.float32), np.full((batch, slots), -7, np.int32))
        code = function(boxes.ctypes.data, scores.ctypes.data, batch, candidates, iou_threshold, score_threshold,
                        max_det, top_k, *(output.ctypes.data for output in outputs), threads, order)
        assert code == expected_code
        return outputs

    return run


def second_opinion(boxes, scores, iou_threshold, score_threshold, max_det, top_k):
    """Greedy NMS in float32 by marking what is covered, written apart from runtime.nms. Gives the indices kept."""
    candidates = np.flatnonzero(scores > score_threshold)
    candidates = candidates[np.lexsort((candidates, -scores[candidates]))][:top_k]
    left, top, right, bottom = boxes[candidates].T
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    covered = np.zeros(len(candidates), bool)
    kept: list[int] = []
    for place, index in enumerate(candidates.tolist()):
        if covered[place]:
            continue
        kept.append(index)
        if len(kept) == max_det:
            break
        width = np.minimum(right[place], right) - np.maximum(left[place], left)
        height = np.minimum(bottom[place], bottom) - np.maximum(top[place], top)
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        covered |= overlap / (areas[place] + areas - overlap) > np.float32(iou_threshold)
    return kept


def by_runtime_nms(boxes, scores, iou_threshold, score_threshold, max_det, top_k):
    candidates = np.flatnonzero(scores > score_threshold)
    best = np.sort(np.argsort(-scores[candidates], kind="stable")[:top_k])
    candidates = candidates[best]
    return candidates[nms(boxes[candidates], scores[candidates], iou_threshold, max_det)].tolist()


def check(found, boxes, scores, image, expected):
    count, kept_boxes, kept_scores, indices = (output[image] for output in found)
    assert indices[:count].tolist() == expected
    np.testing.assert_array_equal(kept_boxes[:count], boxes[image, expected])  # to the bit, NaN where NaN was
    np.testing.assert_array_equal(kept_scores[:count], scores[image, expected])
    assert (indices[count:] == -1).all()
    assert not kept_boxes[count:].any() and not kept_scores[count:].any()


def grid_boxes(batch, count, side=10.0, step=20.0):
    """(batch, count, 4) boxes none of which touches another."""
    row, column = np.divmod(np.arange(count, dtype=np.float32), 100)
    boxes = np.stack([column * step, row * step, column * step + side, row * step + side], axis=1)
    return np.tile(boxes.astype(np.float32), (batch, 1, 1))


def boxes_and_scores(kind, generator, batch, count, score_threshold):
    """Cases of one kind: (batch, count, 4) and (batch, count) float32."""
    shape = (batch, count)
    scores = generator.uniform(0, 1, shape).astype(np.float32)
    spread = {"crowded": 20, "many": 3000}.get(kind, 200)
    corner = generator.uniform(0, spread, (*shape, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(1, 80, (*shape, 2))], axis=2).astype(np.float32)
    if kind == "equal scores":
        scores = generator.choice(np.float32([0.25, 0.5, 0.75]), shape)
    elif kind == "all the same":
        boxes[:] = boxes[:, :1]
    elif kind == "disjoint":
        boxes = grid_boxes(batch, count)
    elif kind == "whole numbers":  # IoUs of 1/2, 1/3, 3/5 … exactly
        corner = generator.integers(0, 3, (*shape, 2))
        boxes = np.concatenate([corner, corner + generator.integers(0, 5, (*shape, 2))], axis=2).astype(np.float32)
    elif kind == "degenerate":
        points, inverted, thin = generator.choice(3, shape) == np.arange(3)[:, None, None]
        boxes[points, 2:] = boxes[points, :2]
        boxes[inverted] = boxes[inverted][:, [2, 3, 0, 1]]
        boxes[thin, 2] = np.nextafter(boxes[thin, 0], np.float32(np.inf))
        boxes[generator.uniform(size=shape) < 0.3] = boxes[0, 0]
    elif kind == "no numbers":
        strange = np.float32([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, -1, 1e-45])
        odd = generator.uniform(size=shape) < 0.5
        scores[odd] = generator.choice(strange, odd.sum())
        odd = generator.uniform(size=boxes.shape) < 0.1
        boxes[odd] = generator.choice(strange, odd.sum())
    elif kind == "at the threshold":
        threshold = np.float32(score_threshold)
        scores = generator.choice([np.nextafter(threshold, np.float32(-9)), threshold,
                                   np.nextafter(threshold, np.float32(9)), threshold + np.float32(0.1)], shape)
    elif kind == "huge":
        boxes *= generator.choice(np.float32([1, 1e18, 1e19, 1e36, 1e-22, 1e-30]), (batch, 1, 1))
    elif kind == "none good enough":
        scores = np.where(generator.uniform(size=shape) < 0.02, scores, np.float32(-3))
    return boxes, scores.astype(np.float32)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy(cpu, kind):
    """12 kinds × 180 images and more, with thresholds, limits, numbers of threads and orders drawn anew each time."""
    generator = np.random.default_rng(KINDS.index(kind))
    images = kept = limited = cut = 0
    while images < (12 if kind == "many" else 190):
        batch = int(generator.choice([1, 1, 2, 8, 32]))
        count = int(generator.choice([1, 2, 17, 63, 64, 65, 128, 129, 200]))
        if kind == "many":
            batch, count = int(generator.integers(1, 3)), int(generator.choice([1000, 2268, 4097, 8400]))
        settings = {"iou_threshold": float(generator.choice([0, 0.25, 1 / 3, 0.5, 0.6, 0.6, 0.9, 1])),
                    "score_threshold": float(generator.choice([-np.inf, -1, 0, 0.05, 0.05, 0.5])),
                    "max_det": int(generator.choice([1, 7, 64, 65, 100, 256])),
                    "top_k": int(generator.choice([1, 5, 64, 100, 1000, 3000, 4096, 4096, 4096]))}
        boxes, scores = boxes_and_scores(kind, generator, batch, count, settings["score_threshold"])
        with np.errstate(all="ignore"):
            found = cpu(boxes, scores, **settings, threads=int(generator.choice([1, 32, 64, 512])),
                        order=int(generator.integers(1000)))
            for image in range(batch):
                expected = by_runtime_nms(boxes[image], scores[image], **settings)
                assert second_opinion(boxes[image], scores[image], **settings) == expected
                check(found, boxes, scores, image, expected)
                limited += len(expected) == settings["max_det"]
                cut += (scores[image] > settings["score_threshold"]).sum() > settings["top_k"]
        images += batch
        kept += found[0].sum()
    assert kept
    assert limited and cut or kind == "none good enough", "the cases must reach both limits"


def test_of_equal_scores_at_the_boundary_the_lower_indices_take_part(cpu):
    for count, top_k in ((4097, 100), (8400, 100), (8400, 4096), (200, 199), (65, 64), (2, 1)):
        found = cpu(grid_boxes(1, count), np.full((1, count), 0.5), top_k=top_k, max_det=256)
        assert found[3][0].tolist() == [*range(min(top_k, 256)), *[-1] * (256 - min(top_k, 256))]


def test_the_boundary_lies_in_any_digit_of_the_score(cpu):
    """8400 scores that differ in their highest, middle or lowest bits only; half of each are equal to another."""
    generator = np.random.default_rng(3)
    for step in (1, 2**8, 2**13):
        bits = np.float32(0.5).view(np.int32) + step * (generator.permutation(8400) // 2)
        scores = bits.astype(np.int32).view(np.float32)[None]
        expected = np.argsort(-scores[0], kind="stable")
        for top_k in (1, 99, 100, 101, 4095):
            limit = min(top_k, 256)
            found = cpu(grid_boxes(1, 8400), scores, top_k=top_k, max_det=256)
            assert found[3][0, :limit].tolist() == expected[:limit].tolist()
            assert found[0][0] == limit


def test_a_score_at_the_threshold_is_not_kept(cpu):
    threshold = np.float32(0.05)
    scores = [[np.nextafter(threshold, np.float32(0)), threshold, np.nextafter(threshold, np.float32(1))]]
    assert cpu(grid_boxes(1, 3), scores)[3][0, :2].tolist() == [2, -1]


def test_iou_is_that_of_numpy_to_the_last_bit(cpu):
    """With an IoU for a threshold the worse box stays, with the next float below it goes."""
    generator = np.random.default_rng(4)
    corner = generator.uniform(0, 30, (1000, 2, 2))
    pairs = np.concatenate([corner, corner + generator.uniform(20, 80, (1000, 2, 2))], axis=2).astype(np.float32)
    for pair in pairs:
        iou = box_iou(pair[:1], pair[1:])[0, 0]
        assert cpu(pair[None], [[0.9, 0.8]], iou_threshold=float(iou))[0] == 2
        if iou > 0:
            assert cpu(pair[None], [[0.9, 0.8]], iou_threshold=float(np.nextafter(iou, np.float32(0))))[0] == 1


def test_a_batch_is_its_images(cpu):
    generator = np.random.default_rng(5)
    boxes, scores = boxes_and_scores("crowded", generator, 32, 2268, 0.05)
    together = cpu(boxes, scores)
    for image in range(0, 32, 7):
        alone = cpu(boxes[image:image + 1], scores[image:image + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[image])


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (1, 0), (3, 0)])
def test_no_candidates(cpu, batch, count):
    found = cpu(np.zeros((batch, count, 4)), np.zeros((batch, count)))
    assert not found[0].any() and not found[1].any() and not found[2].any() and (found[3] == -1).all()


@pytest.mark.parametrize("wrong", [{"iou_threshold": -0.1}, {"iou_threshold": 1.1}, {"iou_threshold": np.nan},
                                   {"score_threshold": np.nan}, {"max_det": 0}, {"max_det": 257}, {"top_k": 0},
                                   {"top_k": 4097}])
def test_arguments_out_of_range_are_refused(cpu, wrong):
    found = cpu(grid_boxes(1, 3), np.ones((1, 3)), **wrong, expected_code=1)
    assert all((output == -7).all() for output in found)


def test_equals_the_nms_in_the_exported_graph(cpu):
    """The operator and settings of export.onnx_graph.with_nms, which ONNX Runtime runs where there is no TensorRT."""
    onnx = pytest.importorskip("onnx")
    import onnxruntime
    names = ["boxes", "scores", "limit", "iou", "score"]
    kinds = [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT,
             onnx.TensorProto.FLOAT]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NonMaxSuppression", names, ["selected"])], "nms",
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)],
        [onnx.helper.make_tensor_value_info("selected", onnx.TensorProto.INT64, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    boxes, scores = boxes_and_scores("crowded", np.random.default_rng(6), 40, 300, 0.05)
    boxes[20:, :, [0, 2]] *= 7
    found = cpu(boxes, scores)
    for image in range(40):
        selected, = session.run(None, {"boxes": boxes[image:image + 1], "scores": scores[image:image + 1, None],
                                       "limit": np.int64([MAX_BOXES]), "iou": np.float32([IOU_THRESHOLD]),
                                       "score": np.float32([0.05])})
        check(found, boxes, scores, image, selected[:, 2].tolist())


@needs_compiler
def test_threads_touch_nothing_unguarded(tmp_path):
    """The phases on real threads under ThreadSanitizer, which sees a missing barrier or atomic as a data race."""
    probe = tmp_path / "probe.cpp"
    probe.write_text("#include <barrier>\n#include <thread>\nint main() { std::thread([] {}).join(); }")
    options = ["-std=c++20", "-O1", "-fsanitize=thread"]
    built = subprocess.run([COMPILER, *options, probe, "-o", tmp_path / "probe"], capture_output=True, timeout=120)
    if built.returncode or subprocess.run([tmp_path / "probe"], capture_output=True, timeout=60).returncode:
        pytest.skip("needs a g++ with C++20 and ThreadSanitizer")
    subprocess.run([COMPILER, *options, *FLAGS, "-x", "c++", SOURCES / "selfcheck.cu", SOURCES / "nms_cpu.cpp",
                    "-o", tmp_path / "selfcheck"], check=True, timeout=120)
    run = subprocess.run([tmp_path / "selfcheck", "30"], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not cope with this kernel's address randomisation")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "30 cases equal" in run.stdout


@needs_compiler
@needs_nvcc
def test_nvcc_compiles_the_kernel_for_every_gpu(tmp_path):
    listed = re.search(r"set\(ARCHITECTURES ([\d ]+) ", (SOURCES / "CMakeLists.txt").read_text())
    assert listed
    supported = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True, timeout=60).stdout
    chosen = [name for name in listed[1].split() if f"compute_{name}" in supported.split()]
    assert len(chosen) >= 5
    # One front end for all, the oldest's, which takes most of the time; test_gpu_check_builds_here takes the newest's.
    targets = ",".join(f"sm_{name}" for name in chosen)
    run = subprocess.run([NVCC, "-std=c++17", "-fatbin", "-Xptxas", "-v,-warn-spills",
                          f"-gencode=arch=compute_{chosen[0]},code=[{targets}]", SOURCES / "nms_kernel.cu", "-o",
                          tmp_path / "nms.fatbin"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr
    shared = [int(size) for size in re.findall(r"(\d+) bytes smem", run.stderr)]
    assert len(shared) == len(chosen)
    assert max(shared) <= 48 * 1024  # what a block may have on every GPU


@needs_compiler
@needs_nvcc
def test_gpu_check_builds_here(tmp_path):
    supported = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True, timeout=60).stdout
    library, selfcheck = build(NVCC, max(int(name.removeprefix("compute_")) for name in supported.split()), tmp_path)
    assert ctypes.CDLL(str(library)).attention_pose_nms
    assert os.access(selfcheck, os.X_OK)


def test_the_cases_of_gpu_check_reach_both_limits(cpu):
    """The same cases that a GPU gets there, on the CPU."""
    kept = cut = 0
    for case in make_cases(60, seed=1):
        found = cpu(case.boxes, case.scores, **case.settings)
        for image in range(len(case.boxes)):
            expected = by_runtime_nms(case.boxes[image], case.scores[image], **case.settings)
            check(found, case.boxes, case.scores, image, expected)
            kept += len(expected)
            cut += (case.scores[image] > case.settings["score_threshold"]).sum() > case.settings["top_k"]
    assert kept and cut


def test_gpu_check_says_what_is_missing():
    run = subprocess.run([sys.executable, "-m", "export.gpu_check"], capture_output=True, text=True, cwd=ROOT,
                         env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=120)
    assert run.returncode == 2
    assert re.fullmatch(r"error: .*no CUDA GPU.*\n", run.stderr)
    assert not run.stdout


@needs_compiler
@needs_nvcc
@pytest.mark.skipif(TENSORRT_ROOT is None, reason="needs TENSORRT_ROOT, a folder with include/NvInferRuntime.h")
def test_plugin_against_the_headers_of_tensorrt(tmp_path):
    """Its interfaces called as TensorRT calls them: fields, shapes, types, clones, storing and loading, enqueue."""
    sources = [SOURCES / name for name in ("plugin_check.cpp", "plugin.cpp", "nms_cpu.cpp")]
    run = subprocess.run([NVCC, "-std=c++17", "-Xcompiler", "-Wall,-ffp-contract=off", "-I",
                          f"{TENSORRT_ROOT}/include", *sources, "-o", tmp_path / "plugin_check"],
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    run = subprocess.run([tmp_path / "plugin_check"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "plugin checked with the headers of TensorRT" in run.stdout
    assert "iou_threshold 1.5 (0 to 1)" in run.stderr  # what its user sees of a bad field
    assert "topk" in run.stderr


def test_the_node_in_the_detector_keeps_what_the_engine_with_nms_keeps(cpu, tmp_path):
    """The bundled detector on a rendered picture: plugin, by the settings of its node, and NMS in the ONNX."""
    picture, _ = render_still(3, (640, 480))
    whole = ROOT / "models" / "person.onnx"
    raw = without_nms(onnx.load(whole))
    onnx.save(raw, tmp_path / "raw.onnx")
    node = with_plugin_nms(raw).graph.node[-1]
    settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
                if each.name in ("iou_threshold", "score_threshold", "max_det")}
    engine = open_engine(tmp_path / "raw.onnx")
    pixels = letterbox(picture, engine.input_size)[0][None]
    outputs, kept = engine.run(pixels), open_engine(whole).run(pixels)
    count, boxes, scores, _ = cpu(outputs["boxes"], outputs["scores"], **settings)
    assert 0 < count[0] == len(kept["kept_boxes"])
    np.testing.assert_allclose(boxes[0, :count[0]], kept["kept_boxes"], atol=1e-3)
    np.testing.assert_allclose(scores[0, :count[0]], kept["kept_scores"], atol=1e-5)
