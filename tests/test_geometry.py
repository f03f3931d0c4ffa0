"""Crop geometry: a point goes from the frame into the crop and back without a shift, a turn or a stretch."""

import cv2
import numpy as np
import pytest

from runtime.crop import (
    LETTERBOX_GREY,
    crop_matrix,
    crop_region,
    invert,
    letterbox,
    transform_points,
    warp_crop,
)
from runtime.keypoints import PERSON_PADDING

INPUT_SIZE = (192, 256)


def dot_frame(points, size=(640, 480), radius=4.0):
    """A black frame with a Gaussian blob of `radius` pixels at each (x, y): its middle is known below a pixel."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    frame = np.zeros((size[1], size[0]))
    for px, py in points:
        frame += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
    return np.repeat(np.clip(np.rint(frame), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def centroid(picture):
    """(x, y) of the light in a picture, pixel centres at whole numbers."""
    light = picture.astype(np.float64).sum(2)
    rows, columns = np.indices(light.shape)
    return np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()


def random_boxes(generator, count):
    corner = generator.uniform(-50, 400, (count, 2))
    return np.concatenate([corner, corner + generator.uniform(5, 300, (count, 2))], axis=1)


@pytest.mark.parametrize("input_size", [(192, 256), (288, 384), (256, 256), (320, 200)])
def test_region_holds_the_box_at_the_input_aspect(input_size):
    boxes = random_boxes(np.random.default_rng(0), 200)
    centres, extents = crop_region(boxes, input_size, PERSON_PADDING)
    sizes = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(centres, (boxes[:, :2] + boxes[:, 2:]) / 2, rtol=1e-5)
    np.testing.assert_allclose(extents[:, 0] / extents[:, 1], input_size[0] / input_size[1], rtol=1e-5)
    # One side of the box is grown by exactly the padding, the other by at least that.
    np.testing.assert_allclose((extents / sizes).min(1), PERSON_PADDING, rtol=1e-4)


def test_padding_is_the_callers_choice():
    _, extents = crop_region([[0, 0, 30, 40]], INPUT_SIZE, padding=1.0)
    np.testing.assert_allclose(extents, [[30, 40]], rtol=1e-6)


@pytest.mark.parametrize("rotation", [0, 30, -45, 90, 180, 271.5])
def test_points_come_back_from_the_crop(rotation):
    generator = np.random.default_rng(1)
    centres, extents = crop_region(random_boxes(generator, 50), INPUT_SIZE, PERSON_PADDING)
    for centre, extent in zip(centres, extents, strict=True):
        matrix = crop_matrix(centre, extent, INPUT_SIZE, rotation)
        points = generator.uniform(-100, 700, (17, 2))
        there = transform_points(points, matrix)
        np.testing.assert_allclose(transform_points(there, invert(matrix)), points, atol=1e-6)


def test_edges_of_the_region_become_edges_of_the_crop():
    # Edges lie half a pixel outside the centres of the border pixels, in the frame and in the crop.
    matrix = crop_matrix((100, 80), (48, 64), INPUT_SIZE)
    corners = np.array([[100 - 24, 80 - 32], [100 + 24, 80 + 32]]) - 0.5
    np.testing.assert_allclose(transform_points(corners, matrix), [[-0.5, -0.5], [191.5, 255.5]], atol=1e-9)


def test_a_crop_at_full_scale_is_the_frame_itself():
    frame = np.random.default_rng(2).integers(0, 256, (480, 640, 3), np.uint8)
    matrix = crop_matrix((96 + 37, 128 + 53), INPUT_SIZE, INPUT_SIZE)
    np.testing.assert_array_equal(warp_crop(frame, matrix, INPUT_SIZE), frame[53 : 53 + 256, 37 : 37 + 192])


def test_scale_is_equal_in_both_directions_and_rotation_is_clockwise():
    matrix = crop_matrix((100, 100), (96, 128), INPUT_SIZE, rotation=90)
    middle, right, below = transform_points([[99.5, 99.5], [109.5, 99.5], [99.5, 109.5]], matrix)
    np.testing.assert_allclose(middle, [95.5, 127.5], atol=1e-9)
    np.testing.assert_allclose(right - middle, [0, 20], atol=1e-9)  # what was to the right is now below
    np.testing.assert_allclose(below - middle, [-20, 0], atol=1e-9)


@pytest.mark.parametrize("rotation", [0, 25, -140])
@pytest.mark.parametrize("extent", [(96, 128), (150, 200), (300, 400)])
def test_a_dot_lands_where_the_points_say(rotation, extent):
    generator = np.random.default_rng(3)
    for _ in range(5):
        dot = generator.uniform([200, 150], [440, 330])
        matrix = crop_matrix(dot + generator.uniform(-12, 12, 2), extent, INPUT_SIZE, rotation)
        crop = warp_crop(dot_frame([dot]), matrix, INPUT_SIZE)
        np.testing.assert_allclose(centroid(crop), transform_points(dot, matrix), atol=0.1)


def test_black_outside_the_frame():
    frame = np.full((100, 100, 3), 200, np.uint8)
    crop = warp_crop(frame, crop_matrix((0, 50), (60, 80), INPUT_SIZE), INPUT_SIZE)
    assert (crop[:, :94] == 0).all()
    assert (crop[:, 98:] == 200).all()


def test_mirrored_frame_gives_mirrored_crop():
    frame = cv2.GaussianBlur(np.random.default_rng(4).integers(0, 256, (240, 321, 3), np.uint8), (0, 0), 3)
    mirrored = np.ascontiguousarray(frame[:, ::-1])
    width = frame.shape[1]
    for box in random_boxes(np.random.default_rng(5), 20) / 2:
        mirrored_box = [width - box[2], box[1], width - box[0], box[3]]
        crops = []
        for picture, edges in ((frame, box), (mirrored, mirrored_box)):
            (centre,), (extent,) = crop_region([edges], INPUT_SIZE, PERSON_PADDING)
            crops.append(warp_crop(picture, crop_matrix(centre, extent, INPUT_SIZE), INPUT_SIZE))
        # warpAffine rounds positions to 1/32 pixel, not the same way from both sides.
        difference = np.abs(crops[0][:, ::-1].astype(int) - crops[1])
        assert np.percentile(difference, 99.9) <= 8
        assert difference.mean() < 0.5


@pytest.mark.parametrize(
    "box",
    [(50, 60, 50, 60), (50, 60, 50, 200), (80, 90, 20, 30), (-500, -500, -400, -300), (0, 0, 1e6, 1e6)],
    ids=["a point", "a line", "inside out", "outside the frame", "huge"],
)
def test_degenerate_boxes_still_give_a_crop(box):
    (centre,), (extent,) = crop_region([box], INPUT_SIZE, PERSON_PADDING)
    matrix = crop_matrix(centre, extent, INPUT_SIZE)
    assert np.isfinite(matrix).all()
    assert (extent >= 1).all()
    crop = warp_crop(np.zeros((480, 640, 3), np.uint8), matrix, INPUT_SIZE)
    assert crop.shape == (256, 192, 3)
    np.testing.assert_allclose(transform_points(transform_points([3, 4], matrix), invert(matrix)), [3, 4], atol=1e-3)


def test_no_boxes_give_no_regions():
    centres, extents = crop_region(np.zeros((0, 4)), INPUT_SIZE, PERSON_PADDING)
    assert centres.shape == (0, 2)
    assert extents.shape == (0, 2)


@pytest.mark.parametrize("stretch", [1.0, 1.3])
@pytest.mark.parametrize("frame_size", [(1920, 1080), (640, 480), (200, 500), (100, 75), (333, 1001), (416, 416)])
def test_letterbox_box_mapping(frame_size, stretch):
    """A white box in the frame is found again in the input at scales · its edges."""
    width, height = frame_size
    box = np.array([0.3 * width, 0.2 * height, 0.7 * width, 0.9 * height]).round()
    left, top, right, bottom = box.astype(int)
    frame = np.zeros((height, width, 3), np.uint8)
    frame[top:bottom, left:right] = 255
    boxed, scales = letterbox(frame, (416, 416), stretch)
    assert boxed.shape == (416, 416, 3)

    fitted = np.array([width, height]) * scales
    assert fitted.max() == pytest.approx(416)
    short, long = sorted((width, height))
    assert fitted.min() == pytest.approx(min(416, 416 * stretch * short / long), abs=0.5)
    white = boxed[: round(fitted[1]), : round(fitted[0]), 0] / 255
    middle = np.rint((box[:2] + box[2:]) / 2 * scales).astype(int)
    row, column = white[middle[1]], white[:, middle[0]]
    # An edge lies where the light before it ends: sums are exact below a pixel, whatever the blur.
    found = [
        middle[0] - row[: middle[0]].sum(),
        middle[1] - column[: middle[1]].sum(),
        middle[0] + row[middle[0] :].sum(),
        middle[1] + column[middle[1] :].sum(),
    ]
    np.testing.assert_allclose(found, box * np.tile(scales, 2), atol=0.1)
    grey = np.ones((416, 416), bool)
    grey[: round(fitted[1]), : round(fitted[0])] = False
    assert (boxed[grey] == LETTERBOX_GREY).all()


def test_letterbox_keeps_small_things_when_it_shrinks_a_lot():
    # 8 white lines 2 px wide in 1080p: plain bilinear sampling at a fifth of the size would miss some of them.
    frame = np.zeros((1080, 1920, 3), np.uint8)
    for line in range(8):
        frame[:, 100 + 211 * line : 102 + 211 * line] = 255
    boxed, (scale, _) = letterbox(frame, (416, 416))
    for line in range(8):
        middle = round((101 + 211 * line) * scale)
        light = boxed[100, middle - 3 : middle + 4, 0].sum()
        assert light == pytest.approx(2 * scale * 255, rel=0.4)


def test_letterbox_of_extreme_shapes():
    for shape in ((1, 5000), (5000, 1), (1, 1), (4000, 3)):
        boxed, scales = letterbox(np.zeros((*shape, 3), np.uint8), (416, 416))
        assert boxed.shape == (416, 416, 3)
        assert scales[np.argmax(shape[::-1])] == pytest.approx(416 / max(shape))


@pytest.mark.parametrize("shrunk", [2.3, 2.6, 3, 4, 5, 6])
def test_crops_that_shrink_skip_no_pixels(shrunk):
    """Lines a pixel wide, each with about all its light: bilinear alone leaves some out and doubles others."""
    lines = np.zeros((1024, 768, 3), np.uint8)
    lines[:, 50:700:41] = 255
    size = round(768 / shrunk), round(1024 / shrunk)
    crop = warp_crop(lines, crop_matrix((384, 512), (768, 1024), size), size)
    light = crop[size[1] // 2, :, 0].astype(float)
    of_lines = [light[round(x / shrunk) - 2: round(x / shrunk) + 3].sum() for x in range(50, 700, 41)]
    np.testing.assert_allclose(of_lines, 255 / shrunk, rtol=0.35)
