"""What an evaluation leaves behind: its files, its pictures, its protocol and its table."""

import re
import tempfile
import zipfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from eval.annotations import read_image
from eval.precision import precision_of
from eval.predictions import json_parts
from eval.scoring import FOUND_IOU, FOUND_SCORE
from runtime import __version__
from runtime.backends import library_of
from runtime.draw import draw_poses
from runtime.errors import BadInput
from runtime.files import sha256, whole_file
from runtime.nms import IOU_THRESHOLD
from runtime.sidecar import LIBRARIES, read_sidecar
from runtime.tensorrt_backend import SUFFIXES


def prepare_folder(folder):
    """Make the folder and see that a file can be written there, before the engines run for long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        # Of an earlier run: beside keypoints.json of this run, should that stop early, it would tell a lie.
        (folder / "metrics.json").unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to folder {folder}: {error.strerror}; choose another --out") from error


def write_upload(out, annotations, predictions, algorithm):
    """The .zip that COCO's server takes: person_keypoints_[test set]_[algorithm]_results.json inside, named alike.

    Returns:
        What to do with it, in a sentence or two (https://cocodataset.org/#upload).
    """
    strange = [image.image_id for image in predictions.kept if type(image.image_id) is not int]
    if strange:
        raise BadInput(f"{annotations.path}: image ids such as {strange[0]!r} are no whole numbers, which COCO's "
                       "server does not take; give COCO's own file")
    test_set = re.sub("^image_info_", "", annotations.path.stem)
    name = f"person_keypoints_{test_set}_{re.sub('[^A-Za-z0-9-]', '-', algorithm)}_results"
    with (whole_file(out / f"{name}.zip") as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
          archive.open(f"{name}.json", "w", force_zip64=True) as file):
        file.writelines(part.encode() for part in json_parts(predictions.each_result()))
    missing = annotations.images_in_file - len(annotations.images)
    return (f"wrote {out}/{name}.zip: upload it to COCO's keypoint evaluation, https://cocodataset.org/#upload says "
            f"where" + (f"; not this one, though, which lacks {missing} images (--limit)" if missing else ""))


def draw_pictures(folder, count, annotations, predictions, similarities, images_dir, schema):
    """Draw the poses of some images: of those with the lowest OKS, or the first ones where there is nothing to compare.

    Args:
        folder: its earlier pictures NNN_*.jpg go.
        similarities: image id → OKS, or None.

    Returns:
        How many there are.
    """
    done = {image.image_id for image in predictions.kept}
    images = [image for image in annotations.images if image["id"] in done
              and (similarities is None or image["id"] in similarities)]
    if similarities is not None:
        images.sort(key=lambda image: similarities[image["id"]])
    images = images[:count]
    poses = predictions.poses_of({image["id"] for image in images})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9]_*.jpg"):
            old.unlink()
    except OSError as error:
        raise BadInput(f"cannot write to folder {folder}: {error.strerror}; see to its rights") from error
    for number, image in enumerate(images):
        caption = image["file_name"] + (f"  OKS {similarities[image['id']]:.2f}" if similarities is not None else "")
        picture = draw_poses(read_image(image, images_dir), poses[image["id"]], schema, caption=caption)
        path = folder / f"{number:03d}_{Path(image['file_name']).stem}.jpg"
        if not cv2.imwrite(str(path), picture):
            raise BadInput(f"cannot write {path}; make room or draw fewer")
    return len(images)


def describe_protocol(arguments, subject, annotations, detections, runner):
    """All that the numbers hang on; subject: `eval.subject.Subject`, runner: `eval.scoring.Runner`."""
    # A snapshot is built in float32, in whatever precision it was trained.
    precision, weights = ("float32", {}) if arguments.checkpoint is not None else precision_of(subject.path)
    return {
        "engine": str(subject.path),
        "engine_sha256": sha256(subject.path),
        "precision": precision,
        "weights": weights,
        "sigmas": list(subject.engine.schema.sigmas),
        "backend": "keras" if arguments.checkpoint is not None else subject.engine.backend,
        "boxes": "ground truth",
        "flip_test": arguments.flip_test,
        "decoding": runner.pose.decoding if subject.head == "heatmap" else "simcc",
        "oks_nms": arguments.oks_nms,
        "soft_oks_nms": arguments.soft_oks_nms,
        "annotations": str(annotations.path),
        "annotations_sha256": sha256(annotations.path),
        "images": len(annotations.images),
        "images_in_file": annotations.images_in_file,
        "persons": annotations.person_count,
        "threads": arguments.threads,
        "versions": _versions(arguments, subject),
        **_describe_boxes(arguments, annotations, detections, runner),
    }


def _versions(arguments, subject):
    """This project's, and those of the libraries that the numbers hang on."""
    versions = {"attention-pose": __version__, "numpy": np.__version__, "opencv": cv2.__version__,
                "pycocotools": version("pycocotools"), "faster_coco_eval": version("faster_coco_eval")}
    if arguments.checkpoint is not None:
        return versions | {"keras": version("keras")}
    if subject.path.suffix.lower() in SUFFIXES:
        machine = read_sidecar(subject.path).machine  # checked to be this one when the engine was opened
        return versions | {LIBRARIES[machine.library]: machine.library_version}
    library = library_of(subject.engine.backend)
    return versions | {library: version(library)}


def _describe_boxes(arguments, annotations, detections, runner):
    """The part of the protocol that boxes which were found add; nothing for ground truth."""
    source = arguments.detector or arguments.detections
    if source is None:
        return {}
    protocol = {"boxes": str(source), "min_score": arguments.min_score, "min_area": arguments.min_area}
    if detections is not None:
        return protocol | {"detections_sha256": sha256(source), "detections_left_out": detections.left_out,
                           "images_without_detections": len(annotations.images) - len(detections.boxes)}
    engine = runner.detector.detector.engine
    return protocol | {"detector_sha256": sha256(source), "detector_threshold": arguments.min_score,
                       "detector_backend": engine.backend, "detector_precision": precision_of(source)[0],
                       "box_nms": "in the engine" if "kept_boxes" in engine.outputs else IOU_THRESHOLD}


def describe_outcome(arguments, annotations, predictions):
    """What a run adds to its protocol in the end: counts, times, the date."""
    outcome = {
        "images_sha256": predictions.images_sha256,
        "poses": predictions.persons,
        "poses_suppressed": predictions.suppressed,
        "ms_per_person": 1000 * predictions.pose_seconds / max(predictions.persons + predictions.suppressed, 1),
        "workers": arguments.workers,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if (arguments.detector or arguments.detections) is not None and not annotations.is_test_set:
        outcome |= {
            "detector_recall": predictions.found / annotations.person_count,
            "detector_recall_rule": f"persons with keypoints, at IoU {FOUND_IOU} with a score > {FOUND_SCORE}",
        }
    if arguments.detector is not None:
        outcome["detector_ms_per_frame"] = 1000 * predictions.detect_seconds / max(predictions.images, 1)
    return outcome


def summary(metrics, protocol, predictions):
    """The table that a run ends with."""
    boxes = "ground-truth boxes" if protocol["boxes"] == "ground truth" else f"boxes of {protocol['boxes']}"
    flip = "flip test" if protocol["flip_test"] else "no flip test"
    kinds = {"OKS-NMS": protocol["oks_nms"], "soft OKS-NMS": protocol["soft_oks_nms"]}
    nms = next((f"{kind} at {limit:g}" for kind, limit in kinds.items() if limit), "no OKS-NMS")
    lines = [
        f"{protocol['engine']}, {boxes}, {protocol['decoding']} decoding, {flip}, {nms}",
        f"{protocol['images']} of {protocol['images_in_file']} images, {protocol['persons']} persons with keypoints, "
        f"{protocol['poses']} poses" + (f", {predictions.suppressed} suppressed" if predictions.suppressed else ""),
        "          all     0.50    0.75   medium  large",
    ]
    for name in ("AP", "AR"):
        values = [metrics[name + suffix] for suffix in ("", "50", "75", "M", "L")]
        lines.append(f"  {name}  " + "".join("      - " if value < 0 else f"{value:8.3f}" for value in values))
    if "detector_recall" in protocol:
        lines.append(f"detector: found {protocol['detector_recall']:.3f} of the {protocol['detector_recall_rule']}")
    seconds = predictions.detect_seconds + predictions.pose_seconds
    per_frame = 1000 * seconds / max(predictions.images, 1)
    workers = f", {protocol['workers']} workers" if protocol["workers"] > 1 else ""
    lines.append(f"speed: {protocol['ms_per_person']:.1f} ms a person, {per_frame:.1f} ms a frame; "
                 f"{protocol['threads']} thread(s){workers}")
    return "\n".join(lines)
