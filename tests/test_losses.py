"""Targets, losses and assignment, against what the runtime decodes and against plain NumPy."""

import math

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from runtime.decode import decode_heatmaps, decode_simcc, pixels_of  # noqa: E402
from runtime.keypoints import COCO  # noqa: E402
from runtime.nms import box_iou  # noqa: E402
from train.detector_loss import assign, generalised_iou, iou, person_loss, quality_focal_loss  # noqa: E402
from train.detector_network import cell_centres  # noqa: E402
from train.losses import (  # noqa: E402
    SIMCC_SIGMA,
    SIMCC_SPLIT,
    gaussian_heatmaps,
    heatmap_loss,
    simcc_loss,
    squared_loss,
)
from train.pose_network import PERSON_SIZE, deployed_pose_network  # noqa: E402

SIZE = (192, 256)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def mean(loss):
    """The value that a loss's sum and weight amount to, as a training step divides them."""
    total, weight = loss
    return float(total) / max(float(weight), 1.0)


def some_keypoints(persons=4, margin=24):
    rng = np.random.default_rng(0)
    points = rng.uniform(margin, np.array(SIZE) - margin, (persons, 17, 2))
    return np.concatenate([points, np.ones((persons, 17, 1))], 2).astype("float32")


def ship_heatmaps(logits, sigma, loss="cross_entropy"):
    """What a network of these logits gives once it is exported."""
    given = keras.Input(logits.shape[1:])
    network = keras.Model(given, keras.layers.Identity()(given))
    return array(deployed_pose_network(network, "heatmap", SIZE, COCO, sigma, loss)(logits)["heatmaps"])


def test_what_training_draws_is_what_streaming_reads():
    keypoints = some_keypoints()
    targets = array(gaussian_heatmaps(keypoints, 64, 48, SIZE, 1.0))
    decoded = decode_heatmaps(ship_heatmaps(np.log(targets + 1e-30), 1.0), SIZE)
    assert np.abs(decoded[..., :2] - keypoints[..., :2]).max() < 0.05
    # A peak between four cells is lower than one on a cell, most of all an eye's, whose neighbourhood is the smallest.
    assert (decoded[..., 2] > 0.88).all() and (decoded[:, 5:, 2] > 0.97).all()


def test_the_answer_is_where_most_similarity_is_expected():
    """Against the sum by its definition: chances times the OKS of each cell with each other."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (2, 17, 64, 48)).astype("float32")
    chances = np.exp(logits) / np.exp(logits).sum((2, 3), keepdims=True)
    heatmaps = ship_heatmaps(logits, 1.0)
    rows, columns = np.mgrid[:64, :48]
    for person, keypoint, row, column in ((0, 0, 0, 0), (0, 1, 30, 20), (1, 11, 63, 47), (1, 16, 31, 5)):
        width = 2 * COCO.sigmas[keypoint] * PERSON_SIZE * 64
        similarity = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
        expected = (chances[person, keypoint] * similarity).sum() * (1 + 1 / width**2)
        assert heatmaps[person, keypoint, row, column] == pytest.approx(expected, rel=1e-4)


def test_between_two_guesses_a_hip_lies_in_the_middle_and_an_eye_at_the_likelier_one():
    keypoints = np.full((2, 17, 3), (0, pixels_of(30, 4), 1), "float32")
    keypoints[..., 0] = np.array([pixels_of(20, 4), pixels_of(24, 4)])[:, None]
    likelier, other = array(gaussian_heatmaps(keypoints, 64, 48, SIZE, 1.0))
    decoded = decode_heatmaps(ship_heatmaps(np.log(0.52 * likelier + 0.48 * other + 1e-30)[None], 1.0), SIZE)[0]
    eye, hip = COCO.names.index("left_eye"), COCO.names.index("left_hip")
    assert decoded[eye, 0] == pytest.approx(pixels_of(20, 4), abs=1)
    assert decoded[hip, 0] == pytest.approx(pixels_of(22, 4), abs=1)
    assert decoded[eye, 2] == pytest.approx(0.52, abs=0.03) and decoded[hip, 2] == pytest.approx(0.89, abs=0.02)


def test_targets_are_distributions_and_uniform_outside():
    keypoints = some_keypoints(1)
    keypoints[0, 0, :2] = -30, 100
    keypoints[0, 1, :2] = 0, 0  # on the border: cut, but still a distribution
    heatmaps = array(gaussian_heatmaps(keypoints, 64, 48, SIZE, 2.0))[0]
    np.testing.assert_allclose(heatmaps.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(heatmaps[0], 1 / (64 * 48))
    assert heatmaps[1].argmax() == 0


def test_heatmap_loss_is_least_at_its_target_and_counts_by_weight():
    keypoints = some_keypoints(2)
    loss = heatmap_loss(SIZE, 2.0)
    target = np.log(np.maximum(array(gaussian_heatmaps(keypoints, 64, 48, SIZE, 2.0)), 1e-30))
    entropy = np.log(2 * np.pi * np.e * 2.0**2)  # of a two-dimensional Gaussian
    assert mean(loss(keypoints, target)) == pytest.approx(entropy, abs=0.01)
    assert mean(loss(keypoints, np.roll(target, 1, axis=3))) > entropy + 0.1

    wrong = target.copy()
    wrong[0, 3] = 0
    assert mean(loss(keypoints, wrong)) > entropy + 0.05
    keypoints[0, 3, 2] = 0
    assert mean(loss(keypoints, wrong)) == pytest.approx(entropy, abs=0.01)
    keypoints[..., 2] = 0
    assert mean(loss(keypoints, wrong)) == 0


@pytest.mark.parametrize("aligned, offset", [(True, 1.5), (False, 0.0)])
def test_squared_loss_is_the_plain_formula(aligned, offset):
    """Against loops over cells: mean of (map - 255 exp(-d² / 2σ²))², cells of keypoints without weight not counted."""
    keypoints = some_keypoints(2)
    keypoints[0, 0, 2] = 0
    keypoints[0, 1, :2] = -30, 100  # outside
    maps = np.random.default_rng(3).normal(40, 30, (2, 17, 64, 48)).astype("float32")
    expected = 0.0
    for person in range(2):
        for keypoint, (x, y, weight) in enumerate(keypoints[person]):
            if weight and 0 <= x < 192 and 0 <= y < 256:
                for row in range(64):
                    for column in range(48):
                        away = ((column - (x - offset) / 4) ** 2 + (row - (y - offset) / 4) ** 2) / (2 * 2.0**2)
                        expected += (maps[person, keypoint, row, column] - 255 * np.exp(-away)) ** 2
    assert mean(squared_loss(SIZE, 2.0, aligned)(keypoints, maps)) == pytest.approx(expected / maps.size, rel=1e-4)

    heatmaps = np.maximum(maps, 0) / 255
    np.testing.assert_allclose(ship_heatmaps(maps, 2.0, "squared"), heatmaps, rtol=1e-5)


def test_simcc_is_read_where_it_is_drawn_and_peaks_at_one():
    keypoints = some_keypoints(2, margin=48)
    bins = [np.arange(side * SIMCC_SPLIT) for side in SIZE]
    middles = (keypoints[..., :2] + 0.5) * SIMCC_SPLIT - 0.5
    spread = 2 * (SIMCC_SIGMA * SIMCC_SPLIT) ** 2
    logits = np.concatenate([-((bins[axis] - middles[..., axis:axis + 1]) ** 2) / spread for axis in (0, 1)], 2)
    logits = logits.astype("float32")
    loss = simcc_loss(SIZE)
    assert mean(loss(keypoints, logits)) < mean(loss(keypoints, np.roll(logits, 4, axis=2))) - 0.01

    given = keras.Input(logits.shape[1:])
    shipped = deployed_pose_network(keras.Model(given, keras.layers.Identity()(given)), "simcc", SIZE, COCO, sigma=2.0)
    vectors = {name: array(value) for name, value in shipped(logits).items()}
    decoded = decode_simcc(vectors["simcc_x"], vectors["simcc_y"], SIZE)
    assert np.abs(decoded[..., :2] - keypoints[..., :2]).max() <= 0.26  # half a bin
    np.testing.assert_allclose(decoded[..., 2], 1, atol=0.02)


def random_boxes(rng, count, size=(96, 64)):
    corners = rng.uniform(0, 1, (count, 2, 2)) * size
    return np.concatenate([corners.min(1), corners.max(1) + 1], 1).astype("float32")


def test_iou_and_generalised_iou_against_numpy():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 50), random_boxes(rng, 50)
    expected = np.diag(box_iou(a, b))
    np.testing.assert_allclose(array(iou(a, b)), expected, atol=1e-5)
    low, high = np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])
    hull = np.prod(high - low, 1)
    areas = np.prod(a[:, 2:] - a[:, :2], 1) + np.prod(b[:, 2:] - b[:, :2], 1)
    union = areas / (1 + expected)
    np.testing.assert_allclose(array(generalised_iou(a, b)), expected - (hull - union) / hull, atol=1e-5)


def test_every_person_gets_the_ten_cells_nearest_to_its_middle():
    size = (192, 128)
    centres, strides = cell_centres(size)
    # One suits stride 8, one stride 16, the third is smaller than a cell; then a region to ignore, and nobody.
    persons = np.array([[20, 10, 60, 70, 1], [60, 8, 150, 120, 1], [4, 100, 9, 106, 1], [0, 0, 60, 8, -1],
                        [0, 0, 0, 0, 0]], "float32")
    boxes = np.concatenate([centres - 20, centres + 20], 1).astype("float32")
    target, quality = assign(persons[None], boxes[None], centres, strides)
    target, quality = array(target)[0], array(quality)[0]

    cost = np.full((len(persons), len(centres)), np.inf)  # by its definition, one at a time
    for number, (left, top, right, bottom, _) in enumerate(persons[:3]):
        grow = max(0, 12 - (right - left)) / 2, max(0, 12 - (bottom - top)) / 2
        for cell, ((x, y), stride) in enumerate(zip(centres, strides, strict=True)):
            if left - grow[0] < x < right + grow[0] and top - grow[1] < y < bottom + grow[1]:
                away = math.hypot(x - (left + right) / 2, y - (top + bottom) / 2) / stride
                octaves = math.log2(math.sqrt((right - left) * (bottom - top)) / (6 * stride))
                cost[number, cell] = away + 3 * abs(octaves)
        cost[number, cost[number] > np.sort(cost[number])[9]] = np.inf
    chosen = np.isfinite(cost).any(0)
    np.testing.assert_array_equal(quality > 0, chosen)
    owner = cost.argmin(0)[chosen]
    np.testing.assert_array_equal(target[chosen], persons[owner, :4])
    overlap = [box_iou(box[None], person[None])[0, 0]
               for box, person in zip(boxes[chosen], persons[owner, :4], strict=True)]
    np.testing.assert_allclose(quality[chosen], np.maximum(overlap, 0.05), atol=1e-5)
    for number, stride in ((0, 8), (1, 16)):
        assert (strides[np.isfinite(cost[number])] == stride).mean() >= 0.8


def test_person_loss_ignores_what_it_is_told_to_and_falls_towards_the_truth():
    size = (96, 64)
    centres, strides = cell_centres(size)
    persons = np.array([[[4, 4, 44, 60, 1], [50, 10, 92, 62, -1]]], "float32")
    loss = person_loss(size)
    boxes = np.concatenate([centres - 2 * strides[:, None], centres + 2 * strides[:, None]], 1)[None]

    def value(boxes, logits):
        return mean(loss(persons, np.concatenate([boxes, logits[..., None]], 2).astype("float32")))

    logits = np.full(boxes.shape[:2], -3.0, "float32")
    in_person, in_crowd = (((centres > box[:2]) & (centres < box[2:4])).all(1) for box in persons[0])
    shouting = np.where(in_crowd, 3.0, logits).astype("float32")
    assert value(boxes, shouting) == pytest.approx(value(boxes, logits), abs=1e-5)
    background = np.where(~in_crowd & ~in_person, 3.0, logits).astype("float32")
    assert value(boxes, background) > value(boxes, logits) + 1

    better = boxes.copy()
    better[0, in_person] = persons[0, 0, :4]
    chosen = array(assign(persons, boxes.astype("float32"), centres, strides)[1]) > 0
    sure = np.where(chosen, 3.0, logits).astype("float32")
    assert value(better, sure) < value(boxes, sure)
    assert value(better, sure) < value(better, logits)


def test_empty_picture_and_quality_focal_loss():
    size = (96, 64)
    nobody = np.zeros((2, 3, 5), "float32")
    quiet = np.concatenate([np.zeros((2, 126, 4)), np.full((2, 126, 1), -4.0)], 2).astype("float32")
    assert len(cell_centres(size)[0]) == 126
    assert 0 <= mean(person_loss(size)(nobody, quiet)) < 0.1
    logits, quality = np.array([-30.0, 0.0, 30.0], "float32"), np.array([0.0, 0.5, 1.0], "float32")
    np.testing.assert_allclose(array(quality_focal_loss(logits, quality)), 0, atol=1e-6)
