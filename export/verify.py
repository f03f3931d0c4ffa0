"""Does the ONNX compute what the Keras network computes? Measured in pixels on real crops."""

import dataclasses
from pathlib import Path

import numpy as np

from runtime.crop import crop_matrix, crop_region, letterbox, warp_crop
from runtime.errors import BadInput
from runtime.nms import IOU_THRESHOLD, MAX_BOXES, box_iou
from runtime.pose import PoseEstimator
from runtime.walkers import render_still
from train.config import load_config
from train.datasets import load_persons, load_photos, read_stored

TOLERANCE = 0.1  # pixels of the input, for keypoints and for box edges
SCORE_TOLERANCE = 0.01
UNDECIDED = 3e-4  # of a map's peak; rounding differs between the two programs by some 5e-6 of it
ROUNDING = 1e-4  # of scores and overlaps, between a graph with NMS and one without
SAMPLES = 48


class ExportError(BadInput):
    """The exported graph is not what the network is; nothing is left under the final name."""


def real_inputs(config, count=SAMPLES):
    """Network inputs cut from the run's own data, or from rendered pictures where that data is not on this machine.

    Returns:
        (N, H, W, 3) uint8 BGR, and one word on where they come from.
    """
    size = tuple(config.input_size)
    present = [entry for entry in config.data if Path(entry).exists()]
    if present:
        config = dataclasses.replace(config, data=present)
        items = load_persons(config) if config.task == "pose" else load_photos(config)
        items = [items[index] for index in np.linspace(0, len(items) - 1, count).astype(int)]
        pictures = [(read_stored(item)[0], item.box if config.task == "pose" else None) for item in items]
    else:
        stills = [render_still(seed, (640, 480)) for seed in range(2 * count)]
        pictures = [(image, _edges(persons[0]["bbox"])) for image, persons in stills if persons][:count]

    inputs = []
    for image, box in pictures:
        if config.task == "pose":
            (centre,), (extent,) = crop_region(box, size, config.padding)
            inputs.append(warp_crop(image, crop_matrix(centre, extent, size), size))
        else:
            inputs.append(letterbox(image, size, config.stretch)[0])
    return np.stack(inputs), "training" if present else "rendered"


def inputs_for(engine, arguments, count=SAMPLES):
    """`real_inputs` for an engine, of the data of a command's --config and --set; BadInput if its task is another."""
    config = load_config(arguments.config, [*arguments.overrides, f"input_size={list(engine.input_size)}",
                                            f"padding={engine.padding}", f"stretch={engine.stretch}"])
    if config.task != engine.kind:
        raise BadInput(f"{arguments.config} is of task {config.task!r} but {engine.path} is a {engine.kind} engine: "
                       f"give --config configs/{engine.kind}.toml")
    return real_inputs(config, count)


def _edges(bbox):
    left, top, width, height = bbox
    return np.array([left, top, left + width, top + height], np.float32)


def check_pose(engine, reference, inputs):
    """Hold the keypoints of two pose engines against each other.

    Args:
        engine, reference: with `run`, `input_size` and `schema`.
        inputs: (N, H, W, 3) uint8 BGR crops.

    Returns:
        The worst distance in pixels of the crop. Keypoints between whose two best cells the reference itself cannot
        decide (`undecided`) may jump at the last bit of a float; they count by their scores only.

    Raises:
        ExportError: it is beyond TOLERANCE or is no number, or the reference is undecided too often to tell.
    """
    outputs = reference.run(inputs)
    ours, theirs = PoseEstimator(engine).estimate(inputs), PoseEstimator(reference).decode(outputs)
    open_to_chance = undecided(outputs)
    if open_to_chance.mean() > 0.5:
        raise ExportError(f"the network is undecided on {open_to_chance.mean():.0%} of the keypoints, so its export "
                          "cannot be checked; train it further")
    distances = np.linalg.norm(ours[..., :2] - theirs[..., :2], axis=-1)
    return _judge(np.where(open_to_chance, 0, distances), np.abs(ours[..., 2] - theirs[..., 2]), "keypoints")


def undecided(outputs):
    """(N, K) bool: the two highest cells of a map, or of either SimCC vector, are within UNDECIDED of each other."""
    ties = []
    for maps in outputs.values():
        second, first = np.moveaxis(np.partition(maps.reshape(*maps.shape[:2], -1), -2, axis=2)[..., -2:], 2, 0)
        ties.append(first - second < UNDECIDED * first)
    return np.any(ties, axis=0)


def check_boxes(engine, reference, inputs):
    """The same for the boxes and scores of two raw person engines."""
    ours, theirs = engine.run(inputs), reference.run(inputs)
    return _judge(np.abs(ours["boxes"] - theirs["boxes"]), np.abs(ours["scores"] - theirs["scores"]), "boxes")


def check_nms(engine, raw, inputs, score_threshold):
    """The boxes of a person engine with NMS in its graph must be what greedy NMS leaves of the raw engine's."""
    for picture in inputs:
        outputs, found = raw.run(picture[None]), engine.run(picture[None])
        if not left_by_nms(found["kept_boxes"], found["kept_scores"], outputs["boxes"][0], outputs["scores"][0],
                           score_threshold):
            raise ExportError(f"NMS in the graph keeps {len(found['kept_boxes'])} boxes that are not those of "
                              "runtime.nms; nothing was exported")


def left_by_nms(kept, kept_scores, boxes, scores, score_threshold):
    """Whether greedy NMS leaves these boxes (M, 4) of all (N, 4), as `runtime.nms.nms` does it.

    Two graphs round differently: which of two boxes comes first may be either where their scores are closer than
    ROUNDING, and so may what such a choice leads to.
    """
    same = (np.abs(kept[:, None] - boxes).max(-1) <= TOLERANCE) & (np.abs(kept_scores[:, None] - scores) <= ROUNDING)
    pairs = np.triu(box_iou(kept, kept), 1)
    # What is not kept overlaps something better, or comes after as many as are kept at all.
    better = kept_scores >= scores[:, None] - ROUNDING
    accounted = same.any(0) | ((box_iou(boxes, kept) > IOU_THRESHOLD - ROUNDING) & better).any(1)
    accounted |= scores <= (kept_scores[-1] if len(kept) == MAX_BOXES else score_threshold) + ROUNDING
    return bool(len(kept) <= MAX_BOXES and same.any(1).all() and accounted.all()
                and pairs.max(initial=0) <= IOU_THRESHOLD + ROUNDING
                and (np.diff(kept_scores) <= ROUNDING).all() and (kept_scores > score_threshold - ROUNDING).all())


def _judge(distances, score_differences, what):
    worst, score = distances.max(), score_differences.max()
    if not worst <= TOLERANCE or not score <= SCORE_TOLERANCE:  # also where it is NaN
        raise ExportError(f"{what} of the ONNX lie up to {worst:.3g} px and {score:.3g} in score from the network's "
                          f"(tolerance {TOLERANCE} px, {SCORE_TOLERANCE}); nothing was exported")
    return float(worst)
