"""Configs: the project's own, the defaults of TF-SimpleHumanPose, and mistakes."""

from pathlib import Path

import pytest

from runtime.errors import BadInput
from train.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("override, words", [
    ("batch=0", "batch = 0 is less than 1"),
    ("input_size=[192]", "not .width, height. in multiples of 32"),
    ("data=[1]", "not a list of folders"),
    ("padding=0.9", "padding = 0.9 is less than 1"),
    ("stretch=1e999", "stretch = inf is .*not finite"),
    ("learning_rat=1", "unknown key 'learning_rat'"),
    ("epochs=many", "epochs = 'many' should be of type int"),
    ("task=cat", "task = 'cat' is none of pose, person"),
    ("loss=absolute", "loss = 'absolute' is none of cross_entropy, squared"),
    ("keypoints=halpe", "keypoints = 'halpe' is none of coco, mpii, posetrack"),
    ("epochs", "has no '='"),
])
def test_config_mistakes_are_named(override, words):
    with pytest.raises(BadInput, match=words):
        load_config(ROOT / "configs/pose.toml", [override])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid(path):
    assert load_config(path).task == ("person" if path.stem.startswith("person") else "pose")


@pytest.mark.parametrize("name, keypoints", [("COCO", "coco"), ("MPII", "mpii"), ("PoseTrack", "posetrack")])
def test_the_defaults_are_those_of_tf_simple_human_pose(name, keypoints):
    """main/config.py and main/gen_batch.py of mks0601/TF-SimpleHumanPose."""
    config = load_config(ROOT / f"configs/{name.lower()}.toml")
    assert (config.name, config.keypoints) == (name, keypoints)
    assert config.backbone == "resnet_v1_50" and config.decoder == "deconvolution" and config.decoder_width == 256
    assert config.input_size == [192, 256] and config.sigma == 2 and config.loss == "squared"
    assert config.optimizer == "adam" and config.weight_decay == 1e-5 and config.batch == 32
    assert (config.ema, config.clip_norm, config.attention_blocks, config.freeze_stem) == (0, 0, 0, False)
    assert (config.scale, config.rotation, config.rotation_chance, config.flip) == (0.3, 40, 0.6, 0.5)
    schedule = config.learning_rate, config.step_epochs, config.step_factor, config.epochs
    # On PoseTrack its README goes on from the network trained on COCO: epochs 140 to 160 at a tenth of the rate.
    assert schedule == ((5e-5, [10, 15], 10, 20) if name == "PoseTrack" else (5e-4, [90, 120], 10, 140))
    larger = load_config(ROOT / f"configs/{name.lower()}.toml", ["input_size=[288, 384]", "sigma=3"])
    assert larger.input_size == [288, 384] and larger.sigma == 3


def test_a_config_takes_what_it_does_not_say_from_its_base(tmp_path):
    (tmp_path / "coco.toml").write_text("batch = 64\nsigma = 3\n")
    (tmp_path / "mpii.toml").write_text('base = "coco.toml"\nkeypoints = "mpii"\nbatch = 16\n')
    config = load_config(tmp_path / "mpii.toml", ["epochs=7"])
    assert (config.keypoints, config.batch, config.sigma, config.epochs) == ("mpii", 16, 3.0, 7)


@pytest.mark.parametrize("base", ['"b.toml"', '"a.toml"', "3", "[]"])
def test_a_base_that_is_none_is_named(tmp_path, base):
    (tmp_path / "a.toml").write_text(f"base = {base}\n")
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(BadInput, match="base = .* is not the name of another config beside it"):
        load_config(tmp_path / "a.toml")
