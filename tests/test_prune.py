"""`python -m train.prune`: which channels go, what those that stay take over, and the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("tensorflow")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from runtime.errors import BadInput  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from train.backbone import EXPANDING, BackboneWeightsError  # noqa: E402
from train.checkpoint import build_network, load_snapshot  # noqa: E402
from train.config import Config  # noqa: E402
from train.prune import (  # noqa: E402
    RIDGE,
    Block,
    Order,
    choose_widths,
    find_blocks,
    measure,
    narrowed_weights,
    removal_order,
    work,
)

TINY = dict(input_size=[64, 64], backbone_weights="", attention_blocks=1, attention_width=32, decoder_width=16)


@pytest.fixture(scope="module")
def lively():
    """Batches of pixels, and an untrained pose network whose channels differ as those of a trained one do."""
    keras.utils.set_random_seed(0)
    network = build_network(Config(**TINY))
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (16, 64, 64, 3), np.uint8) for _ in range(6)]
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:  # statistics of these inputs, so that no map is all but constant
        norm.momentum = 0.0
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.5, norm.beta.shape))
    network(batches[0].astype(np.float32), training=True)
    return network, batches


def maps(network, layers, pixels):
    probe = keras.Model(network.inputs[0], [network.get_layer(layer).output for layer in layers])
    return [np.reshape(values, (-1, values.shape[-1])).astype(np.float64)
            for values in probe(pixels.astype(np.float32), training=False)]


def test_blocks_are_those_of_the_backbone_with_all_who_read_them():
    pose, person = build_network(Config(**TINY)), build_network(Config(task="person", **TINY))
    for network, strides in ((pose, (4, 8, 16)), (person, (8, 16))):
        blocks = find_blocks(network)
        assert [block.makers[0] for block in blocks] == list(EXPANDING)
        assert [block.width for block in blocks[:4]] == [32, 96, 144, 144] and blocks[-1].width == 960
        laterals = [reader.convolution for block in blocks for reader in block.readers[1:]]
        assert laterals == [f"lateral{stride}_conv" for stride in strides]
    # block_1, of the pose net: 32x32 cells make 96 channels of 16, 16x16 filter them and project them to 24.
    assert find_blocks(pose)[1].work == 32 * 32 * (16 + 12) + 16 * 16 * (9 + 12 + 24)


def test_losses_are_those_of_least_squares(lively):
    """An independent fit, by numpy.linalg.lstsq over the maps themselves, leaves the errors that were foretold."""
    network, batches = lively
    block = find_blocks(network)[6]  # with a lateral, and no shortcut
    assert len(block.readers) == 2
    moments = measure(network, [block], batches)
    order = removal_order(network, block, moments)
    assert sorted(order.channels) == list(range(block.width)) and np.all(np.diff(order.errors) > -1e-9)
    pixels = np.concatenate(batches)
    for gone in (16, 64, 128):
        kept = np.sort(order.channels[gone:])
        error = 0.0
        for reader in block.readers:
            source, output = maps(network, (reader.source, reader.output), pixels)
            norm = network.get_layer(reader.norm)
            gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            target = source @ network.get_layer(reader.convolution).kernel.numpy()[0, 0] * gain
            known = np.column_stack([source[:, kept], np.ones(len(source))])
            fit = np.linalg.lstsq(known, target, rcond=None)[0]
            error += np.square(target - known @ fit).mean(0).sum() / output.var(0).sum()
        assert order.errors[gone] == pytest.approx(error, rel=0.02, abs=50 * RIDGE)


def test_channels_that_say_the_same_go_for_nothing(lively):
    """With every channel there twice, half of them can go from all blocks, and the network answers as before."""
    network, batches = lively
    network = keras.models.clone_model(network)
    network.set_weights(lively[0].get_weights())
    blocks = find_blocks(network)
    for block in blocks:
        half = block.width // 2
        for name in block.makers:
            layer = network.get_layer(name)
            axis = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else -1
            layer.set_weights([np.concatenate([np.take(values, range(half), axis)] * 2, axis)
                               for values in layer.get_weights()])
    moments = measure(network, blocks, batches)
    orders = [removal_order(network, block, moments) for block in blocks]
    narrow = build_network(Config(**TINY, expansions=[block.width // 2 for block in blocks]))
    narrow.set_weights(narrowed_weights(network, narrow, blocks, orders, moments))
    assert narrow.count_params() < 0.6 * network.count_params()
    pixels = batches[0].astype(np.float32)
    expected = np.asarray(network(pixels))
    np.testing.assert_allclose(narrow(pixels), expected, atol=0.01 * expected.std())

    for block, order in zip(blocks, orders, strict=True):  # both twins of half of them instead
        order.channels.sort(key=lambda channel: channel % (block.width // 2))
    narrow.set_weights(narrowed_weights(network, narrow, blocks, orders, moments))
    assert np.abs(narrow(pixels) - expected).max() > 0.1 * expected.std(), "nothing replaces both twins"


def test_the_cheapest_channels_go_until_so_much_work_is_left():
    blocks = [Block((), (), 128, 10), Block((), (), 96, 10), Block((), (), 32, 5)]
    cheap, dear = np.linspace(0, 0.1, 129), np.linspace(0, 10, 97)
    orders = [Order(list(range(128)), list(cheap)), Order(list(range(96)), list(dear)),
              Order(list(range(32)), list(np.linspace(0, 0.001, 33)))]
    assert work(blocks) == 2400 and work(blocks, [96, 96, 16]) == 2000
    assert choose_widths(blocks, orders, 0.99) == [128, 96, 16]  # by 16 where there are but 32
    assert choose_widths(blocks, orders, 0.84) == [96, 96, 16]
    assert choose_widths(blocks, orders, 0.6) == [32, 96, 16]
    assert choose_widths(blocks, orders, 0.3) == [32, 32, 16]  # and none goes altogether


def prune(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.run([sys.executable, "-m", "train.prune", *arguments, "--config", "tiny.toml"], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=300)


def test_command_writes_a_run_that_trains_on(tiny_run):
    snapshot = "output/model_dump/tiny/snapshot_003.weights.h5"
    done = prune(tiny_run, snapshot, "--keep", "0.8", "--name", "narrow")
    assert done.returncode == 0, done.stderr
    config = json.loads((tiny_run / "output/model_dump/narrow/config.json").read_text())
    file, widths = done.stdout.splitlines()[-2:]
    assert "narrow/snapshot_001.weights.h5: 7" in file and "% of the work of the blocks" in file
    assert widths == f"expansions={config['expansions']}".replace(" ", "")
    wide, narrow = load_snapshot(tiny_run / "output/model_dump/tiny")[0], load_snapshot(
        tiny_run / "output/model_dump/narrow")[0]
    had, have = (np.array([block.width for block in find_blocks(network)]) for network in (wide, narrow))
    assert list(have) == config["expansions"] and np.all(have <= had) and have.sum() < had.sum()
    pixels = np.concatenate([np.full((1, 64, 64, 3), grey, np.float32) for grey in (0, 128, 255)])
    assert np.corrcoef(np.ravel(narrow(pixels)), np.ravel(wide(pixels)))[0, 1] > 0.9

    (tiny_run / "narrow.toml").write_text(f'base = "tiny.toml"\nexpansions = {config["expansions"]}\n')
    again = prune(tiny_run, snapshot, "--like", "narrow.toml", "--name", "narrow_too")
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == widths
    trained = subprocess.run(
        [sys.executable, "-m", "train", "--config", "narrow.toml", "--gpu", "cpu", "--set", "name=narrow_on", "--set",
         "epochs=1", "--set", "init_weights=output/model_dump/narrow/snapshot_001.weights.h5"], cwd=tiny_run,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert (tiny_run / "output/model_dump/narrow_on/snapshot_001.weights.h5").is_file()


def test_bad_input_of_pruning(tiny_run):
    snapshot = "output/model_dump/tiny/snapshot_003.weights.h5"
    (tiny_run / "wider.toml").write_text(f'base = "tiny.toml"\nexpansions = {[32, 96, 144, 144, 999] + [192] * 12}\n')
    for arguments, words in (
            ((snapshot,), "one of the arguments --keep --like is required"),
            ((snapshot, "--keep", "1.5"), "--keep 1.5 is not between 0 and 1"),
            (("gone.h5", "--keep", "0.5"), "no weights at gone.h5"),
            ((snapshot, "--like", "tiny.toml"), "tiny.toml has expansions = [], which the weights' [32, 96"),
            ((snapshot, "--like", "wider.toml"), "144, 999, 192"),
            ((snapshot, "--keep", "0.5", "--set", "backbone=resnet50"), "backbone = 'resnet50' cannot be pruned")):
        done = prune(tiny_run, *arguments, "--name", "bad")
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    done = prune(tiny_run, snapshot, "--keep", "0.5", "--name", "tiny")
    assert done.returncode == 2 and "holds a run already: give another --name" in done.stderr
    assert not (tiny_run / "output/model_dump/bad").exists()


def test_narrow_backbones_that_cannot_be():
    config = Config(**TINY, expansions=[16] * 17)
    for changes, error, words in (
            (dict(backbone_weights="imagenet"), BackboneWeightsError, "no ImageNet weights are as narrow"),
            (dict(expansions=[16]), BadInput, r"expansions = \[16\] are not the 17 widths of mobilenetv2"),
            (dict(backbone="resnet50"), BadInput, "are not the 17 widths of mobilenetv2")):
        with pytest.raises(error, match=words):
            build_network(replace(config, **changes))
    with pytest.raises(BadInput, match="not a list of whole numbers above 0"):
        replace(config, expansions=[0] * 17)
