"""What an evaluation leaves behind: its files and its table."""

import json
import os
import tempfile

from runtime.errors import BadInput


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


def write_json(path, data):
    """Write a whole file or none."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(data, indent=None if isinstance(data, list) else 2) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {error.strerror}; make room or choose another --out") from error


def summary(metrics, protocol, predictions):
    """The table that a run ends with."""
    boxes = "ground-truth boxes" if protocol["boxes"] == "ground truth" else f"boxes of {protocol['boxes']}"
    flip = "flip test" if protocol["flip_test"] else "no flip test"
    lines = [
        f"{protocol['engine']}, {boxes}, {protocol['decoding']} decoding, {flip}",
        f"{protocol['images']} of {protocol['images_in_file']} images, {protocol['persons']} persons with keypoints, "
        f"{protocol['poses']} poses",
        "          all     0.50    0.75   medium  large",
    ]
    for name in ("AP", "AR"):
        values = [metrics[name + suffix] for suffix in ("", "50", "75", "M", "L")]
        lines.append(f"  {name}  " + "".join("      - " if value < 0 else f"{value:8.3f}" for value in values))
    if "detector_recall" in protocol:
        lines.append(f"detector: found {protocol['detector_recall']:.3f} of the {protocol['detector_recall_rule']}")
    seconds = predictions.detect_seconds + predictions.pose_seconds
    per_frame = 1000 * seconds / max(predictions.images, 1)
    lines.append(f"speed: {protocol['ms_per_person']:.1f} ms a person, {per_frame:.1f} ms a frame; "
                 f"{protocol['threads']} thread(s)")
    return "\n".join(lines)
