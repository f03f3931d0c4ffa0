"""A picture of the first inputs of a training with their targets: a wrong flip or box shows before a night is lost."""

import math

import cv2
import numpy as np

from runtime.draw import INK, LEFT, MIDDLE, PAPER, RIGHT, draw_skeleton
from runtime.errors import BadInput
from runtime.keypoints import SCHEMAS

INPUTS = 16  # in a picture, at most
COLUMNS = 4
CELL = 360  # root of the area in pixels at which an input is shown
GAP = 8  # pixels between inputs
PERSON, IGNORED = MIDDLE, (80, 80, 240)  # BGR: green, red
FAINT_BELOW = 0.5  # weight of a keypoint below which it is drawn half transparent


def write_sample_picture(pixels, labels, config, path):
    """Write a contact sheet of up to 16 inputs as the network gets them, with their targets drawn on them.

    Args:
        pixels: (N, H, W, 3) uint8 BGR, N ≥ 1.
        labels: as `train.loader.Loader.batches` yields them: pose (N, K, 3) of x, y in input pixels and weight, drawn
            by `runtime.draw` with the person's left in orange and the right in blue; detector (N, M, 5) of boxes in
            input pixels and 1 person, -1 region to ignore, 0 none.
        path: of the JPEG; its folder is made.

    Raises:
        BadInput: it cannot be written.
    """
    cells = []
    for image, target in zip(pixels[:INPUTS], labels[:INPUTS], strict=True):
        image, target = _enlarged(image, target)
        cells.append(_draw_person(image, target, SCHEMAS[config.keypoints]) if config.task == "pose" else
                     _draw_boxes(image, target))
    sheet = _with_legend(_sheet(cells), config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; free some space or see to its rights") from error


def _enlarged(image, target):
    """An input at the size at which it is shown, and its target in those pixels."""
    scale = CELL / math.sqrt(image.shape[0] * image.shape[1])
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    target = target.copy()
    if target.shape[1] == 3:  # keypoints: whole numbers are pixel middles; box edges lie between pixels
        target[:, :2] = (target[:, :2] + 0.5) * scale - 0.5
    else:
        target[:, :4] *= scale
    return shown, target


def _draw_person(image, keypoints, schema):
    """The skeleton of those keypoints that are labelled and in the input."""
    height, width = image.shape[:2]
    x, y, weights = keypoints.T
    weights = np.where((x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5), weights, 0)
    line = max(1, round(math.sqrt(width * height) / 140))
    faint, canvas = image.copy(), image.copy()
    draw_skeleton(faint, np.column_stack([x, y, weights > 0]), schema, 1, line)
    canvas = cv2.addWeighted(faint, 0.5, canvas, 0.5, 0)
    draw_skeleton(canvas, np.column_stack([x, y, weights]), schema, FAINT_BELOW, line)
    return canvas


def _draw_boxes(image, boxes):
    """Persons and regions to ignore, the latter filled."""
    filled = image.copy()
    edges = [(np.rint(box[:4]).astype(int).tolist(), box[4]) for box in boxes if box[4]]
    for (left, top, right, bottom), kind in edges:
        if kind < 0:
            cv2.rectangle(filled, (left, top), (right - 1, bottom - 1), IGNORED, cv2.FILLED)
    canvas = cv2.addWeighted(filled, 0.35, image, 0.65, 0)
    for colour, width in ((PAPER, 4), (None, 2)):  # a dark rim keeps the colours readable on any ground
        for (left, top, right, bottom), kind in edges:
            of_kind = PERSON if kind > 0 else IGNORED
            cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour or of_kind, width)
    return canvas


def _sheet(cells):
    """Cells of one size, side by side in rows, on dark paper."""
    height, width = cells[0].shape[:2]
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = np.full((GAP + rows * (height + GAP), GAP + columns * (width + GAP), 3), PAPER, np.uint8)
    for index, cell in enumerate(cells):
        top, left = (GAP + place * (side + GAP) for place, side in zip(divmod(index, columns), (height, width),
                                                                       strict=True))
        sheet[top:top + height, left:left + width] = cell
    return sheet


def _with_legend(sheet, config):
    """The sheet under a line that says what the colours mean."""
    if config.task == "pose":
        entries = [(LEFT, "person's left"), (RIGHT, "person's right"), (MIDDLE, "middle"), (None, "faint: low weight")]
    else:
        entries = [(PERSON, "person"), (IGNORED, "ignored")]
    width, height = config.input_size
    entries = [(None, f"{config.name}: inputs of {width}x{height}"), *entries]
    scale = min(0.6, sheet.shape[1] / 1800)
    legend = np.full((round(70 * scale), sheet.shape[1], 3), PAPER, np.uint8)
    x, middle = 2 * GAP, legend.shape[0] // 2 + GAP // 2
    for colour, text in entries:
        if colour:
            cv2.circle(legend, (x + round(10 * scale), middle), round(11 * scale), colour, cv2.FILLED, cv2.LINE_AA)
            x += round(36 * scale)
        (length, letters), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        cv2.putText(legend, text, (x, middle + letters // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
        x += length + round(60 * scale)
    return np.concatenate([legend, sheet])
