"""Build a TensorRT engine from an ONNX engine, for the GPU of this machine, and check it before it gets its name.

    python -m export.tensorrt_engine --engine models/pose.onnx --set 'data=["data/people"]'
    python -m export.tensorrt_engine --engine models/person.onnx --config configs/person.toml --plugin auto
    python -m export.tensorrt_engine --engine models/pose.onnx --precision int8 --annotations FILE --images DIR
    python -m export.tensorrt_engine --engine models/pose.onnx --out output/engines/pose.rtx    # TensorRT for RTX

The ONNX is brought to the precision asked for (`export.fp16`; INT8 calibrates as `export.int8` does), built as a
strongly typed network, and run beside the ONNX on real inputs (`export.agreement`). An engine that is not what its
ONNX is gets refused, and nothing is left under the final name. Beside the engine lies its sidecar (`runtime.sidecar`),
and of a detector the NMS plugin, where it was built with one (docs/tensorrt.md): the three files belong together.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from eval.annotations import check_images, load_annotations
from export.agreement import check_agreement, record
from export.fp16 import described, load_float, to_fp16
from export.int8 import CALIBRATION, quantise_for_tensorrt
from export.onnx_graph import NMS_SCORE, for_tensorrt, summary
from export.verify import SAMPLES, ExportError, inputs_for
from runtime.cuda import current_gpu
from runtime.engine import open_engine
from runtime.errors import BadInput, run_command
from runtime.files import make_folder, sha256, whole_file
from runtime.gpus import driver_version
from runtime.nms import IOU_THRESHOLD, MAX_BOXES
from runtime.pose import LARGEST_BATCH
from runtime.sidecar import Machine, Sidecar, sidecar_path, write_sidecar
from runtime.tensorrt_backend import SUFFIXES, load_plugin, tensorrt_module, this_machine
from train.config import add_config_arguments

PLUGIN = Path("output/nms_plugin/libattention_pose_nms.so")  # where docs/tensorrt.md has it built
PLUGIN_NODE = "AttentionPoseNMS"
PRECISIONS = ("fp16", "fp32", "int8")


def main(argv=None):
    """Run the command. argv: its arguments, those of the process if None."""
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    library = SUFFIXES[arguments.out.suffix]
    model = load_float(arguments.engine)
    reference = open_engine(arguments.engine)
    machine = this_machine(library)
    data = None
    if arguments.annotations:
        data = load_annotations(arguments.annotations), arguments.images
        check_images(data[0].images, arguments.images)
    plugin = find_plugin(arguments.plugin, reference.kind, library)
    inputs, origin = inputs_for(reference, arguments, CALIBRATION if arguments.precision == "int8" else SAMPLES)
    model = in_precision(model, inputs, arguments.precision)
    if plugin:
        model = with_plugin_nms(model)
    make_folder(arguments.out.parent)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix="building_") as folder:
        partial = Path(folder) / arguments.out.name
        built, profiles = build(model, library, plugin, arguments.batch, arguments.workspace, arguments.timing_cache)
        partial.write_bytes(built)
        if plugin:
            shutil.copyfile(plugin, partial.parent / plugin.name)
        command = shlex.join(["python", "-m", "export.tensorrt_engine", *(sys.argv[1:] if argv is None else argv)])
        sidecar = describe(arguments, command, partial, machine, profiles, plugin, reference.metadata)
        write_sidecar(partial, sidecar)
        engine = open_engine(partial)
        try:
            found = check_agreement(engine, reference, inputs, arguments.precision, data, arguments.batch)
        finally:
            engine.close()
        write_sidecar(partial, Sidecar(**{**vars(sidecar), "agreement": record(found)}))
        put_in_place(partial, arguments.out, plugin)
    print(summary(arguments.out, f"{found} on {len(inputs)} {origin} inputs"))


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog="python -m export.tensorrt_engine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="FILE", help="the float .onnx engine")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="a .trt, or .rtx for TensorRT for RTX (default: output/engines/NAME.trt)")
    parser.add_argument("--batch", type=int, default=LARGEST_BATCH, metavar="N",
                        help="largest batch of a pose engine (default: %(default)s)")
    parser.add_argument("--plugin", default="auto", metavar="FILE",
                        help=f"NMS plugin for a detector; auto: {PLUGIN} where it is, none: NMS outside "
                        "(default: %(default)s)")
    parser.add_argument("--workspace", type=int, default=1024, metavar="MIB",
                        help="GPU memory that building may use for scratch (default: %(default)s)")
    parser.add_argument("--timing-cache", type=Path, default=Path("output/engines/timing.cache"), metavar="FILE",
                        help="what was timed before, so that building again is quick (default: %(default)s)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO keypoints, to compare AP as well")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their images")
    add_config_arguments(parser)
    return parser.parse_args(argv)


def check_arguments(arguments):
    arguments.out = arguments.out or Path("output/engines") / f"{arguments.engine.stem}.trt"
    if arguments.out.suffix not in SUFFIXES:
        raise BadInput(f"--out {arguments.out} should end in {' or '.join(SUFFIXES)}")
    if not 1 <= arguments.batch <= LARGEST_BATCH:
        raise BadInput(f"--batch {arguments.batch} is not between 1 and {LARGEST_BATCH}, the most that streaming uses")
    if arguments.workspace < 1:
        raise BadInput(f"--workspace {arguments.workspace} is no size in MiB")
    if bool(arguments.annotations) != bool(arguments.images):
        raise BadInput("--annotations and --images belong together: give both or neither")
    if arguments.precision == "int8" and not arguments.annotations:
        raise BadInput("--precision int8 needs --annotations and --images: whether INT8 is good enough only AP tells")
    if arguments.timing_cache.is_dir():
        raise BadInput(f"--timing-cache {arguments.timing_cache} is a folder: give a file")


def find_plugin(wanted, kind, library):
    """Path of the NMS plugin that an engine is to have, None for NMS outside; says which."""
    if kind != "person" or wanted == "none":
        return None
    if library != "TensorRT":  # a plugin's node ends the process there
        print("TensorRT for RTX takes no plugins: NMS runs outside of the engine")
        return None
    path = PLUGIN if wanted == "auto" else Path(wanted)
    if path.is_file():
        return path
    if wanted == "auto":
        print(f"no NMS plugin at {path} (docs/tensorrt.md says how to build it): NMS runs outside of the engine")
        return None
    raise BadInput(f"no NMS plugin at {path}: build it (docs/tensorrt.md), or give --plugin none")


def in_precision(model, inputs, precision):
    """The ONNX that TensorRT is to build, from a float32 one."""
    model = for_tensorrt(model)
    if precision == "int8":
        return quantise_for_tensorrt(model, inputs)
    if precision == "fp16":
        model, islands = to_fp16(model, inputs)
        print("\n".join(described(islands)))
    return model


def with_plugin_nms(model, iou_threshold=IOU_THRESHOLD, score_threshold=NMS_SCORE, max_det=MAX_BOXES):
    """A detector with outputs "boxes" and "scores" → one that ends in a node for the NMS plugin.

    Returns:
        A copy with outputs "count" (B), "boxes" (B, max_det, 4), "scores" (B, max_det), "indices" (B, max_det).
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    (first,) = (output.type.tensor_type.shape.dim[0] for output in graph.output if output.name == "scores")
    batch = first.dim_value
    if batch != 1:
        raise ExportError("the detector takes several frames at once, the plugin's engine one: give person.onnx, not "
                          "person_raw.onnx, or --plugin none")
    for old in ("boxes", "scores"):
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [f"all_{old}" if name == old else name for name in names]
    outputs = {"count": (TensorProto.INT32, [batch]), "boxes": (TensorProto.FLOAT, [batch, max_det, 4]),
               "scores": (TensorProto.FLOAT, [batch, max_det]), "indices": (TensorProto.INT32, [batch, max_det])}
    # TensorRT's parser takes a node that it does not know for the plugin of this name and version.
    graph.node.append(helper.make_node(
        PLUGIN_NODE, ["all_boxes", "all_scores"], list(outputs), name="nms", domain="attention_pose",
        plugin_version="1", plugin_namespace="", iou_threshold=iou_threshold, score_threshold=score_threshold,
        max_det=max_det))
    model.opset_import.append(helper.make_opsetid("attention_pose", 1))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, *each) for name, each in outputs.items())
    return model


def build(model, library, plugin=None, batch=LARGEST_BATCH, workspace=1024, timing_cache=None, capabilities=()):
    """Build an engine.

    Args:
        model: onnx.ModelProto, strongly typed.
        library: a key of `runtime.sidecar.LIBRARIES`.
        plugin: path of the plugin library that the model has a node of.
        batch: the largest, of a model with a dynamic one; it is tuned for batch 4.
        workspace: MiB.
        timing_cache: path; read and written by TensorRT, which alone times kernels when it builds.
        capabilities: of TensorRT for RTX, the GPUs to build for, ("SM86", …); none for the one here.

    Returns:
        The engine's bytes, and its profiles {input: {"min": shape, "opt": shape, "max": shape}}.

    Raises:
        ExportError: the library cannot parse or build the model; it says which node.
    """
    trt = tensorrt_module(library)
    logger = trt.Logger(trt.Logger.ERROR)
    if plugin:
        load_plugin(trt, plugin)
    builder = trt.Builder(logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flags) if flags is not None else 0)  # 11 knows nothing else
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        problem = parser.get_error(0)
        raise ExportError(f"{library} {trt.__version__} cannot read node {problem.node()} ({problem.node_operator()}): "
                          f"{' '.join(problem.desc().split())[:300]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 islands are FP32
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    port = network.get_input(0)
    sides = tuple(port.shape)[1:]
    profiles = {}
    if port.shape[0] < 0:
        shapes = [(size, *sides) for size in (1, min(4, batch), batch)]
        profile = builder.create_optimization_profile()
        profile.set_shape(port.name, *shapes)
        config.add_optimization_profile(profile)
        profiles[port.name] = dict(zip(("min", "opt", "max"), map(list, shapes), strict=True))
    monitor = progress_monitor(trt)
    config.progress_monitor = monitor
    with _cached(config, timing_cache if library == "TensorRT" else None):
        built = builder.build_serialized_network(network, config)
    monitor.close()
    if monitor.interrupted:
        raise KeyboardInterrupt
    if built is None:
        raise ExportError(f"{library} {trt.__version__} could not build the engine: its log above says why")
    return bytes(built), profiles


@contextlib.contextmanager
def _cached(config, path):
    """Let a build use a timing cache, and keep what it timed. One that is damaged or of another GPU counts as none."""
    if path is None:
        yield
        return
    try:
        kept = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        print(f"{path} cannot be read ({error.strerror}): timing anew")
        kept = b""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        print(f"{path} is not of this GPU and version: timing anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    try:
        with whole_file(path) as part:
            part.write_bytes(bytes(config.get_timing_cache().serialize()))
    except BadInput as error:  # the engine is built, and matters more
        print(f"what was timed is not kept: {error}")


def progress_monitor(trt):
    """A progress bar for each phase of a build, the deepest last; Ctrl-C ends the build."""

    class Progress(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            self.bars = {}
            self.interrupted = False

        def phase_start(self, phase_name, parent_phase, num_steps):
            with self.noting_interrupts():
                self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=False, position=len(self.bars))

        def step_complete(self, phase_name, step):
            with self.noting_interrupts():
                if phase_name in self.bars:
                    self.bars[phase_name].update(step + 1 - self.bars[phase_name].n)
            return not self.interrupted

        def phase_finish(self, phase_name):
            with self.noting_interrupts():
                bar = self.bars.pop(phase_name, None)
                if bar is not None:
                    bar.close()

        @contextlib.contextmanager
        def noting_interrupts(self):
            """TensorRT swallows what a monitor raises."""
            try:
                yield
            except KeyboardInterrupt:
                self.interrupted = True

        def close(self):
            for bar in self.bars.values():
                bar.close()

    return Progress()


def describe(arguments, command, engine, machine, profiles, plugin, metadata):
    """The Sidecar of an engine that was just built, without what the gate measures."""
    gpu = current_gpu()
    return Sidecar(
        machine=Machine(**vars(machine)), engine_sha256=sha256(engine),
        onnx=os.path.relpath(arguments.engine.resolve(), arguments.out.parent.resolve()),
        onnx_sha256=sha256(arguments.engine), precision=arguments.precision, profiles=profiles,
        metadata=dict(metadata), command=command,
        cuda=gpu.runtime_cuda, driver=driver_version() or f"CUDA {gpu.driver_cuda}",
        plugin=plugin.name if plugin else None, plugin_sha256=sha256(plugin) if plugin else None,
        date=date.today().isoformat())


def put_in_place(partial, out, plugin):
    """Give engine, sidecar and plugin their names. The sidecar goes first away and comes last: in between, the engine
    that lies there is refused."""
    try:
        sidecar_path(out).unlink(missing_ok=True)
        if plugin and (out.parent / plugin.name).resolve() != plugin.resolve():
            os.replace(partial.parent / plugin.name, out.parent / plugin.name)
        os.replace(partial, out)
        os.replace(sidecar_path(partial), sidecar_path(out))
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror}; choose another --out") from error


if __name__ == "__main__":
    run_command(main)
