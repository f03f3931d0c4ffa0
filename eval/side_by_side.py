"""Runs of the same protocol beside each other: what another precision of an engine costs, and where.

The first run is what the others are held against. Differences of the ten numbers come with 95 % intervals from the
paired bootstrap of `eval.bootstrap`; those of shares and counts are plain.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from eval.bootstrap import RESAMPLES, Interval, differences, sigmas_of
from eval.compare import Run
from eval.diagnosis import CORRECTIONS, TYPES
from eval.protocol import protocol_differences
from eval.scoring import METRICS
from runtime.errors import BadInput


@dataclass(frozen=True)
class Column:
    """One of the runs.

    Attributes:
        name: what tells it from the others: its precision where they differ in that, else its folder.
        run: from `eval.compare.read_run`.
        report: from `eval.errors.analyse`.
        differences: dict of `METRICS` → `Interval`, this run less the first; None for the first.
    """

    name: str
    run: Run
    report: dict[str, Any]
    differences: dict[str, Interval] | None


@dataclass(frozen=True)
class Row:
    """A figure of every run.

    Attributes:
        group: heading that it stands under. name: of the figure.
        values: one a run; None where nobody is of that kind.
        intervals: of the differences to the first run, one a run, the first None; None where there are none.
    """

    group: str
    name: str
    values: list[float | None]
    intervals: list[Interval | None] | None = None


def check_alike(runs, anyway=False):
    """What the runs' protocols differ in beside who was measured: list of text, empty where nothing.

    Raises:
        BadInput: they differ, and not `anyway`.
    """
    found = [f"{runs[0].folder} and {other.folder}: {item}" for other in runs[1:]
             for item in protocol_differences(runs[0].protocol, other.protocol)]
    if found and not anyway:
        raise BadInput(f"the runs measured different things ({'; '.join(found)}); run all with the same options, or "
                       "give --anyway")
    return found


def column_names(runs):
    """A short name for each run: precision, with the backend where two have the same, or its folder."""
    for keys in (("precision",), ("precision", "backend"), ("backend",)):
        names = [", ".join(str(run.protocol.get(key, "unknown")) for key in keys) for run in runs]
        if len(set(names)) == len(names):
            return names
    names = [run.folder.name or str(run.folder) for run in runs]
    return [name if Counter(names)[name] == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def columns_of(runs, reports, annotations, resamples=RESAMPLES):
    """`Column` of each run; the differences are counted on the same resamples of the images.

    Args:
        runs: of the same images, the first being what the others are held against. reports: of each.
    """
    sigmas = sigmas_of(annotations, runs[0].protocol)
    return [Column(name, run, report, None if run is runs[0] else
                   differences(runs[0].results, run.results, annotations, sigmas, resamples))
            for name, run, report in zip(column_names(runs), runs, reports, strict=True)]


def rows_of(columns):
    """All figures that are worth a look beside each other: list of `Row`."""
    def row(group, name, figure):
        return Row(group, name, [figure(column.report) for column in columns])

    rows = [Row("ten numbers", name, [None if column.run.metrics[name] < 0 else column.run.metrics[name]
                                      for column in columns],
                [column.differences and column.differences[name] for column in columns]) for name in METRICS]
    rows += [row("persons and poses", "persons without a pose", lambda report: report["persons_without_pose"]),
             row("persons and poses", "poses on nobody", lambda report: report["poses_on_nobody"]),
             row("persons and poses", "second and later poses", lambda report: report["scores"]["duplicates"])]
    rows += [row("keypoints of located persons", kind, lambda report, kind=kind: report["keypoints"][kind])
             for kind in TYPES]
    rows += [row("AP that putting right alone brings", kind,
                 lambda report, kind=kind: report["impact"]["alone"][kind] - report["impact"]["AP"])
             for kind in CORRECTIONS]
    rows += [row("AP of a keypoint", name, lambda report, name=name: report["by_keypoint"][name]["AP"])
             for name in columns[0].report["by_keypoint"]]
    rows += [row("AP of persons", name, lambda report, kind=kind, name=name: report["by_group"][kind][name]["AP"])
             for kind, groups in columns[0].report["by_group"].items() for name in groups]
    return rows


def cells(row):
    """Values of a row as text, one a run: the first's, then each with its difference and what is known of it."""
    text = []
    for number, value in enumerate(row.values):
        cell = figure(value)
        first = row.values[0]
        if number and value is not None and first is not None:
            cell += f" {value - first:+.3f}" if isinstance(value, float) else f" {value - first:+d}"
            interval = row.intervals[number] if row.intervals else None
            if interval and math.isfinite(interval.low):
                cell += f" [{interval.low:+.3f} {interval.high:+.3f}]"
                # Equal runs give 0 and 0, which says no more than that.
                cell += "" if interval.low <= 0 <= interval.high else " *"
        text.append(cell)
    return text


def figure(value):
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def describe(column):
    """The run in a line: what was measured, and in what precision."""
    protocol = column.run.protocol
    weights = ", ".join(f"{count} {kind}" for kind, count in (protocol.get("weights") or {}).items())
    return (f"{protocol.get('engine')}, {protocol.get('precision', 'unknown')}{f' ({weights})' if weights else ''}, "
            f"{protocol.get('backend', 'unknown backend')}; {column.run.folder}")


NOTE = ("Behind a value its difference to the first run, for the ten numbers with the 95 % interval of {resamples} "
        "resamples of the images; * is beyond chance.")


def table(columns, resamples=RESAMPLES):
    """The runs beside each other as lines of text."""
    rows = rows_of(columns)
    lines = [f"{column.name:16} {describe(column)}" for column in columns]
    shown = [[column.name for column in columns], *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines += ["", NOTE.format(resamples=resamples)]
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            heads = "  ".join(f"{column.name:{width}}" for column, width in zip(columns, widths, strict=True))
            lines += ["", f"{group:36} {heads}".rstrip()]
        values = "  ".join(f"{cell:{width}}" for cell, width in zip(cells(row), widths, strict=True))
        lines.append(f"  {row.name:34} {values}".rstrip())
    return "\n".join(lines)


def as_json(columns, resamples):
    """For a file: all reports, and the differences of each run to the first."""
    return {
        "resamples": resamples,
        "runs": [{"name": column.name, "folder": str(column.run.folder),
                  **{key: column.run.protocol.get(key) for key in ("engine", "engine_sha256", "precision", "weights",
                                                                   "backend")},
                  "differences": column.differences and {
                      name: vars(item) if math.isfinite(item.value) else None
                      for name, item in column.differences.items()},
                  "report": column.report} for column in columns]}
