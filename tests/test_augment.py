"""Augmentation moves pixels and labels together."""

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from runtime.crop import LETTERBOX_GREY  # noqa: E402
from runtime.keypoints import COCO  # noqa: E402
from train.augment import augment_mosaic, augment_person, augment_photo, distort  # noqa: E402
from train.config import Config  # noqa: E402
from train.datasets import Person, Photo  # noqa: E402

STILL = dict(occlusion=0.0, low_resolution=0.0, colour=0.0)


def dotted_person():
    """A grey picture with a dot of its own colour at each of 17 keypoints."""
    image = np.full((480, 640, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    points = np.stack([rng.permutation(np.linspace(230, 410, 17)), np.linspace(70, 420, 17)], 1).astype(int)
    colours = [(int(10 + 14 * i), int(250 - 14 * i), 60 if i % 2 else 200) for i in range(17)]
    for point, colour in zip(points, colours, strict=True):
        cv2.circle(image, tuple(map(int, point)), 9, colour, -1)
    keypoints = np.concatenate([points, np.ones((17, 1))], 1).astype(np.float32)
    return image, Person("dots", np.array([210, 50, 430, 440], np.float32), keypoints), np.array(colours)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_keypoints_stay_on_their_dots(flip):
    image, person, colours = dotted_person()
    config = Config(flip=flip, half_body=0.3, **STILL)
    seen = 0
    for seed in range(20):
        crop, keypoints = augment_person(image, person, config, np.random.default_rng(seed))
        assert crop.shape == (256, 192, 3)
        order = COCO.flip_order if flip else np.arange(17)
        for keypoint, colour in zip(keypoints, colours[order], strict=True):
            x, y = np.round(keypoint[:2]).astype(int)
            if 4 <= x < 188 and 4 <= y < 252:
                np.testing.assert_allclose(crop[y, x], colour, atol=6)
                seen += 1
    assert seen > 200
    assert (person.keypoints[:, 2] == 1).all(), "augmentation wrote into the data set"


def test_flip_really_mirrors_and_swaps_left_and_right():
    image, person, _ = dotted_person()
    plain = Config(flip=0.0, scale=0.0, shift=0.0, rotation_chance=0.0, half_body=0.0, **STILL)
    mirror = Config(flip=1.0, scale=0.0, shift=0.0, rotation_chance=0.0, half_body=0.0, **STILL)
    crop, keypoints = augment_person(image, person, plain, np.random.default_rng(0))
    mirrored, swapped = augment_person(image, person, mirror, np.random.default_rng(0))
    np.testing.assert_allclose(mirrored.astype(int), crop[:, ::-1], atol=3)
    np.testing.assert_allclose(swapped[COCO.flip_order, 0], 191 - keypoints[:, 0], atol=1e-3)
    np.testing.assert_allclose(swapped[COCO.flip_order, 1:], keypoints[:, 1:], atol=1e-3)


@pytest.mark.parametrize("padding", [1.0, 1.1, 1.25])
def test_padding_is_that_of_the_config(padding):
    """A box of 220×390 is cut at 292.5×390 and padded: its edges lie as far from those of the crop."""
    image, person, _ = dotted_person()
    config = Config(padding=padding, flip=0.0, scale=0.0, shift=0.0, rotation_chance=0.0, half_body=0.0, **STILL)
    person.keypoints[:2, :2] = [[320, 49.5], [320, 439.5]]  # the middle of its top and bottom edge
    _, keypoints = augment_person(image, person, config, np.random.default_rng(0))
    np.testing.assert_allclose(keypoints[:2, 1], [128 - 128 / padding - 0.5, 128 + 128 / padding - 0.5], atol=0.01)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("enlarged", "stretch"), [(1, 1.0), (4, 1.0), (1, 1.5)])
def test_photo_boxes_stay_around_their_rectangles(flip, enlarged, stretch):
    """To a fraction of a pixel: the middle and size of a bright rectangle, from its mass, against its box."""
    image = np.full((300 * enlarged, 400 * enlarged), LETTERBOX_GREY, np.uint8)
    left, top, right, bottom = np.array([60, 100, 140, 220]) * enlarged
    image[top:bottom, left:right] = 240
    image = cv2.GaussianBlur(image, (0, 0), 2 * enlarged)  # else where it is sampled decides the last half pixel
    photo = Photo("rectangle", np.array([[left, top, right, bottom, 1]], np.float32))
    config = Config(task="person", input_size=[320, 320], flip=flip, stretch=stretch, rotation_chance=0.0, **STILL)
    compared, aspects = 0, []
    for seed in range(30):
        pixels, boxes = augment_photo(cv2.merge([image] * 3), photo, config, np.random.default_rng(seed))
        mass = (pixels[..., 0].astype(float) - LETTERBOX_GREY) / (240 - LETTERBOX_GREY)
        if not len(boxes) or (boxes[0, :2] < 8).any() or (boxes[0, 2:4] > 312).any():
            continue
        total, places = mass.sum(), np.arange(320) + 0.5
        middle = mass.sum(0) @ places / total, mass.sum(1) @ places / total
        np.testing.assert_allclose(middle, (boxes[0, :2] + boxes[0, 2:4]) / 2, atol=0.2)
        np.testing.assert_allclose(total, np.prod(boxes[0, 2:4] - boxes[0, :2]), rtol=0.02)
        aspects.append(np.divide(*(boxes[0, 2:4] - boxes[0, :2])) * 120 / 80)  # 80×120 before
        compared += 1
    assert compared > 12
    assert 1 / stretch - 1e-3 <= min(aspects) <= max(aspects) <= stretch + 1e-3
    assert max(aspects) / min(aspects) >= stretch - 1e-3


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_turned_persons_box_is_that_of_the_ellipse_in_it(flip):
    """To a pixel: the outermost bright pixels of a turned ellipse, against the box made of its box."""
    image = np.full((1200, 1600, 3), LETTERBOX_GREY, np.uint8)
    cv2.ellipse(image, (700, 500), (100, 300), 0, 0, 360, (240,) * 3, -1)
    photo = Photo("ellipse", np.array([[600, 200, 800, 800, 1]], np.float32))
    config = Config(task="person", input_size=[320, 320], flip=flip, stretch=1.3, rotation=25.0, rotation_chance=1.0,
                    **STILL)
    aspects = []
    for seed in range(40):
        pixels, boxes = augment_photo(image, photo, config, np.random.default_rng(seed))
        if not len(boxes) or (boxes[0, :2] < 2).any() or (boxes[0, 2:4] > 318).any():
            continue
        rows, columns = np.nonzero(pixels[..., 0] > 177)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0, :4], seen, atol=1.1)
        aspects.append(np.divide(*(boxes[0, 2:4] - boxes[0, :2])))
    assert len(aspects) > 15
    assert max(aspects) > 0.7  # turned indeed: upright it is 1 : 3, and 1 : 2.3 drawn out


def test_a_turned_region_to_ignore_is_ignored_to_its_corners():
    """Where the detector is not to learn anything, nothing of the region may be left outside the box."""
    image = np.full((900, 1200, 3), LETTERBOX_GREY, np.uint8)
    image[500:620, 400:800] = 240
    photo = Photo("crowd", np.array([[400, 500, 800, 620, -1]], np.float32))
    config = Config(task="person", input_size=[320, 320], scale=0.0, rotation=25.0, rotation_chance=1.0, **STILL)
    turned = 0
    for seed in range(20):
        pixels, boxes = augment_photo(image, photo, config, np.random.default_rng(seed))
        rows, columns = np.nonzero(pixels[..., 0] > 177)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0, :4], seen, atol=1.1)
        turned += seen[3] - seen[1] > 60  # 32 pixels high as it lies
    assert turned > 3


def test_a_sliver_of_a_person_is_ignored():
    photo = Photo("two", np.array([[0, 0, 100, 100, 1], [-95, 0, 5, 100, 1]], np.float32))
    config = Config(task="person", input_size=[320, 320], flip=0.0, scale=0.0, rotation_chance=0.0, **STILL)
    _, boxes = augment_photo(np.zeros((320, 320, 3), np.uint8), photo, config, np.random.default_rng(0))
    assert boxes[:, 4].tolist() == [1, -1]


def test_mosaic_boxes_stay_around_their_rectangles():
    """Each of four photos is a bright rectangle on black: inside a box it is bright, and nowhere else."""
    images = [np.full((300, 400, 3), LETTERBOX_GREY, np.uint8) for _ in range(4)]
    photos = [Photo("rectangle", np.array([[120, 90, 260, 230, 1]], np.float32)) for _ in range(4)]
    for image in images:
        image[90:230, 120:260] = 240
    config = Config(task="person", input_size=[320, 256], rotation_chance=0.0, **STILL)
    counts = []
    for seed in range(20):
        pixels, boxes = augment_mosaic(images, photos, config, np.random.default_rng(seed))
        assert pixels.shape == (256, 320, 3) and boxes.shape[1] == 5
        covered = np.zeros((256, 320), bool)
        for left, top, right, bottom in boxes[:, :4].round().astype(int):
            covered[top:bottom, left:right] = True
        np.testing.assert_allclose(covered.mean(), (pixels[..., 0] > 177).mean(), rtol=0.05)
        assert (pixels[covered][:, 0] > 177).mean() > 0.95
        counts.append(len(boxes))
    assert np.mean(counts) > 3


def test_distortions_change_pixels_and_are_repeatable():
    image, *_ = dotted_person()
    for key in ("occlusion", "low_resolution", "colour"):
        config = Config(**{**STILL, key: 1.0})
        first, again = (distort(image, config, np.random.default_rng(5)) for _ in range(2))
        assert first.shape == image.shape and first.dtype == np.uint8
        assert (first != image).any(), key
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(distort(image, Config(**STILL), np.random.default_rng(5)), image)
