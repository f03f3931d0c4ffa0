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
    Block,
    Order,
    choose_widths,
    find_blocks,
    main,
    measure,
    narrowed_weights,
    removal_order,
    work,
)

SNAPSHOT = "output/model_dump/tiny/snapshot_003.weights.h5"
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
    """{layer: (cells, channels) float64}."""
    probe = keras.Model(network.inputs[0], {layer: network.get_layer(layer).output for layer in set(layers)})
    return {layer: np.reshape(values, (-1, values.shape[-1])).astype(np.float64)
            for layer, values in probe(pixels.astype(np.float32), training=False).items()}


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


@pytest.mark.parametrize("place", [0, 2, 6, 16])  # Conv1; with a shortcut; with a lateral; neither
def test_outputs_lose_what_was_foretold(place, lively):
    """A network with one block narrowed, beside the whole one on the same inputs; and numpy.linalg.lstsq fits the same
    channels no better."""
    network, batches = lively
    blocks = find_blocks(network)
    block = blocks[place]
    assert len(block.readers) == 1 + (place == 6)
    moments = measure(network, [block], batches)
    order = removal_order(network, block, moments)
    assert sorted(order.channels) == list(range(block.width)) and np.all(np.diff(order.errors) > -1e-9)
    pixels = np.concatenate(batches)
    layers = [layer for reader in block.readers for layer in (reader.source, reader.norm, reader.output)]
    wide = maps(network, layers, pixels)
    for share in (8, 2):
        gone = block.width // share // 8 * 8
        widths = [each.width - gone * (each is block) for each in blocks]
        narrow = build_network(Config(**TINY, expansions=widths))
        narrow.set_weights(narrowed_weights(network, narrow, [block], [order], moments))
        found = maps(narrow, [reader.norm for reader in block.readers], pixels)
        error = fitted_error = 0.0
        for reader in block.readers:
            variance = wide[reader.output].var(0).sum()
            error += np.square(found[reader.norm] - wide[reader.norm]).mean(0).sum() / variance
            known = np.column_stack([wide[reader.source][:, np.sort(order.channels[gone:])],
                                     np.ones(len(wide[reader.source]))])
            fit = np.linalg.lstsq(known, wide[reader.norm], rcond=None)[0]
            fitted_error += np.square(wide[reader.norm] - known @ fit).mean(0).sum() / variance
        assert error == pytest.approx(order.errors[gone], rel=0.05, abs=1e-4)
        assert error == pytest.approx(fitted_error, rel=0.05, abs=1e-4)


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
    """Each step takes 32 channels, 16 of the 32, where the errors that they add are smallest for the work they save."""
    def curve(width, worst):
        return Order(list(range(width)), [worst * (gone / width) ** 2 for gone in range(width + 1)])

    blocks = [Block((), (), 128, 10), Block((), (), 128, 20), Block((), (), 32, 5)]
    orders = [curve(128, 0.1), curve(128, 0.1), curve(32, 1.0)]
    assert work(blocks) == 4000 and work(blocks, [96, 96, 16]) == 2960
    # What a step of the first two adds: 1, 3, 5 of 160; the second saves twice as much by it.
    for keep, widths in ((0.99, [128, 96, 32]), (0.83, [96, 96, 32]), (0.75, [96, 64, 32]), (0.5, [96, 32, 32]),
                         (0.4, [64, 32, 32]), (0.3, [32, 32, 32]), (0.27, [32, 32, 16])):
        assert choose_widths(blocks, orders, keep) == widths, keep
    with pytest.raises(BadInput, match="--keep 0.1 cannot be: as narrow as they may be, the blocks have 0.26 of"):
        choose_widths(blocks, orders, 0.1)
    assert choose_widths([Block((), (), 40, 1)], [curve(40, 1)], 0.7) == [24]  # in groups of 8


def prune(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.run([sys.executable, "-m", "train.prune", *arguments, "--config", "tiny.toml"], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=300)


def test_command_writes_a_run_that_trains_on(tiny_run):
    done = prune(tiny_run, SNAPSHOT, "--keep", "0.8", "--name", "narrow")
    assert done.returncode == 0, done.stderr
    config = json.loads((tiny_run / "output/model_dump/narrow/config.json").read_text())
    file, widths = done.stdout.splitlines()[-2:]
    assert widths == f"expansions={config['expansions']}".replace(" ", "")
    wide, narrow = load_snapshot(tiny_run / "output/model_dump/tiny")[0], load_snapshot(
        tiny_run / "output/model_dump/narrow")[0]
    had, have = (np.array([block.width for block in find_blocks(network)]) for network in (wide, narrow))
    assert list(have) == config["expansions"] and np.all(have <= had)
    share = work(find_blocks(wide), config["expansions"]) / work(find_blocks(wide))
    assert 0.7 < share <= 0.8 and f"narrow/snapshot_001.weights.h5: {share:.0%} of the work of the blocks" in file
    pixels = np.concatenate([np.full((1, 64, 64, 3), grey, np.float32) for grey in (0, 128, 255)])
    assert np.corrcoef(np.ravel(narrow(pixels)), np.ravel(wide(pixels)))[0, 1] > 0.9

    (tiny_run / "narrow.toml").write_text(f'base = "tiny.toml"\nexpansions = {config["expansions"]}\n')
    again = prune(tiny_run, SNAPSHOT, "--like", "narrow.toml", "--name", "narrow_too")
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == widths
    trained = subprocess.run(
        [sys.executable, "-m", "train", "--config", "narrow.toml", "--gpu", "cpu", "--set", "name=narrow_on", "--set",
         "epochs=1", "--set", "init_weights=output/model_dump/narrow/snapshot_001.weights.h5"], cwd=tiny_run,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert (tiny_run / "output/model_dump/narrow_on/snapshot_001.weights.h5").is_file()


@pytest.mark.parametrize("arguments, words", [
    (("--keep", "1.5"), "--keep 1.5 is not between 0 and 1"),
    ((), "one of the arguments --keep --like is required"),
])
def test_shares_that_cannot_be(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prune", "some.h5", "--name", "bad", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("file, arguments, words", [
    ("gone.h5", ("--keep", "0.5"), "no weights at gone.h5"),
    (SNAPSHOT, ("--like", "tiny.toml"), r"has expansions = \[\], the weights \[32, 96.* give a config with 17"),
    (SNAPSHOT, ("--like", "wider.toml"), "144, 999, 192.* none larger than these"),
    (SNAPSHOT, ("--keep", "0.5", "--set", "backbone=resnet50"), "backbone = 'resnet50' cannot be pruned"),
    (SNAPSHOT, ("--keep", "0.5", "--set", "padding=1.5"), "has padding = 1.25, tiny.toml 1.5: give --set padding=1.25"),
    (SNAPSHOT, ("--keep", "0.5", "--name", "tiny"), "holds a run already: give another --name"),
])
def test_bad_input_of_pruning(file, arguments, words, tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    (tiny_run / "wider.toml").write_text(f'base = "tiny.toml"\nexpansions = {[32, 96, 144, 144, 999] + [192] * 12}\n')
    monkeypatch.setattr(sys, "argv", ["prune", file, "--config", "tiny.toml", "--name", "bad", *arguments])
    with pytest.raises(BadInput, match=words):
        main()
    assert not (tiny_run / "output/model_dump/bad").exists()


def test_narrow_backbones_that_cannot_be():
    config = Config(**TINY, expansions=[16] * 17)
    for changes, error, words in (
            (dict(backbone_weights="imagenet"), BackboneWeightsError, "no ImageNet weights are as narrow"),
            (dict(expansions=[16]), BadInput, "'mobilenetv2' and 17 numbers, not 'mobilenetv2' and 1"),
            (dict(backbone="resnet50"), BadInput, "and 17 numbers, not 'resnet50' and 17")):
        with pytest.raises(error, match=words):
            build_network(replace(config, **changes))
    with pytest.raises(BadInput, match="not a list of whole numbers above 0"):
        replace(config, expansions=[0] * 17)
