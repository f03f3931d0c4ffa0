"""COCO evaluation: real annotation files, images and tiny engines; pycocotools, called plainly, is the judge."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import helper
from pycocotools.coco import COCO as CocoIndex
from pycocotools.cocoeval import COCOeval, Params

from eval.annotations import load_annotations, read_image
from eval.coco import METRICS, Predictions, coco_metrics, count_found, evaluate, main, predict
from runtime.engine import open_engine
from runtime.errors import BadInput
from runtime.keypoints import COCO
from runtime.pose import PoseEstimator
from tests import engines
from tests.conftest import figure

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


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Folder with coco.onnx, annotations.json and images/."""
    folder = tmp_path_factory.mktemp("coco")
    coco_engine(folder / "coco.onnx")
    (folder / "annotations.json").write_text(json.dumps(write_coco_data(folder / "images")))
    return folder


def plain_stats(annotations, results, sigmas=None):
    """pycocotools as its own demo calls it, on files."""
    index = CocoIndex(str(annotations))
    scoring = COCOeval(index, index.loadRes(str(results)), "keypoints")
    if sigmas:
        scoring.params.kpt_oks_sigmas = np.array(sigmas)
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return scoring.stats.tolist()


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.coco", *map(str, arguments)])
    return main()


def run_command(command, **options):
    """The command as a user runs it, in its own process."""
    return subprocess.run([sys.executable, "-m", "eval.coco", *command], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, **options)


def read_metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_command_equals_pycocotools_to_the_last_digit(coco, tmp_path):
    command = ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images", coco / "images",
               "--out", tmp_path / "new" / "out"]
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(tmp_path / "new" / "out")
    expected = plain_stats(coco / "annotations.json", tmp_path / "new" / "out" / "keypoints.json")
    assert [metrics[name] for name in METRICS] == expected
    assert all(0.05 < value < 1 for value in expected), "numbers that prove nothing"

    protocol = metrics["protocol"]
    assert protocol["boxes"] == "ground truth"
    assert (protocol["flip_test"], protocol["decoding"]) == (False, "dark")
    assert (protocol["images"], protocol["persons"], protocol["poses"]) == (12, 18, 18)
    assert len(protocol["engine_sha256"]) == 64
    assert protocol["versions"]["onnxruntime"] == onnxruntime.__version__
    assert f"{metrics['AP']:.3f}" in done.stdout
    assert "ms a person" in done.stdout


@pytest.mark.parametrize("options", [["--flip-test"], ["--decoding", "plain"], ["--decoding", "plain", "--flip-test"]])
def test_options_reach_the_estimator(coco, tmp_path, monkeypatch, options):
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", tmp_path, *options)
    metrics = read_metrics(tmp_path)
    decoding, flip_test = metrics["protocol"]["decoding"], metrics["protocol"]["flip_test"]
    assert flip_test == ("--flip-test" in options)
    assert decoding == (options[1] if "--decoding" in options else "dark")
    annotations = load_annotations(coco / "annotations.json")
    engine = open_engine(coco / "coco.onnx")
    wanted = evaluate(PoseEstimator(engine, decoding, flip_test), annotations, coco / "images")
    assert {name: metrics[name] for name in METRICS} == wanted
    other = evaluate(PoseEstimator(engine, "dark", False), annotations, coco / "images")
    assert wanted != other


def test_a_training_curve_takes_any_estimator(coco):
    """`evaluate` hands a callable the frames, and the boxes of persons with keypoints only, none of a crowd."""
    annotations = load_annotations(coco / "annotations.json")
    assert annotations.person_count == 18
    groups = iter(annotations.persons.values())

    def truth(frame, boxes):
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        group = next(groups)
        left_top_size = np.array([person["bbox"] for person in group])
        np.testing.assert_allclose(boxes[:, :2], left_top_size[:, :2], rtol=1e-6)
        np.testing.assert_allclose(boxes[:, 2:], left_top_size[:, :2] + left_top_size[:, 2:], rtol=1e-6)
        return np.array([np.reshape(person["keypoints"], (17, 3)) for person in group], np.float32)

    assert evaluate(truth, annotations, coco / "images") == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_limit_takes_the_first_images(coco, tmp_path, monkeypatch):
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images",
             coco / "images", "--out", tmp_path, "--limit", 4)
    metrics = read_metrics(tmp_path)
    assert (metrics["protocol"]["images"], metrics["protocol"]["images_in_file"]) == (4, 12)
    assert metrics["protocol"]["persons"] == metrics["protocol"]["poses"] == 6
    data = json.loads((coco / "annotations.json").read_text())
    data["images"] = data["images"][:4]
    (tmp_path / "four.json").write_text(json.dumps(data))
    assert [metrics[name] for name in METRICS] == plain_stats(tmp_path / "four.json", tmp_path / "keypoints.json")


def test_random_results_equal_pycocotools_with_ties_crowds_and_many_poses(coco, tmp_path):
    """More than 20 poses an image, equal scores, missed images: what the engine's own results hardly have."""
    generator = np.random.default_rng(1)
    annotations = load_annotations(coco / "annotations.json")
    results = []
    for image in annotations.images[2:]:
        for _ in range(int(generator.integers(1, 40))):
            person = annotations.persons.get(image["id"], annotations.persons[103])[0]
            points = np.reshape(person["keypoints"], (17, 3)) + generator.normal(0, generator.uniform(1, 15), (17, 3))
            results.append({"image_id": image["id"], "category_id": 1, "keypoints": points.ravel().tolist(),
                            "score": float(np.round(generator.uniform(), 1))})
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = plain_stats(coco / "annotations.json", tmp_path / "results.json")
    assert list(coco_metrics(annotations, results).values()) == expected
    assert "area" not in results[0]  # the caller's results are left as they are
    assert list(coco_metrics(annotations, results).values()) == expected
    assert 0.05 < expected[0] < 0.95


def test_no_results_score_nothing(coco):
    metrics = coco_metrics(load_annotations(coco / "annotations.json"), [])
    assert metrics == dict.fromkeys(METRICS, 0.0)


def test_our_sigmas_are_pycocotools(coco):
    np.testing.assert_allclose(COCO.sigmas, Params("keypoints").kpt_oks_sigmas)


# The walker of the other tests: three dots on a white rectangle, which a tiny person engine finds exactly.


def write_walker_data(folder, kinds, names=("left_hand", "right_hand", "nose")):
    """One image a kind: "person" drawn and labelled, "unseen" labelled but dark, "false" drawn but not labelled."""
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


@pytest.mark.parametrize("kind", ["kept", "raw"])
def test_end_to_end_with_a_detector(tmp_path, monkeypatch, capsys, pose_path, kind):
    person_path = engines.person_engine(tmp_path / "person.onnx", kind=kind)
    kinds = ["person"] * 3 + ["unseen"] * 2 + ["false"]
    options = write_walker_data(tmp_path / "data", kinds)
    run_main(monkeypatch, "--engine", pose_path, "--detector", person_path, *options)
    metrics = read_metrics(tmp_path / "data" / "out")
    # 3 of 5 found, and one pose where nobody is labelled, of the same score: the recall is 0.6 at every OKS.
    assert metrics["AR"] == pytest.approx(0.6)
    assert 0.5 < metrics["AP"] <= 0.61
    assert metrics["protocol"]["boxes"] == str(person_path)
    assert metrics["protocol"]["detector_recall"] == pytest.approx(0.6)
    assert metrics["protocol"]["detector_threshold"] == 0.05
    assert metrics["protocol"]["images"] == 6
    assert metrics["protocol"]["poses"] >= 4  # raw: what NMS leaves
    expected = plain_stats(tmp_path / "data" / "annotations.json", tmp_path / "data" / "out" / "keypoints.json",
                           engines.DOTS["sigmas"])
    assert [metrics[name] for name in METRICS] == expected
    assert "found 0.600 of the persons" in capsys.readouterr().out
    results = json.loads((tmp_path / "data" / "out" / "keypoints.json").read_text())
    assert {result["category_id"] for result in results} == {7}
    assert {result["image_id"] for result in results} == {0, 1, 2, 5}


def test_walker_on_annotated_boxes_is_found_exactly(tmp_path, monkeypatch, pose_path):
    options = write_walker_data(tmp_path, ["person"] * 4)
    run_main(monkeypatch, "--engine", pose_path, *options)
    metrics = read_metrics(tmp_path / "out")
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["APM"] == pytest.approx(1)
    assert metrics["APL"] == -1  # nobody is that large: as pycocotools says it
    picture, box, _ = figure(2)
    (streamed,) = PoseEstimator(open_engine(pose_path))(picture, [box])
    stored = json.loads((tmp_path / "out" / "keypoints.json").read_text())[2]
    np.testing.assert_allclose(np.reshape(stored["keypoints"], (3, 3)), streamed, atol=0.006)


def test_simcc_engine(tmp_path, monkeypatch):
    engine = engines.pose_engine(tmp_path / "simcc.onnx", head="simcc")
    options = write_walker_data(tmp_path / "data", ["person"] * 2)
    run_main(monkeypatch, "--engine", engine, *options)
    metrics = read_metrics(tmp_path / "data" / "out")
    assert metrics["protocol"]["decoding"] == "simcc"
    assert metrics["AP"] == pytest.approx(1)
    with pytest.raises(BadInput, match="--decoding quarter is for heatmaps but .*simcc.onnx has a simcc head"):
        run_main(monkeypatch, "--engine", engine, *options, "--decoding", "quarter")


@pytest.mark.parametrize(
    ("boxes", "scores", "persons", "found"),
    [
        ([], [], [[0, 0, 10, 10]], 0),
        ([[0, 0, 10, 10]], [0.9], [], 0),
        ([[0, 0, 10, 10]], [0.3], [[0, 0, 10, 10]], 0),  # not above 0.3
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 20]], 1),  # IoU 0.5
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 21]], 0),
        ([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 11], [0, 0, 10, 12]], 1),  # one box, one person
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], [[0, 0, 10, 11]], 1),  # one person, once
        ([[0, 0, 10, 10], [0, 0, 10, 11]], [0.9, 0.8], [[0, 0, 10, 10], [0, 0, 10, 15]], 2),
    ],
)
def test_found_persons(boxes, scores, persons, found):
    boxes, persons = (np.array(edges, np.float32).reshape(-1, 4) for edges in (boxes, persons))
    assert count_found(boxes, np.array(scores), persons) == found


def test_what_is_done_outlives_an_interruption(coco):
    predictions = Predictions()
    engine = PoseEstimator(open_engine(coco / "coco.onnx"))

    def interrupted(frame, boxes):
        if predictions.images == 3:
            raise KeyboardInterrupt
        return engine(frame, boxes)

    with pytest.raises(KeyboardInterrupt):
        predict(interrupted, load_annotations(coco / "annotations.json"), coco / "images", predictions)
    assert predictions.images == 3
    assert len(predictions.results) == predictions.persons == 6


def test_a_network_gone_astray_is_named(coco):
    with pytest.raises(BadInput, match="poses of 1.png are no finite numbers"):
        astray = load_annotations(coco / "annotations.json")
        evaluate(lambda frame, boxes: np.full((len(boxes), 17, 3), np.nan), astray, coco / "images")


# Bad input: one line, before an engine runs.


def drop(part, field):
    def change(data):
        for item in data[part][:2]:
            del item[field]
    return change


def set_all(part, **fields):
    def change(data):
        for item in data[part]:
            item.update(fields)
    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("images"), "has no list 'images'"),
        (lambda data: data.update(images=[]), "has no images"),
        (lambda data: data.update(annotations=[]), "has 0 annotations but none has keypoints"),
        (lambda data: [item.pop("keypoints") for item in data["annotations"]],
         r"has 20 annotations but none has keypoints; give the person_keypoints_\*.json file"),
        (set_all("annotations", num_keypoints=0), "has no person with keypoints on the first 12 of its 12 images"),
        (drop("annotations", "area"), r"2 of 20 annotations have no 'area' \(first: 1\)"),
        (drop("annotations", "bbox"), "2 of 20 annotations have no 'bbox'"),
        (drop("annotations", "iscrowd"), "2 of 20 annotations have no 'iscrowd'"),
        (drop("annotations", "keypoints"), "2 of 20 annotations have no 'keypoints'"),
        (drop("images", "file_name"), r"2 of 12 images have no 'file_name' \(first: 100\)"),
        (set_all("annotations", id=5), r"1 annotation ids occur twice or more \(first: 5\)"),
        (set_all("annotations", category_id=3), "'categories' has no entry with id 3"),
        (lambda data: data["annotations"][0].update(category_id=2), "has keypoints of 2 categories"),
        (lambda data: data["annotations"][0].update(keypoints=[1, 2, 2]), "1 times 3, 19 times 51"),
        (lambda data: data["categories"][0].update(keypoints=["a"]), "names 1 keypoints but its annotations have 17"),
        (set_all("images", file_name="gone.jpg"), r"9 of 9 images are not in .*images \(first: gone.jpg\)"),
        (set_all("images", width=999), r"1.png is 480x240 pixels but was annotated at 999x240"),
        (lambda data: data["categories"][0]["keypoints"].reverse(),
         "keypoint 0 of .*coco.onnx is 'nose' but 'right_ankle' in"),
    ],
)
def test_bad_annotations_are_named(coco, tmp_path, monkeypatch, change, message):
    data = json.loads((coco / "annotations.json").read_text())
    change(data)
    (tmp_path / "changed.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match=message) as caught:
        run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", tmp_path / "changed.json", "--images",
                 coco / "images", "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not JSON"),
        (b"[]", "has no list 'images'"),
        (b"{}", "has no list 'images'"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_annotations(tmp_path / "file.json")
    with pytest.raises(BadInput, match="cannot read"):
        load_annotations(tmp_path)


def test_engines_and_folders_that_do_not_fit(coco, tmp_path, monkeypatch, person_path, pose_path):
    fitting = {"--engine": coco / "coco.onnx", "--annotations": coco / "annotations.json", "--images": coco / "images",
               "--out": tmp_path / "out"}
    (tmp_path / "file").touch()
    for option, value, message in (
        ("--engine", person_path, "is a person engine where a pose engine is needed"),
        ("--engine", pose_path, r"finds 3 keypoints \(dots\) but .* has 17 a person"),
        ("--detector", coco / "coco.onnx", "is a pose engine where a person engine is needed"),
        ("--images", tmp_path / "nowhere", "images folder .*nowhere does not exist; give the folder that holds 1.png"),
        ("--out", tmp_path / "file", "cannot write to folder"),
        ("--out", "/proc/nowhere", "cannot write to folder"),
    ):
        arguments = [part for pair in {**fitting, option: value}.items() for part in pair]
        with pytest.raises(BadInput, match=message):
            run_main(monkeypatch, *arguments)


def test_an_image_that_does_not_decode_keeps_what_was_done(tmp_path, pose_path):
    options = write_walker_data(tmp_path, ["person"] * 4)
    (tmp_path / "images" / "2.png").write_bytes(b"not a picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("of an earlier run")
    done = run_command(["--engine", pose_path, *options])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot decode image")
    assert "2.png (13 bytes)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "kept 2 poses of 2 images" in done.stdout
    assert len(json.loads((tmp_path / "out" / "keypoints.json").read_text())) == 2
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_full_disk_is_named_and_leaves_no_half_a_file(coco, tmp_path):
    command = ["--engine", coco / "coco.onnx", "--annotations", coco / "annotations.json", "--images", coco / "images",
               "--out", tmp_path]
    done = run_command(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "choose another --out" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pycocotools_missing_is_said_before_anything_runs(coco):
    script = ("import sys; sys.modules['pycocotools'] = None; sys.argv = ['eval.coco', *sys.argv[1:]]; "
              "from eval.coco import main; from runtime.errors import run_command; run_command(main)")
    done = subprocess.run([sys.executable, "-c", script, "--annotations", coco / "annotations.json", "--images", coco],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: pycocotools is not installed; pip install -e '.[eval]'\n"


def test_pictures_are_read_the_way_they_were_labelled(tmp_path):
    """A JPEG stored lying, with an EXIF that turns it upright: width and height of the labels say which is meant."""
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20] = 255
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: a quarter turn
    exif = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    (tmp_path / "turned.jpg").write_bytes(turned)
    lying = read_image({"file_name": "turned.jpg", "width": 80, "height": 40}, tmp_path)
    assert lying.shape == (40, 80, 3)
    assert lying[20, 5, 0] > 200
    upright = read_image({"file_name": "turned.jpg", "width": 40, "height": 80}, tmp_path)
    assert upright.shape == (80, 40, 3)
    assert upright[5, 20, 0] > 200
    assert read_image({"file_name": "turned.jpg"}, tmp_path).shape == (40, 80, 3)
    with pytest.raises(BadInput, match="turned.jpg is 40x80 pixels but was annotated at 100x50"):
        read_image({"file_name": "turned.jpg", "width": 100, "height": 50}, tmp_path)
