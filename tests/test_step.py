"""One step of training: schedules, penalty, parts of a batch, several devices; against one plain step."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from train.config import Config  # noqa: E402
from train.snapshot import averaged_weights  # noqa: E402
from train.step import build_optimizer, learning_rate, training_step  # noqa: E402

# On import, that is before any test has started TensorFlow, which then takes no more devices.
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)

SIZE = [32, 32]
TINY = dict(input_size=SIZE, keypoints="coco", warmup_steps=1, decay_epochs=1, epochs=10, batch=8, ema=0.9)


def tiny_network(norm, seed=1):
    """(B, 32, 32, 3) → (B, 17, 8, 8)."""
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 4, strides=4, use_bias=False)(keras.layers.Rescaling(1 / 255)(pixels))
    if norm:
        x = keras.layers.BatchNormalization(synchronized=True, momentum=0.9)(x)
    x = keras.layers.Conv2D(17, 3, padding="same")(keras.layers.ReLU()(x))
    return keras.Model(pixels, keras.layers.Permute((3, 1, 2))(x))


def some_batches(count=6, size=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, 32, 32, 3), np.uint8)
    # Keypoints of uneven weight: the mean over parts is not the mean of the parts' means.
    labels = np.concatenate([rng.uniform(0, 32, (count, size, 17, 2)), rng.random((count, size, 17, 1)) ** 3], 3)
    return pixels, labels.astype(np.float32)


def run(config, strategy=None, norm=False):
    """Losses of six steps, and the network after them."""
    strategy = strategy or tf.distribute.get_strategy()
    pixels, labels = some_batches()
    share = 8 // strategy.num_replicas_in_sync
    with strategy.scope():
        network = tiny_network(norm)
        network.compile(build_optimizer(config, steps=4))
        network.optimizer.build(network.trainable_variables)
    step = training_step(strategy, network, network.optimizer, config)
    flat = tf.data.Dataset.from_tensor_slices((pixels.reshape(-1, share, 32, 32, 3), labels.reshape(-1, share, 17, 3)))
    batches = iter(strategy.distribute_datasets_from_function(lambda context: flat))
    return [float(step(batches)) for _ in range(6)], network


@pytest.fixture(scope="module")
def two_devices():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize("changes", [
    {}, {"clip_norm": 0.05}, {"optimizer": "adam", "weight_decay": 0.1, "ema": 0.0}, {"loss": "squared"},
], ids=["adamw", "clipped", "adam with penalty", "squared loss"])
def test_two_devices_compute_what_one_does(two_devices, changes):
    config = Config(**{**TINY, **changes})
    one, network = run(config, norm=True)
    two, mirrored = run(config, two_devices, norm=True)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    for ours, theirs in zip(mirrored.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_parts_of_a_batch_compute_what_the_whole_does(two_devices):
    whole, network = run(Config(**TINY))
    for strategy, parts in ((None, 4), (two_devices, 2)):
        split, same = run(Config(**TINY, accumulate=parts), strategy)
        np.testing.assert_allclose(split, whole, rtol=1e-5)
        for ours, theirs in zip(same.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_adam_s_decay_is_an_l2_penalty_on_kernels():
    """One step from zero moments moves a weight by the learning rate, along the sign of gradient plus penalty."""
    config = Config(**{**TINY, "optimizer": "adam", "weight_decay": 1e6, "clip_norm": 0.0, "ema": 0.0})
    before = tiny_network(norm=True)
    pixels, labels = some_batches(1)
    network = tiny_network(norm=True)
    network.compile(build_optimizer(config, steps=4))
    step = training_step(tf.distribute.get_strategy(), network, network.optimizer, config)
    step(iter(tf.data.Dataset.from_tensor_slices((pixels, labels))))
    for new, old in zip(network.trainable_variables, before.trainable_variables, strict=True):
        moved = new.numpy() - old.numpy()
        if new.name == "kernel":  # the penalty outweighs any gradient
            np.testing.assert_allclose(moved, -config.learning_rate * np.sign(old.numpy()), rtol=1e-2)
    gamma = next(variable for variable in network.trainable_variables if variable.name == "gamma")
    assert (gamma.numpy() > 1 - 2 * config.learning_rate).all(), "norms are not decayed"


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_like_float32(precision, devices, two_devices):
    strategy = two_devices if devices == 2 else None
    exact, exact_network = run(Config(**TINY), strategy)
    keras.config.set_dtype_policy(precision)
    try:
        rough, network = run(Config(**TINY, precision=precision), strategy)
    finally:
        keras.config.set_dtype_policy("float32")
    kept = network.get_weights()
    averages = averaged_weights(network, network.optimizer)
    for now, before in zip(network.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, before)
    exact_averages = averaged_weights(exact_network, exact_network.optimizer)
    for ours, theirs, raw in zip(averages, exact_averages, kept, strict=True):
        if ours.ndim > 1:  # biases: the last one does not matter to a softmax, Adam makes steps of rounding errors
            assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs - raw)
    assert network.layers[2].compute_dtype == precision.removeprefix("mixed_")
    assert isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    np.testing.assert_allclose(rough, exact, rtol=0.02)
    assert rough[0] != exact[0]


def test_step_schedule_is_the_seed_s():
    rate = learning_rate(Config(schedule="step", learning_rate=5e-4, warmup_steps=1, step_epochs=[90, 120]), steps=10)
    epochs = {0: 5e-4, 89: 5e-4, 90: 5e-5, 119: 5e-5, 120: 5e-6, 139: 5e-6}
    for epoch, expected in epochs.items():
        assert float(rate(epoch * 10)) == pytest.approx(expected), epoch
    assert float(rate(899)) == pytest.approx(5e-4) and float(rate(900)) == pytest.approx(5e-5)


def test_cosine_schedule_warms_up_holds_and_ends_at_zero():
    rate = learning_rate(Config(learning_rate=1e-3, warmup_steps=10, epochs=20, decay_epochs=5), steps=10)
    assert [float(rate(step)) for step in (0, 4, 9, 100, 149)] == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3, 1e-3])
    assert float(rate(175)) == pytest.approx(5e-4) and float(rate(200)) == pytest.approx(0, abs=1e-9)
