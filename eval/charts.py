"""The charts of `eval.page`: SVG in the page's own colours, for light and dark screens."""

import io
import re
from html import escape

import numpy as np

from eval.bootstrap import LEVELS, RECALLS, precision_recall
from eval.diagnosis import CORRECTIONS, TYPES
from runtime.errors import BadInput

INK = "#010203"  # stands for the page's text colour, which is known on the reader's screen only
TYPE_COLOURS = ("#3a9b5c", "#d9a520", "#8a63d2", "#2f86d6", "#d6513f")  # of TYPES; told apart on white and on black


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


def draw_curves(matches, name=""):
    """Precision over recall at four levels of OKS → <svg>. The name tells several on a page apart."""
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
    return _svg(figure, f"Precision over recall {name}".strip())


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
