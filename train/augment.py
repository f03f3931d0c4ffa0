"""Augmentation of crops and photos, in NumPy and OpenCV. Colours are BGR, coordinates pixels."""

import cv2
import numpy as np

from runtime.crop import LETTERBOX_GREY, crop_matrix, crop_region, transform_points, warp_crop
from runtime.keypoints import SCHEMAS

LEGS = ("hip", "pelvis", "knee", "ankle")  # what their names end in; the rest is the upper body


def augment_person(image, person, config, rng):
    """One training crop of a person.

    Args:
        image: (H, W, 3) uint8 BGR.
        person: train.datasets.Person.

    Returns:
        crop (height, width, 3) uint8 BGR, keypoints (K, 3): x, y in crop pixels, weight.
    """
    matrix, keypoints = draw_crop(person, config, rng)
    return distort(warp_crop(image, matrix, config.input_size), config, rng), keypoints


def draw_crop(person, config, rng):
    """Where the next crop of a person is cut: affine (2, 3), image pixels → crop pixels, and keypoints in the crop."""
    keypoints = person.keypoints.copy()
    half = rng.random() < config.half_body
    box = half_body(person, config, upper=rng.random() < 0.6) if half else person.box
    (centre,), (extent,) = crop_region(box, config.input_size, config.padding)
    extent = extent * np.clip(rng.normal(1, config.scale), 1 - config.scale, 1 + config.scale)
    centre = centre + extent * np.clip(rng.normal(0, config.shift, 2), -2 * config.shift, 2 * config.shift)
    matrix = crop_matrix(centre, extent, config.input_size, draw_rotation(config, rng))
    if rng.random() < config.flip:
        matrix = np.array([[-1, 0, config.input_size[0] - 1], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        keypoints = keypoints[SCHEMAS[config.keypoints].flip_order]
    keypoints[:, :2] = transform_points(keypoints[:, :2], matrix)
    return matrix, keypoints


def draw_rotation(config, rng):
    """Degrees by which the next picture turns clockwise."""
    if rng.random() >= config.rotation_chance:
        return 0.0
    return np.clip(rng.normal(0, config.rotation), -2 * config.rotation, 2 * config.rotation)


def half_body(person, config, upper):
    """The box of the upper or of the lower body's keypoints (Wang et al. 2018), the person's own if they are few."""
    labelled = person.keypoints[:, 2] > 0
    legs = np.array([name.endswith(LEGS) for name in SCHEMAS[config.keypoints].names])
    half = labelled & (~legs if upper else legs)
    if half.sum() < 3 or labelled.sum() < 8:
        return person.box
    points = person.keypoints[half, :2]
    low, high = points.min(0), points.max(0)
    margin = 0.15 * max(high - low)
    return np.concatenate([low - margin, high + margin])


def augment_photo(image, photo, config, rng):
    """One training input of the detector: a random window of the photo, grey where it reaches beyond.

    Args:
        image: (H, W, 3) uint8 BGR.
        photo: train.datasets.Photo.

    Returns:
        pixels (height, width, 3) uint8 BGR, boxes (N, 5) in input pixels, 1 person or -1 ignore.
    """
    pixels, boxes = _random_window(image, photo.boxes, config.input_size, config, rng)
    return distort(pixels, config, rng), boxes


def augment_mosaic(images, photos, config, rng):
    """Four photos in one training input, each in a corner of its own: small persons, and many (YOLOv4, Bochkovskiy
    et al. 2020). Arguments as for `augment_photo`, four of each; same result."""
    width, height = config.input_size
    x, y = (np.array(config.input_size) * rng.uniform(0.4, 0.6, 2)).astype(int)
    pixels, boxes = np.empty((height, width, 3), np.uint8), []
    corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    for image, photo, (left, top, right, bottom) in zip(images, photos, corners, strict=True):
        part, part_boxes = _random_window(image, photo.boxes, (right - left, bottom - top), config, rng, rng.random())
        pixels[top:bottom, left:right] = part
        boxes.append(part_boxes + np.array([left, top, left, top, 0], np.float32))
    return distort(pixels, config, rng), np.concatenate(boxes)


def _random_window(image, boxes, size, config, rng, fill=0.0):
    """A window of `size` (width, height) onto a photo, perhaps turned and mirrored: pixels and boxes (N, 5) in it.

    A turned person's box is that of the ellipse that filled it before, for heads and feet are seldom in the corners; a
    region to ignore becomes the box around all of it.

    fill: 0 = the whole photo is in it and grey beside it, 1 = no grey and part of the photo, at the middle scale and
        before it turns.
    """
    size, photo_size = np.array(size), np.array(image.shape[1::-1])
    ratios = size / photo_size
    fit = min(ratios) ** (1 - fill) * max(ratios) ** fill
    # Mostly at that scale, as streaming letterboxes a frame; else nearer, or far away.
    scale = fit * np.exp(rng.uniform(-config.scale, config.scale) * (2 if rng.random() < 0.3 else 1))
    drawn_out = config.stretch ** rng.uniform(-0.5, 0.5)
    scales = scale * np.array([drawn_out, 1 / drawn_out])
    slack = size - scales * photo_size
    shift = slack * (rng.random(2) if rng.random() < 0.7 else 0)
    angle = np.deg2rad(draw_rotation(config, rng))
    turn = np.diag(scales) @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    edges = np.column_stack([turn, shift + (np.diag(scales) - turn) @ photo_size / 2])  # about the photo's middle
    if rng.random() < config.flip:
        edges = np.array([[-1, 0, size[0]], [0, 1, 0]]) @ np.vstack([edges, [0, 0, 1]])
    # Box edges lie at whole numbers, pixel middles half a pixel further.
    centres = transform_points((boxes[:, :2] + boxes[:, 2:4]) / 2, edges)
    halves, turned = (boxes[:, 2:4] - boxes[:, :2]) / 2, edges[:, :2].T
    halves = np.where(boxes[:, 4:] < 0, halves @ np.abs(turned), np.sqrt(halves**2 @ turned**2))
    full = np.concatenate([centres - halves, centres + halves], 1)
    middles = edges.copy()
    middles[:, 2] += edges[:, :2].sum(1) / 2 - 0.5
    pixels = warp_crop(image, middles, size, LETTERBOX_GREY)
    boxes = boxes.copy()
    boxes[:, :4] = np.clip(full, 0, np.tile(size, 2))
    whole = np.prod(full[:, 2:] - full[:, :2], 1)
    kept = np.prod(boxes[:, 2:4] - boxes[:, :2], 1)
    # What the window cut down to a sliver is neither person nor background.
    boxes[(kept < 0.25 * whole) | (kept < 16), 4] = -1
    return pixels, boxes[kept > 0]


def distort(pixels, config, rng):
    """Occlusion, low resolution and colour, each at its chance; geometry stays."""
    if rng.random() < config.occlusion:
        pixels = occlude(pixels, rng)
    if rng.random() < config.low_resolution:
        pixels = lower_resolution(pixels, rng)
    if rng.random() < config.colour:
        pixels = recolour(pixels, rng)
    return pixels


def occlude(pixels, rng):
    """Cover one to three patches with a flat colour, noise, or another part of the picture."""
    pixels = pixels.copy()
    height, width = pixels.shape[:2]
    for _ in range(rng.integers(1, 4)):
        w, h = (np.array([width, height]) * rng.uniform(0.08, 0.35, 2)).astype(int)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        kind = rng.integers(3)
        if kind == 0:
            patch = np.broadcast_to(rng.integers(0, 256, 3), (h, w, 3))
        elif kind == 1:
            patch = rng.integers(0, 256, (h, w, 3))
        else:
            fx, fy = rng.integers(0, width - w), rng.integers(0, height - h)
            patch = pixels[fy:fy + h, fx:fx + w].copy()
        pixels[y:y + h, x:x + w] = patch
    return pixels


def lower_resolution(pixels, rng):
    """Shrink to a half … a sixth, perhaps blur or compress, and enlarge: persons far from the camera."""
    height, width = pixels.shape[:2]
    factor = rng.uniform(2, 6)
    small = cv2.resize(pixels, (max(8, int(width / factor)), max(8, int(height / factor))),
                       interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        small = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])[1],
                             cv2.IMREAD_COLOR)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def recolour(pixels, rng):
    """Other hue, saturation, contrast, brightness; grey now and then."""
    if rng.random() < 0.1:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    elif rng.random() < 0.6:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        hue = ((np.arange(256) + rng.integers(-8, 9)) % 180).astype(np.uint8)
        saturation = np.clip(np.arange(256) * rng.uniform(0.6, 1.5), 0, 255).astype(np.uint8)
        hsv = cv2.merge([cv2.LUT(hsv[..., 0], hue), cv2.LUT(hsv[..., 1], saturation), hsv[..., 2]])
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    gain, offset, gamma = rng.uniform(0.6, 1.4), rng.uniform(-30, 30), np.exp(rng.uniform(-0.4, 0.4))
    curve = 255 * np.clip((np.arange(256) - 127.5) * gain + 127.5 + offset, 0, 255)
    curve = np.clip((curve / 255 / 255) ** gamma * 255, 0, 255).astype(np.uint8)
    return cv2.LUT(pixels, curve)
