"""Crops a second that the input pipeline of training makes, beside simpler ways to the same crops.

    python -m train.bench_input --config configs/pose.toml
    python -m train.bench_input --config configs/pose.toml --packed data/people-packed

plain loop: one process reads a photo whole, cuts and augments one crop, takes the next; OpenCV may use all cores.
one by one: as TF-SimpleHumanPose does it (main/gen_batch.py, lib/tfflat/data_provider.py), re-created: processes mirror
    the whole photo before they cut, normalise each crop to float64 in NumPy, and send it back pickled, one by one. It
    augments less: scale, rotation and mirror image only. ZeroMQ is replaced by multiprocessing.Queue.
loader: train/loader.py; "packed" reads what train/pack.py wrote.

The ways take turns, several times over, and the table shows medians: other work on the machine comes and goes.
"""

import argparse
import collections
import itertools
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from runtime.crop import crop_matrix, crop_region, transform_points, warp_crop
from runtime.errors import BadInput, run_command
from runtime.keypoints import SCHEMAS
from train.augment import augment_person
from train.config import add_config_arguments, load_config
from train.datasets import sampler
from train.loader import PROCESS_KILLED, Loader, end_with_parent, worker_count
from train.pack import pack

ROUNDS = 5
WARM_UP = 0.5  # seconds at most before each measurement, in which what was made meanwhile is used up
UNDER_WAY = 200  # crops that the one-by-one way asks for ahead, as its original does
PIXEL_MEANS = np.array([[[123.68, 116.78, 103.94]]])


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m train.bench_input", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each way, in all (default: %(default)s)")
    parser.add_argument("--packed", nargs="?", const="", metavar="FOLDER",
                        help="measure packed data, too: the folder that holds the same data packed; without a folder, "
                             "all of it is packed into a temporary one first")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    if config.task != "pose" or not config.workers:
        raise BadInput(f"task = {config.task!r}, workers = {config.workers}: what is measured is task = 'pose' with "
                       "workers of 1 or more, or -1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.packed
        if folder == "":
            folder = str(Path(temporary, "packed"))
            pack(config, Path(folder))
        print(measure(config, arguments.seconds, folder))


def measure(config, seconds, packed=None):
    """The table.

    Args:
        config: of a pose network.
        seconds: for each way in all.
        packed: a folder that holds the config's data packed, None if there is none.
    """
    loader = Loader(config)
    if any(person.span for person in loader.items):
        raise BadInput(f"data = {config.data} is packed; the simpler ways need photos: give them as data, and the "
                       "packed folder as --packed")
    ways = {
        "plain loop": plain_loop(config, loader.items),
        "one by one": one_by_one(config, loader.items),
        "loader": map(len_of, loader.batches(0, config.batch)),
    }
    if packed:
        ways["loader, packed"] = map(len_of, Loader(replace(config, data=[packed])).batches(0, config.batch))
    rates = collections.defaultdict(list)
    for _ in range(ROUNDS):
        for name, crops in ways.items():
            rate(crops, min(WARM_UP, seconds / ROUNDS))
            rates[name].append(rate(crops, seconds / ROUNDS))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    workers = worker_count(config)
    lines = [f"{len(loader.items)} persons, crops of {'x'.join(map(str, config.input_size))}, {os.cpu_count()} cores, "
             f"load {os.getloadavg()[0]:.1f}", "",
             "| | processes | crops/s | lowest … highest | a process | by the plain loop |",
             "|---|---|---|---|---|---|"]
    for name, median in medians.items():
        processes = 1 if name == "plain loop" else workers
        lines.append(f"| {name} | {processes} | {median:.0f} | {min(rates[name]):.0f} … {max(rates[name]):.0f} | "
                     f"{median / processes:.0f} | {median / medians['plain loop']:.2f} |")
    return "\n".join(lines)


def len_of(batch):
    return len(batch[0])


def rate(crops, seconds):
    """Crops a second of an iterator over numbers of crops."""
    made, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        made += next(crops)
    return made / passed


def plain_loop(config, persons):
    """1 for each crop."""
    pick = sampler(persons, config)
    for number in itertools.count():
        person = persons[pick(number)]
        image = cv2.imread(person.image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None:
            augment_person(image, person, config, np.random.default_rng((config.seed, number)))
            yield 1


def one_by_one(config, persons):
    """The number of crops in each batch."""
    pick = sampler(persons, config)
    context = multiprocessing.get_context("spawn")
    asked, made = context.Queue(), context.Queue()
    asked.cancel_join_thread()  # at the end there is nobody left to take the rest of it
    processes = [context.Process(target=_generate, args=(config, seed, asked, made), daemon=True)
                 for seed in range(worker_count(config))]
    for process in processes:
        process.start()
    for number in range(UNDER_WAY):
        asked.put(persons[pick(number)])
    crops: list[tuple] = []
    try:
        for number in itertools.count(UNDER_WAY):
            crop = made.get(timeout=60)
            asked.put(persons[pick(number)])
            if crop:
                crops.append(crop)
            if len(crops) == config.batch:
                pixels, *_ = [np.asarray(part) for part in zip(*crops, strict=True)]
                yield len(pixels)
                crops.clear()
    except queue.Empty as error:
        raise BadInput(PROCESS_KILLED) from error
    finally:
        for process in processes:
            process.terminate()


def _generate(config, seed, asked, made):
    end_with_parent()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    while True:
        made.put(generate(asked.get(), config, rng))


def generate(person, config, rng):
    """One crop by the steps of TF-SimpleHumanPose's generate_batch.

    Returns:
        Pixels (height, width, 3) float64 less their means, keypoints (K, 2) in crop pixels and which of them are valid
        (K,); or None where the photo cannot be read.
    """
    image = cv2.imread(person.image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        return None
    (centre,), (extent,) = crop_region(person.box, config.input_size, config.padding)
    points, valid = person.keypoints[:, :2].copy(), person.keypoints[:, 2].copy()
    extent = extent * np.clip(rng.normal(1, config.scale), 1 - config.scale, 1 + config.scale)
    turned = rng.random() < config.rotation_chance
    rotation = np.clip(rng.normal(), -2, 2) * config.rotation if turned else 0.0
    if rng.random() < config.flip:
        image = image[:, ::-1, :]
        centre[0] = image.shape[1] - centre[0]
        points[:, 0] = image.shape[1] - 1 - points[:, 0]
        order = SCHEMAS[config.keypoints].flip_order
        points, valid = points[order], valid[order]
    matrix = crop_matrix(centre, extent, config.input_size, rotation)
    pixels = warp_crop(image, matrix, config.input_size) - PIXEL_MEANS
    for index in range(len(points)):
        if valid[index] > 0:
            points[index] = transform_points(points[index], matrix)
            valid[index] *= ((points[index] >= 0) & (points[index] < config.input_size)).all()
    return pixels, points, valid > 0


if __name__ == "__main__":
    run_command(main)
