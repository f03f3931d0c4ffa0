"""The gate: does an engine in another precision, or on another backend, still find what its ONNX finds?

Both run on the same real inputs, at batch 1, 4 and the largest. Of poses the measure is OKS between the two (COCO's
likeness of keypoints), of boxes their IoU, 1 where they are equal; where annotated images are given, AP as well.
"""

from dataclasses import asdict, dataclass

import numpy as np

from eval.bench import accuracy
from eval.gate import Gate
from export.verify import ExportError, undecided
from runtime.detect import PersonDetector
from runtime.nms import box_iou, keypoint_similarity
from runtime.pose import LARGEST_BATCH, PoseEstimator

SURE = 0.3  # score of a keypoint or box below which it is as good as not found


@dataclass(frozen=True)
class Tolerance:
    """Least mean OKS or IoU, greatest mean difference of scores, greatest loss of AP."""

    likeness: float
    score: float
    ap_loss: float


TOLERANCES = {"fp32": Tolerance(0.9995, 0.001, 0.001), "fp16": Tolerance(0.995, 0.004, 0.003),
              "int8": Tolerance(0.9, 0.05, 0.01)}


@dataclass(frozen=True)
class Agreement:
    """What the gate found, the worst of all batches.

    Attributes:
        likeness: mean OKS of poses, or mean IoU of boxes, 0 for a box without its like.
        worst_pixels: how far the worst keypoint, or edge of a box that has its like, lies off, in input pixels.
        score: mean absolute difference of scores.
        batches: sizes that were run; a detector takes one frame at a time.
        ap, ap_reference: AP where annotated images were given, else None.
    """

    likeness: float
    worst_pixels: float
    score: float
    batches: tuple[int, ...]
    ap: float | None = None
    ap_reference: float | None = None

    def __str__(self):
        ap = "" if self.ap is None else f", AP {self.ap:.3f} of {self.ap_reference:.3f}"
        return (f"likeness {self.likeness:.4f}, worst {self.worst_pixels:.2g} px, scores {self.score:.2g} apart{ap}, "
                f"batches {', '.join(map(str, self.batches))}")


def check_agreement(engine, reference, inputs, precision, data=None, largest=LARGEST_BATCH):
    """Hold an engine against the one that it was made from.

    Args:
        engine, reference: Engines of the same kind.
        inputs: (N, H, W, 3) uint8 BGR, real ones with persons.
        precision: a key of TOLERANCES.
        largest: batch of an engine that takes any number.
        data: (annotations, folder of images) to measure AP on, from `eval.annotations.load_annotations`; or None.

    Returns:
        Agreement.

    Raises:
        ExportError: they agree less than the precision's Tolerance, or the reference finds nobody to compare.
    """
    largest = engine.batch or largest
    batches = tuple(sorted({size for size in (1, 4, largest) if size <= largest})) if engine.kind == "pose" else (1,)
    if len(inputs) < largest and engine.kind == "pose":
        inputs = np.resize(inputs, (largest, *inputs.shape[1:]))  # over and over
    measured = _compare_poses(engine, reference, inputs, batches) if engine.kind == "pose" else [
        _box_difference(*([PersonDetector(one, SURE)(picture) for picture in inputs] for one in (engine, reference)))]
    likenesses, distances, scores = zip(*measured, strict=True)
    ap, wanted_ap = (accuracy(one, *data)["AP"] if data else None for one in (engine, reference))
    found = Agreement(min(likenesses), max(distances), max(scores), batches, ap, wanted_ap)
    limit = TOLERANCES[precision]
    gates = [Gate("likeness", found.likeness, "minimum", limit.likeness),
             Gate("difference of scores", found.score, "maximum", limit.score)]
    if ap is not None and wanted_ap is not None:
        gates.append(Gate("AP", ap, "minimum", wanted_ap - limit.ap_loss))
    failed = [f"{gate.name} {gate.measured:.4g} is beyond the {gate.rule} {gate.threshold:.4g}"
              for gate in gates if not gate.holds]
    if failed:
        raise ExportError(f"the {precision} engine is not what its ONNX is: {'; '.join(failed)} ({found}). Nothing was "
                          "exported")
    return found


def record(agreement):
    """The Agreement as a dict for a sidecar, numbers rounded."""
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(agreement).items()}


def _compare_poses(engine, reference, inputs, batches):
    """`_pose_difference` at each batch."""
    outputs = reference.run(inputs)
    wanted, ties = PoseEstimator(reference).decode(outputs), undecided(outputs)
    estimator = PoseEstimator(engine)
    for batch in batches:
        parts = [inputs[first:first + batch] for first in range(0, len(inputs), batch)]
        yield _pose_difference(np.concatenate([estimator.estimate(part) for part in parts]), wanted, ties, reference)


def _pose_difference(found, wanted, ties, reference):
    """Mean likeness, worst distance in pixels, mean difference of scores."""
    counts = ((wanted[..., 2] > SURE) | ~(found[..., 2] <= SURE)) & ~ties  # also where one was made up, or is NaN
    if not (counts & (wanted[..., 2] > SURE)).any():
        raise ExportError("the engine that it was made from is sure of no keypoint: train it, or give data with people")
    area = np.prod(reference.input_size) / reference.padding**2  # a crop is the person's box, grown
    # NaN would vanish in the maximum and in exp(-NaN): it is infinitely far.
    found = np.where(np.isfinite(found), found, np.inf)
    likeness = keypoint_similarity(found, wanted, np.float64(area), reference.schema.sigmas)
    distances = np.linalg.norm(found[..., :2] - wanted[..., :2], axis=-1)
    return (float(likeness[counts].mean()), float(distances[counts].max()),
            float(np.abs(found[..., 2] - wanted[..., 2])[counts].mean()))


def _box_difference(found, wanted):
    """The same of boxes and scores of each picture, after NMS wherever it happens."""
    likenesses: list[float] = []
    distances, scores = [0.0], []
    for (boxes, box_scores), (wanted_boxes, wanted_scores) in zip(found, wanted, strict=True):
        overlap = box_iou(boxes, wanted_boxes)
        # Both ways, so that a box too many counts like one too few. Near the threshold either may be missing.
        sure, wanted_sure = box_scores > 1.5 * SURE, wanted_scores > 1.5 * SURE
        likenesses += overlap[sure].max(1, initial=0).tolist() + overlap[:, wanted_sure].max(0, initial=0).tolist()
        if len(boxes):
            for number in np.flatnonzero(wanted_sure & (overlap.max(0, initial=0) > 0.5)):
                like = overlap[:, number].argmax()
                distances.append(float(np.abs(boxes[like] - wanted_boxes[number]).max()))
                scores.append(float(abs(box_scores[like] - wanted_scores[number])))
    if not likenesses:
        raise ExportError("the engine that it was made from finds nobody: train it, or give data with people")
    return float(np.mean(likenesses)), max(distances), float(np.mean(scores)) if scores else 0.0
