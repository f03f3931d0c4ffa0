"""The loader: the same samples whoever makes them, pixels where the labels say, broken images, processes that end."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.crop import LETTERBOX_GREY
from runtime.errors import BadInput
from train.augment import augment_person, draw_crop
from train.bench_input import measure
from train.config import Config
from train.datasets import Person, load_persons, read_stored
from train.loader import Loader, Samples, reduction_for
from train.pack import pack

ROOT = Path(__file__).parents[1]
STILL = dict(occlusion=0.0, low_resolution=0.0, colour=0.0)


def soft_picture(rng, size):
    """Colours that run into each other, with no detail that JPEG or resizing would lose."""
    return cv2.resize(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)


def write_people(folder, sizes, persons=2):
    """A data folder of one JPEG a size, two persons on each: a_0.jpg, b_1.jpg, a_2.jpg …"""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    data = {"images": [], "annotations": []}
    for number, size in enumerate(sizes):
        name = f"{'ab'[number % 2]}_{number}.jpg"
        cv2.imwrite(str(folder / "images" / name), soft_picture(rng, size), [cv2.IMWRITE_JPEG_QUALITY, 97])
        data["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for _ in range(persons):
            low, high = np.array(size) * rng.uniform([0, 0], 0.3), np.array(size) * rng.uniform([0.6, 0.6], 1)
            points = np.column_stack([rng.uniform(low, high, (17, 2)), np.full(17, 2)])
            data["annotations"].append({
                "id": len(data["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                "num_keypoints": 17, "bbox": [*low, *(high - low)], "area": float((high - low).prod()),
                "keypoints": points.ravel().tolist(), "keypoint_scores": rng.uniform(0.3, 1, 17).round(2).tolist()})
    (folder / "person_keypoints_test.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people") / "data", [(160, 120), (121, 175), (320, 240)] * 4)


def small_config(folder, **settings):
    return Config(**{"data": [str(folder)], "input_size": [64, 96], "workers": 0, "batch": 4, **settings})


def take(config, count, *arguments):
    batches = Loader(config).batches(*arguments)
    taken = list(islice(batches, count))
    batches.close()
    return np.concatenate([pixels for pixels, _ in taken]), np.concatenate([labels for _, labels in taken])


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("settings, shape", [
    (dict(), (17, 3)),
    (dict(task="person", mosaic=0.5), (64, 5)),
])
def test_a_sample_is_the_same_whoever_makes_it(people, settings, shape):
    """Batches of 20 are made in parts of 16 and 4, and more of them than the processes hold at a time."""
    alone = take(small_config(people, **settings), 8, 5, 20)
    assert alone[0].shape == (160, 96, 64, 3) and alone[0].dtype == np.uint8
    assert alone[1].shape == (160, *shape) and alone[1].dtype == np.float32
    assert len({pixels.tobytes() for pixels in alone[0]}) == 160
    assert_same(alone, take(small_config(people, workers=2, **settings), 8, 5, 20))
    assert_same((alone[0][20:30], alone[1][20:30]), take(small_config(people, **settings), 1, 25, 10))


def test_a_stride_leaves_samples_to_others(people):
    """Three batches of 8, of which one machine makes the first half and another the second."""
    whole = take(small_config(people), 3, 16, 8)
    halves = [take(small_config(people), 3, 16 + start, 4, 8) for start in (0, 4)]
    for index in range(2):
        parts = [half[index].reshape(3, 4, *half[index].shape[1:]) for half in halves]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(whole[index].shape), whole[index])


def break_images(folder, names):
    for name in names:
        data = (folder / "images" / name).read_bytes()
        (folder / "images" / name).write_bytes(data[:len(data) // 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_named_once(tmp_path, capsys, workers):
    folder = write_people(tmp_path / "data", [(160, 120)] * 6)
    sound = take(small_config(folder), 2, 0, 32)
    break_images(folder, ["a_0.jpg", "b_3.jpg"])
    pixels, labels = take(small_config(folder, max_unreadable=2, workers=workers), 2, 0, 32)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("skipped: image ") and "cut off" in line for line in lines)
    assert "a_0.jpg" in lines[0] and "b_3.jpg" in lines[1]
    same = (pixels == sound[0]).all((1, 2, 3))
    assert 16 < same.sum() < 64, "samples of sound images stay as they were, the others change"
    assert pixels.std(axis=(1, 2, 3)).min() > 10

    with pytest.raises(BadInput, match=r"2 images cannot be read \(max_unreadable = 1\), for example: image .*a_0.jpg"):
        take(small_config(folder, max_unreadable=1, workers=workers), 20, 0, 8)


def test_nothing_but_unreadable_images_is_no_endless_search(tmp_path):
    folder = write_people(tmp_path / "data", [(64, 64)] * 2)
    break_images(folder, ["a_0.jpg", "b_1.jpg"])
    with pytest.raises(BadInput, match="100 samples in a row cannot be read"):
        take(small_config(folder), 1, 0, 1)


def test_a_missing_image_is_named_before_training(tmp_path):
    folder = write_people(tmp_path / "data", [(64, 64)] * 3)
    (folder / "images/b_1.jpg").unlink()
    with pytest.raises(BadInput, match="1 of 3 images are missing, the first is .*b_1.jpg"):
        Loader(small_config(folder))


SCRIPT = """
import multiprocessing, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None  # here and in the processes: to import them is an error
from train import bench_input, pack
from train.config import Config
from train.loader import Loader
if __name__ == "__main__":
    for pixels, labels in Loader(Config(data=[sys.argv[1]], input_size=[64, 96], workers=2)).batches(0, 8):
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        if sys.stdin.readline() == "end":
            break
"""


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("end", ["killed", "done"])
def test_processes_end_with_the_trainer_and_need_no_tensorflow(people, tmp_path, end):
    (tmp_path / "load.py").write_text(SCRIPT)
    trainer = subprocess.Popen([sys.executable, str(tmp_path / "load.py"), str(people)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    processes = trainer.stdout.readline().split()
    assert len(processes) == 2 and all(map(alive, processes))
    if end == "killed":
        trainer.send_signal(signal.SIGKILL)
    else:
        trainer.stdin.write("end")
        trainer.stdin.close()
    assert trainer.wait(timeout=30) == (-signal.SIGKILL if end == "killed" else 0)
    deadline = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, processes))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_is_an_error_not_a_standstill(people, capfd):
    loader = Loader(small_config(people, workers=1))
    batches = loader.batches(0, 64)
    next(batches)
    [process] = loader._pools[0]._processes
    os.kill(process, signal.SIGKILL)
    with pytest.raises(BadInput, match="was killed, as happens where memory runs out; fewer workers="):
        for _ in range(3):
            next(batches)


def blobs(size, points, width):
    """A grey picture with a soft white spot at each point."""
    image = np.full((size[1], size[0]), 40.0)
    columns, rows = np.arange(size[0]), np.arange(size[1])
    for x, y in points:
        image += 200 * np.exp(-((rows[:, None] - y) ** 2 + (columns[None] - x) ** 2) / (2 * width**2))
    return cv2.merge([image.clip(0, 255).astype(np.uint8)] * 3)


def spot_near(image, point, radius):
    """Middle of the spot within `radius` of a point, from its mass."""
    x, y = np.round(point).astype(int)
    part = image[y - radius:y + radius + 1, x - radius:x + radius + 1, 0] - 40.0
    places = np.arange(-radius, radius + 1)
    return np.array([x + part.sum(0) @ places / part.sum(), y + part.sum(1) @ places / part.sum()])


@pytest.mark.parametrize("size", [(800, 640), (803, 641), (797, 637)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding_keeps_places(tmp_path, size, reduction):
    points = np.array([[101.3, 90.2], [700.6, 100.9], [400.0, 320.5], [90.8, 541.4], [711.1, 550.0]])
    cv2.imwrite(str(tmp_path / "a.jpg"), blobs(size, points, 16), [cv2.IMWRITE_JPEG_QUALITY, 95])
    person = Person(str(tmp_path / "a.jpg"), np.zeros(4), np.zeros((17, 3)), size)
    whole, none = read_stored(person)
    image, done = read_stored(person, reduction)
    assert (none, done) == (1, reduction)
    assert image.shape[:2] == (-(-size[1] // reduction), -(-size[0] // reduction))
    for point in points:
        np.testing.assert_allclose(spot_near(whole, point, 60), point, atol=0.05)
        there = (point + 0.5) / reduction - 0.5
        np.testing.assert_allclose(spot_near(image, there, 60 // reduction), there, atol=0.05)


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory):
    """A data folder of one photo of 2403x1802 pixels, filled by a person with a soft spot at each keypoint."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "images").mkdir()
    points = np.stack(np.meshgrid([700, 1000, 1300, 1600], [300, 600, 900, 1200, 1500]), -1).reshape(-1, 2)[:17] + 0.4
    cv2.imwrite(str(folder / "images/a.jpg"), blobs((2403, 1802), points, 28), [cv2.IMWRITE_JPEG_QUALITY, 95])
    keypoints = np.column_stack([points, np.full(17, 2)]).ravel().tolist()
    (folder / "person_keypoints.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg", "width": 2403, "height": 1802}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [550, 150, 1200, 1500], "iscrowd": 0,
                         "num_keypoints": 17, "keypoints": keypoints}]}))
    return folder


def test_a_large_photo_is_decoded_small_and_its_keypoints_stay(large_photo):
    config = Config(data=[str(large_photo)], half_body=0.3, **STILL)
    [person] = load_persons(config)
    samples = Samples(config, [person])
    reductions, compared = set(), 0
    for number in range(12):
        pixels, keypoints = samples.sample(number, set())
        rng = np.random.default_rng((config.seed, number))
        matrix, expected = draw_crop(person, config, rng)
        np.testing.assert_array_equal(keypoints, expected.astype(np.float32))
        scale = np.hypot(*matrix[:, 0])
        image, reduction = read_stored(person, reduction_for(scale))
        assert scale * reduction <= 1 < 2 * scale * reduction, "neither stretched nor larger than need be"
        assert image.shape[0] == -(-1802 // reduction)
        reductions.add(reduction)
        whole, _ = augment_person(read_stored(person)[0], person, config, np.random.default_rng((config.seed, number)))
        assert np.abs(whole.astype(int) - pixels).mean() < 1
        radius = int(100 * scale)
        for x, y in keypoints[:, :2]:
            if radius < x < 191 - radius and radius < y < 255 - radius:
                np.testing.assert_allclose(spot_near(pixels, (x, y), radius), (x, y), atol=0.08)
                compared += 1
    assert reductions == {4, 8} and compared > 60


def test_detector_boxes_stay_around_rectangles_of_a_large_photo(tmp_path):
    (tmp_path / "images").mkdir()
    image = np.full((1803, 2405), LETTERBOX_GREY, np.uint8)
    image[500:1100, 800:1300] = 240
    cv2.imwrite(str(tmp_path / "images/a.jpg"), cv2.merge([cv2.GaussianBlur(image, (0, 0), 12)] * 3))
    (tmp_path / "person_keypoints.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg", "width": 2405, "height": 1803}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [800, 500, 500, 600]}]}))
    config = Config(task="person", data=[str(tmp_path)], input_size=[320, 320], rotation_chance=0.0, workers=0, **STILL)
    samples = Samples(config, Loader(config).items)
    assert samples._reduced_photo(samples.items[0], mosaic=False)[0].shape == (451, 602, 3)
    compared = 0
    for number in range(20):
        pixels, boxes = samples.sample(number, set())
        if not boxes[0, 4] or (boxes[0, :2] < 8).any() or (boxes[0, 2:4] > 312).any():
            continue
        mass = (pixels[..., 0].astype(float) - LETTERBOX_GREY) / (240 - LETTERBOX_GREY)
        total, places = mass.sum(), np.arange(320) + 0.5
        middle = mass.sum(0) @ places / total, mass.sum(1) @ places / total
        np.testing.assert_allclose(middle, (boxes[0, :2] + boxes[0, 2:4]) / 2, atol=0.2)
        np.testing.assert_allclose(total, np.prod(boxes[0, 2:4] - boxes[0, :2]), rtol=0.02)
        compared += 1
    assert compared > 10


def turned_jpeg(path, image):
    """A JPEG whose EXIF says: turn a quarter clockwise to see it upright (orientation 6)."""
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\0" + (8).to_bytes(4, "little") + (1).to_bytes(2, "little")
    tiff += (0x112).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    tiff += (6).to_bytes(4, "little") + bytes(4)
    exif = b"Exif\0\0" + tiff
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])


@pytest.mark.parametrize("reduction", [1, 4])
def test_labels_say_whether_pixels_are_as_stored_or_upright(tmp_path, reduction):
    image = soft_picture(np.random.default_rng(0), (320, 240))
    turned_jpeg(tmp_path / "a.jpg", image)
    upright = cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)

    def read(size):
        person = Person(str(tmp_path / "a.jpg"), np.zeros(4), np.zeros((17, 3)), size)
        pixels, done = read_stored(person, reduction)
        expected = upright if size == (240, 320) else image
        expected = cv2.resize(expected, None, fx=1 / done, fy=1 / done, interpolation=cv2.INTER_AREA)
        assert np.abs(pixels.astype(int) - expected).mean() < 4
        return done

    assert read((320, 240)) == read(None) == reduction
    assert read((240, 320)) == 1, "reduced and turned, its edges would be the wrong way round"
    with pytest.raises(BadInput, match="a.jpg is 240x320 pixels but was annotated at 640x480"):
        read((640, 480))


def test_other_formats_come_whole(tmp_path):
    image = soft_picture(np.random.default_rng(0), (160, 120))
    cv2.imwrite(str(tmp_path / "a.png"), image)
    pixels, reduction = read_stored(Person(str(tmp_path / "a.png"), np.zeros(4), np.zeros((17, 3)), (160, 120)), 4)
    assert reduction == 1
    np.testing.assert_array_equal(pixels, image)


def test_benchmark_has_a_row_for_each_way(people, tmp_path):
    config = small_config(people, workers=1)
    pack(config, tmp_path / "packed")
    rows = [line.split("|")[1:-1] for line in measure(config, 0.2, str(tmp_path / "packed")).splitlines()[2:]]
    assert [row[0].strip() for row in rows[2:]] == ["plain loop", "one by one", "loader", "loader, packed"]
    assert all(float(cell) > 0 for row in rows[2:] for cell in (row[1], row[2], row[4], row[5]))
    with pytest.raises(BadInput, match="is packed; the simpler ways need photos"):
        measure(small_config(tmp_path / "packed", workers=1), 0.2)
