"""A run of eval.coco as one HTML page that needs nothing else: numbers, curves, errors, the worst pictures.

    python -m eval.page output/eval --annotations person_keypoints_val2017.json --images val2017
    python -m eval.page output/fp32 output/fp16 output/int8 --images val2017

writes page.html into the (first) run's folder, for light and dark screens. Of several runs all are put beside the
first, with paired differences and their intervals, and the rest of the page is of the first.
"""

import argparse
import base64
import itertools
import math
from html import escape
from pathlib import Path

import cv2
import numpy as np

from eval.annotations import check_images, read_image
from eval.bootstrap import RESAMPLES, interval, matches_of, sigmas_of
from eval.charts import draw_curves, draw_impact, draw_keypoints
from eval.compare import annotations_of, read_run
from eval.diagnosis import TYPES
from eval.errors import analyse, schema_of
from eval.options import positive
from eval.scoring import evaluated, image_similarities, person_boxes
from eval.side_by_side import NOTE, cells, check_alike, columns_of, describe, rows_of
from runtime.draw import draw_poses
from runtime.errors import run_command
from runtime.files import whole_file
from runtime.keypoints import Poses

SHOWN = 0.1  # score from which on a pose is drawn: that of the box times that of the keypoints
PICTURE_WIDTH = 640  # pixels
STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --paper: #fff; --line: #d5d9de; --soft: #5e6873; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --paper: #15181c; --line: #3a4149; --soft: #9aa5b1; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, figcaption { color: var(--soft); max-width: 46rem; } figure { margin: 0 0 1.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text td { text-align: left; overflow-wrap: anywhere; } th { font-weight: 600; }
.text th, .beside th, .beside td { text-align: left; }
.beside { margin-bottom: 1rem; } .beside th, .beside td { min-width: 8rem; white-space: nowrap; }
.beside th:first-child { min-width: 16rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
svg, img { width: 100%; height: auto; display: block; }
"""


def make_page(run, annotations, images_dir=None, pictures=6, resamples=RESAMPLES, others=()):
    """The page as a string of HTML.

    Args:
        run: from `eval.compare.read_run`.
        annotations: those of the run.
        images_dir: folder of the images; None leaves pictures out.
        pictures: how many of the worst images to draw.
        resamples: of the bootstrap.
        others: runs on the same annotations, to put beside this one.

    Raises:
        BadInput: matplotlib is not installed, or an image cannot be read.
    """
    sigmas, schema = sigmas_of(annotations, run.protocol), schema_of(annotations)
    report = analyse(annotations, run.results, sigmas, schema, images_dir)
    matches = matches_of(evaluated(annotations, run.results, sigmas))[0]
    intervals = interval(run.results, annotations, sigmas, resamples)
    name = escape(Path(str(run.protocol.get("engine", run.folder))).name)
    boxes = run.protocol.get("boxes", "unknown")
    sections = [
        f"<h1>{name}: AP {run.metrics['AP']:.3f}</h1>",
        f"<p>{len(annotations.images)} images, {report['persons']} persons; boxes: {escape(str(boxes))}; "
        f"{escape(str(run.protocol.get('date', '')))}</p>",
        "<h2>Ten numbers</h2>", _numbers(run.metrics, intervals),
        f"<p>The interval holds 95 % of {resamples} resamples of the images. An OKS of 0.50 or 0.75 must be reached in "
        "AP50 and AP75; M are persons of 32² to 96² pixels, L larger ones.</p>",
        *beside_others(run, report, others, annotations, sigmas, schema, images_dir, resamples),
        '<h2>Precision and recall, and what errors cost</h2><div class="two">',
        _figure(draw_curves(matches), "Precision over recall, by the OKS from which on a pose counts as right."),
        _figure(draw_impact(report["impact"]), "AP as it is and after putting right one kind of error after another, "
                "from the top to the bottom (after Ronchi and Perona 2017)."), "</div>",
        f"<p>{report['persons_without_pose']} of {report['persons']} persons have no pose; {report['poses_on_nobody']} "
        f"poses lie on nobody, {report['scores']['duplicates']} of all poses are a person's second or later one; "
        f"{report['scores']['of_these_wrongly_ranked']} persons have a worse pose ranked before their best.</p>",
        "<h2>Keypoints</h2>",
        _figure(draw_keypoints(report["by_keypoint"]), "Share of the labelled keypoints of located persons. Inversion "
                "is left for right, swap a keypoint of another person."),
        _table(["keypoint", "labels", *TYPES, "PCK 0.1", "AP"],
               [[name, row["labelled"], *[row[kind] for kind in TYPES], row["pck"], row["AP"]]
                for name, row in report["by_keypoint"].items()]),
        "<h2>Persons</h2>",
        _table(["persons", "count", "AP", "AR50", "no pose", *TYPES],
               [[name, row["persons"], row["AP"], row["AR50"], row["without_pose"], *[row[kind] for kind in TYPES]]
                for groups in report["by_group"].values() for name, row in groups.items()]),
    ]
    if images_dir is not None and pictures:
        sections += ["<h2>The worst pictures</h2>",
                     "<p>Lowest mean OKS of their persons. Left the truth, right the poses of a score above "
                     f"{SHOWN}.</p>",
                     *worst_pictures(run, annotations, sigmas, schema, images_dir, pictures)]
    sections += ["<h2>Protocol</h2>", _table(["key", "value"], [[key, _text(value)] for key, value in
                                                                run.protocol.items()], "text")]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{name}</title><style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(sections) + "\n</body></html>\n")


def beside_others(run, report, others, annotations, sigmas, schema, images_dir, resamples):
    """The section of several runs → list of HTML, empty without others."""
    if not others:
        return []
    runs = [run, *others]
    reports = [report, *(analyse(annotations, other.results, sigmas, schema, images_dir) for other in others)]
    columns = columns_of(runs, reports, annotations, resamples)
    names = [column.name for column in columns]
    html = ["<h2>Side by side</h2>", _table(["run", "what"], [[column.name, describe(column)] for column in columns],
                                            "text"), f"<p>{escape(NOTE.format(resamples=resamples))}</p>"]
    for group, rows in itertools.groupby(rows_of(columns), key=lambda row: row.group):
        html.append(_table([group, *names], [[row.name, *cells(row)] for row in rows], "beside"))
    curves = [_figure(draw_curves(matches_of(evaluated(annotations, other.results, sigmas))[0], name),
                      f"Precision over recall of {name}.") for other, name in zip(others, names[1:], strict=True)]
    return [*html, f'<div class="two">{"".join(curves)}</div>']


def _numbers(metrics, intervals):
    rows = [["value", *[None if value < 0 else value for value in metrics.values()]]]
    for end in ("low", "high"):
        values = [getattr(intervals[name], end) for name in metrics]
        rows.append([f"95 % {end}", *[value if math.isfinite(value) else None for value in values]])
    return _table(["", *metrics], rows)


def _table(heads, rows, style=""):
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{escape(_text(value))}</td>" for value in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{style}">{body}</table></div>'


def _text(value):
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _figure(picture, caption):
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def worst_pictures(run, annotations, sigmas, schema, images_dir, count):
    """The images with the lowest mean OKS, truth and poses side by side → list of HTML."""
    shown = [result for result in run.results if result["score"] > SHOWN]
    similarities = image_similarities(evaluated(annotations, shown, sigmas), annotations)
    images = {image["id"]: image for image in annotations.images}
    html = []
    for number in sorted(similarities, key=similarities.__getitem__)[:count]:
        frame = read_image(images[number], images_dir)
        truth = annotations.persons[number]
        points = np.array([person["keypoints"] for person in truth], np.float32).reshape(len(truth), -1, 3)
        points[..., 2] = points[..., 2] > 0
        found = [result for result in shown if result["image_id"] == number]
        pictures = [draw_poses(frame, Poses(person_boxes(truth), np.ones(len(truth), np.float32), points), schema),
                    draw_poses(frame, _poses(found, len(schema)), schema)]
        name = images[number]["file_name"]
        html.append(f'<figure><div class="two">{_jpeg(pictures[0], f"truth of {name}")}'
                    f'{_jpeg(pictures[1], f"poses of {name}")}</div><figcaption>{escape(name)}: OKS '
                    f"{similarities[number]:.2f}, {len(truth)} persons, {len(found)} poses</figcaption></figure>")
    return html


def _poses(results, keypoints):
    """COCO results → Poses; the results do not tell the box, which becomes that of the keypoints."""
    points = np.array([result["keypoints"] for result in results], np.float32).reshape(-1, keypoints, 3)
    boxes = np.concatenate([points[..., :2].min(1), points[..., :2].max(1)], axis=1)
    return Poses(boxes, np.array([result["score"] for result in results], np.float32), points)


def _jpeg(picture, label):
    scale = min(1.0, PICTURE_WIDTH / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return f'<img alt="{escape(label)}" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def main():
    arguments = parse_arguments()
    run, *others = (read_run(folder) for folder in arguments.runs)
    for difference in check_alike([run, *others], arguments.anyway):
        print(f"warning: different protocols, {difference}")
    annotations = annotations_of(run, arguments.annotations, check=not arguments.anyway)
    for other in others:
        annotations_of(other, annotations.path, check=not arguments.anyway)
    if arguments.images:
        check_images([image for image in annotations.images if image["id"] in annotations.persons], arguments.images)
    out = arguments.out or run.folder / "page.html"
    page = make_page(run, annotations, arguments.images, arguments.pictures, others=others)
    with whole_file(out) as part:
        part.write_text(page, encoding="utf-8")
    print(f"wrote {out} ({len(page) / 2**20:.1f} MiB)")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="run", help="output folder of python -m eval.coco; others come "
        "beside the first")
    add("--annotations", type=Path, help="COCO keypoint file (default: the one that the first run names)")
    add("--images", type=Path, help="folder of the images; without it the page has no pictures")
    add("--pictures", type=positive, default=6, metavar="N", help="how many of the worst images (default: %(default)s)")
    add("--anyway", action="store_true", help="put runs of different protocols beside each other too")
    add("--out", type=Path, metavar="FILE", help="HTML file (default: page.html in the first run's folder)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
