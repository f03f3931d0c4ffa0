"""Options of `python -m eval.coco`, and which of them go together."""

import argparse
from pathlib import Path

from runtime.backends import DEFAULT_BACKEND, ONNX_BACKENDS
from runtime.decode import DECODINGS
from runtime.errors import BadInput
from runtime.gpus import gpu_numbers
from runtime.nms import OKS_THRESHOLD

# Far below the threshold of streaming, so that the whole curve of precision over recall is there.
DETECTOR_THRESHOLD = 0.05


def parse_arguments(description):
    parser = argparse.ArgumentParser(prog="python -m eval.coco", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what is measured").add_argument
    add("--engine", type=Path, help="pose engine (default: models/pose.onnx)")
    add("--checkpoint", type=Path, metavar="DIR", help="instead of an engine, a training run's folder, such as "
        "output/model_dump/COCO; needs TensorFlow")
    add("--epoch", "--test_epoch", type=epoch, metavar="140", help="its snapshot: a number, or best for that of the "
        "best validation AP (default: the last)")
    add("--gpu", metavar="0-1", help="GPUs that run the checkpoint, each with a worker of its own, or cpu (default: "
        "what TensorFlow finds; engines run on the CPU)")
    add("--flip-test", action="store_true", help="average with the mirrored crop: better, at twice the time")
    add("--decoding", choices=DECODINGS, help="how a heatmap becomes a point (default: dark)")
    add("--threads", type=positive, default=1, metavar="N", help="threads of each engine (default: %(default)s)")
    add("--backend", choices=ONNX_BACKENDS, help="library that runs the engines (default: onnxruntime)")
    add("--workers", type=positive, metavar="N", help="processes that share the images, each with engines of its own; "
        "the results are the same (default: 1, or one a GPU)")

    add = parser.add_argument_group("on what").add_argument
    add("--annotations", type=Path, help="COCO keypoint file, such as person_keypoints_val2017.json (default: people "
        "that this program renders, which says little of photographs)")
    add("--images", type=Path, help="folder of the images that the annotations name")
    add("--limit", type=positive, metavar="N", help="only the first N images of the annotations")

    add = parser.add_argument_group("whose boxes (default: the annotated ones)").add_argument
    add("--detector", type=Path, help="person engine that finds them")
    add("--detections", type=Path, metavar="FILE", help="JSON in COCO's results format: a list of {image_id, "
        "category_id, bbox, score}, such as data/COCO/dets/human_detection.json")
    add("--min-score", type=float, metavar="S", help=f"only boxes of a higher score (default: {DETECTOR_THRESHOLD} of "
        "a detector's, 0 of --detections; a high one costs AP)")
    add("--min-area", type=float, metavar="PX", help="only boxes of more square pixels (default: 0)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--oks-nms", type=threshold, metavar="OKS", help="of two poses more alike than this drop the "
                       f"worse; 1 drops none (default: {OKS_THRESHOLD} for found boxes, none for annotated ones)")
    which.add_argument("--soft-oks-nms", type=threshold, metavar="OKS", help="lower the score of the worse one "
                       f"instead, the more the smaller this is; usual is {OKS_THRESHOLD}")

    add = parser.add_argument_group("what comes out").add_argument
    add("--out", type=Path, help="folder of the results (default: output/result/NAME for a checkpoint of the run NAME, "
        "else output/eval)")
    add("--continue", dest="resume", action="store_true", help="go on where a run with the same options stopped")
    add("--draw", type=positive, metavar="N", help="draw the N worst images, of a test set the first N, to "
        "output/vis/NAME")
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = (Path("output/result") / arguments.checkpoint.resolve().name if arguments.checkpoint
                         else Path("output/eval"))
    return arguments


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def at_least_two(text):
    """Of resamples: one has no spread."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is less than 2")
    return number


def threshold(text):
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def epoch(text):
    return text if text == "best" else int(text)


def check_options(arguments):
    """Refuse options that would do nothing, and fill in the defaults that hang on others."""
    finds_boxes = arguments.detector is not None or arguments.detections is not None
    if (arguments.annotations is None) != (arguments.images is None):
        raise BadInput("--annotations and --images belong together: give both, or neither for rendered people")
    if arguments.detector is not None and arguments.detections is not None:
        raise BadInput("--detector and --detections are two sources of boxes: give one of them")
    if arguments.engine is not None and arguments.checkpoint is not None:
        raise BadInput("--engine and --checkpoint are two networks: give one of them")
    if arguments.checkpoint is None:
        for option in ("epoch", "gpu"):
            if getattr(arguments, option) is not None:
                raise BadInput(f"--{option} {getattr(arguments, option)} is for a training run: give its folder too, "
                               "--checkpoint output/model_dump/NAME")
    elif arguments.backend is not None and arguments.detector is None:
        raise BadInput(f"--backend {arguments.backend} runs engines, but a training run is measured: leave it out")
    arguments.backend = arguments.backend or DEFAULT_BACKEND
    gpus = gpu_numbers(arguments.gpu)
    if len(gpus) > 1 and arguments.workers is not None:
        raise BadInput(f"--gpu {arguments.gpu} gives each GPU one worker: leave --workers {arguments.workers} out")
    arguments.workers = arguments.workers or max(1, len(gpus))
    for option in ("min_score", "min_area"):
        if getattr(arguments, option) is not None and not finds_boxes:
            raise BadInput(f"--{option.replace('_', '-')} is for boxes that were found: give --detections or "
                           "--detector too")
    if arguments.min_score is None:
        arguments.min_score = DETECTOR_THRESHOLD if arguments.detector is not None else 0.0
    arguments.min_area = arguments.min_area or 0.0
    if arguments.oks_nms is None and arguments.soft_oks_nms is None and finds_boxes:
        arguments.oks_nms = OKS_THRESHOLD
