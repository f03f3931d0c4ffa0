"""A run of eval.coco as one HTML page that needs nothing else: numbers, curves, errors, the worst pictures.

    python -m eval.page output/eval --annotations person_keypoints_val2017.json --images val2017

writes page.html into the run's folder, for light and dark screens.
"""

import argparse
import base64
import io
import math
import re
from html import escape
from pathlib import Path

import cv2
import numpy as np

from eval.annotations import check_images, read_image
from eval.bootstrap import LEVELS, RECALLS, RESAMPLES, interval, matches_of, precision_recall, sigmas_of
from eval.compare import annotations_of, read_run
from eval.diagnosis import CORRECTIONS, TYPES
from eval.errors import analyse, schema_of
from eval.options import positive
from eval.scoring import evaluated, image_similarities, person_boxes
from runtime.draw import draw_poses
from runtime.errors import BadInput, run_command
from runtime.keypoints import Poses
from runtime.write import whole_file

SHOWN = 0.1  # score from which on a pose is drawn: that of the box times that of the keypoints
PICTURE_WIDTH = 640  # pixels
INK = "#010203"  # stands for the page's text colour, which is known on the reader's screen only
TYPE_COLOURS = ("#3a9b5c", "#d9a520", "#8a63d2", "#2f86d6", "#d6513f")  # of TYPES; told apart on white and on black
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
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
svg, img { width: 100%; height: auto; display: block; }
"""


def make_page(run, annotations, images_dir=None, pictures=6, resamples=RESAMPLES):
    """The page as a string of HTML.

    Args:
        run: from `eval.compare.read_run`.
        annotations: those of the run.
        images_dir: folder of the images; None leaves pictures out.
        pictures: how many of the worst images to draw.
        resamples: of the bootstrap.

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


def _new_axes(width, height):
    """A matplotlib figure and axes in the page's own ink."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BadInput("matplotlib is not installed; pip install 'matplotlib>=3.8,<4'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.tick_params(colors=INK)
    return figure, axes


def _svg(figure, label):
    """A figure as an <svg> element; its text stays text, in the page's colour."""
    import matplotlib

    buffer = io.StringIO()
    # The salt keeps the names of clip paths of several figures on one page apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return svg.strip()


def draw_curves(matches):
    """Precision over recall at four levels of OKS → <svg>."""
    precision, _ = precision_recall(matches)
    figure, axes = _new_axes(5.2, 4)
    for level, colour in zip((0, 5, 8, 9), TYPE_COLOURS, strict=False):
        label = f"OKS {LEVELS[level]:.2f}: AP {precision[level].mean():.3f}"
        axes.plot(RECALLS, precision[level], color=colour, label=label)
    axes.plot(RECALLS, precision.mean(0), color=INK, linewidth=2.5, label=f"mean of ten: AP {precision.mean():.3f}")
    axes.set_xlabel("recall", color=INK)
    axes.set_ylabel("precision", color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _svg(figure, "Precision over recall")


def draw_impact(impact):
    """What each kind of error costs, as a staircase from AP to 1 → <svg>."""
    steps = [impact["AP"], *[impact["progressive"][name] for name in CORRECTIONS], 1.0]
    names = ["AP", *CORRECTIONS, "not exact"]
    figure, axes = _new_axes(5.2, 4)
    axes.barh([0], [steps[0]], color=TYPE_COLOURS[0])
    for row in range(1, len(names)):
        gain = steps[row] - steps[row - 1]
        axes.barh([row], [gain], left=[steps[row - 1]], color=TYPE_COLOURS[4] if row < len(names) - 1 else "#8b95a1")
        ends = sorted(steps[row - 1:row + 1])
        after = ends[1] < 0.85  # else there is no room, and the number stands before the bar
        axes.text(ends[1] + 0.01 if after else ends[0] - 0.01, row, f"{gain:+.3f}", va="center",
                  ha="left" if after else "right", color=INK, fontsize=9)
    axes.text(steps[0] + 0.01, 0, f"{steps[0]:.3f}", va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("AP", color=INK)
    return _svg(figure, "AP after putting errors right")


def draw_keypoints(by_keypoint):
    """Shares of good keypoints and of each error, a bar a keypoint → <svg>."""
    figure, axes = _new_axes(9, 0.5 + 0.28 * len(by_keypoint))
    names = list(by_keypoint)
    start = np.zeros(len(names))
    for kind, colour in zip(TYPES, TYPE_COLOURS, strict=True):
        shares = np.array([by_keypoint[name][kind] for name in names])
        axes.barh(range(len(names)), shares, left=start, color=colour, label=kind)
        start += shares
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(ncols=len(TYPES), frameon=False, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    return _svg(figure, "Errors by keypoint")


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
    run = read_run(arguments.run)
    annotations = annotations_of(run, arguments.annotations)
    if arguments.images:
        check_images([image for image in annotations.images if image["id"] in annotations.persons], arguments.images)
    out = arguments.out or run.folder / "page.html"
    page = make_page(run, annotations, arguments.images, arguments.pictures)
    with whole_file(out) as part:
        part.write_text(page, encoding="utf-8")
    print(f"wrote {out} ({len(page) / 2**20:.1f} MiB)")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.page", description="A run of eval.coco as one HTML page.")
    add = parser.add_argument
    add("run", type=Path, help="output folder of python -m eval.coco")
    add("--annotations", type=Path, help="COCO keypoint file (default: the one that the run names)")
    add("--images", type=Path, help="folder of the images; without it the page has no pictures")
    add("--pictures", type=positive, default=6, metavar="N", help="how many of the worst images (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="HTML file (default: page.html in the run's folder)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
