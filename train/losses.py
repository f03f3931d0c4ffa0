"""Targets and losses of the pose network, in `keras.ops` alone.

A loss is a sum and the weight to divide it by, so that a batch may be taken in parts, on one device or several.
"""

import math

from keras import ops

from runtime.decode import cells_of

SIMCC_SPLIT = 2.0  # bins per pixel
SIMCC_SIGMA = 6.0  # of the target, in pixels, as Li et al. 2022 have it for 192×256
OUTSIDE_WEIGHT = 0.1  # of a keypoint that lies outside the crop, against one inside
SQUARE_PEAK = 255.0  # of the maps that `squared_loss` trains: the scale of TF-SimpleHumanPose, whose weights load here


def gaussian_heatmaps(keypoints, rows, columns, input_size, sigma, aligned=True):
    """Target distributions: a Gaussian around each keypoint that sums to 1 over the map.

    A keypoint outside the crop gets the uniform distribution: the network should not see it anywhere.

    Args:
        keypoints: (B, K, ≥ 2) x, y in crop pixels.
        input_size: (width, height) of the crop in pixels.
        sigma: in cells.
        aligned: where the cells lie, see `runtime.decode`.

    Returns:
        (B, K, rows, columns).
    """
    stride = input_size[0] / columns
    x = _bell(cells_of(keypoints[..., 0:1], stride, aligned), columns, sigma)
    y = _bell(cells_of(keypoints[..., 1:2], stride, aligned), rows, sigma)
    inside = _inside(keypoints, input_size)[..., None]
    return ops.where(inside[..., None] > 0, ops.expand_dims(y, 3) * ops.expand_dims(x, 2), 1 / (rows * columns))


def _bell(centres, length, sigma):
    """(B, K, 1) centres → (B, K, length) Gaussians of sum 1, cut at the border."""
    # Softmax of the exponent: the normalised Gaussian, without dividing by a sum that may underflow.
    return ops.softmax(_exponent(centres, length, sigma), axis=-1)


def _exponent(centres, length, sigma):
    """(B, K, 1) centres → (B, K, length) logarithms of Gaussians with peak 1."""
    return -ops.square(ops.arange(length, dtype="float32") - centres) / (2 * sigma**2)


def _inside(keypoints, input_size):
    """(B, K) 1.0 where the keypoint lies in the crop."""
    x, y = keypoints[..., 0], keypoints[..., 1]
    inside = (x > -0.5) & (x < input_size[0] - 0.5) & (y > -0.5) & (y < input_size[1] - 0.5)
    return ops.cast(inside, "float32")


def simcc_peak():
    """The largest value of a SimCC target for a keypoint in the middle: exported vectors are divided by it, so that a
    certain keypoint peaks at 1."""
    return 1 / (math.sqrt(2 * math.pi) * SIMCC_SIGMA * SIMCC_SPLIT)


def heatmap_loss(input_size, sigma, aligned=True):
    """Cross-entropy between the spatial softmax of the logits and the target distributions, averaged by weight.

    It learns several times faster per crop than the mean squared error of Xiao et al. 2018, since every
    keypoint weighs the same however many of the map's cells are empty.

    Returns:
        loss(labels (B, K, 3) x, y, weight in crop pixels; logits (B, K, rows, columns)) → sum in nats, weight.
    """
    def loss(labels, logits):
        rows, columns = logits.shape[2:]
        target = gaussian_heatmaps(labels, rows, columns, input_size, sigma, aligned)
        flat = (-1, labels.shape[1], rows * columns)
        nats = -ops.sum(ops.reshape(target, flat) * ops.log_softmax(ops.reshape(logits, flat)), axis=-1)
        return _by_weight(nats, labels, input_size)

    return loss


def squared_loss(input_size, sigma, aligned=True):
    """Mean squared error to Gaussians with peak SQUARE_PEAK, over all cells of all maps (Xiao et al. 2018).

    Maps of keypoints without a label or outside the crop count as fitting.

    Returns:
        loss(labels (B, K, 3) x, y, weight in crop pixels; maps (B, K, rows, columns)) → sum, weight.
    """
    def loss(labels, maps):
        rows, columns = maps.shape[2:]
        stride = input_size[0] / columns
        axes = [_exponent(cells_of(labels[..., axis:axis + 1], stride, aligned), length, sigma)
                for axis, length in ((0, columns), (1, rows))]
        target = SQUARE_PEAK * ops.exp(ops.expand_dims(axes[1], 3) + ops.expand_dims(axes[0], 2))
        weights = (labels[..., 2] * _inside(labels, input_size))[..., None, None]
        squares = ops.sum(ops.mean(ops.square(maps - target) * weights, axis=(1, 2, 3)))
        return squares, ops.cast(ops.shape(maps)[0], "float32")

    return loss


def simcc_loss(input_size):
    """Cross-entropy per axis (Li et al. 2022) with Gaussian labels.

    Returns:
        loss(labels (B, K, 3); logits (B, K, (W + H)·SIMCC_SPLIT), x before y) → sum in nats, weight.
    """
    bins = [round(side * SIMCC_SPLIT) for side in input_size]

    def loss(labels, logits):
        nats = 0.0
        for axis, vector in enumerate((logits[..., : bins[0]], logits[..., bins[0]:])):
            centres = cells_of(labels[..., axis:axis + 1], 1 / SIMCC_SPLIT)
            target = _bell(centres, bins[axis], SIMCC_SIGMA * SIMCC_SPLIT)
            nats = nats - ops.sum(target * ops.log_softmax(vector), axis=-1)
        return _by_weight(nats, labels, input_size)

    return loss


def _by_weight(nats, labels, input_size):
    inside = _inside(labels, input_size)
    weights = labels[..., 2] * (inside + OUTSIDE_WEIGHT * (1 - inside))
    return ops.sum(nats * weights), ops.sum(weights)
