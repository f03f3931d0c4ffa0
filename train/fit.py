"""The training loop."""

import contextlib
import math
import os
import signal
import sys
import time

import keras
import tensorflow as tf

from runtime.errors import BadInput
from train.checkpoint import (
    OUTPUT,
    Place,
    build_network,
    load_weights,
    place_of,
    run_folder,
    save_config,
    save_weights,
)
from train.devices import distributed_batches, writes
from train.loader import Loader
from train.log import Log
from train.sample_picture import INPUTS, write_sample_picture
from train.snapshot import Snapshots, averaged_weights
from train.step import build_optimizer, training_step

SHOWN_EVERY = 1.0  # seconds between two looks at the loss: a look waits for the device


def train(config, strategy, resume=False, evaluate=None):
    """Train to `config.epochs`; after every epoch write a snapshot and what resuming needs.

    SIGTERM and Ctrl-C end it after the step at hand, with a checkpoint from which `resume` goes on at the next one.

    Args:
        strategy: from `train.devices.choose_strategy`.
        resume: go on where the run's folder says.
        evaluate: network → dict of figures for the curve, called with the averaged weights.

    Raises:
        SystemExit: stopped by a signal, with the exit code that belongs to it.
    """
    folder = run_folder(config)
    resume_from = folder / "resume.weights.h5"
    place = place_of(resume_from) if resume_from.is_file() else Place()
    begun = place != Place()
    if begun and not resume:
        raise BadInput(f"{folder} already holds {place}; --continue goes on, another name= starts afresh")
    if resume and not begun:
        print(f"nothing to continue in {folder}: starting from the beginning")
    if place.epoch >= config.epochs:
        print(f"{folder} already has {place.epoch} of {config.epochs} epochs; set more epochs to go on")
        return

    loader = Loader(config)
    try:
        steps = max(1, (config.samples_per_epoch or len(loader.items)) // config.batch)
        keras.utils.set_random_seed(config.seed)
        network, optimizer = _compiled(config, strategy, steps, resume_from if begun else None)
        Run(config, strategy, network, optimizer, loader, steps, place, evaluate).go()
    except tf.errors.UnavailableError as error:
        raise BadInput(f"another machine of TF_CONFIG is gone ({error.message.splitlines()[0]}); start all of them "
                       "again with --continue") from error
    finally:
        loader.close()


def _compiled(config, strategy, steps, resume_from):
    """The network in training precision and its optimiser, on all devices, with the weights that the run has so far."""
    with strategy.scope():
        keras.config.set_dtype_policy(config.precision)
        try:
            network = build_network(config)
        finally:
            keras.config.set_dtype_policy("float32")
        optimizer = build_optimizer(config, steps)
        network.compile(optimizer)
        network.optimizer.build(network.trainable_variables)
        if resume_from:
            load_weights(network, resume_from)
    return network, network.optimizer


class Run:
    """One run, from a place in its data to the end of its last epoch."""

    def __init__(self, config, strategy, network, optimizer, loader, steps, place, evaluate):
        self.config, self.network, self.optimizer, self.steps, self.place = config, network, optimizer, steps, place
        self.folder = run_folder(config)
        self.writes = writes(strategy)
        self.step = training_step(strategy, network, optimizer, config)
        self.batches = distributed_batches(strategy, config, loader, (place.epoch * steps + place.step) * config.batch)
        self.stopped_by = None
        if self.writes:
            save_config(config, self.folder)
            self.snapshots = Snapshots(config, loader, evaluate)
            if place == Place():
                with contextlib.closing(loader.batches(0, INPUTS)) as inputs:
                    pixels, labels = next(inputs)
                write_sample_picture(pixels, labels, config, OUTPUT / "vis" / config.name / "inputs.jpg")
            self.log = Log(config, steps, place)

    def go(self):
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self.place.epoch < self.config.epochs:
                self._epoch()
        except tf.errors.OpError as error:
            _, found, message = (error.message or "").partition("BadInput: ")  # what a loader raised inside tf.data
            if not found:
                raise
            raise BadInput(message.splitlines()[0]) from error
        finally:
            if self.writes:
                self.log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number, frame):
        if self.stopped_by:  # a second Ctrl-C will not wait
            raise KeyboardInterrupt
        self.stopped_by = number

    def _epoch(self):
        """The steps left of this epoch, then its snapshot."""
        epoch = self.place.epoch
        total, shown, saved = tf.constant(self.place.loss), 0.0, time.monotonic()
        for step in range(self.place.step, self.steps):
            total += self.step(self.batches)
            self.place = Place(epoch, step + 1, total)
            now = time.monotonic()
            if now - shown > SHOWN_EVERY or step + 1 == self.steps:
                self._show()
                shown = now
            if self.stopped_by:
                self._save("resume")
                print(f"stopped in epoch {epoch + 1} after step {step + 1} of {self.steps}; --continue goes on there",
                      file=sys.stderr)
                raise SystemExit(128 + self.stopped_by)
            if now - saved > 60 * self.config.checkpoint_minutes and step + 1 < self.steps:
                self._save("resume")
                saved = now
        self.place = Place(epoch + 1)
        self._save("resume_next")
        weights = averaged_weights(self.network, self.optimizer)
        if not self.writes:
            return
        figures = self.snapshots.take(weights, epoch + 1)
        self.log.epoch(epoch + 1, float(total) / self.steps, figures)
        # Last, for this is what says that the epoch is done.
        os.replace(self.folder / "resume_next.weights.h5", self.folder / "resume.weights.h5")

    def _show(self):
        loss = float(self.place.loss) / self.place.step
        if not math.isfinite(loss):
            raise BadInput("the loss is no longer a number; --continue with a lower learning_rate goes on from the "
                           "last checkpoint, which is whole")
        if self.writes:
            self.log.step(self.place, loss, float(self.optimizer.learning_rate))

    def _save(self, name):
        if self.writes:
            save_weights(self.network, self.folder / f"{name}.weights.h5", self.place)

