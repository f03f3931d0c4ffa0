"""Turn a training checkpoint into an ONNX engine, checked against the network on real crops.

    python -m export --epoch 140
    python -m export --run output/model_dump/person --out models

A pose run gives pose.onnx; a person run gives person.onnx, with non-maximum suppression in its graph, and
person_raw.onnx, all boxes and scores, for backends that do it themselves. Beside them lie the network's weights,
kernels as float16, to train on from. Where TensorRT and a GPU are, pose.trt or person.trt in FP16 comes as well
(`export.tensorrt_engine`).
"""

import argparse
import os
from pathlib import Path

from runtime.errors import BadInput, run_command

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epoch", type=lambda text: text if text == "best" else int(text), metavar="140",
                        help="which snapshot, or best: that of the best validation AP (default: the last)")
    parser.add_argument("--run", default="output/model_dump/pose", metavar="DIR",
                        help="folder of the training run (default: %(default)s)")
    parser.add_argument("--out", default="output/engines", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--trained-on", metavar="TEXT", help="the data, one line for the engine's metadata "
                        "(default: the data folders of the run)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    from export.onnx_graph import export
    from train.checkpoint import load_snapshot, shrink_weights, snapshot_path
    run, out = Path(arguments.run), Path(arguments.out)
    network, config, epoch = load_snapshot(run, arguments.epoch)
    for line in export(network, config, epoch, out, arguments.trained_on):
        print(line)
    weights = out / f"{config.task}.weights.h5"
    shrink_weights(snapshot_path(run, epoch), weights)
    print(f"{weights}  {weights.stat().st_size / 1e6:.1f} MB, to train on from (init_weights)")
    build_tensorrt(out / f"{config.task}.onnx", config)


def build_tensorrt(engine, config):
    """A TensorRT engine of an .onnx one, in FP16; a line on why there is none where this machine cannot build it."""
    from runtime.tensorrt_backend import this_machine
    try:
        this_machine("TensorRT")
    except BadInput as error:
        print(f"no {engine.stem}.trt: {error}")
        return
    from export.tensorrt_engine import main as build
    build(["--engine", str(engine), "--out", str(engine.with_suffix(".trt")), "--config", f"configs/{config.task}.toml",
           "--set", f"data={config.data}", "--set", f"keypoints={config.keypoints}"])


if __name__ == "__main__":
    run_command(main)
