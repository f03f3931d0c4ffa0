"""Target assignment and loss of the person detector, in `keras.ops` alone.

Each person takes the ten cells nearest to its middle, of the stride that suits its size (after ATSS, Zhang et al. 2020,
without anchors). They do not depend on what the network predicts and are the same from the first step to the last, so
that a run of few epochs learns them; cells chosen by their prediction (TOOD, Feng et al. 2021) left scores of 0.4 on
persons as clear as can be (docs/models.md). The score learns the overlap of the cell's own box (quality focal loss, Li
et al. 2020), the box the generalised IoU (Rezatofighi et al. 2019).
"""

from keras import ops

from train.detector_network import cell_centres

CELLS_PER_PERSON = 10
CELLS_ACROSS = 6.0  # cells of the stride that suits a person, in √area of its box
OTHER_STRIDE = 3.0  # cells by which those of twice or half that stride count as further away
SMALLEST_BOX = 12.0  # pixels; smaller persons may take the cells within this box around them
BOX_WEIGHT = 2.0


def person_loss(input_size):
    """loss(labels (B, M, 5), predictions (B, A, 5)) → sum, weight (that of the persons, by how well they are found).

    labels: left, top, right, bottom in input pixels, and 1 person, -1 region to ignore, 0 nothing.
    predictions: left, top, right, bottom, logit per cell, as `build_person_network` gives them.
    """
    cells = [ops.convert_to_tensor(values) for values in cell_centres(input_size)]
    centres, _ = cells

    def loss(labels, predictions):
        boxes, logits = predictions[..., :4], predictions[..., 4]
        target_boxes, quality = assign(labels, ops.stop_gradient(boxes), *cells)
        counted = ops.maximum(_in_ignored(labels, centres), ops.cast(quality > 0, "float32"))
        score = ops.sum(quality_focal_loss(logits, quality) * counted)
        box = ops.sum((1 - generalised_iou(boxes, target_boxes)) * quality)
        return score + BOX_WEIGHT * box, ops.sum(quality)

    return loss


def assign(labels, boxes, centres, strides):
    """Which person each cell answers for.

    Args:
        labels: (B, M, 5) as above; boxes (B, A, 4) as predicted; centres (A, 2) and strides (A,) of the cells.

    Returns:
        target boxes (B, A, 4), and quality (B, A): the score to learn, 0 where the cell has no person.
    """
    persons = labels[..., :4]
    sides = ops.maximum(persons[..., 2:] - persons[..., :2], 1.0)
    middles = (persons[..., None, :2] + persons[..., None, 2:]) / 2  # (B, M, 1, 2)
    away = ops.sqrt(ops.sum(ops.square(centres - middles), axis=-1)) / strides  # (B, M, A), in cells
    octaves = ops.log2(ops.sqrt(ops.prod(sides, axis=-1, keepdims=True)) / (CELLS_ACROSS * strides))
    candidate = _inside(_at_least(persons, SMALLEST_BOX), centres) * ops.cast(labels[..., 4:] > 0, "float32")
    fit = candidate / (1 + away + OTHER_STRIDE * ops.abs(octaves))
    tenth = ops.top_k(fit, CELLS_PER_PERSON)[0][..., -1:]
    fit = fit * ops.cast(fit >= tenth, "float32")
    owner = ops.argmax(fit, axis=1)  # (B, A): whom the cell suits best, where several want it
    target = ops.take_along_axis(persons, ops.expand_dims(owner, 2), axis=1)
    quality = ops.maximum(iou(target, boxes), 0.05) * ops.cast(ops.max(fit, axis=1) > 0, "float32")
    return target, quality


def quality_focal_loss(logits, quality):
    """Cross-entropy against a soft score, weighted by the square of the miss. Elementwise."""
    entropy = ops.maximum(logits, 0) - logits * quality + ops.softplus(-ops.abs(logits))
    return ops.square(ops.stop_gradient(ops.sigmoid(logits)) - quality) * entropy


def _areas(a, b):
    overlap = ops.prod(ops.maximum(ops.minimum(a[..., 2:], b[..., 2:]) - ops.maximum(a[..., :2], b[..., :2]), 0), -1)
    sizes = [ops.prod(box[..., 2:] - box[..., :2], -1) for box in (a, b)]
    return overlap, ops.maximum(sizes[0] + sizes[1] - overlap, 1e-6)


def iou(a, b):
    """Intersection over union of (…, 4) boxes, broadcast."""
    overlap, union = _areas(a, b)
    return overlap / union


def generalised_iou(a, b):
    """IoU less the empty share of the smallest box around both: -1 … 1."""
    overlap, union = _areas(a, b)
    hull = ops.prod(ops.maximum(a[..., 2:], b[..., 2:]) - ops.minimum(a[..., :2], b[..., :2]), -1)
    hull = ops.maximum(hull, 1e-6)
    return overlap / union - (hull - union) / hull


def _inside(boxes, centres):
    """(B, M, 4), (A, 2) → (B, M, A) 1.0 where the cell's middle lies in the box."""
    edges = ops.expand_dims(boxes, 2)
    x, y = centres[:, 0], centres[:, 1]
    inside = (x > edges[..., 0]) & (x < edges[..., 2]) & (y > edges[..., 1]) & (y < edges[..., 3])
    return ops.cast(inside, "float32")


def _at_least(boxes, size):
    """Boxes grown about their middle to at least this size."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ops.maximum(boxes[..., 2:] - boxes[..., :2], size) / 2
    return ops.concatenate([middle - half, middle + half], axis=-1)


def _in_ignored(labels, centres):
    """(B, A) 0.0 for cells in a region to ignore, 1.0 elsewhere."""
    ignored = _inside(labels[..., :4], centres) * ops.cast(labels[..., 4:] < 0, "float32")
    return 1 - ops.max(ignored, axis=1)
