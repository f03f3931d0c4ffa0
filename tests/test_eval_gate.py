"""Gates: exit codes and messages of the command, on files as eval.coco writes them."""

import json
import subprocess
import sys

import pytest

from eval.gate import Gate, check_loss, check_thresholds, load_thresholds, parse_arguments
from runtime.errors import BadInput
from tests.coco_data import ROOT

METRICS = {"AP": 0.3, "AP50": 0.6, "AP75": 0.3, "APM": 0.2, "APL": -1.0, "AR": 0.4, "AR50": 0.7, "AR75": 0.4,
           "ARM": 0.3, "ARL": -1.0}
PROTOCOL = {"engine": "pose.onnx", "boxes": "ground truth", "flip_test": False, "decoding": "dark", "images": 12,
            "ms_per_person": 8.5, "threads": 1, "annotations_sha256": "a" * 64}


def write_metrics(folder, metrics=(), **protocol):
    folder.mkdir(exist_ok=True)
    path = folder / "metrics.json"
    path.write_text(json.dumps({**METRICS, **dict(metrics), "protocol": {**PROTOCOL, **protocol}}))
    return path


def write_thresholds(folder, text):
    path = folder / "gate.toml"
    path.write_text(text)
    return path


def gate(*arguments):
    return subprocess.run([sys.executable, "-m", "eval.gate", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


@pytest.mark.parametrize(
    ("measured", "rule", "threshold", "holds"),
    [
        (0.31, "minimum", 0.3, True),
        (0.3, "minimum", 0.3, True),  # the threshold itself is good enough
        (0.299, "minimum", 0.3, False),
        (29.0, "maximum", 30.0, True),
        (30.0, "maximum", 30.0, True),
        (30.1, "maximum", 30.0, False),
    ],
)
def test_rules(measured, rule, threshold, holds):
    assert Gate("AP", measured, rule, threshold).holds is holds


def test_all_gates_hold(tmp_path):
    metrics = write_metrics(tmp_path, detector_recall=0.6)
    thresholds = write_thresholds(tmp_path, "[minimum]\nAP = 0.30\ndetector_recall = 0.55\n[maximum]\nms_per_person=30")
    done = gate("--metrics", metrics, "--thresholds", thresholds)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" ok") == 3 and "all 3 gates hold" in done.stdout
    assert "8.5" in done.stdout and "≤       30" in done.stdout


def test_one_failed_gate_fails_the_build(tmp_path):
    thresholds = write_thresholds(tmp_path, "[minimum]\nAP = 0.30\nAP50 = 0.61\n[maximum]\nms_per_person=8.5")
    done = gate("--metrics", write_metrics(tmp_path), "--thresholds", thresholds)
    assert (done.returncode, done.stderr) == (1, "")
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert len(failed) == 1 and "AP50" in failed[0] and "0.6 " in failed[0] and "0.61" in failed[0]
    assert "1 of 3 gates failed" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no threshold"),
        ("[minimum]", "has no threshold"),
        ("AP = 0.3", "unknown key 'AP'"),
        ("minimum = 0.3", "unknown key 'minimum'"),
        ("[least]\nAP = 0.3", "unknown key 'least'"),
        ("[minimum]\nAP = 'much'", "minimum AP = 'much' is no finite number"),
        ("[minimum]\nAP = nan", "minimum AP = nan is no finite number"),
        ("[maximum]\nms_per_person = inf", "is no finite number"),
        ("[minimum]\nAP = true", "AP = True is no finite number"),
        ("[minimum", "is not valid TOML"),
    ],
)
def test_bad_thresholds_are_named(tmp_path, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        load_thresholds(write_thresholds(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mAP", "unknown figure 'mAP'; .*AP, AP50, .*ms_per_person"),
        ("flip_test", "unknown figure 'flip_test'"),
        ("engine", "unknown figure 'engine'"),
        ("detector_recall", "has no detector_recall; run eval.coco with --detector"),
        ("APL", "APL = -1, as no annotated person is of that size"),
        ("fps", "fps = nan, which is no number"),
        ("seconds", "seconds = None, which is no number"),
    ],
)
def test_missing_figures_are_bad_input_never_a_pass(tmp_path, name, message):
    metrics = write_metrics(tmp_path, fps=float("nan"), seconds=None)
    for rule, threshold in (("minimum", -10.0), ("maximum", 10.0)):
        with pytest.raises(BadInput, match=message):
            check_thresholds(metrics, [(name, rule, threshold)])


PCKH = {"0.5": {"Head": 90.0, "Wrist": None, "Mean": 81.5}, "0.1": {"Mean": 20.0}, "persons": 17}


def test_pckh_is_gated_by_share_and_part(tmp_path):
    metrics = write_metrics(tmp_path, {"PCKh": PCKH})
    thresholds = write_thresholds(tmp_path, '[minimum]\n"PCKh@0.5" = 81.5\n"PCKh@0.5 Head" = 91\n"PCKh@0.1" = 15')
    done = gate("--metrics", metrics, "--thresholds", thresholds)
    assert done.returncode == 1, done.stderr
    [failed] = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert failed.split()[:2] == ["PCKh@0.5", "Head"] and "1 of 3 gates failed" in done.stdout
    with pytest.raises(BadInput, match="has no PCKh@0.5 Wrist, as nobody has it labelled"):
        check_thresholds(metrics, [("PCKh@0.5 Wrist", "minimum", -1.0)])
    with pytest.raises(BadInput, match="unknown figure 'PCKh@0.3'; .*PCKh@0.1, PCKh@0.5, PCKh@0.5 Head"):
        check_thresholds(metrics, [("PCKh@0.3", "minimum", -1.0)])
    (tmp_path / "coco").mkdir()
    with pytest.raises(BadInput, match="has no PCKh@0.5; run eval.coco with MPII's engine and annotated boxes"):
        check_thresholds(write_metrics(tmp_path / "coco"), [("PCKh@0.5", "minimum", -1.0)])
    worse = write_metrics(tmp_path / "worse", {"PCKh": {**PCKH, "0.5": {"Mean": 81.0}}})
    assert [item.holds for item in check_loss(worse, metrics, 0.4, ["PCKh@0.5", "PCKh@0.1"])] == [False, True]


def test_bad_input_is_exit_code_2(tmp_path):
    thresholds = write_thresholds(tmp_path, "[minimum]\nAP = 0.3")
    missing = gate("--metrics", tmp_path / "none.json", "--thresholds", thresholds)
    assert missing.returncode == 2 and "there is no" in missing.stderr and missing.stderr.count("\n") == 1
    not_a_number = gate("--metrics", write_metrics(tmp_path, {"AP": float("nan")}), "--thresholds", thresholds)
    assert not_a_number.returncode == 2 and "AP = nan" in not_a_number.stderr
    absent = gate("--metrics", write_metrics(tmp_path), "--thresholds", tmp_path / "none.toml")
    assert absent.returncode == 2 and "no thresholds at" in absent.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to hold the run against"),
        ("--by 0.1", "nothing to hold the run against"),
        ("--thresholds x --by 0.1", "belong together"),
        ("--worse-than x", "belong together"),
        ("--worse-than x --by -1", "-1 is no loss"),
        ("--worse-than x --by nan", "nan is no loss"),
        ("--thresholds x --figure AP", "belongs to --worse-than"),
    ],
)
def test_options_that_belong_together(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["eval.gate", "--metrics", "metrics.json", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        parse_arguments()
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ap", "holds"),
    [(0.31, True), (0.3, True), (0.297, True), (0.2969, False), (0.0, False)],  # 0.297 is exactly 0.003 less
)
def test_loss_against_another_run(tmp_path, ap, holds):
    before = write_metrics(tmp_path / "before")
    after = write_metrics(tmp_path / "after", {"AP": ap}, engine="int8.onnx", precision="int8", ms_per_person=3.0)
    found = check_loss(after, before, 0.003)
    assert [item.holds for item in found] == [holds]
    assert found[0].measured == pytest.approx(0.3 - ap)
    assert check_loss(after, tmp_path / "before", 0.003) == found, "the folder does as well"


def test_loss_command(tmp_path):
    write_metrics(tmp_path / "before")
    after = write_metrics(tmp_path / "after", {"AP": 0.299, "AR": 0.39})
    options = ["--metrics", after, "--worse-than", tmp_path / "before", "--by", 0.003]
    done = gate(*options)
    assert done.returncode == 0 and "loss of AP" in done.stdout, done.stderr
    done = gate(*options, "--figure", "AP", "--figure", "AR")
    assert done.returncode == 1 and "loss of AR" in done.stdout
    done = gate(*options, "--figure", "ms_per_person")
    assert done.returncode == 2 and "unknown figure" in done.stderr


def test_loss_against_another_protocol_is_refused(tmp_path):
    write_metrics(tmp_path / "before", flip_test=True)
    done = gate("--metrics", write_metrics(tmp_path / "after"), "--worse-than", tmp_path / "before", "--by", 0.5)
    assert done.returncode == 2 and "flip_test: True / False" in done.stderr
