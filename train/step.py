"""One step of training: gradients on every device, their mean, the optimiser."""

import keras
import tensorflow as tf

from train.detector_loss import person_loss
from train.losses import heatmap_loss, simcc_loss, squared_loss


def loss_of(config):
    """The loss that belongs to a config's network."""
    size = tuple(config.input_size)
    if config.task == "person":
        return person_loss(size)
    if config.head == "simcc":
        return simcc_loss(size)
    kind = squared_loss if config.loss == "squared" else heatmap_loss
    return kind(size, config.sigma, config.aligned_cells)


def training_step(strategy, network, optimizer, config):
    """A function: iterator over the devices' shares of batches → mean loss of one step, a scalar tensor.

    A device takes its share in `config.accumulate` parts, one after the other. Sums and weights are added up over parts
    and devices before anything is divided or clipped, so that several devices compute what one would.
    """
    loss, variables = loss_of(config), network.trainable_variables
    penalty = config.weight_decay if config.optimizer == "adam" else 0.0

    def on_device(pixels, labels):
        replica = tf.distribute.get_replica_context()
        total, weight, gradients = 0.0, 0.0, [tf.zeros_like(variable) for variable in variables]
        parts = zip(tf.split(pixels, config.accumulate), tf.split(labels, config.accumulate), strict=True)
        for part, target in parts:
            with tf.control_dependencies(gradients):  # one after the other, or no memory is saved
                part = tf.cast(part, tf.float32)
            with tf.GradientTape() as tape:
                part_total, part_weight = loss(target, tf.cast(network(part, training=True), tf.float32))
                scaled = optimizer.scale_loss(part_total)
            gradients = [old + new for old, new in zip(gradients, tape.gradient(scaled, variables), strict=True)]
            total, weight = total + part_total, weight + part_weight
        total, weight = replica.all_reduce(tf.distribute.ReduceOp.SUM, [total, weight])
        weight = tf.maximum(weight, 1.0)  # a batch without anybody
        gradients = [gradient / weight for gradient in replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)]
        if penalty:  # half its square on every kernel, as TF-SimpleHumanPose has it
            share = optimizer.scale_loss(tf.constant(penalty))
            gradients = [gradient + share * tf.cast(variable, tf.float32) if variable.name == "kernel" else gradient
                         for gradient, variable in zip(gradients, variables, strict=True)]
        optimizer.apply(gradients, variables)
        return total / weight

    @tf.function
    def step(batches):
        return strategy.experimental_local_results(strategy.run(on_device, args=next(batches)))[0]

    return step


def build_optimizer(config, steps):
    """The optimiser of a config; `steps` are those of an epoch.

    AdamW (Loshchilov and Hutter 2019) decays no norms and biases; Adam (Kingma and Ba 2015) takes the decay as an L2
    penalty on the kernels, in `training_step`. Averaged weights are an exponential moving average.
    """
    common = dict(learning_rate=learning_rate(config, steps), global_clipnorm=config.clip_norm or None,
                  use_ema=config.ema > 0, ema_momentum=config.ema or 0.99)
    optimizer: keras.optimizers.Optimizer
    if config.optimizer == "adamw":
        optimizer = ReducedAdamW(weight_decay=config.weight_decay, **common)
        optimizer.exclude_from_weight_decay(var_names=["beta", "gamma", "bias"])
    else:
        optimizer = ReducedAdam(**common)
    return keras.optimizers.LossScaleOptimizer(optimizer) if config.precision == "mixed_float16" else optimizer


class _Reduced:
    """Takes gradients that are the same on all devices: Keras would sum them once more, after clipping."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class ReducedAdam(_Reduced, keras.optimizers.Adam):
    pass


class ReducedAdamW(_Reduced, keras.optimizers.AdamW):
    pass


def learning_rate(config, steps):
    """The schedule of a config; `steps` are those of an epoch."""
    if config.schedule == "step":
        return WarmupSteps(config.learning_rate, config.warmup_steps, [epoch * steps for epoch in config.step_epochs],
                           config.step_factor)
    return WarmupConstantCosine(config.learning_rate, config.warmup_steps, config.decay_epochs * steps,
                                config.epochs * steps)


class WarmupConstantCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, constant, cosine to zero over the tail. Steps are optimiser steps."""

    def __init__(self, rate, warmup, decay, total):
        self.rate, self.warmup, self.decay, self.total = rate, warmup, decay, total

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        tail = tf.clip_by_value((step - (self.total - self.decay)) / self.decay, 0.0, 1.0)
        return self.rate * tf.minimum((step + 1) / self.warmup, 1.0) * (tf.cos(tail * 3.14159265) + 1) / 2

    def get_config(self):
        return vars(self)


class WarmupSteps(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant, divided by `factor` at each of `drops`. Steps are optimiser steps."""

    def __init__(self, rate, warmup, drops, factor):
        self.rate, self.warmup, self.drops, self.factor = rate, warmup, drops, factor

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        dropped = tf.reduce_sum(tf.cast(step >= tf.constant(self.drops, tf.float32), tf.float32))
        return self.rate * tf.minimum((step + 1) / self.warmup, 1.0) / self.factor ** dropped

    def get_config(self):
        return vars(self)
