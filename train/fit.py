"""The training loop: data, network, loss, callbacks."""

import csv
import math
import os
import re
import time

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from runtime.errors import BadInput
from train.checkpoint import (
    OUTPUT,
    build_network,
    epoch_of,
    load_weights,
    run_folder,
    save_config,
    save_weights,
    snapshot_path,
)
from train.datasets import training_data
from train.detector_loss import person_loss
from train.losses import heatmap_loss, simcc_loss

STATISTICS_SAMPLES = 640  # on which the batch norms of averaged weights are measured


def choose_devices(gpus):
    """Make TensorFlow see the GPUs asked for only.

    Args:
        gpus: "0,1" or "0-1" for GPU numbers, "cpu" for none.

    Returns:
        tf.distribute.Strategy over them.
    """
    present = tf.config.list_physical_devices("GPU")
    if gpus == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return tf.distribute.get_strategy()
    try:
        numbers = [number for part in gpus.split(",") for number in _range(part)]
    except ValueError:
        raise BadInput(f"GPUs {gpus!r} are neither numbers such as 0,1 or 0-1 nor 'cpu'") from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise BadInput(f"GPUs {gpus!r} name {'one twice' if numbers else 'none'}; write for example 0,1 or 0-1")
    missing = [number for number in numbers if number >= len(present)]
    if missing:
        raise BadInput(f"GPU {', '.join(map(str, missing))} asked for, but TensorFlow sees {len(present) or 'none'}; "
                       "use GPUS=cpu (--gpu cpu), or install tensorflow[and-cuda] where there is an NVIDIA GPU")
    tf.config.set_visible_devices([present[number] for number in numbers], "GPU")
    names = [f"GPU:{index}" for index in range(len(numbers))]
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()


def _range(part):
    first, dash, last = part.partition("-")
    return range(int(first), int(last if dash else first) + 1)


class WarmupConstantCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, constant, cosine to zero over the tail. Steps are optimiser steps."""

    def __init__(self, rate, warmup, decay, total):
        self.rate, self.warmup, self.decay, self.total = rate, warmup, decay, total

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        tail = tf.clip_by_value((step - (self.total - self.decay)) / self.decay, 0.0, 1.0)
        return self.rate * tf.minimum((step + 1) / self.warmup, 1.0) * (tf.cos(tail * 3.14159265) + 1) / 2

    def get_config(self):
        return dict(rate=self.rate, warmup=self.warmup, decay=self.decay, total=self.total)


def loss_of(config):
    """The loss that belongs to a config's network."""
    size = tuple(config.input_size)
    if config.task == "person":
        return person_loss(size)
    if config.head == "simcc":
        return simcc_loss(size)
    return heatmap_loss(size, config.sigma)


def train(config, strategy, resume=False, evaluate=None):
    """Train to `config.epochs`; after every epoch write a snapshot and what resuming needs.

    Args:
        strategy: from `choose_devices`.
        resume: go on after the last epoch in the run's folder.
        evaluate: network → dict of figures for the curve, called with the averaged weights after each epoch.
    """
    folder = run_folder(config)
    resume_from = folder / "resume.weights.h5"
    done = epoch_of(resume_from) if resume_from.is_file() else 0
    if done and not resume:
        raise BadInput(f"{folder} already holds {done} epochs; --continue goes on, another name= starts afresh")
    if resume and not done:
        print(f"nothing to continue in {folder}: starting from the beginning")
    if done >= config.epochs:
        print(f"{folder} already has {done} of {config.epochs} epochs; set more epochs to go on")
        return

    keras.utils.set_random_seed(config.seed)
    steps = max(1, config.samples_per_epoch // config.batch)
    with strategy.scope():
        network = build_network(config)
        network.compile(optimizer(config, steps), loss_of(config))
        if done:
            network.optimizer.build(network.trainable_variables)
            load_weights(network, resume_from)
    save_config(config, folder)
    data = training_data(config, first_sample=done * steps * config.batch)
    progress = Progress(config, steps, done)
    try:
        network.fit(data, initial_epoch=done, epochs=config.epochs, steps_per_epoch=steps, verbose=0, callbacks=[
            RawWeights(folder),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),  # the next one sees the averaged weights
            Snapshot(config, folder, evaluate),
            progress,
        ])
    except tf.errors.InvalidArgumentError as error:  # what tf.data makes of a BadInput inside it
        named = re.search(r"BadInput: (.+)", error.message)
        if not named:
            raise
        raise BadInput(named[1]) from None
    finally:
        progress.bar.close()


def optimizer(config, steps):
    """AdamW (Loshchilov and Hutter 2019) without decay on norms and biases, with averaged weights."""
    schedule = WarmupConstantCosine(config.learning_rate, config.warmup_steps, config.decay_epochs * steps,
                                    config.epochs * steps)
    adamw = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm,
                                   use_ema=True, ema_momentum=config.ema)
    adamw.exclude_from_weight_decay(var_names=["beta", "gamma", "bias"])
    return adamw


class RawWeights(keras.callbacks.Callback):
    """Raw weights and optimiser state after every epoch, under a name that counts only once the snapshot is written."""

    def __init__(self, folder):
        super().__init__()
        self.path = folder / "resume_next.weights.h5"

    def on_epoch_end(self, epoch, logs=None):
        save_weights(self.model, self.path, epoch + 1)


class Snapshot(keras.callbacks.Callback):
    """Averaged weights, figures and curves, every epoch.

    The batch norms' means and variances that were gathered while training belong to the raw weights; averaged weights
    get their own, measured on real batches (Izmailov et al. 2018). On the bundled pose network that was worth 9 points
    of AP before the learning rate decayed.
    """

    def __init__(self, config, folder, evaluate):
        super().__init__()
        self.config, self.folder, self.evaluate = config, folder, evaluate
        self.averaged = build_network(config)  # on one device, without optimiser
        self.norms = [layer for layer in self.averaged.layers
                      if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
        for norm in self.norms:
            norm.momentum = 0.0  # every batch leaves its own statistics
        self.forward = tf.function(lambda pixels: self.averaged(tf.cast(pixels, tf.float32), training=True))
        samples = min(STATISTICS_SAMPLES, config.samples_per_epoch)
        self.batches = training_data(config).take(max(1, samples // config.batch))

    def on_epoch_end(self, epoch, logs=None):
        self.averaged.set_weights(self.model.get_weights())
        self.measure_statistics()
        figures = {"epoch": epoch + 1, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "loss": round(logs["loss"], 5)}
        if self.evaluate:
            figures.update(self.evaluate(self.averaged))
        save_weights(self.averaged, snapshot_path(self.folder, epoch + 1), epoch + 1)
        history = OUTPUT / "log" / self.config.name / "history.csv"
        append_history(history, figures)
        plot_history(history)
        # Last, for this is what says that the epoch is done.
        os.replace(self.folder / "resume_next.weights.h5", self.folder / "resume.weights.h5")
        tqdm.write(", ".join(f"{key} {value}" for key, value in figures.items()))

    def measure_statistics(self):
        statistics = []
        for pixels, _ in self.batches:
            self.forward(pixels)
            statistics.append([np.stack([norm.moving_mean, norm.moving_variance]) for norm in self.norms])
        for norm, values in zip(self.norms, zip(*statistics, strict=True), strict=True):
            mean, variance = np.mean(values, axis=0)
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)


def append_history(path, figures):
    """Add a row to a CSV file; rows of later epochs, from a run that was cut off, give way to it."""
    rows = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < figures["epoch"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in [*rows, figures] for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows([*rows, figures])


def plot_history(path):
    """Draw the curves of a history.csv beside it: one panel a figure, over epochs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("epoch", "time")]
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False)
    for name, panel in zip(names, panels[0], strict=True):
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        panel.set(title=name, xlabel="epoch")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path.with_name("curves.png"), dpi=100)
    pyplot.close(figure)


class Progress(keras.callbacks.Callback):
    """A bar over all that is left of the run: images/s, time left, loss. Stops where the loss is no number."""

    def __init__(self, config, steps, done):
        super().__init__()
        self.config = config
        images = steps * config.batch
        self.bar = tqdm(total=config.epochs * images, initial=done * images, unit=" images",
                        unit_scale=True, dynamic_ncols=True, mininterval=1)

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.set_description(f"epoch {epoch + 1}/{self.config.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise BadInput("the loss is no longer a number; --continue with a lower learning_rate goes on from the "
                           "last epoch, which is whole")
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update(self.config.batch)
