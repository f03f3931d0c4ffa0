"""Proves the NMS kernel of the TensorRT plugin on a CUDA GPU, without TensorRT and without a network, and times it.

    python -m export.gpu_check > gpu_check.json

Needs a GPU, nvcc and PyTorch with CUDA. Builds the kernel for this GPU in a temporary folder and holds it against its
own phases on the CPU, against `runtime.nms` and, where it is installed, against `torchvision.ops.nms`; runs
compute-sanitizer where that is installed; then prints machine, versions, cases and latencies as JSON. Exit code 1
where a result differs, 2 where something is missing.
"""

import argparse
import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np

from runtime.errors import BadInput, run_command
from runtime.gpus import driver_version
from runtime.nms import IOU_THRESHOLD, MAX_BOXES, box_iou, nms

SOURCES = Path(__file__).parent / "nms_plugin"
TOOLKIT = Path("/usr/local/cuda/bin")
MAX_TOP_K = 4096  # of nms_core.h
TIMEOUT = 600  # seconds for a program: a kernel that never ends would hold it for ever
# boxes, scores, batch, candidates, IoU and score threshold, max_det, top_k, the four outputs; then the stream
ARGUMENTS: list = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_float,
             ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 4]
BORDERLINE = 1e-5  # torchvision may round an IoU so near to the threshold to its other side
CALLS, ROUNDS = 20, 50


@dataclass
class Case:
    boxes: np.ndarray  # (B, A, 4) float32
    scores: np.ndarray  # (B, A) float32
    settings: dict  # iou_threshold, score_threshold, max_det, top_k
    finite: bool


class Different(Exception):
    """The kernel gave another result than it should."""


def find_nvcc():
    """Path of CUDA's compiler, or None."""
    return find_tool("nvcc")


def find_tool(name):
    return shutil.which(name) or shutil.which(name, path=str(TOOLKIT))


def count_gpus():
    """CUDA GPUs that the driver lets this process see."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def require_everything():
    """Raise BadInput, one line, that names all that is missing."""
    missing = []
    if not count_gpus():
        missing.append("no CUDA GPU is visible: run on a machine with one and NVIDIA's driver, look at nvidia-smi and "
                       "CUDA_VISIBLE_DEVICES")
    if find_nvcc() is None:
        missing.append(f"no nvcc on PATH or in {TOOLKIT}: install NVIDIA's CUDA toolkit")
    if importlib.util.find_spec("torch") is None:
        missing.append(f"no PyTorch in {sys.executable}: install it with CUDA (pip install torch torchvision)")
    elif not missing:
        import torch
        if not torch.cuda.is_available():
            missing.append(f"PyTorch {torch.__version__} in {sys.executable} cannot use the GPU: install a build with "
                           "CUDA that fits the driver")
    if missing:
        raise BadInput("; ".join(missing))


def build(nvcc, architecture, folder):
    """Compile the kernel and its self-check for one kind of GPU.

    Args:
        architecture: compute capability without its dot, "87".

    Returns:
        Paths of the shared library and of the program.

    Raises:
        BadInput: nvcc fails, with its first line on why.
    """
    library, selfcheck = Path(folder) / "libnms.so", Path(folder) / "selfcheck"
    common = [nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    for command in ([*common, "-Xcompiler", "-fPIC", "-shared", SOURCES / "nms_kernel.cu", "-o", library],
                    [*common, "-Xcompiler", "-ffp-contract=off",
                     *(SOURCES / name for name in ("selfcheck.cu", "nms_kernel.cu", "nms_cpu.cpp")), "-o", selfcheck]):
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"{nvcc} did not end in {TIMEOUT} s: see what else keeps this machine busy") from error
        if run.returncode:
            reason = (run.stderr or run.stdout).strip().split("\n")[0]
            raise BadInput(f"{nvcc} cannot build the kernel for sm_{architecture}: {reason}; use a CUDA toolkit that "
                           "knows this GPU and this C++ compiler")
    return library, selfcheck


def make_cases(count, seed=0):
    """Random and adversarial batches: crowded, equal scores, equal boxes, exact IoUs, no numbers, limits reached."""
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        batch, candidates = int(generator.choice([1, 1, 2, 8, 32])), int(generator.choice([0, 1, 17, 64, 65, 200, 300]))
        if number % 20 == 0:
            batch, candidates = int(generator.choice([1, 1, 2, 32])), int(generator.choice([1000, 4097, 8400]))
        shape, spread = (batch, candidates), float(generator.choice([20, 200, 2000]))
        corner = generator.uniform(0, spread, (*shape, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(1, 80, (*shape, 2))], axis=2)
        scores = generator.uniform(size=shape)
        kind = number % 6
        if kind == 1:
            scores = np.round(scores, 1)
        elif kind == 2:
            boxes = np.round(boxes / 20)
        elif kind == 3:
            boxes[:] = boxes[:, :1]
        elif kind == 4:
            boxes[generator.uniform(size=boxes.shape) < 0.05] = np.nan
            scores[generator.uniform(size=shape) < 0.2] = np.nan
        elif kind == 5:
            scores[:] = 0.5
        settings = {"iou_threshold": float(generator.choice([0.25, 0.5, IOU_THRESHOLD, 0.9])),
                    "score_threshold": float(generator.choice([0, 0.05, 0.4])),
                    "max_det": int(generator.choice([5, MAX_BOXES, 256])),
                    "top_k": int(generator.choice([64, 1000, MAX_TOP_K, MAX_TOP_K]))}
        cases.append(Case(boxes.astype(np.float32), scores.astype(np.float32), settings, kind != 4))
    return cases


def allocate(torch, batch, max_det, device):
    """Output tensors: count, boxes, scores, indices."""
    return (torch.empty(batch, dtype=torch.int32, device=device), torch.empty(batch, max_det, 4, device=device),
            torch.empty(batch, max_det, device=device), torch.empty(batch, max_det, dtype=torch.int32, device=device))


def enqueue(torch, launch, boxes, scores, outputs, settings):
    """Run the kernel on tensors, on PyTorch's stream; does not wait."""
    error = launch(boxes.data_ptr(), scores.data_ptr(), *scores.shape, settings["iou_threshold"],
                   settings["score_threshold"], settings["max_det"], settings["top_k"],
                   *(output.data_ptr() for output in outputs), torch.cuda.current_stream().cuda_stream)
    if error:
        raise Different(f"the kernel did not start: cudaError_t {error}")


def candidates_of(case, image):
    """Indices of the candidates that take part, best first."""
    good = np.flatnonzero(case.scores[image] > case.settings["score_threshold"])
    return good[np.argsort(-case.scores[image][good], kind="stable")][:case.settings["top_k"]]


def compare(case, outputs):
    """Raise Different where count, boxes, scores and indices (arrays) are not exactly those of `runtime.nms`."""
    for image, (count, boxes, scores, indices) in enumerate(zip(*outputs, strict=True)):
        best = candidates_of(case, image)
        kept = best[nms(case.boxes[image][best], case.scores[image][best], case.settings["iou_threshold"],
                        case.settings["max_det"])]
        if (indices[:count].tolist() != kept.tolist() or (indices[count:] != -1).any()
                or boxes[:count].tobytes() != case.boxes[image][kept].tobytes()
                or scores[:count].tobytes() != case.scores[image][kept].tobytes()):
            raise Different(f"{indices[:count].tolist()} were kept where runtime.nms keeps {kept.tolist()}, of "
                            f"{case.scores.shape} candidates with {case.settings}")


def compare_torchvision(torch, their_nms, case, indices, device):
    """The same against `torchvision.ops.nms`, for cases of numbers only.

    Returns:
        How many images differ because IoUs are within BORDERLINE of the threshold.
    """
    borderline = 0
    for image in range(len(case.boxes)):
        best = candidates_of(case, image)
        boxes, scores = case.boxes[image][best], case.scores[image][best]
        theirs = their_nms(torch.from_numpy(boxes).to(device), torch.from_numpy(scores).to(device),
                           case.settings["iou_threshold"])[:case.settings["max_det"]].cpu().numpy()
        kept = indices[image][indices[image] >= 0]
        if best[theirs].tolist() == kept.tolist():
            continue
        ours = np.flatnonzero(np.isin(best, kept))
        if best[ours].tolist() != kept.tolist() or not (tolerable(boxes, ours, case.settings)
                                                        and tolerable(boxes, theirs, case.settings)):
            raise Different(f"torchvision keeps {best[theirs].tolist()}, the kernel {kept.tolist()}, of "
                            f"{case.scores.shape} candidates with {case.settings}")
        borderline += 1
    return borderline


def tolerable(boxes, kept, settings):
    """Whether greedy NMS keeps these of boxes sorted best first, were IoUs within BORDERLINE of the threshold to count
    either way."""
    if len(kept) == settings["max_det"]:
        boxes = boxes[:kept[-1] + 1]
    overlaps = np.where(kept[:, None] < np.arange(len(boxes)), box_iou(boxes[kept], boxes), 0)
    dropped = np.ones(len(boxes), bool)
    dropped[kept] = False
    return bool((overlaps[:, kept] < settings["iou_threshold"] + BORDERLINE).all()
                and (overlaps[:, dropped] > settings["iou_threshold"] - BORDERLINE).any(0).all())


def check_cases(torch, launch, cases, their_nms, device="cuda"):
    """All cases through the kernel. Returns the numbers of images checked; raises Different."""
    totals = {"images": 0, "torchvision_images": 0, "torchvision_borderline": 0}
    for case in cases:
        outputs = allocate(torch, len(case.boxes), case.settings["max_det"], device)
        boxes, scores = torch.from_numpy(case.boxes).to(device), torch.from_numpy(case.scores).to(device)
        enqueue(torch, launch, boxes, scores, outputs, case.settings)
        found = [output.cpu().numpy() for output in outputs]
        compare(case, found)
        totals["images"] += len(case.boxes)
        if their_nms and case.finite:
            totals["torchvision_images"] += len(case.boxes)
            totals["torchvision_borderline"] += compare_torchvision(torch, their_nms, case, found[3], device)
    return totals


def check_graph(torch, launch, cases):
    """A captured launch, replayed on inputs that came later, gives their results. Raises Different."""
    for case in cases:
        boxes, scores = torch.zeros(case.boxes.shape, device="cuda"), torch.zeros(case.scores.shape, device="cuda")
        outputs = allocate(torch, len(case.boxes), case.settings["max_det"], "cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            enqueue(torch, launch, boxes, scores, outputs, case.settings)
        boxes.copy_(torch.from_numpy(case.boxes))
        scores.copy_(torch.from_numpy(case.scores))
        graph.replay()
        compare(case, [output.cpu().numpy() for output in outputs])


def run_program(command):
    """Raise Different with its summary, or else its last line, unless it ends with 0 in time. Returns that line."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise Different(f"{' '.join(map(str, command))}: no end after {TIMEOUT} s") from error
    lines = (run.stdout + run.stderr).strip().split("\n")
    line = next((line for line in lines if "SUMMARY:" in line), lines[-1])
    if run.returncode:
        raise Different(f"{' '.join(map(str, command))}: exit code {run.returncode}, {line}")
    return line


def sanitize(selfcheck):
    """compute-sanitizer's verdict by tool, or why there is none."""
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None:
        return "not run: compute-sanitizer is not installed"
    verdicts = {}
    for tool in ("memcheck", "racecheck", "synccheck"):
        verdicts[tool] = run_program([sanitizer, "--tool", tool, "--error-exitcode", "9", selfcheck, "20"])
        if "SUMMARY: 0 " not in verdicts[tool]:  # hazards that racecheck calls warnings leave the exit code alone
            raise Different(f"compute-sanitizer's {tool} says: {verdicts[tool]}")
    return verdicts


def microseconds(torch, call, calls):
    """Median time of one call by CUDA events around `calls` of them in a row, warm."""
    for _ in range(3):
        call()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / calls)
    return round(median(times), 2)


def time_all(torch, launch, their_nms):
    """One row for each size: the kernel called one by one and in a graph (GPU time only), torchvision image by image.

    All candidates are above the score threshold. torchvision is given them thresholded already and takes part with all
    of them; the kernel with the best 4096.
    """
    settings = {"iou_threshold": IOU_THRESHOLD, "score_threshold": 0.0, "max_det": MAX_BOXES, "top_k": MAX_TOP_K}
    generator = torch.Generator(device="cuda").manual_seed(0)
    rows = []
    for candidates in (10, 100, 1000, 8400):
        for batch in (1, 8, 32):
            corner = torch.rand(batch, candidates, 2, device="cuda", generator=generator) * 600
            size = torch.rand(batch, candidates, 2, device="cuda", generator=generator) * 80 + 1
            boxes = torch.cat([corner, corner + size], 2).contiguous()
            scores = torch.rand(batch, candidates, device="cuda", generator=generator) + 0.01
            outputs = allocate(torch, batch, MAX_BOXES, "cuda")

            def kernel(boxes=boxes, scores=scores, outputs=outputs):
                enqueue(torch, launch, boxes, scores, outputs, settings)

            def theirs(boxes=boxes, scores=scores):
                for image_boxes, image_scores in zip(boxes, scores, strict=True):
                    their_nms(image_boxes, image_scores, IOU_THRESHOLD)

            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(CALLS):
                    kernel()
            rows.append({"candidates": candidates, "batch": batch, "call_us": microseconds(torch, kernel, CALLS),
                         "graph_us": round(microseconds(torch, graph.replay, 1) / CALLS, 2),
                         "torchvision_us": microseconds(torch, theirs, 1) if their_nms else None})
    return rows


def goals(rows):
    """How the kernel stands to what is asked of it, for one image of 8400 candidates."""
    (row,) = [row for row in rows if row["candidates"] == 8400 and row["batch"] == 1]
    theirs = row["torchvision_us"]
    return {"us": row["graph_us"], "at_most": 20, "times_as_fast_as_torchvision": theirs and round(
        theirs / row["graph_us"], 1), "at_least": 10}


def machine(torch, nvcc):
    """GPU, driver and versions."""
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True,
                             timeout=TIMEOUT).stdout
    return {"date": date.today().isoformat(), "gpu": torch.cuda.get_device_name(),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "driver": driver_version() or "unknown",
            "nvcc": release.partition("release ")[2].partition("\n")[0], "torch": torch.__version__,
            "torch_cuda": torch.version.cuda}


def main():
    parser = argparse.ArgumentParser(prog="python -m export.gpu_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="batches of one to eight images to check "
                        "(default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.cases < 1:
        raise BadInput(f"--cases {arguments.cases} is less than 1")
    require_everything()
    import torch
    their_nms, their_version = None, None
    if importlib.util.find_spec("torchvision"):
        import torchvision
        their_nms, their_version = torchvision.ops.nms, torchvision.__version__
    nvcc = find_nvcc()
    report = machine(torch, nvcc) | {"torchvision": their_version}
    with tempfile.TemporaryDirectory() as folder:
        library, selfcheck = build(nvcc, "{}{}".format(*torch.cuda.get_device_capability()), folder)
        launch = ctypes.CDLL(str(library)).attention_pose_nms
        launch.argtypes = [*ARGUMENTS, ctypes.c_void_p]
        try:
            report["selfcheck"] = run_program([selfcheck, "1000"])
            report["checked"] = check_cases(torch, launch, make_cases(arguments.cases), their_nms)
            check_graph(torch, launch, make_cases(60, seed=2))
            report["sanitizer"] = sanitize(selfcheck)
            report["latency"] = time_all(torch, launch, their_nms)
            report["goals"] = goals(report["latency"])
        except (Different, RuntimeError) as error:  # PyTorch's, of a kernel that touched what is not its own
            print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    run_command(main)
