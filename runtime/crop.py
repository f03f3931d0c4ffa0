"""Crop geometry: box ↔ network input, the same for streaming, evaluation and training.

Points have pixel centres at whole numbers, as in OpenCV's warpAffine; boxes are left, top, right, bottom edges.
"""

import cv2
import numpy as np

LETTERBOX_GREY = 114
SMALLEST_SCALE = 0.7  # scale below which bilinear, which reads 2×2 pixels, skips too much of a frame (docs/models.md)


def crop_region(boxes, input_size, padding):
    """Grow boxes to the input's aspect ratio and then by the padding.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels.
        input_size: (width, height) of the network's input.
        padding: sides of the region by those of the box at the input's aspect ratio.

    Returns:
        centres (N, 2) and extents (N, 2), x and y, in pixels of the frame.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    aspect = input_size[0] / input_size[1]
    widths = np.maximum(sizes[:, 0], sizes[:, 1] * aspect) * padding
    return centres, np.stack([widths, widths / aspect], axis=1)


def crop_matrix(centre, extent, input_size, rotation=0.0):
    """Affine from frame to crop.

    Args:
        centre: (x, y) in the frame that becomes the middle of the crop.
        extent: (width, height) in frame pixels that the crop covers.
        input_size: (width, height) of the crop in pixels.
        rotation: degrees by which the picture turns clockwise in the crop.

    Returns:
        (2, 3) float64 matrix, frame pixels → crop pixels, for `cv2.warpAffine` and `transform_points`.
    """
    scale = input_size[0] / extent[0]
    angle = np.deg2rad(rotation)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Edges map to edges: a crop `scale` times as large has its first pixel centre at scale·0.5 − 0.5.
    middle = (np.asarray(input_size, np.float64) - 1) / 2
    shift = middle - turn @ (np.asarray(centre, np.float64) - 0.5)
    return np.concatenate([turn, shift[:, None]], axis=1)


def warp_crop(frame, matrix, input_size, outside=0):
    """Cut a crop: (H, W, 3) uint8 → (height, width, 3) uint8, bilinear, of grey `outside` beyond the frame."""
    size, scale = np.array(input_size), min(np.hypot(*matrix[:, 0]), np.hypot(*matrix[:, 1]))
    times = min(8, max(1, int(np.ceil(SMALLEST_SCALE / scale))))  # as large as it is cut, to be averaged then
    if times > 1:
        matrix = times * matrix
        matrix[:, 2] += (times - 1) / 2  # pixel middles: j becomes times · j … times · j + times - 1
    crop = cv2.warpAffine(frame, matrix, (size * times).tolist(), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 3)
    return cv2.resize(crop, size.tolist(), interpolation=cv2.INTER_AREA) if times > 1 else crop


def transform_points(points, matrix):
    """Apply a (2, 3) affine to (..., 2) points."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix):
    """The affine back: crop → frame."""
    return cv2.invertAffineTransform(np.asarray(matrix, np.float64))


def letterbox(frame, input_size, stretch=1.0):
    """Shrink or enlarge a frame to fit, at the top left of a grey input.

    Args:
        frame: (H, W, 3) uint8.
        input_size: (width, height).
        stretch: by how much the frame may be drawn out in one direction, to leave less of the input grey.

    Returns:
        The (height, width, 3) uint8 input, and its scales (2,), x and y: edges in the input = scales · edges in the
        frame.
    """
    size = np.array(frame.shape[1::-1])
    scales = np.array(input_size) / size
    fitted = np.maximum(1, np.rint(size * np.minimum(scales, stretch * scales.min()))).astype(int)
    boxed = np.full((input_size[1], input_size[0], 3), LETTERBOX_GREY, np.uint8)
    boxed[: fitted[1], : fitted[0]] = _resized(frame, fitted)
    return boxed, fitted / size


def _resized(frame, size):
    """A frame at `size` (2,) width, height, with no pixel skipped, as `warp_crop` does. OpenCV halves by averaging at
    full speed, while INTER_AREA straight to the size takes three to six times as long."""
    while (frame.shape[1::-1] >= 4 * size).all():
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    if (frame.shape[1::-1] > size).any():
        frame = cv2.resize(frame, (2 * size).tolist(), interpolation=cv2.INTER_LINEAR)
        return cv2.resize(frame, size.tolist(), interpolation=cv2.INTER_AREA)
    return cv2.resize(frame, size.tolist(), interpolation=cv2.INTER_LINEAR)
