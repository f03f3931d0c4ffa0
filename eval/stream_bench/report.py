"""The figures and the tables of `python -m eval.stream_bench`."""

import numpy as np

PIPELINE, ALONE, PEER = "pipeline", "engines alone", "rtmlib"
AIMS = {ALONE: 0.95, PEER: 1.5}  # the pipeline's FPS beside theirs


def rows_of(files, cameras, frames):
    """One dict a contestant, in their order, the pipeline among them.

    Args:
        files, cameras: {name: [Turn, one a round]}; not all of the former are among the latter.
        frames: of the clip.

    Returns:
        list of dicts: name; fps, cpu_ms (of a frame), persons (of a frame), medians over the rounds; p50_ms and p99_ms,
        ages of all rounds' frames; taken, the share of a camera's frames that it gave poses of. Where they have one,
        beside the pipeline's of the same round, as [middle, lowest, highest]: fps_ratio, cpu_ratio, p50_ratio. None for
        what was not measured. And the turns of each round, without the ages.
    """
    measured = [(name, [_figures(turn) for turn in turns], [_figures(turn) for turn in cameras.get(name, [])])
                for name, turns in files.items()]
    _, own_files, own_cameras = next(each for each in measured if each[0] == PIPELINE)
    rows = []
    for name, as_file, as_camera in measured:
        ages = [1000 * age for turn in cameras.get(name, []) for age in turn.ages]
        rows.append({
            "name": name,
            **{key: float(np.median([turn[key] for turn in as_file])) for key in ("fps", "cpu_ms", "persons")},
            "fps_ratio": ratios(as_file, own_files, "fps"), "cpu_ratio": ratios(as_file, own_files, "cpu_ms"),
            "p50_ms": _percentile(ages, 50), "p99_ms": _percentile(ages, 99),
            "p50_ratio": ratios(as_camera, own_cameras, "p50_ms"),
            "taken": len(ages) / (frames * len(as_camera)) if as_camera else None,
            "as_file": as_file, "as_camera": as_camera,
        })
    return rows


def curve_rows(turns, frames):
    """{persons: [Turn, one a round]} of `Crowds` → list of dicts: persons; p50_ms and p99_ms of the ages of all rounds'
    frames; taken, the share of the camera's frames that the pipeline gave poses of; results, how many those are;
    p50_ratio beside the first row's of the same round, as [middle, lowest, highest]."""
    first = [_figures(turn) for turn in next(iter(turns.values()))]
    rows = []
    for persons, of_rounds in turns.items():
        ages = [1000 * age for turn in of_rounds for age in turn.ages]
        rows.append({"persons": persons, "p50_ms": _percentile(ages, 50), "p99_ms": _percentile(ages, 99),
                     "taken": len(ages) / (frames * len(of_rounds)), "results": len(ages),
                     "p50_ratio": ratios([_figures(turn) for turn in of_rounds], first, "p50_ms")})
    return rows


def ratios(figures, others, key):
    """A figure beside another's of the same round: [middle, lowest, highest] of the rounds; None without rounds."""
    each = [own[key] / other[key] for own, other in zip(figures, others, strict=True)] if figures else []
    return [float(np.median(each)), min(each), max(each)] if each else None


def _figures(turn):
    return {"fps": turn.frames / turn.seconds, "cpu_ms": 1000 * turn.cpu_seconds / turn.frames,
            "persons": turn.persons / turn.frames, "seconds": turn.seconds, "frames": turn.frames,
            "p50_ms": _percentile([1000 * age for age in turn.ages], 50)}


def _percentile(values, share):
    return float(np.percentile(values, share)) if values else None


def markdown(report):
    """What the command ends with, for docs/speed.md."""
    protocol, rows = report["protocol"], report["rows"]
    return "\n".join([
        f"{protocol['cpu']}, {protocol['cores']} cores, load {protocol['load_before']} before and "
        f"{protocol['load_after']} after; {protocol['date'][:10]}; {protocol['frames']} frames of {protocol['clip']}, "
        f"{protocol['size']}, {rows[0]['persons']:.1f} persons a frame; {protocol['rounds']} rounds.",
        "",
        *_table(["as a file", "FPS", "×", "CPU ms a frame", "×", "persons a frame"],
                [[row["name"], f"{row['fps']:.1f}", _ratio(row["fps_ratio"]), f"{row['cpu_ms']:.1f}",
                  _ratio(row["cpu_ratio"]), f"{row['persons']:.2f}"] for row in rows]),
        "",
        *protocol["without"],
        *_headlines(report),
        "",
        *_table([f"as a camera of {protocol['fps']:g} FPS", "age p50, ms", "×", "age p99, ms", "frames taken"],
                [[row["name"], *_age_cells(row)] for row in rows if row["taken"] is not None]),
        "",
        *_table(["persons, as a camera of 25 FPS", "age p50, ms", "×", "age p99, ms", "frames taken", "results"],
                [[str(row["persons"]), *_age_cells(row), str(row["results"])] for row in report["curve"]]),
    ])


def _table(titles, rows):
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def _age_cells(row):
    return [f"{row['p50_ms']:.1f}", _ratio(row["p50_ratio"]), f"{row['p99_ms']:.1f}", f"{row['taken']:.0%}"]


def _headlines(report):
    """The pipeline beside what it is to reach, and how much of the machine it uses."""
    own, alone = report["rows"][0], report["engines_alone_ms"]
    lines = []
    for row in report["rows"]:
        middle, lowest, highest = row["fps_ratio"]
        aim = next((aim for name, aim in AIMS.items() if row["name"].startswith(name)), None)
        if aim is not None:
            lines.append(f"- The pipeline is {1 / middle:.2f} ({1 / highest:.2f} to {1 / lowest:.2f}) times as fast as "
                         f"{row['name']}; aim {aim:g}, {'reached' if 1 / middle >= aim else 'missed'}.")
    cores = report["protocol"]["cores"]
    lines.append(f"- Side by side the detector takes {alone['detect']:.1f} ms a frame and the pose engine "
                 f"{alone['pose']:.1f} ms. The pipeline keeps {own['fps'] * own['cpu_ms'] / 1000:.2f} of {cores} cores "
                 f"busy; {cores} full ones would give {1000 * cores / own['cpu_ms']:.0f} FPS.")
    return lines


def _ratio(values):
    """Text of [middle, lowest, highest]; 1 for what the others are held against."""
    return "1" if values == [1.0, 1.0, 1.0] else "{:.2f} ({:.2f} to {:.2f})".format(*values)
