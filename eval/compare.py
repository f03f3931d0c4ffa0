"""Is one run of eval.coco better than another, or is it chance?

    python -m eval.compare output/before output/after
    python -m eval.compare output/float32 output/int8 --annotations person_keypoints_val2017.json --out difference.json

shows how much the ten numbers of the second folder differ from the first's, each with a 95 % interval from a paired
bootstrap over images. It refuses runs that did not measure the same thing.
"""

import argparse
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.annotations import are_numbers, is_id, is_number, load_annotations
from eval.bootstrap import RESAMPLES, differences, sigmas_of
from eval.options import at_least_two
from eval.protocol import protocol_differences
from eval.scoring import METRICS, coco_metrics
from runtime.errors import BadInput, run_command
from runtime.files import write_json

SAME_FIGURE = 1e-6  # a score made anew from keypoints.json is that of metrics.json up to here


@dataclass(frozen=True)
class Run:
    """What `python -m eval.coco --out FOLDER` wrote.

    Attributes:
        folder: where it lies.
        metrics: dict of `METRICS`; -1 where no person is of that size.
        protocol: what they were measured under.
        results: list of dicts in COCO's results format.
    """

    folder: Path
    metrics: dict[str, float]
    protocol: dict[str, Any]
    results: list[dict[str, Any]]


def read_run(folder):
    """Read an output folder of eval.coco.

    Raises:
        BadInput: a file is missing or is not what eval.coco writes.
    """
    folder = Path(folder)
    metrics, protocol = read_metrics(folder / "metrics.json")
    results = _read_json(folder / "keypoints.json")
    if not isinstance(results, list) or not all(
            isinstance(item, dict) and {"image_id", "keypoints", "score"} <= set(item) for item in results):
        raise BadInput(f"{folder}/keypoints.json is no list of poses in COCO's results format; run eval.coco again")
    for field, sound, what in (("image_id", is_id, "no whole number"), ("category_id", is_id, "no whole number"),
                               ("score", is_number, "no finite number")):
        bad = [item for item in results if not sound(item.get(field))]
        if bad:
            raise BadInput(f"{folder}/keypoints.json: {field} of {len(bad)} of {len(results)} poses is {what} (first: "
                           f"{str(bad[0].get(field))[:60]}); run eval.coco again")
    return Run(folder, {name: metrics[name] for name in METRICS}, protocol, results)


def read_metrics(path):
    """metrics.json of eval.coco → its numbers (dict) and the protocol (dict).

    Raises:
        BadInput: the file is missing, or lacks one of the ten numbers or the protocol.
    """
    metrics = _read_json(Path(path))
    if not isinstance(metrics, dict) or not isinstance(metrics.get("protocol"), dict):
        raise BadInput(f"{path} has no protocol; give the metrics.json of python -m eval.coco")
    if "AP" not in metrics and metrics["protocol"].get("persons") == 0:
        raise BadInput(f"{path} is of a test set, which has no AP here; give a run on annotated persons")
    for name in METRICS:
        if not is_number(metrics.get(name)):
            raise BadInput(f"{path} has {name} = {metrics.get(name)!r}, which is no number; run eval.coco again")
    return {key: value for key, value in metrics.items() if key != "protocol"}, metrics["protocol"]


def _read_json(path):
    if not path.is_file():
        raise BadInput(f"there is no {path}; give an output folder of python -m eval.coco")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; run eval.coco again") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); run eval.coco again") from error


def refuse_other_protocol(first, second):
    """Raise BadInput unless two runs measured the same thing."""
    different = protocol_differences(first, second)
    if different:
        raise BadInput(f"the two runs measured different things ({'; '.join(different)}); run both with the same "
                       "options")


def annotations_of(run, path=None, check=True):
    """The annotations that a run was measured on, as many images of them as it took.

    Args:
        run: `Run`.
        path: the file; None for the one that its protocol names.
        check: refuse a file of another content than the run's, or whose score is not the run's.

    Raises:
        BadInput: it is another file, or one that does not give the run's AP.
    """
    path = Path(path or run.protocol.get("annotations", ""))
    if not path.is_file():
        raise BadInput(f"annotations file {path} of {run.folder} does not exist; give it with --annotations")
    wanted = run.protocol.get("annotations_sha256")
    if check and wanted != hashlib.sha256(path.read_bytes()).hexdigest():
        raise BadInput(f"{path} is not the file that {run.folder} was measured on (sha256 {str(wanted)[:12]}…); give "
                       "that one with --annotations")
    annotations = load_annotations(path, limit=run.protocol.get("images"))
    known = {image["id"] for image in annotations.images}
    strange = [item["image_id"] for item in run.results if item["image_id"] not in known]
    if strange:
        raise BadInput(f"{run.folder}/keypoints.json has poses on {len(set(strange))} images that are not in {path} "
                       f"(first: {strange[0]}); give its annotations with --annotations")
    bad = [item for item in run.results if not are_numbers(item["keypoints"], 3 * annotations.keypoints)]
    if bad:
        values = len(bad[0]["keypoints"]) if isinstance(bad[0]["keypoints"], list) else 0
        raise BadInput(f"{run.folder}/keypoints.json: {len(bad)} of {len(run.results)} poses are not the "
                       f"{annotations.keypoints} keypoints, x, y and score, of {path} (the first has {values} values); "
                       "give the annotations that the run was measured on, and runs of the same keypoints")
    if check:
        score = coco_metrics(annotations, run.results, sigmas_of(annotations, run.protocol))["AP"]
        if abs(score - run.metrics["AP"]) > SAME_FIGURE:
            raise BadInput(f"{run.folder}/keypoints.json has AP {score:.6f} on {path} but metrics.json says "
                           f"{run.metrics['AP']:.6f}; the files are of different runs or of keypoints with other "
                           "sigmas: run eval.coco again")
    return annotations


def main():
    arguments = parse_arguments()
    first, second = read_run(arguments.first), read_run(arguments.second)
    if not arguments.anyway:
        refuse_other_protocol(first.protocol, second.protocol)
    annotations = annotations_of(first, arguments.annotations, check=not arguments.anyway)
    annotations_of(second, annotations.path, check=not arguments.anyway)
    sigmas = sigmas_of(annotations, first.protocol)
    result = differences(first.results, second.results, annotations, sigmas, arguments.resamples)
    print(table(first, second, annotations, result, arguments.resamples))
    if arguments.out:
        recalls = {name: run.protocol.get("detector_recall") for name, run in (("first", first), ("second", second))}
        write_json(arguments.out, {
            "first": str(first.folder), "second": str(second.folder), "resamples": arguments.resamples,
            "differences": {name: vars(item) if math.isfinite(item.value) else None for name, item in result.items()},
            "detector_recall": recalls}, indent=2)


def table(first, second, annotations, result, resamples):
    """The comparison as lines of text."""
    different = protocol_differences(first.protocol, second.protocol)
    lines = [f"first   {first.folder}: {first.protocol.get('engine')}",
             f"second  {second.folder}: {second.protocol.get('engine')}",
             *(f"warning: different {item}" for item in different),
             f"{len(annotations.images)} images, {annotations.person_count} persons; 95 % intervals of {resamples} "
             "resamples of the images",
             "          first  second  difference  interval"]
    for name, item in result.items():
        if math.isnan(item.value):
            lines.append(f"  {name:6}" + "       -" * 2)
            continue
        # Between equal runs the interval is 0, which says no more than that.
        sure = "" if item.low <= 0 <= item.high else "  beyond chance"
        lines.append(f"  {name:6}{first.metrics[name]:7.3f} {second.metrics[name]:7.3f} {item.value:+11.4f}  "
                     f"{item.low:+.4f} … {item.high:+.4f}{sure}")
    recalls = [run.protocol.get("detector_recall") for run in (first, second)]
    if None not in recalls:
        lines.append(f"  found {recalls[0]:7.3f} {recalls[1]:7.3f} {recalls[1] - recalls[0]:+11.4f}  (detector recall; "
                     "no interval, as the boxes are not kept)")
    return "\n".join(lines)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.compare",
                                     description="How much better the second run of eval.coco is than the first.")
    add = parser.add_argument
    add("first", type=Path, help="output folder of python -m eval.coco")
    add("second", type=Path, help="another one, measured on the same images in the same way")
    add("--annotations", type=Path, help="COCO keypoint file (default: the one that the first run names)")
    add("--resamples", type=at_least_two, default=RESAMPLES, metavar="N",
        help="of the bootstrap (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the differences to this JSON file too")
    add("--anyway", action="store_true", help="compare runs of different protocols too, on the first one's images")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
