"""What an epoch leaves behind: averaged weights with batch-norm statistics of their own, and their figures."""

import itertools
import os
import shutil
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from runtime.errors import BadInput
from train.checkpoint import (
    OUTPUT,
    Place,
    best_path,
    build_network,
    run_folder,
    save_config,
    save_weights,
    snapshot_path,
    snapshots,
)
from train.log import read_history

STATISTICS_SAMPLES = 640  # on which the batch norms of averaged weights are measured


def averaged_weights(network, optimizer):
    """The weights that the optimiser's moving average has, or the network's own if it keeps none: list of arrays."""
    raw = network.get_weights()
    optimizer.finalize_variable_values(network.trainable_variables)
    averaged = network.get_weights()
    network.set_weights(raw)
    return averaged


def real_batches(loader, samples=STATISTICS_SAMPLES):
    """So many inputs of a loader, no more than an epoch has: list of (B, H, W, 3) uint8."""
    config = loader.config
    count = max(1, min(samples, config.samples_per_epoch or samples) // config.batch)
    return [pixels for pixels, _ in itertools.islice(loader.batches(0, config.batch), count)]


def new_run(config, name, **changes):
    """The config of a run that is not trained but made of other weights, in one snapshot; BadInput where it exists."""
    # Statistics are measured whether or not the weights were averaged while they were trained.
    config = replace(config, name=name, epochs=1, ema=config.ema or 0.999, **changes)
    if snapshots(run_folder(config)):
        raise BadInput(f"{run_folder(config)} holds a run already: give another --name, or remove it")
    return config


def write_run(config, weights, loader, evaluate):
    """Write the one snapshot of a `new_run`; arguments as of `Snapshots`. Returns its path and figures."""
    save_config(config, run_folder(config))
    figures = Snapshots(config, loader, evaluate).take(weights, 1)
    return snapshot_path(run_folder(config), 1), figures


class Snapshots:
    """Takes the snapshots of a run.

    The batch norms' means and variances that were gathered while training belong to the raw weights; averaged weights
    get their own, measured on real batches (Izmailov et al. 2018). On the bundled pose network that was worth 9 points
    of AP before the learning rate decayed.

    Args:
        evaluate: network → dict of figures, or None.
    """

    def __init__(self, config, loader, evaluate):
        self.config, self.loader, self.evaluate = config, loader, evaluate
        self.folder = run_folder(config)
        self.network = build_network(config)  # on one device, in float32
        self.norms = [layer for layer in self.network.layers
                      if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
        self.batches = None

    def take(self, weights, epoch):
        """Write the snapshot of an epoch and return its figures; the best one so far is also best.weights.h5."""
        self.network.set_weights(weights)
        if self.config.ema:
            self._measure_statistics()
        path = snapshot_path(self.folder, epoch)
        save_weights(self.network, path, Place(epoch))
        last = epoch == self.config.epochs
        if not self.evaluate or (epoch % self.config.validate_every and not last):
            return {}
        figures = self.evaluate(self.network)
        earlier = read_history(OUTPUT / "log" / self.config.name / "history.csv", epoch)
        if "AP" in figures and figures["AP"] >= max((float(row["AP"]) for row in earlier if row.get("AP")), default=0):
            shutil.copyfile(path, self.folder / "partial.weights.h5")
            os.replace(self.folder / "partial.weights.h5", best_path(self.folder))
        return figures

    def _measure_statistics(self):
        if self.batches is None:
            self.batches = real_batches(self.loader)
            for norm in self.norms:
                norm.momentum = 0.0  # every batch leaves its own statistics
            self.forward = tf.function(lambda pixels: self.network(tf.cast(pixels, tf.float32), training=True))
        statistics = []
        for pixels in self.batches:
            self.forward(pixels)
            statistics.append([np.stack([norm.moving_mean, norm.moving_variance]) for norm in self.norms])
        for norm, values in zip(self.norms, zip(*statistics, strict=True), strict=True):
            mean, variance = np.mean(values, axis=0)
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
