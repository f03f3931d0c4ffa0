"""Draw persons on a frame: skeleton, box, number, score."""

import colorsys

import cv2
import numpy as np

from runtime.track import SURE

LEFT, RIGHT, MIDDLE = (40, 140, 255), (255, 160, 30), (110, 220, 110)  # BGR: orange, blue, green
BOX, INK, PAPER = (235, 235, 235), (255, 255, 255), (40, 40, 40)
SHIFT = 4  # OpenCV draws on a grid of 1/16 pixel


def draw_poses(image, poses, schema, threshold=SURE, caption="", ids=None):
    """Draw all persons of a frame.

    Args:
        image: (H, W, 3) uint8 BGR; left as it is.
        poses: Poses in its pixels.
        schema: KeypointSchema of the poses. The person's left is orange, the right blue, the middle green.
        threshold: keypoints with a lower score are left out, and so are their limbs. Of the bundled engine's keypoints
            a third is right at 0.2 to 0.3, half are at 0.3 to 0.4 (docs/output.md).
        caption: a line for the top left corner.
        ids: (N,) the persons' numbers, which are written beside the scores and colour the boxes; None for none.

    Returns:
        A new image of the same shape.
    """
    canvas = image.copy()
    for person in np.argsort(poses.box_scores, kind="stable"):  # the surest last, on top
        box = poses.boxes[person]
        # Line width follows the person's size, so that small persons stay recognisable under their skeleton.
        width = max(1, round(float(np.sqrt((box[2] - box[0]) * (box[3] - box[1]))) / 70))
        label, colour = f"{poses.box_scores[person]:.2f}", BOX
        if ids is not None:
            label, colour = f"{ids[person]}  {label}", id_colour(ids[person])
        _draw_box(canvas, box, label, colour, max(1, width // 2))
        draw_skeleton(canvas, poses.keypoints[person], schema, threshold, width)
    if caption:
        _draw_text(canvas, caption, (8, 8), max(0.5, canvas.shape[0] / 900))
    return canvas


def side_colour(*names):
    """Colour of a keypoint or limb by its keypoints' names: one side only, or the middle."""
    sides = {name.partition("_")[0] for name in names} & {"left", "right"}
    return {("left",): LEFT, ("right",): RIGHT}.get(tuple(sides), MIDDLE)


def id_colour(id):
    """BGR of a person's number: bright, and far from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(id * 0.618 % 1, 0.75, 1.0)  # the golden ratio spreads hues evenly
    return round(255 * blue), round(255 * green), round(255 * red)


def draw_skeleton(canvas, keypoints, schema, threshold, width):
    """Draw one person's limbs and keypoints (K, 3) x, y, score onto a BGR picture, those of `threshold` and above.

    width: of the limbs, in pixels.
    """
    shown = keypoints[:, 2] >= threshold
    height, frame_width = canvas.shape[:2]
    # Far outside the frame only the direction matters, and OpenCV's coordinates must not overflow.
    limit = 4 * max(height, frame_width)
    points = np.rint(np.clip(keypoints[:, :2], -limit, limit) * 2**SHIFT).astype(int).tolist()
    limbs = [(start, end) for start, end in schema.limbs if shown[start] and shown[end]]
    for outline in (True, False):  # a dark rim first keeps the colours readable on any ground
        for start, end in limbs:
            colour = PAPER if outline else side_colour(schema.names[start], schema.names[end])
            cv2.line(canvas, points[start], points[end], colour, width + 2 * outline, cv2.LINE_AA, SHIFT)
    radius = round((width + 1) * 2**SHIFT)
    for index in np.flatnonzero(shown):
        cv2.circle(canvas, points[index], radius + 2**SHIFT, INK, cv2.FILLED, cv2.LINE_AA, SHIFT)
        cv2.circle(canvas, points[index], radius, side_colour(schema.names[index]), cv2.FILLED, cv2.LINE_AA, SHIFT)


def _draw_box(canvas, box, label, colour, width):
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    cv2.rectangle(canvas, (left, top), (right, bottom), colour, width, cv2.LINE_AA)
    _draw_text(canvas, label, (left, top), 0.4 + 0.05 * width, above=True)


def _draw_text(canvas, text, corner, scale, above=False):
    """Text on a dark plate whose top left corner is at `corner`, or its bottom left one where there is room above."""
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x, y = corner
    plate = height + baseline + 4
    if above and y >= plate:
        y -= plate
    cv2.rectangle(canvas, (x, y), (x + width + 6, y + plate), PAPER, cv2.FILLED)
    cv2.putText(canvas, text, (x + 3, y + height + 3), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
