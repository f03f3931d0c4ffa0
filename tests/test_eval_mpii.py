"""PCKh against loops written from the official MATLAB script, and the .mat through the reader of MPII's own file."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from scipy.io import loadmat

from eval.annotations import load_annotations
from eval.mpii import pckh, pckh_of
from runtime.errors import BadInput
from runtime.keypoints import MPII, Poses
from tests.coco_data import read_metrics, run_main
from train.mpii2coco import read_keypoints, structs

# evaluatePCKh.m's 14 joints in its order, as MPII's ids; its table is made of these columns, counted from 1.
JOINTS = (0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 8, 9)
COLUMNS = {"Head": (13, 14), "Shoulder": (9, 10), "Elbow": (8, 11), "Wrist": (7, 12), "Hip": (3, 4), "Knee": (2, 5),
           "Ankle": (1, 6)}


def plain_pckh(predicted, labelled, head_boxes, share):
    """Distances over 0.6 · |(x2, y2) − (x1, y1)|, column by column, then all of them."""
    distances = [[] for _ in JOINTS]
    for pose, truth, (x1, y1, x2, y2) in zip(predicted, labelled, head_boxes, strict=True):
        head = 0.6 * ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        for column, joint in enumerate(JOINTS):
            x, y, visible = truth[joint]
            if visible:
                distances[column].append(((pose[joint][0] - x) ** 2 + (pose[joint][1] - y) ** 2) ** 0.5 / head)
    right = [100 * sum(d <= share for d in column) / len(column) for column in distances]
    everything = [d <= share for column in distances for d in column]
    table = {part: (right[a - 1] + right[b - 1]) / 2 for part, (a, b) in COLUMNS.items()}
    return {**table, "Mean": 100 * sum(everything) / len(everything)}


@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_pckh_is_the_official_table(share):
    generator = np.random.default_rng(0)
    labelled = generator.uniform(0, 300, (60, 16, 3))
    labelled[..., 2] = generator.choice([0, 1, 2], (60, 16), p=[0.2, 0.2, 0.6])
    corners = generator.uniform(0, 200, (60, 2))
    heads = np.concatenate([corners, corners + generator.uniform(10, 60, (60, 2))], axis=1)
    predicted = labelled + generator.normal(0, 8, (60, 16, 3))
    predicted[:, ::5] = labelled[:, ::5]  # exactly right, also at a share of 0
    found = pckh(predicted, labelled, heads, share)
    assert found == pytest.approx(plain_pckh(predicted, labelled, heads, share))
    assert 5 < found["Mean"] < 95


def test_pelvis_and_thorax_do_not_count_and_the_limit_does():
    labelled = np.zeros((1, 16, 3))
    labelled[..., 2] = 2
    predicted = labelled.copy()
    predicted[0, [6, 7]] += 500
    heads = [[0, 0, 30, 40]]  # diagonal 50, head size 30
    assert set(pckh(predicted, labelled, heads).values()) == {100.0}
    predicted[0, 9, 0] = 15  # head top exactly half a head away
    assert pckh(predicted, labelled, heads)["Head"] == 100
    predicted[0, 9, 0] = 15.01
    table = pckh(predicted, labelled, heads)
    assert table["Head"] == 50
    assert table["Mean"] == pytest.approx(100 * 13 / 14)
    labelled[0, [0, 5], 2] = 0  # nobody's ankle is labelled
    assert np.isnan(pckh(predicted, labelled, heads)["Ankle"])


@pytest.fixture(scope="module")
def mpii(coco, tmp_path_factory):
    """The coloured dots of `coco` under MPII's 16 names, as train.mpii2coco writes its file, and an engine for them."""
    folder = tmp_path_factory.mktemp("mpii")
    data = json.loads((coco / "annotations.json").read_text())
    data["categories"][0]["keypoints"] = list(MPII.names)
    for image in data["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    for person in data["annotations"]:
        person["keypoints"] = person["keypoints"][:48]
        person["num_keypoints"] = sum(value > 0 for value in person["keypoints"][2::3])
        left, top, width, height = person["bbox"]
        person["head_box"] = [left, top, left + width / 3, top + height / 5]
    del data["annotations"][0]["head_box"]
    (folder / "train.json").write_text(json.dumps(data))
    (folder / "images").symlink_to(coco / "images")

    model = onnx.load(coco / "coco.onnx")
    for constant in model.graph.initializer:
        if constant.name in ("mix", "bias"):
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant)[:16], constant.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16
    keypoints = {name: getattr(MPII, name) for name in ("name", "names", "flip_pairs", "limbs", "sigmas")}
    metadata = {item.key: item.value for item in model.metadata_props}
    helper.set_model_props(model, {**metadata, "keypoints": json.dumps(keypoints)})
    onnx.save(model, folder / "mpii.onnx")
    return folder


def test_command_gives_pckh_and_the_mat(mpii, tmp_path, monkeypatch, capsys):
    where = ["--engine", mpii / "mpii.onnx", "--annotations", mpii / "train.json", "--images", mpii, "--out", tmp_path]
    run_main(monkeypatch, *where)
    results = json.loads((tmp_path / "keypoints.json").read_text())
    annotations = load_annotations(mpii / "train.json")
    persons = [person for image in annotations.images for person in annotations.persons.get(image["id"], [])]
    assert len(results) == len(persons) == 18
    counted = [(np.reshape(result["keypoints"], (16, 3)), np.reshape(person["keypoints"], (16, 3)), person["head_box"])
               for result, person in zip(results, persons, strict=True) if "head_box" in person]
    assert len(counted) == 17  # the first has no head box
    metrics = read_metrics(tmp_path)
    assert metrics["PCKh"]["persons"] == 17
    for share in (0.5, 0.1):
        wanted = plain_pckh(*zip(*counted, strict=True), share)
        assert metrics["PCKh"][f"{share:g}"] == pytest.approx(wanted)
        assert 5 < wanted["Mean"] < 100
    assert 0 < metrics["AP"] < 1
    out = capsys.readouterr().out
    assert "Ankle" in out
    assert f"{metrics['PCKh']['0.5']['Mean']:.1f}" in out

    content = loadmat(tmp_path / "result.mat", struct_as_record=False, squeeze_me=True)
    poses = np.array([result["keypoints"] for result in results]).reshape(-1, 16, 3)
    np.testing.assert_allclose(content["preds"], poses[..., :2] + 1, atol=0.006)  # keypoints.json rounds
    np.testing.assert_allclose(content["scores"], poses[..., 2], atol=1e-4)
    assert (content["image_index"] == [result["image_id"] + 1 for result in results]).all()
    # The reader of MPII's own annotations, which takes the 1 off again, finds the same poses in the structure.
    read = []
    for item in np.ravel(content["pred"]):
        assert item.image.name == f"{item.imgidx - 1 - 100:g}.png"
        read += [read_keypoints(person)[:, :2] for person in structs(item, "annorect")]
    np.testing.assert_allclose(read, poses[..., :2], atol=0.006)


def test_found_boxes_give_no_pckh_but_the_mat(mpii, tmp_path, monkeypatch):
    data = json.loads((mpii / "train.json").read_text())
    found = [{"image_id": person["image_id"], "category_id": 1, "bbox": person["bbox"], "score": 0.9}
             for person in data["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    (tmp_path / "test.json").write_text(json.dumps({**data, "annotations": []}))
    where = ["--engine", mpii / "mpii.onnx", "--images", mpii, "--detections", tmp_path / "found.json"]
    run_main(monkeypatch, *where, "--annotations", mpii / "train.json", "--out", tmp_path / "out")
    assert "PCKh" not in read_metrics(tmp_path / "out")
    run_main(monkeypatch, *where, "--annotations", tmp_path / "test.json", "--out", tmp_path / "test")
    assert {path.name for path in (tmp_path / "test").iterdir()} == {"keypoints.json", "metrics.json",
                                                                  "result.mat"}
    assert (tmp_path / "test/keypoints.json").read_bytes() == (tmp_path / "out/keypoints.json").read_bytes()


def test_what_pckh_cannot_do_without(mpii, tmp_path, monkeypatch):
    where = ["--engine", mpii / "mpii.onnx", "--images", mpii, "--out", tmp_path, "--annotations"]
    with pytest.raises(BadInput, match="OKS-NMS would take persons away that PCKh asks for"):
        run_main(monkeypatch, *where, mpii / "train.json", "--oks-nms", 0.9)
    data = json.loads((mpii / "train.json").read_text())
    for person in data["annotations"]:
        person.pop("head_box", None)
    (tmp_path / "train.json").write_text(json.dumps(data))
    annotations = load_annotations(tmp_path / "train.json")
    poses = {image: Poses(np.zeros((len(persons), 4)), np.ones(len(persons)), np.zeros((len(persons), 16, 3)))
             for image, persons in annotations.persons.items()}
    with pytest.raises(BadInput, match="none of the 18 persons of .* has a head_box"):
        pckh_of(annotations, poses)
