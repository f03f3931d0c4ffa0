"""Why a run of eval.coco misses what it misses.

    python -m eval.errors output/eval --annotations person_keypoints_val2017.json --out output/eval/errors.json
    python -m eval.errors output/fp32 output/fp16 output/int8      side by side: what another precision costs, and where

Every keypoint of a pose that lies on a person is good, jitter, inversion (left for right), swap (of another person) or
a miss; poses may be ranked wrongly, lie on nobody, and persons may have none. How much AP each kind costs follows from
putting it right and scoring again. After Ronchi and Perona 2017, "Benchmarking and Error Diagnosis in Multi-Instance
Pose Estimation", whose thresholds these are.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from eval import side_by_side
from eval.annotations import read_image
from eval.bootstrap import (
    AREAS,
    LEVELS,
    RESAMPLES,
    Matches,
    matches_of,
    precision_recall,
    sigmas_of,
)
from eval.compare import annotations_of, read_run
from eval.diagnosis import (
    CORRECTIONS,
    TYPES,
    UNLABELLED,
    ap_impact,
    average_precision,
    count_score_errors,
    diagnose,
    labels_of,
    only_persons,
)
from eval.options import at_least_two
from eval.scoring import coco_metrics, evaluated, person_boxes
from eval.side_by_side import as_json, check_alike, columns_of
from runtime.errors import BadInput, run_command
from runtime.files import write_json
from runtime.keypoints import SCHEMAS
from runtime.nms import box_iou

PCK_SHARE = 0.1  # of the longer side of the person's box
OVERLAP = 0.1  # IoU of boxes above which persons crowd each other
EDGE = 2  # pixels from the picture's edge within which a box is cut off by it
OVERLAPS = {"0 overlapping": (0, 0), "1-2 overlapping": (1, 2), "3 or more": (3, math.inf)}
LABELS = {"1-5 keypoints": (1, 5), "6-10 keypoints": (6, 10), "11-15 keypoints": (11, 15), "16 or more": (16, math.inf)}
SIZES = {"small": (0.0, 32.0**2), "medium": AREAS["M"], "large": AREAS["L"]}


def type_shares(types):
    """Types of any shape → name → share of the labelled keypoints; 0 where there is none."""
    counts = np.bincount(types[types != UNLABELLED], minlength=len(TYPES))
    return {name: float(count / max(counts.sum(), 1)) for name, count in zip(TYPES, counts, strict=True)}


def by_keypoint(annotations, diagnosis, names):
    """Each keypoint alone → dict by name.

    "labelled" counts its labels on all persons, "pck" is the share of those on located persons within 0.1 of the longer
    side of the person's box, and "AP" takes the similarity of this keypoint in place of OKS: located poses are right
    from the level on, those on nobody are wrong, and persons without a pose are lost.
    """
    persons = [person for group in annotations.persons.values() for person in group]
    labelled = np.array([labels_of(person)[:, 2] > 0 for person in persons]).sum(0)
    sides = np.array([max(person["bbox"][2:]) for person in diagnosis.persons]).reshape(-1, 1)
    near = diagnosis.distances <= PCK_SHARE * sides
    table = {}
    for number, name in enumerate(names):
        types = diagnosis.types[:, number]
        known = types != UNLABELLED
        on_person = diagnosis.located >= 0
        counts = np.zeros(len(on_person), bool)
        counts[on_person] = known[diagnosis.located[on_person]]
        reached = np.zeros(len(on_person))
        reached[on_person] = diagnosis.own[diagnosis.located[on_person], number]
        right = counts & (reached >= LEVELS[:, None])
        wrong = (counts | ~on_person) & ~right
        matches = Matches(np.zeros(len(on_person), int), right, wrong, np.full((len(LEVELS), 1), labelled[number]))
        table[name] = {"labelled": int(labelled[number]), **type_shares(types),
                       "pck": float(near[known, number].mean()) if known.any() else 0.0,
                       "AP": average_precision(matches) if labelled[number] else None}
    return table


def groups_of(annotations, images_dir=None):
    """Persons by what makes them hard → kind ("crowding", "labels", "edge") → group → set of annotation ids.

    Args:
        images_dir: where to look up the size of pictures that the annotations do not tell; None leaves "edge" out for
            such annotations.
    """
    groups: dict[str, dict[str, set]] = {"crowding": {name: set() for name in OVERLAPS},
                                         "labels": {name: set() for name in LABELS},
                                         "edge": {"cut off by the edge": set(), "inside": set()}}
    for image in annotations.images:
        wanted = annotations.persons.get(image["id"], [])
        everybody = [person for person in annotations.index.imgToAnns[image["id"]] if not person["iscrowd"]]
        boxes = person_boxes(everybody)
        overlaps = (box_iou(boxes, boxes) > OVERLAP).sum(1) - 1  # but for the person itself
        numbers = {person["id"]: int(count) for person, count in zip(everybody, overlaps, strict=True)}
        size = _image_size(image, images_dir) if wanted else None
        for person in wanted:
            for kind, ranges, number in (("crowding", OVERLAPS, numbers[person["id"]]),
                                         ("labels", LABELS, person["num_keypoints"])):
                name = next(name for name, (least, most) in ranges.items() if least <= number <= most)
                groups[kind][name].add(person["id"])
            if size is not None:
                left, top, width, height = person["bbox"]
                cut = min(left, top, size[0] - left - width, size[1] - top - height) <= EDGE
                groups["edge"]["cut off by the edge" if cut else "inside"].add(person["id"])
    return groups


def _image_size(image, images_dir):
    if "width" in image and "height" in image:
        return image["width"], image["height"]
    return read_image(image, images_dir).shape[1::-1] if images_dir else None


def by_group(annotations, results, sigmas, diagnosis, groups):
    """Groups of `groups_of`, and sizes → kind → group → persons, AP, AR50, share without a pose, shares of types.

    AP counts poses on persons of other groups neither as right nor as wrong, and those on nobody as wrong in every
    group; by size, as in COCO, only where the pose itself is of that size.
    """
    def entry(scoring, area, ids):
        matches = matches_of(scoring)[area]
        members = np.array([person["id"] in ids for person in diagnosis.persons], bool)
        missed = sum(person["id"] in ids for person in diagnosis.missed)
        recall = float(precision_recall(matches)[1][0])  # at an OKS of 0.5
        return {"persons": len(ids), "AP": average_precision(matches) if ids else None, "AR50": recall if ids else None,
                "without_pose": missed / len(ids) if ids else None, **type_shares(diagnosis.types[members])}

    scoring = evaluated(annotations, results, sigmas, areas=list(SIZES.values()))
    wanted = [person for group in annotations.persons.values() for person in group]
    table = {"size": {name: entry(scoring, number, {person["id"] for person in wanted if low <= person["area"] <= high})
                      for number, (name, (low, high)) in enumerate(SIZES.items())}}
    for kind, of_kind in groups.items():
        table[kind] = {}
        for name, ids in of_kind.items():
            scoring = evaluated(annotations, results, sigmas, areas=[AREAS[""]], index=only_persons(annotations, ids))
            table[kind][name] = entry(scoring, 0, ids)
    return table


def analyse(annotations, results, sigmas, schema, images_dir=None):
    """Everything that `python -m eval.errors` writes, as a dict for JSON."""
    diagnosis = diagnose(annotations, results, sigmas, schema.flip_order)
    scoring = evaluated(annotations, results, sigmas, areas=[AREAS[""]])
    return {
        "metrics": {name: None if value < 0 else value
                    for name, value in coco_metrics(annotations, results, sigmas).items()},
        "persons": annotations.person_count,
        "located_persons": len(diagnosis.persons),
        "persons_without_pose": len(diagnosis.missed),
        "poses_on_nobody": int((diagnosis.located < 0).sum()),
        "scores": count_score_errors(results, scoring),
        "keypoints": type_shares(diagnosis.types),
        "impact": ap_impact(annotations, results, sigmas, diagnosis),
        "by_keypoint": by_keypoint(annotations, diagnosis, schema.names),
        "by_group": by_group(annotations, results, sigmas, diagnosis, groups_of(annotations, images_dir)),
    }


def schema_of(annotations):
    """The project's schema of these keypoints; BadInput where there is none."""
    names = annotations.keypoint_names or SCHEMAS["coco"].names
    for schema in SCHEMAS.values():
        if schema.names == names and len(schema) == annotations.keypoints:
            return schema
    raise BadInput(f"{annotations.path} has keypoints of no schema of the project ({', '.join(SCHEMAS)}), so that left "
                   "and right are unknown; give annotations of one of these")


def table(report):
    """The report as lines of text."""
    impact = report["impact"]
    lines = [f"{report['persons']} persons: {report['located_persons']} with a pose on them, "
             f"{report['persons_without_pose']} without; {report['poses_on_nobody']} poses on nobody",
             f"{report['scores']['persons_with_several_poses']} persons have several poses "
             f"({report['scores']['duplicates']} too many), "
             f"{report['scores']['of_these_wrongly_ranked']} of them not the best one first",
             "keypoints of located persons: "
             + ", ".join(f"{name} {100 * share:.1f} %" for name, share in report["keypoints"].items()),
             "", f"AP {impact['AP']:.3f}, put right:  alone           with all above"]
    before = impact["AP"]
    for name in CORRECTIONS:
        alone, together = impact["alone"][name], impact["progressive"][name]
        gains = alone - impact["AP"], together - before
        lines.append(f"  {name:18} {alone:10.3f} {gains[0]:+.3f}  {together:10.3f} {gains[1]:+.3f}")
        before = together
    heads = "  ".join(f"{name:>9}" for name in TYPES)
    lines += ["", f"  {'keypoint':16} {'labels':>7}  {heads}    PCK     AP"]
    for name, row in report["by_keypoint"].items():
        shares = "  ".join(f"{row[kind]:9.3f}" for kind in TYPES)
        lines.append(f"  {name:16} {row['labelled']:7d}  {shares}  {row['pck']:.3f}  {_figure(row['AP'])}")
    lines += ["", f"  {'persons':24} {'count':>6}     AP   AR50  no pose  {heads}"]
    for of_kind in report["by_group"].values():
        for name, row in of_kind.items():
            shares = "  ".join(f"{row[kind]:9.3f}" for kind in TYPES)
            lines.append(f"  {name:24} {row['persons']:6d}  {_figure(row['AP'])}  {_figure(row['AR50'])}    "
                         f"{_figure(row['without_pose'])}  {shares}")
    return "\n".join(lines)


def _figure(value):
    return "    -" if value is None else f"{value:.3f}"


def main():
    arguments = parse_arguments()
    runs = [read_run(folder) for folder in arguments.runs]
    for difference in check_alike(runs, arguments.anyway):
        print(f"warning: different protocols, {difference}")
    annotations = annotations_of(runs[0], arguments.annotations, check=not arguments.anyway)
    for other in runs[1:]:
        annotations_of(other, annotations.path, check=not arguments.anyway)
    schema = schema_of(annotations)
    reports = [analyse(annotations, run.results, sigmas_of(annotations, run.protocol), schema, arguments.images)
               for run in runs]
    if len(runs) == 1:
        out = arguments.out or runs[0].folder / "errors.json"
        write_json(out, reports[0], indent=2)
        print(table(reports[0]))
    else:
        columns = columns_of(runs, reports, annotations, arguments.resamples)
        out = arguments.out or runs[0].folder / "side_by_side.json"
        write_json(out, as_json(columns, arguments.resamples), indent=2)
        print(side_by_side.table(columns, arguments.resamples))
    print(f"wrote {out}")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.errors", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="run", help="output folder of python -m eval.coco; several come beside "
        "each other")
    add("--annotations", type=Path, help="COCO keypoint file (default: the one that the first run names)")
    add("--images", type=Path, help="folder of the images, for their sizes where the annotations lack them")
    add("--resamples", type=at_least_two, default=RESAMPLES, metavar="N", help="for the intervals of several runs' "
        "differences (default: %(default)s)")
    add("--anyway", action="store_true", help="put runs of different protocols beside each other too")
    add("--out", type=Path, metavar="FILE", help="JSON file of all figures (default: errors.json in the run's folder, "
        "side_by_side.json in the first of several)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
