"""Batches of training data, made by processes of their own. No TensorFlow, and no state but the sample's number."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np

from runtime.crop import warp_crop
from runtime.errors import BadInput
from runtime.frames import REDUCTIONS
from train.augment import augment_mosaic, augment_photo, distort, draw_crop
from train.datasets import Photo, check_images, load_persons, load_photos, read_stored, sampler

MAX_BOXES = 64  # persons of one input that a detector trains on
PART = 16  # samples that a process makes at a time
AHEAD = 3  # parts that each process may be ahead of the trainer
PROCESS_KILLED = "a process that loads images was killed, as happens where memory runs out; fewer workers= need less"
TRIES = 100  # samples in a row that cannot be read, after which none is expected to be

_samples: "Samples"  # of a process that loads
_pixels: np.ndarray


class Loader:
    """Loads and augments the samples of a config.

    Sample number n is always the same item under the same augmentation, whoever loads it: a run that resumes, or runs
    on other devices, sees the same data in the same order.

    Attributes:
        unreadable: what was wrong with each image skipped so far; more than `config.max_unreadable` are BadInput.
    """

    def __init__(self, config):
        self.config = config
        self.items = load_persons(config) if config.task == "pose" else load_photos(config)
        check_images(self.items)
        self.unreadable: set[str] = set()
        self._pools: list[concurrent.futures.ProcessPoolExecutor] = []

    @property
    def label_shape(self):
        """(K, 3) of keypoints x, y, weight in crop pixels; or (MAX_BOXES, 5) of boxes in input pixels as in
        `train.datasets.Photo`, 0 = none."""
        return self.items[0].keypoints.shape if self.config.task == "pose" else (MAX_BOXES, 5)

    def batches(self, first_sample, size, stride=None):
        """Endless batches: samples first … first + size - 1, then those `stride` further on, and so forth.

        Each call has processes of its own, which end when its iterator is closed or thrown away.

        Args:
            size: samples in a batch.
            stride: from one batch's first sample to the next one's; `size` if None. A larger one leaves the samples
                between to others.

        Yields:
            pixels (size, H, W, 3) uint8 BGR, labels (size, *label_shape) float32.
        """
        starts = range(0, size, PART)
        jobs = ((first + start, min(PART, size - start))
                for first in itertools.count(first_sample, stride or size) for start in starts)
        parts = self._parts(jobs)
        try:
            while True:
                pixels = np.empty((size, *_input_shape(self.config)), np.uint8)
                labels = np.empty((size, *self.label_shape), np.float32)
                for start in starts:
                    part_pixels, part_labels, unreadable = next(parts)
                    self._report(unreadable)
                    pixels[start:start + PART], labels[start:start + PART] = part_pixels, part_labels
                yield pixels, labels
        finally:
            parts.close()

    def _parts(self, jobs):
        """Pixels, labels and unreadable images of each job (first sample, count); good until the next is asked for."""
        workers = worker_count(self.config)
        if not workers:
            samples = Samples(self.config, self.items)
            for first, count in jobs:
                yield samples.part(first, count)
            return
        # Pixels come back through memory that is shared: a pipe takes some 0.3 ms a crop.
        slots = workers * AHEAD
        memory = multiprocessing.RawArray("B", slots * PART * int(np.prod(_input_shape(self.config))))
        pixels = _slots(memory, self.config)
        pool = start_processes(workers, _start_loading, self.config, self.items, memory)
        self._pools.append(pool)
        ahead: collections.deque[tuple] = collections.deque()
        try:
            for slot in itertools.cycle(range(slots)):
                if len(ahead) == slots:  # the oldest one's slot is this one, free when the caller comes back
                    count, future = ahead.popleft()
                    labels, unreadable = future.result()
                    yield pixels[slot, :count], labels, unreadable
                first, count = next(jobs)
                ahead.append((count, pool.submit(_load_part, slot, first, count)))
        except BrokenProcessPool as error:
            raise BadInput(PROCESS_KILLED) from error
        finally:
            self._pools.remove(pool)
            pool.shutdown(cancel_futures=True)  # waits, for memory that they write to must not become another's

    def _report(self, unreadable):
        for reason in sorted(unreadable - self.unreadable):
            print(f"skipped: {reason}", file=sys.stderr)
        self.unreadable |= unreadable
        check_unreadable(self.unreadable, self.config)

    def close(self):
        for pool in list(self._pools):  # an iterator that ends takes its own out
            pool.shutdown(cancel_futures=True)  # waits, for without that Python's own clean-up may hang at exit


class Samples:
    """Sample numbers → pixels and labels."""

    def __init__(self, config, items):
        self.config, self.items = config, items
        self.pick = sampler(items, config)

    def part(self, first, count):
        """Pixels, labels, and what was wrong with the images that could not be read and in whose place come others."""
        unreadable: set[str] = set()
        pixels, labels = zip(*(self.sample(first + index, unreadable) for index in range(count)), strict=True)
        return np.stack(pixels), np.stack(labels), unreadable

    def sample(self, number, unreadable):
        rng = np.random.default_rng((self.config.seed, number))
        for _ in range(TRIES):
            try:
                pixels, labels = self._person(number, rng) if self.config.task == "pose" else self._photo(number, rng)
                return pixels, labels.astype(np.float32)
            except BadInput as error:
                unreadable.add(str(error))
                check_unreadable(unreadable, self.config)
                number = int(rng.integers(1 << 40))
        raise BadInput(f"{TRIES} samples in a row cannot be read, for example: {min(unreadable)}")

    def _person(self, number, rng):
        person = self.items[self.pick(number)]
        matrix, keypoints = draw_crop(person, self.config, rng)
        image, reduction = read_stored(person, reduction_for(np.hypot(*matrix[:, 0])))
        if reduction > 1:  # pixels so much larger, the first one's middle at (reduction - 1) / 2 of the former
            matrix[:, 2] += matrix[:, :2].sum(1) * (reduction - 1) / 2
            matrix[:, :2] *= reduction
        crop = warp_crop(image, matrix, self.config.input_size)
        return distort(crop, self.config, rng), keypoints

    def _photo(self, number, rng):
        mosaic = rng.random() < self.config.mosaic
        numbers = [number, *rng.integers(1 << 40, size=3)] if mosaic else [number]
        images, photos = zip(*(self._reduced_photo(self.items[self.pick(int(each))], mosaic) for each in numbers),
                             strict=True)
        if mosaic:
            pixels, boxes = augment_mosaic(images, photos, self.config, rng)
        else:
            pixels, boxes = augment_photo(images[0], photos[0], self.config, rng)
        return pixels, np.pad(boxes[:MAX_BOXES], ((0, max(0, MAX_BOXES - len(boxes))), (0, 0)))

    def _reduced_photo(self, photo, mosaic):
        """The image of a photo, and the photo with boxes to match, at a size of which no window needs more."""
        reduction = 1
        if photo.size:
            # The nearest that augment._random_window goes; a mosaic's windows may fill their part with some of a photo.
            ratios = np.array(self.config.input_size) / photo.size
            nearest = np.exp(2 * self.config.scale) * self.config.stretch ** 0.5
            reduction = reduction_for((0.6 * max(ratios) if mosaic else min(ratios)) * nearest)
        image, reduction = read_stored(photo, reduction)
        return image, Photo(photo.image, photo.boxes / np.array([reduction] * 4 + [1], np.float32))


def reduction_for(scale):
    """By what an image may be divided if it is then resized by scale · this: no pixel may be stretched over several."""
    return max(reduction for reduction in REDUCTIONS if reduction == 1 or reduction * scale <= 1)


def check_unreadable(reasons, config):
    """BadInput where more images than `config.max_unreadable` have a reason why they cannot be read."""
    if len(reasons) > config.max_unreadable:
        raise BadInput(f"{len(reasons)} images cannot be read (max_unreadable = {config.max_unreadable}), for example: "
                       f"{min(reasons)}")


def worker_count(config):
    return (os.cpu_count() or 1) if config.workers < 0 else config.workers


def start_processes(count, prepare=None, *arguments):
    """Processes that call prepare(*arguments), then what they are given to do; they end when this one does."""
    # Not forked: TensorFlow's threads would be forked in the middle of what they do.
    return concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"),
                                                  initializer=_start, initargs=(prepare, arguments))


def _start(prepare, arguments):
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets its processes end
    end_with_parent()
    if prepare:
        prepare(*arguments)


def end_with_parent():
    """See that this process ends when its parent is killed: it would wait for ever for something to do."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_loading(config, items, memory):
    global _samples, _pixels
    _samples, _pixels = Samples(config, items), _slots(memory, config)


def _load_part(slot, first, count):
    pixels, labels, unreadable = _samples.part(first, count)
    _pixels[slot, :count] = pixels
    return labels, unreadable


def _slots(memory, config):
    return np.frombuffer(memory, np.uint8).reshape(-1, PART, *_input_shape(config))


def _input_shape(config):
    return config.input_size[1], config.input_size[0], 3
