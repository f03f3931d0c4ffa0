"""Decoding against analytic Gaussians, and against an independent decoder written as plain loops."""

import math

import numpy as np
import pytest

from runtime.decode import DECODINGS, cells_of, decode_heatmaps, decode_simcc, merge_flipped, pixels_of
from runtime.keypoints import COCO

INPUT_SIZE = (192, 256)
COLUMNS, ROWS, STRIDE = 48, 64, 4


def gaussian_maps(cells, sigma=2.0, peak=1.0, columns=COLUMNS, rows=ROWS):
    """(N, K, 2) peaks in cells → (N, K, rows, columns) maps."""
    x = np.exp(-((np.arange(columns) - cells[..., :1]) ** 2) / (2 * sigma**2))
    y = np.exp(-((np.arange(rows) - cells[..., 1:]) ** 2) / (2 * sigma**2))
    return (peak * y[..., :, None] * x[..., None, :]).astype(np.float32)


def inner_cells(generator, persons=20, keypoints=17):
    """Random peaks that are a cell or more away from the border of the map."""
    return generator.uniform([1, 1], [COLUMNS - 2, ROWS - 2], (persons, keypoints, 2))


def plain_decoder(heatmap, method):
    """One map → x, y in cells and the value, by loops and by the textbook's equations."""
    rows, columns = heatmap.shape
    best, x, y = -math.inf, 0, 0
    for row in range(rows):
        for column in range(columns):
            if heatmap[row, column] > best:
                best, x, y = float(heatmap[row, column]), column, row
    along_x, along_y = 0 < x < columns - 1, 0 < y < rows - 1
    if method == "plain":
        return x, y, best
    if method == "quarter":
        step_x = heatmap[y, x + 1] - heatmap[y, x - 1] if along_x else 0
        step_y = heatmap[y + 1, x] - heatmap[y - 1, x] if along_y else 0
        return x + 0.25 * np.sign(step_x), y + 0.25 * np.sign(step_y), best

    def log(dy, dx):
        return math.log(max(float(heatmap[y + dy, x + dx]), 1e-10))

    if not (along_x and along_y):  # on a border, a parabola along it
        if not (along_x or along_y):
            return x, y, best
        ahead, behind = (log(0, 1), log(0, -1)) if along_x else (log(1, 0), log(-1, 0))
        curvature = ahead - 2 * log(0, 0) + behind
        shift = np.clip(-(ahead - behind) / 2 / curvature, -0.5, 0.5) if curvature < -1e-6 else 0
        return (x + shift, y, best) if along_x else (x, y + shift, best)

    gradient = np.array([log(0, 1) - log(0, -1), log(1, 0) - log(-1, 0)]) / 2
    mixed = (log(1, 1) - log(1, -1) - log(-1, 1) + log(-1, -1)) / 4
    hessian = np.array(
        [[log(0, 1) - 2 * log(0, 0) + log(0, -1), mixed], [mixed, log(1, 0) - 2 * log(0, 0) + log(-1, 0)]]
    )
    if np.linalg.det(hessian) <= 1e-6 or hessian[0, 0] >= 0:
        return x, y, best
    shift = np.clip(-np.linalg.solve(hessian, gradient), -0.5, 0.5)
    return x + shift[0], y + shift[1], best


def test_cells_and_pixels_are_inverse_and_centred():
    pixels = np.linspace(-3, 200, 50)
    np.testing.assert_allclose(pixels_of(cells_of(pixels, STRIDE), STRIDE), pixels)
    # The middle of the crop is the middle of the map.
    assert cells_of((INPUT_SIZE[0] - 1) / 2, STRIDE) == (COLUMNS - 1) / 2


@pytest.mark.parametrize(("method", "largest"), [("dark", 0.02), ("quarter", 0.3), ("plain", 0.5001)])
@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_gaussians_between_cells(method, largest, sigma):
    cells = inner_cells(np.random.default_rng(0))
    decoded = decode_heatmaps(gaussian_maps(cells, sigma, peak=0.7), INPUT_SIZE, method)
    assert decoded.dtype == np.float32
    assert np.abs(cells_of(decoded[..., :2], STRIDE) - cells).max() < largest
    assert ((decoded[..., 2] > 0.6) & (decoded[..., 2] <= 0.7)).all()  # the value of the best cell
    # No shift on average in any direction: 0.02 cells are 0.08 pixels of the crop.
    assert np.abs((cells_of(decoded[..., :2], STRIDE) - cells).mean((0, 1))).max() < 0.05


@pytest.mark.parametrize("method", DECODINGS)
def test_equals_the_plain_loop(method):
    generator = np.random.default_rng(1)
    smooth = gaussian_maps(inner_cells(generator, 2, 10))
    noisy = smooth * 0.6 + generator.uniform(0, 0.3, smooth.shape).astype(np.float32)
    noise = generator.uniform(0, 1, (2, 10, ROWS, COLUMNS)).astype(np.float32)
    sparse = np.where(noise > 0.999, noise, 0)
    for maps in (smooth, noisy, noise, sparse):
        expected = [[plain_decoder(heatmap, method) for heatmap in person] for person in maps]
        decoded = decode_heatmaps(maps, INPUT_SIZE, method)
        np.testing.assert_allclose(cells_of(decoded[..., :2], STRIDE), np.array(expected)[..., :2], atol=2e-3)
        np.testing.assert_allclose(decoded[..., 2], np.array(expected)[..., 2], atol=1e-6)


@pytest.mark.parametrize("method", DECODINGS)
def test_peaks_on_the_border_stay_in_the_map(method):
    corners = np.array([[[0, 0], [COLUMNS - 1, 0], [0, ROWS - 1], [COLUMNS - 1, ROWS - 1], [0, 30.3], [20.2, 0]]])
    decoded = decode_heatmaps(gaussian_maps(corners), INPUT_SIZE, method)
    assert np.abs(cells_of(decoded[..., :2], STRIDE) - corners).max() <= 0.5
    if method == "dark":  # along the border it is as exact as inside
        assert np.abs(cells_of(decoded[0, 4:, :2], STRIDE) - corners[0, 4:]).max() < 0.02
    # A point outside of the crop is given at the border, not beyond it.
    outside = decode_heatmaps(gaussian_maps(np.array([[[-3.0, 70.0]]])), INPUT_SIZE, method)
    np.testing.assert_allclose(cells_of(outside[0, 0, :2], STRIDE), [0, ROWS - 1])


@pytest.mark.parametrize("method", DECODINGS)
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_flat_maps_give_a_finite_point_and_their_value(method, value):
    decoded = decode_heatmaps(np.full((2, 3, ROWS, COLUMNS), value, np.float32), INPUT_SIZE, method)
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded[..., 2], value)
    assert (decoded[..., :2] >= 0).all()


@pytest.mark.parametrize("method", DECODINGS)
def test_a_single_hot_cell_is_its_middle(method):
    maps = np.zeros((1, 1, ROWS, COLUMNS), np.float32)
    maps[0, 0, 20, 10] = 1
    np.testing.assert_allclose(decode_heatmaps(maps, INPUT_SIZE, method)[0, 0], [41.5, 81.5, 1], atol=1e-3)


@pytest.mark.parametrize("method", DECODINGS)
def test_scores_are_between_0_and_1(method):
    maps = gaussian_maps(np.array([[[10.0, 10.0], [20.0, 20.0]]]), peak=1.0)
    maps[0, 0] *= 1.3
    maps[0, 1] -= 1.5
    np.testing.assert_array_equal(decode_heatmaps(maps, INPUT_SIZE, method)[0, :, 2], [1, 0])


@pytest.mark.parametrize("method", DECODINGS)
def test_no_persons(method):
    assert decode_heatmaps(np.zeros((0, 17, ROWS, COLUMNS), np.float32), INPUT_SIZE, method).shape == (0, 17, 3)


def test_unknown_method_is_refused_with_its_name():
    with pytest.raises(ValueError, match="'darker'.*dark, quarter, plain"):
        decode_heatmaps(np.zeros((1, 1, 4, 4)), (16, 16), "darker")


@pytest.mark.parametrize("method", DECODINGS)
def test_mirrored_maps_give_mirrored_points(method):
    maps = gaussian_maps(inner_cells(np.random.default_rng(2)))
    points = decode_heatmaps(maps, INPUT_SIZE, method)
    mirrored = decode_heatmaps(np.ascontiguousarray(maps[..., ::-1]), INPUT_SIZE, method)
    np.testing.assert_allclose(mirrored[..., 0], INPUT_SIZE[0] - 1 - points[..., 0], atol=2e-3)
    np.testing.assert_allclose(mirrored[..., 1:], points[..., 1:], atol=2e-3)


def test_merge_flipped_brings_a_mirrored_person_back():
    """What a perfect network says of the mirrored crop, merged, is what it says of the crop."""
    pixels = pixels_of(inner_cells(np.random.default_rng(3)), STRIDE)
    maps = gaussian_maps(cells_of(pixels, STRIDE))
    mirrored_pixels = pixels[:, COCO.flip_order]  # the mirrored person's left is where the right was
    mirrored_pixels[..., 0] = INPUT_SIZE[0] - 1 - mirrored_pixels[..., 0]
    flipped = gaussian_maps(cells_of(mirrored_pixels, STRIDE))
    merged = merge_flipped(maps, flipped, COCO.flip_order)
    np.testing.assert_allclose(merged, maps, atol=1e-6)
    assert np.abs(decode_heatmaps(merged, INPUT_SIZE, "dark")[..., :2] - pixels).max() < 0.08


def test_cells_that_are_not_aligned_are_read_where_they_are_drawn():
    """Cell j at pixel stride·j; a flip test moves the turned maps by a cell, a quarter of a cell too far."""
    pixels = pixels_of(inner_cells(np.random.default_rng(3)), STRIDE, aligned=False)
    maps = gaussian_maps(cells_of(pixels, STRIDE, aligned=False))
    np.testing.assert_allclose(cells_of(pixels, STRIDE, aligned=False) * STRIDE, pixels, atol=1e-4)
    decoded = decode_heatmaps(maps, INPUT_SIZE, "dark", aligned=False)
    assert np.abs(decoded[..., :2] - pixels).max() < 0.08

    mirrored_pixels = pixels[:, COCO.flip_order]
    mirrored_pixels[..., 0] = INPUT_SIZE[0] - 1 - mirrored_pixels[..., 0]
    flipped = gaussian_maps(cells_of(mirrored_pixels, STRIDE, aligned=False))
    merged = merge_flipped(np.zeros_like(maps), flipped, COCO.flip_order, aligned=False)
    shifted = decode_heatmaps(2 * merged, INPUT_SIZE, "dark", aligned=False)
    inside = np.abs(pixels[..., 0] - 95.5) < 95.5 - 3 * STRIDE  # at the borders a cell is lost, another there twice
    np.testing.assert_allclose((shifted[..., :2] - pixels)[inside], [[STRIDE / 4, 0]] * inside.sum(),
                               atol=0.1)


def test_merge_flipped_takes_the_mean():
    maps, flipped = np.zeros((1, 17, 4, 6), np.float32), np.zeros((1, 17, 4, 6), np.float32)
    maps[0, 5, 2, 1] = 1.0  # left shoulder
    flipped[0, 6, 2, 4] = 0.5  # the mirrored picture's right shoulder, at the mirrored place
    merged = merge_flipped(maps, flipped, COCO.flip_order)
    assert merged[0, 5, 2, 1] == 0.75
    assert np.count_nonzero(merged) == 1


def simcc_vectors(pixels, size, split, sigma=6.0):
    """(N, K) pixels → (N, K, size·split) vectors; bin i lies at pixel (i + 0.5) / split − 0.5."""
    bins = (np.arange(size * split) + 0.5) / split - 0.5
    return np.exp(-((bins - pixels[..., None]) ** 2) / (2 * sigma**2)).astype(np.float32)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_simcc_is_exact_to_half_a_bin(split):
    pixels = np.random.default_rng(4).uniform([0, 0], [191, 255], (10, 17, 2))
    x, y = simcc_vectors(pixels[..., 0], 192, split), simcc_vectors(pixels[..., 1], 256, split)
    decoded = decode_simcc(x, y * 0.8, INPUT_SIZE)
    assert decoded.dtype == np.float32
    errors = decoded[..., :2] - pixels
    assert np.abs(errors).max() <= 0.5 / split + 1e-4
    assert np.abs(errors.mean((0, 1))).max() < 0.1 / split
    np.testing.assert_allclose(decoded[..., 2], 0.8 * y.max(2), atol=1e-6)  # the less sure of the two


def test_simcc_flip():
    pixels = np.random.default_rng(5).uniform([10, 10], [180, 240], (4, 17, 2))
    x = simcc_vectors(pixels[..., 0], 192, 2)
    flipped = simcc_vectors(191 - pixels[:, COCO.flip_order, 0], 192, 2)
    np.testing.assert_allclose(merge_flipped(x, flipped, COCO.flip_order), x, atol=1e-5)


def test_simcc_of_no_persons():
    assert decode_simcc(np.zeros((0, 17, 384)), np.zeros((0, 17, 512)), INPUT_SIZE).shape == (0, 17, 3)
