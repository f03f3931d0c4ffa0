"""Network outputs → keypoints in crop pixels.

A heatmap cell j covers the crop pixels around x = (j + 0.5)·stride − 0.5, and training places its targets by
`cells_of` below: there is no half-pixel shift between the two, and a mirrored crop gives mirrored maps. Networks of
Xiao et al. 2018 and many of their descendants put cell j at pixel stride·j instead: `aligned=False`.
"""

import numpy as np

DECODINGS = ("dark", "quarter", "plain")


def cells_of(pixels, stride, aligned=True):
    """Crop pixels → heatmap cells (fractional); also takes keras tensors."""
    return (pixels + 0.5) / stride - 0.5 if aligned else pixels / stride


def pixels_of(cells, stride, aligned=True):
    """Heatmap cells (fractional) → crop pixels."""
    return (cells + 0.5) * stride - 0.5 if aligned else cells * stride


def decode_heatmaps(heatmaps, input_size, method="dark", aligned=True):
    """Keypoints from heatmaps.

    Args:
        heatmaps: (N, K, h, w) float, non-negative, 1 at the peak of a certain keypoint.
        input_size: (width, height) of the crop in pixels.
        method: "dark" fits a Gaussian at the peak (Zhang et al. 2020; without the blur, which maps trained by
            cross-entropy do not need), "quarter" moves a quarter cell towards the higher neighbour (Xiao et
            al. 2018), "plain" takes the cell.
        aligned: where the cells lie, see above.

    Returns:
        (N, K, 3) float32: x, y in crop pixels, and the value at the peak clipped to 0..1.
    """
    if method not in DECODINGS:
        raise ValueError(f"unknown decoding {method!r}; choose one of {', '.join(DECODINGS)}")
    heatmaps = np.asarray(heatmaps, np.float32)
    persons, keypoints, rows, columns = heatmaps.shape
    flat = heatmaps.reshape(persons * keypoints, rows * columns)
    index = np.arange(len(flat))
    peaks = flat.argmax(1)
    y, x = np.divmod(peaks, columns)
    cells = np.stack([x, y], axis=1).astype(np.float32)

    if method != "plain" and len(flat):
        offsets = np.arange(-1, 2)
        beside = [np.clip(place[:, None] + offsets, 0, length - 1) for place, length in ((y, rows), (x, columns))]
        around = heatmaps.reshape(-1, rows, columns)[index[:, None, None], beside[0][:, :, None], beside[1][:, None, :]]
        # At a border the neighbour across is missing, and the peak stays at its cell in that direction.
        inside = np.stack([(x > 0) & (x < columns - 1), (y > 0) & (y < rows - 1)], axis=1)
        cells += _dark_shift(around, inside) if method == "dark" else _quarter_shift(around) * inside

    stride = np.array([input_size[0] / columns, input_size[1] / rows], np.float32)
    decoded = np.empty((persons * keypoints, 3), np.float32)
    decoded[:, :2] = pixels_of(cells, stride, aligned)
    decoded[:, 2] = np.clip(flat[index, peaks], 0, 1)
    return decoded.reshape(persons, keypoints, 3)


def _quarter_shift(around):
    """(M, 3, 3) values around the peaks → (M, 2) steps of ±0.25 cells in x and y."""
    return 0.25 * np.stack([np.sign(around[:, 1, 2] - around[:, 1, 0]), np.sign(around[:, 2, 1] - around[:, 0, 1])], 1)


def _dark_shift(around, inside):
    """One Newton step on the logarithm of the map: exact where the map is a Gaussian. inside: (M, 2), x and y."""
    log = np.log(np.maximum(around, 1e-10))
    dx, dy = (log[:, 1, 2] - log[:, 1, 0]) / 2, (log[:, 2, 1] - log[:, 0, 1]) / 2
    dxx = log[:, 1, 2] - 2 * log[:, 1, 1] + log[:, 1, 0]
    dyy = log[:, 2, 1] - 2 * log[:, 1, 1] + log[:, 0, 1]
    dxy = (log[:, 2, 2] - log[:, 2, 0] - log[:, 0, 2] + log[:, 0, 0]) / 4
    dx, dy = dx * inside[:, 0], dy * inside[:, 1]
    dxx, dyy = np.where(inside[:, 0], dxx, -1), np.where(inside[:, 1], dyy, -1)
    dxy = dxy * inside.all(1)
    determinant = dxx * dyy - dxy * dxy
    curved = (determinant > 1e-6) & (dxx < 0)
    safe = np.where(curved, determinant, 1)
    shift = -np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], 1) / safe[:, None]
    # A peak lies within its cell; a longer step means that the map is no Gaussian there.
    return np.clip(np.where(curved[:, None], shift, 0), -0.5, 0.5)


def decode_simcc(simcc_x, simcc_y, input_size):
    """Keypoints from SimCC vectors (Li et al. 2022).

    Args:
        simcc_x: (N, K, W·split), simcc_y: (N, K, H·split), non-negative, 1 at the peak of a certain keypoint.
        input_size: (width, height) of the crop in pixels.

    Returns:
        (N, K, 3) float32: x, y in crop pixels, and the smaller of the two peaks clipped to 0..1.
    """
    decoded = np.empty((*simcc_x.shape[:2], 3), np.float32)
    for axis, vectors in enumerate((simcc_x, simcc_y)):
        bins_per_pixel = vectors.shape[2] / input_size[axis]
        decoded[..., axis] = pixels_of(vectors.argmax(2), 1 / bins_per_pixel)
    decoded[..., 2] = np.clip(np.minimum(simcc_x.max(2), simcc_y.max(2)), 0, 1)
    return decoded


def merge_flipped(heatmaps, flipped, flip_order, aligned=True):
    """Flip test: the mean of the maps of a crop and of its mirror image, the latter turned back.

    heatmaps, flipped: (N, K, h, w), or (N, K, bins of x). Maps whose cells are not aligned move by one cell when they
    are turned back, as Xiao et al. 2018 do: of the 0.75 by which mirroring displaces them, a quarter too much.
    """
    turned = flipped[:, flip_order, ..., ::-1]
    if not aligned:
        turned = np.concatenate([turned[..., :1], turned[..., :-1]], axis=-1)
    return (heatmaps + turned) / 2
