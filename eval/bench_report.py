"""The table and the picture of `python -m eval.bench`."""

from eval import latency
from runtime.errors import BadInput
from runtime.files import whole_file

ACCURACY = {"pose": "AP", "person": "found"}
SCORES = {"pose": "AP on annotated boxes", "person": "share of persons found"}
ITEM = {"pose": "person", "person": "image"}
COLUMNS = (("engine", "engine", ""), ("backend", "backend", ""), ("threads", "threads", ""), ("batch", "batch", ""),
           ("p50 ms", "p50_ms", ".2f"), ("p90", "p90_ms", ".2f"), ("p99", "p99_ms", ".2f"), ("×", "ratio", ".2f"),
           ("items/s", "items_per_second", ".0f"), ("cold ms", "cold_ms", ".0f"), ("MB", "memory_mb", ".0f"),
           ("J/item", "joules_per_item", ".2g"))


def table(report):
    """What the command ends with: a table for each kind of engine, and why a column is empty."""
    lines = []
    for kind, name in ACCURACY.items():
        rows = [row for row in report["rows"] if row["kind"] == kind]
        if not rows:
            continue
        columns = [*COLUMNS, (name, name, ".3f")]
        cells = [[title.replace("item", ITEM[kind]) for title, _, _ in columns]]
        cells += [["-" if row[key] is None else format(row[key], form) for _, key, form in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for engine, backend, *rest in cells:
            lines.append("  ".join([engine.ljust(widths[0]), backend.ljust(widths[1]),
                                    *(cell.rjust(width) for cell, width in zip(rest, widths[2:], strict=True))]))
        lines.append("")
    protocol = report["protocol"]
    lines.append(f"{protocol['cpu']}, {protocol['cores']} cores, load {protocol['load_before']} before and "
                 f"{protocol['load_after']} after; {protocol['images']} of {protocol['images_in_file']} images")
    obstacles = {"MB": latency.memory_obstacle(), "J": latency.energy_obstacle()}
    lines += [f"no {column}: {why}" for column, why in obstacles.items() if why]
    return "\n".join(lines)


def pareto_front(points):
    """Places of the points that nothing beats, fastest first.

    Args:
        points: list of (milliseconds, accuracy). One beats another that is neither faster nor more accurate, unless
            both are equal.
    """
    def beaten(time, score):
        return any(other <= time and better >= score and (other, better) != (time, score) for other, better in points)

    return sorted((place for place, point in enumerate(points) if not beaten(*point)), key=points.__getitem__)


def new_figure():
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BadInput("matplotlib is not installed; pip install 'matplotlib>=3.8,<4'") from error
    return Figure(layout="constrained")


def draw(figure, path, rows):
    """Accuracy over milliseconds at batch 1, one panel for each kind of engine; returns whether there was any."""
    rows = [row for row in rows if row["batch"] == 1]
    kinds = [kind for kind in ACCURACY if any(row["kind"] == kind for row in rows)]
    figure.set_size_inches(7 * max(len(kinds), 1), 5)
    for place, kind in enumerate(kinds, 1):
        draw_panel(figure.add_subplot(1, len(kinds), place), kind, [row for row in rows if row["kind"] == kind])
    if kinds:
        with whole_file(path) as part:
            figure.savefig(part, format="png", dpi=120)
    return bool(kinds)


def draw_panel(panel, kind, rows):
    """A colour for each engine, a mark for each backend, the number of threads in the point."""
    from matplotlib.ticker import LogLocator, NullFormatter

    engines, backends = (list(dict.fromkeys(row[key] for row in rows)) for key in ("engine", "backend"))
    colours = {engine: f"C{number % 10}" for number, engine in enumerate(engines)}
    marks = {backend: "oshD^v"[number % 6] for number, backend in enumerate(backends)}
    points = [(row["ms_per_item"], row[ACCURACY[kind]]) for row in rows]
    for row, point in zip(rows, points, strict=True):
        panel.scatter(*point, s=140, color=colours[row["engine"]], marker=marks[row["backend"]], edgecolor="white",
                      zorder=2)
        panel.annotate(str(row["threads"]), point, ha="center", va="center_baseline", fontsize=8, color="white")
    times, scores = zip(*points, strict=True)
    right, span = max(times) * 1.5, max(max(scores) - min(scores), 0.05)
    front = [points[place] for place in pareto_front(points)]
    panel.plot(*zip(*front, (right, front[-1][1]), strict=True), color="0.7", drawstyle="steps-post", zorder=1,
               label="Pareto front")
    for name, style in [*((engine, {"color": colours[engine], "marker": "o"}) for engine in engines),
                        *((backend, {"color": "0.3", "marker": marks[backend]}) for backend in backends)]:
        panel.scatter([], [], label=name, **style)
    panel.set(xscale="log", xlabel=f"milliseconds per {ITEM[kind]} (median)", ylabel=SCORES[kind],
              xlim=(min(times) / 1.5, right), ylim=(min(scores) - span / 5, max(scores) + span / 5))
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, frameon=False,
                 title="number in a point: threads", title_fontsize=8)
