"""A build that got worse fails.

    python -m eval.gate --metrics output/eval/metrics.json --thresholds gate.toml
    python -m eval.gate --metrics output/int8/metrics.json --worse-than output/float32 --by 0.003

Thresholds are TOML, of the ten numbers, of the numbers in the protocol, and of PCKh and PoseTrack's AP:

    [minimum]
    AP = 0.30
    detector_recall = 0.55
    "PCKh@0.5" = 85.0          # in percent; a part's is "PCKh@0.5 Wrist", at 0.1 "PCKh@0.1"
    "PoseTrack Total" = 60.0   # of a part or joint: "PoseTrack Wrist", "PoseTrack left_wrist"

    [maximum]
    ms_per_person = 30

The exit code is 0 where every gate holds, 1 where one fails, 2 for bad input.
"""

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from eval.annotations import is_number
from eval.compare import read_metrics, refuse_other_protocol
from eval.scoring import METRICS
from runtime.errors import BadInput, run_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS = ("minimum", "maximum")
# What only some runs have, and the option of eval.coco that makes it.
NEEDS = {"detector_recall": "--detector", "detector_ms_per_frame": "--detector",
         "PCKh": "MPII's engine and annotated boxes", "PoseTrack": "PoseTrack's engine, then eval.posetrack"}


@dataclass(frozen=True)
class Gate:
    """One threshold: `measured` must be at least (or at most) the threshold, which itself still passes."""

    name: str
    measured: float
    rule: str  # "minimum" or "maximum"
    threshold: float

    @property
    def holds(self):
        if self.rule == "minimum":
            return self.measured >= self.threshold
        return self.measured <= self.threshold


def load_thresholds(path):
    """Thresholds of a TOML file: list of (name, "minimum" or "maximum", number).

    Raises:
        BadInput: the file is missing, is not TOML, has other sections, no threshold or one that is no finite number.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no thresholds at {path}; write a TOML file with [minimum] and [maximum]")
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
    thresholds = []
    for section, values in sections.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise BadInput(f"unknown key {section!r} in {path}; thresholds stand under [minimum] or [maximum]")
        for name, threshold in values.items():
            if not is_number(threshold):
                raise BadInput(f"{path}: {section} {name} = {threshold!r} is no finite number")
            thresholds.append((name, section, float(threshold)))
    if not thresholds:
        raise BadInput(f"{path} has no threshold, so that everything would pass; write some under [minimum] or "
                       "[maximum]")
    return thresholds


def figure(name, metrics, protocol, path):
    """One measured number by its name in metrics.json.

    Raises:
        BadInput: there is no such figure, it was not measured in this run, or it is no number.
    """
    figures = {**{key: value for key, value in protocol.items() if not isinstance(value, str | bool | dict | list)},
               **flat_figures(metrics)}
    if name not in figures:
        table_ = re.split("[@ ]", name)[0]  # PCKh of PCKh@0.5
        if table_ in NEEDS and not any(known.startswith(table_) for known in figures):
            raise BadInput(f"{path} has no {name}; run eval.coco with {NEEDS[table_]}")
        raise BadInput(f"unknown figure {name!r}; {path} has {', '.join(sorted(figures))}")
    value = figures[name]
    if value is None and name.startswith(("PCKh@", "PoseTrack ")):
        raise BadInput(f"{path} has no {name}, as nobody has it labelled; take this gate out or give other annotations")
    if not is_number(value):
        raise BadInput(f"{path} has {name} = {value!r}, which is no number; run eval.coco again")
    if name in METRICS and value < 0:  # pycocotools' mark
        raise BadInput(f"{path} has {name} = {value:g}, as no annotated person is of that size; take this gate out or "
                       "give other annotations")
    return float(value)


def flat_figures(metrics):
    """The numbers of metrics.json by one name each: PCKh's and PoseTrack's tables become entries of their own."""
    flat = {key: value for key, value in metrics.items() if key not in ("PCKh", "PoseTrack")}
    for share, table_ in (metrics.get("PCKh") or {}).items():
        if isinstance(table_, dict):
            flat |= {f"PCKh@{share}" if part == "Mean" else f"PCKh@{share} {part}": value
                     for part, value in table_.items()}
    return flat | {f"PoseTrack {part}": value for part, value in (metrics.get("PoseTrack") or {}).items()}


def check_thresholds(metrics_path, thresholds):
    """Hold a run against thresholds (from `load_thresholds`) → list of `Gate`."""
    metrics, protocol = read_metrics(metrics_path)
    return [Gate(name, figure(name, metrics, protocol, metrics_path), rule, threshold)
            for name, rule, threshold in thresholds]


def check_loss(metrics_path, other, by, names=("AP",)):
    """Gates that hold where a run lost at most `by` of each figure against another run of the same protocol.

    Args:
        metrics_path: metrics.json of the run.
        other: metrics.json of the run to compare with, or its folder.
        by: the most that may be lost; 0 allows no loss.
        names: of `METRICS`, or of PCKh or PoseTrack as in a file of thresholds.

    Returns:
        list of `Gate` whose measured number is the loss, negative where the run got better.
    """
    other = Path(other)
    other = other / "metrics.json" if other.is_dir() else other
    metrics, protocol = read_metrics(metrics_path)
    other_metrics, other_protocol = read_metrics(other)
    refuse_other_protocol(other_protocol, protocol)
    gates = []
    for name in names:
        if name not in METRICS and not name.startswith(("PCKh@", "PoseTrack ")):
            raise BadInput(f"unknown figure {name!r} for a loss; it is one of {', '.join(METRICS)}, or of PCKh or "
                           "PoseTrack")
        loss = figure(name, other_metrics, {}, other) - figure(name, metrics, {}, metrics_path)
        # 0.303 - 0.300 is a little more than 0.003 in binary.
        gates.append(Gate(f"loss of {name}", round(loss, 12), "maximum", by))
    return gates


def table(gates):
    """The gates as lines of text."""
    width = max(len(gate.name) for gate in gates)
    lines = [f"  {'':{width}}  measured     threshold"]
    for gate in gates:
        sign = "≥" if gate.rule == "minimum" else "≤"
        lines.append(f"  {gate.name:{width}}  {gate.measured:8.4g}  {sign} {gate.threshold:8.4g}    "
                     f"{'ok' if gate.holds else 'FAILED'}")
    return "\n".join(lines)


def main():
    arguments = parse_arguments()
    gates = []
    if arguments.thresholds:
        gates += check_thresholds(arguments.metrics, load_thresholds(arguments.thresholds))
    if arguments.worse_than:
        gates += check_loss(arguments.metrics, arguments.worse_than, arguments.by, arguments.figures or ["AP"])
    print(table(gates))
    failed = sum(not gate.holds for gate in gates)
    print(f"{failed} of {len(gates)} gates failed" if failed else f"all {len(gates)} gates hold")
    return 1 if failed else 0


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m eval.gate",
                                     description="Exit with code 1 where a run of eval.coco is not good enough.")
    add = parser.add_argument
    add("--metrics", type=Path, required=True, help="metrics.json of python -m eval.coco")
    add("--thresholds", type=Path, metavar="TOML", help="file with [minimum] and [maximum]")
    add("--worse-than", type=Path, metavar="DIR", help="output folder of a run of the same protocol to lose little "
        "against")
    add("--by", type=loss_allowed, metavar="LOSS", help="the most that may be lost against it, such as 0.003")
    add("--figure", action="append", dest="figures", metavar="NAME", help="what may be lost so much: AP unless given; "
        "may be repeated")
    arguments = parser.parse_args()
    if not arguments.thresholds and not arguments.worse_than:
        parser.error("nothing to hold the run against: give --thresholds, or --worse-than and --by")
    if (arguments.worse_than is None) != (arguments.by is None):
        parser.error("--worse-than and --by belong together: give both or neither")
    if arguments.figures and not arguments.worse_than:
        parser.error("--figure belongs to --worse-than")
    return arguments


def loss_allowed(text):
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"{text} is no loss: give a number of 0 or more")
    return number


if __name__ == "__main__":
    run_command(main)
