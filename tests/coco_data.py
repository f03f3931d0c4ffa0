"""COCO-format annotations, pictures and an engine that reads them exactly, and ways to run `eval.coco` on them."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from onnx import helper

from eval.coco import main
from runtime.keypoints import COCO
from tests import engines

ROOT = Path(__file__).resolve().parents[1]
SIZE = (480, 240)


def spread_colours(count):
    """(count, 3) BGR colours of equal brightness, as far apart as they go: each keypoint has its own."""
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 3), -1).reshape(-1, 3)[1:]
    directions = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    chosen = [directions[0]]
    while len(chosen) < count:
        chosen.append(directions[(directions @ np.array(chosen).T).max(1).argmin()])
    return np.rint(250 * np.array(chosen)).astype(int)


COLOURS = spread_colours(17)


def coco_engine(path, size=(96, 128)):
    """Pose engine with COCO's 17 keypoints: a map is 1 where all pixels have the keypoint's colour, else less."""
    width, height = size
    # Likeness to the colour, stretched so that the next colour (at most 0.954 like it) gives 0.
    mix = (20 * COLOURS / (COLOURS**2).sum(1, keepdims=True)).astype(np.float32)[:, :, None, None]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=1),
        helper.make_node("Transpose", ["floats"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels_first", "mix", "bias"], ["likeness"]),
        helper.make_node("Relu", ["likeness"], ["alike"]),
        helper.make_node("AveragePool", ["alike"], ["heatmaps"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    keypoints = {name: getattr(COCO, name) for name in ("name", "names", "flip_pairs", "limbs", "sigmas")}
    metadata = {"kind": "pose", "head": "heatmap", "keypoints": json.dumps(keypoints)}
    return engines._save(path, nodes, {"mix": mix, "bias": np.full(17, -19, np.float32)}, ["N", height, width, 3],
                         [("heatmaps", ["N", 17, 32, 24])], metadata, size)


def write_coco_data(folder, images=12):
    """Persons of 17 coloured dots, drawn beside where they are labelled, so that the score is far from 0 and 1."""
    generator = np.random.default_rng(0)
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.names)}]}
    folder.mkdir()
    for number in range(images):
        picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        for slot in range(number % 4):  # the first of four images has nobody
            size = generator.uniform([40, 70], [130, 200])
            corner = [160 * slot + 15, 20]
            points = corner + generator.uniform(0.05, 0.95, (17, 2)) * size
            drawn = points + generator.normal(0, generator.choice([0.5, 4, 9]), (17, 2))
            for point, colour in zip(np.rint(drawn).astype(int).tolist(), COLOURS.tolist(), strict=True):
                cv2.circle(picture, point, 4, colour, cv2.FILLED)
            visible = generator.choice([0, 1, 2], 17)
            visible[0] = 2
            person = np.concatenate([points.round(), visible[:, None]], axis=1)
            person[visible == 0] = 0
            data["annotations"].append({
                "id": len(data["annotations"]) + 1, "image_id": 100 + number, "category_id": 1, "iscrowd": 0,
                "bbox": [*corner, *size.round(2).tolist()], "area": float(0.6 * size.prod()),
                "num_keypoints": int((visible > 0).sum()), "keypoints": person.ravel().tolist()})
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        data["images"].append({"id": 100 + number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]})
    first = data["annotations"][0]
    nobody = {"num_keypoints": 0, "keypoints": [0] * 51}
    data["annotations"] += [{**first, **nobody, "id": 900, "bbox": [5, 5, 20, 20]}, {**first, "id": 901, "iscrowd": 1}]
    return data


def write_walker_data(folder, kinds, names=("left_hand", "right_hand", "nose")):
    """One image a kind: "person" drawn and labelled, "unseen" labelled but dark, "false" drawn but not labelled."""
    from tests.conftest import figure  # conftest imports this module
    images = folder / "images"
    images.mkdir(parents=True)
    data = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "person", "keypoints": list(names)}]}
    for number, kind in enumerate(kinds):
        picture, box, dots = figure(number)
        cv2.imwrite(str(images / f"{number}.png"), picture // 3 if kind == "unseen" else picture)
        data["images"].append({"id": number, "file_name": f"{number}.png"})
        if kind != "false":
            keypoints = np.concatenate([dots, np.full((3, 1), 2)], axis=1).ravel().tolist()
            data["annotations"].append({
                "id": number + 1, "image_id": number, "category_id": 7, "iscrowd": 0, "area": 60 * 120.0,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "num_keypoints": 3, "keypoints": keypoints})
    (folder / "annotations.json").write_text(json.dumps(data))
    return ["--annotations", folder / "annotations.json", "--images", images, "--out", folder / "out"]


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.coco", *map(str, arguments)])
    return main()


def run_command(command, **options):
    """The command as a user runs it, in its own process."""
    return subprocess.run([sys.executable, "-m", "eval.coco", *command], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, **options)


def read_metrics(out):
    return json.loads((out / "metrics.json").read_text())
