"""Packed persons are the persons of the photos: same order, same places, same pixels but for JPEG; and bad input."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import BadInput
from tests.test_loader import ROOT, assert_same, break_images, take, write_people
from train import pack as pack_module
from train.augment import augment_person
from train.config import Config
from train.datasets import load_persons, load_photos, read_stored, sampler
from train.pack import needed_scale, pack

SIZES = [(640, 480), (160, 120), (1603, 1202), (640, 427)]  # of photos, some larger than training needs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("photos") / "data", SIZES)


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "data"
    assert pack(config_of(photos), out)[:2] == (8, 1)
    return out


def config_of(folder, **settings):
    return Config(**{"data": [str(folder)], "workers": 0, "half_body": 0.3, "shift": 0.02, **settings})


def test_crops_are_those_of_the_photos(photos, packed):
    plain = dict(occlusion=0.0, low_resolution=0.0, colour=0.0)
    config = config_of(photos, **plain)
    originals, persons = load_persons(config), load_persons(config_of(packed, **plain))
    assert len(originals) == len(persons) == 8
    differences, missing = [], []
    for original, person in zip(originals, persons, strict=True):
        photo, stored = read_stored(original)[0], read_stored(person)[0]
        assert stored.shape[1::-1] == person.size
        np.testing.assert_array_equal(person.keypoints[:, 2], original.keypoints[:, 2])
        assert (original.keypoints[:, 2] < 1).any(), "the labels' confidence is what should survive"
        for seed in range(6):
            expected, places = augment_person(photo, original, config, np.random.default_rng(seed))
            crop, keypoints = augment_person(stored, person, config, np.random.default_rng(seed))
            np.testing.assert_allclose(keypoints[:, :2], places[:, :2], atol=0.5)
            inside = cv2.erode(crop.max(-1).clip(0, 1), np.ones((5, 5))) > 0  # beyond the margin it is black
            differences.append(np.abs(crop.astype(int) - expected)[inside].mean())
            missing.append((expected.any(-1) & ~crop.any(-1)).mean())
    assert np.mean(differences) < 1.7 and max(differences) < 3 and np.mean(missing) < 0.01


def test_no_person_is_stored_larger_than_its_photo_or_than_training_needs(photos, packed):
    config = config_of(photos)
    needs = []
    for original, person in zip(load_persons(config), load_persons(config_of(packed)), strict=True):
        shrunk = (person.box[2:] - person.box[:2]) / (original.box[2:] - original.box[:2])
        needs.append(needed_scale(original, config))
        np.testing.assert_allclose(shrunk, needs[-1], rtol=0.01)
        assert (np.array(person.size) <= np.array(original.size)).all()
    assert needs[2:4] == [1, 1] and max(needs[4:6]) < 0.5


def test_settings_that_go_by_the_name_of_the_photo_still_do(photos, packed):
    settings = dict(sampling={"b_": 3.0}, seed=5)
    picks = [sampler(load_persons(config), config) for config in (config_of(photos, **settings),
                                                                  config_of(packed, **settings))]
    assert [picks[0](number) for number in range(200)] == [picks[1](number) for number in range(200)]
    left = load_persons(config_of(packed, ignore_prefixes=["a_"]))
    assert len(left) == 4 and all(Path(person.image).name.startswith("b_") for person in left)


def test_the_loader_reads_packed_and_plain_data_together(photos, packed):
    settings = dict(data=[str(packed), str(photos)], input_size=[64, 96])
    alone = take(config_of(packed, **settings), 2, 3, 20)
    assert_same(alone, take(config_of(packed, workers=2, **settings), 2, 3, 20))
    assert alone[0].std(axis=(1, 2, 3)).min() > 10


def test_many_processes_and_shards_make_the_same_data(photos, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "SHARD_BYTES", 60_000)
    persons, shards, size = pack(config_of(photos, workers=2), tmp_path / "more/data")
    files = sorted((tmp_path / "more/data/images").iterdir())
    assert persons == 8 and shards == len(files) > 2
    assert [file.name for file in files[:2]] == ["shard_000.bin", "shard_001.bin"]
    assert sum(file.stat().st_size for file in files) == size
    assert b"".join(file.read_bytes() for file in files) == (packed / "images/shard_000.bin").read_bytes()
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["data"]
    more = load_persons(config_of(tmp_path / "more/data"))
    for one, other in zip(load_persons(config_of(packed)), more, strict=True):
        np.testing.assert_array_equal(read_stored(one)[0], read_stored(other)[0])


def test_unlabelled_keypoints_and_persons_with_too_few_stay_out(photos, tmp_path):
    content = json.loads((photos / "person_keypoints_test.json").read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["keypoints"][:3] = [0, 0, 0]
        annotation["segmentation"] = [[1, 2, 3, 4, 5, 6]]
        annotation["iscrowd"] = int(number == 0)
        if number == 1:
            annotation["keypoints"][:39] = [0] * 39
    (tmp_path / "person_keypoints.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(photos / "images")
    assert pack(config_of(tmp_path), tmp_path / "out")[0] == 6
    made = json.loads((tmp_path / "out/person_keypoints_packed.json").read_text())
    assert all(annotation["keypoints"][:3] == [0, 0, 0] for annotation in made["annotations"])
    assert not any("segmentation" in annotation for annotation in made["annotations"])
    assert all((person.keypoints[:, 2] > 0).tolist() == [False] + [True] * 16
               for person in load_persons(config_of(tmp_path / "out")))


def test_unreadable_photos_are_skipped_and_too_many_leave_nothing(tmp_path, capsys):
    folder = write_people(tmp_path / "data", [(160, 120)] * 5)
    break_images(folder, ["a_0.jpg", "b_3.jpg"])
    with pytest.raises(BadInput, match="2 images cannot be read"):
        pack(config_of(folder, max_unreadable=1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    capsys.readouterr()
    assert pack(config_of(folder, max_unreadable=2), tmp_path / "out")[0] == 6
    assert capsys.readouterr().err.count("skipped: image ") == 2


def test_a_damaged_shard_is_named_with_photo_and_place(packed, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "person_keypoints.json").write_bytes((packed / "person_keypoints_packed.json").read_bytes())
    data = (packed / "images/shard_000.bin").read_bytes()
    (tmp_path / "images/shard_000.bin").write_bytes(data[:-20])
    last = load_persons(config_of(tmp_path))[-1]
    with pytest.raises(BadInput, match=rf"shard_000.bin/b_3.jpg \(at byte {last.span[0]}\) cannot be decoded"):
        read_stored(last)


def test_no_detector_trains_on_packed_persons(packed):
    with pytest.raises(BadInput, match="b?a?_.*jpg is a packed crop of one person"):
        load_photos(config_of(packed, task="person"))


@pytest.mark.parametrize("arguments, settings, words", [
    ((0, 1.6), {}, "--quality 0 --margin 1.6: quality is 1 to 100"),
    ((92, 0.9), {}, "--quality 92 --margin 0.9: .* margin 1 or more"),
    ((92, 1.6), {"task": "person"}, "task = 'person' trains on whole photos"),
    ((92, 1.6), {"min_keypoints": 18}, "no person with 18 keypoints"),
])
def test_bad_input_is_named(photos, tmp_path, arguments, settings, words):
    with pytest.raises(BadInput, match=words):
        pack(config_of(photos, **settings), tmp_path / "out", *arguments)
    assert not list(tmp_path.iterdir())


def run_pack(photos, out, **options):
    (out.parent / "pose.toml").write_text('task = "pose"\nworkers = 0\n')
    command = [sys.executable, "-m", "train.pack", "--config", out.parent / "pose.toml", "--out", out,
               "--set", f"data=['{photos}']"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=60, **options)


def test_the_command_packs_once(photos, tmp_path):
    (tmp_path / "out.packing/images").mkdir(parents=True)  # a pack was killed
    (tmp_path / "out.packing/images/shard_007.bin").write_bytes(b"unfinished")
    done = run_pack(photos, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: 8 persons in 1 shards, ") and "100%" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "images", "out", "person_keypoints_packed.json", "pose.toml", "shard_000.bin"]
    again = run_pack(photos, tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr == f"error: {tmp_path / 'out'} is there already; remove it, or choose another --out\n"


def test_a_full_disk_is_named_and_leaves_nothing(photos, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run_pack(photos, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (f"error: {tmp_path / 'out'} cannot be written: File too large; make room, "
                                            "or choose another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["pose.toml"]
