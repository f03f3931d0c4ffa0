"""The whole product, rehearsed offline on rendered people: train a little, export, stream, measure.

Training goes on from the bundled weights for a few steps, so that what comes out can be held against the bundled engine
on pictures whose truth is known. Every step is the command that a user would run, as a process of its own.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.files import make_folder
from runtime.options import MODELS
from runtime.rate import rate
from runtime.rehearse.trial import ROOT, Missed, playable_frames

STILLS, TEST_STILLS, FRAMES = 80, 30, 75
TEST_SEED = 200_000  # of pictures that are not trained on
STEP_LIMIT = 240.0  # seconds for one command
TRAINED = ("backbone_weights=", f"init_weights={MODELS / 'pose.weights.h5'}", "epochs=1", "samples_per_epoch=96",
           "batch=8", "learning_rate=1e-5", "warmup_steps=1", "ema=0.9", "batch_norm=frozen", "workers=0",
           "name=rehearsal", "data=['people']")
LEAST_AP = 0.25  # of the bundled pose engine on rendered people, boxes given
MOST_LOSS = 0.03  # AP that the few steps may cost
LEAST_FOUND, LEAST_OKS = 0.5, 0.5  # of the clip's persons, by the bundled detector


@dataclass
class Step:
    """A line of the table.

    Attributes:
        name: of the step.
        needs: names of earlier steps, which must have passed, and of modules beside the runtime's own.
        play: function of the folder; returns what was seen, or raises Missed.
    """

    name: str
    needs: tuple[str, ...]
    play: Callable[[Path], str]


def product(folder, steps=None):
    """Rehearse it all, in five minutes at most on a usual machine; prints a line a step.

    Args:
        folder: for everything that comes of it.
        steps: other Steps than STEPS.

    Returns:
        Whether nothing failed. Steps whose libraries are missing are skipped, and so are those that build on them.
    """
    make_folder(folder)
    outcomes: dict[str, str] = {}
    start = time.monotonic()
    print(f"rehearses in {folder}; what each command says is in its STEP.txt there", flush=True)
    for step in steps or STEPS:
        begun = time.monotonic()
        missing = [name for name in step.needs if name in outcomes and outcomes[name] != "pass"]
        missing += [name for name in step.needs if name not in outcomes and importlib.util.find_spec(name) is None]
        if missing:
            outcomes[step.name], seen = "skip", why_skipped(missing, outcomes)
        else:
            try:
                outcomes[step.name], seen = "pass", step.play(folder)
            except Missed as error:
                outcomes[step.name], seen = "FAIL", str(error)
        print(f"{outcomes[step.name]}  {step.name:<16} {seen} ({time.monotonic() - begun:.0f} s)", flush=True)
    counts = {verdict: list(outcomes.values()).count(verdict) for verdict in ("pass", "skip", "FAIL")}
    print(f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())} in {time.monotonic() - start:.0f} s")
    return not counts["FAIL"]


def why_skipped(missing, outcomes):
    earlier = [name for name in missing if name in outcomes]
    if earlier:
        return f"it builds on {earlier[0]}: {outcomes[earlier[0]]}"
    return f"not installed: {', '.join(missing)}; `make dev` sets up an environment with all of it"


def run(folder, name, module, *arguments):
    """Run `python -m MODULE …` in the folder; its words go to NAME.txt there. Returns them."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    said = folder / f"{name}.txt"
    with open(said, "wb") as file:
        try:
            code = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                  timeout=STEP_LIMIT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        except subprocess.TimeoutExpired as error:
            raise Missed(f"`python -m {module}` took more than {STEP_LIMIT:g} s; see {said}") from error
    words = said.read_text(errors="replace")
    if code:
        last = [line for line in words.replace("\r", "\n").splitlines() if line.strip()][-1:]
        raise Missed(f"`python -m {module}` ended with exit code {code}: {' '.join(last)}; see {said}")
    return words


def render(folder):
    run(folder, "stills", "runtime.walkers", "--stills", STILLS, "--out", "people/images", "--truth",
        "people/person_keypoints.json")
    run(folder, "test_stills", "runtime.walkers", "--stills", TEST_STILLS, "--seed", TEST_SEED, "--out", "test/images",
        "--truth", "test/person_keypoints.json")
    run(folder, "clip", "runtime.walkers", "--out", "clip.mp4", "--truth", "clip.json", "--frames", FRAMES)
    return f"{STILLS} pictures to train on, {TEST_STILLS} to test on, a clip of {FRAMES} frames"


def train(folder):
    snapshots_of = folder / "output" / "model_dump" / "rehearsal"
    if snapshots_of.exists():  # of the rehearsal before: a run is not begun twice
        shutil.rmtree(snapshots_of)
    sets = [word for setting in TRAINED for word in ("--set", setting)]
    run(folder, "train", "train", "--config", ROOT / "configs" / "pose.toml", "--gpu", "cpu", *sets)
    snapshots = sorted(snapshots_of.glob("*.h5"))
    if not snapshots:
        raise Missed(f"no snapshot in {snapshots_of}")
    return f"a few steps from the bundled weights, {snapshots[-1].name}"


def export(folder):
    run(folder, "export", "export", "--run", "output/model_dump/rehearsal", "--out", "engines")
    engine = folder / "engines" / "pose.onnx"
    if not engine.exists():
        raise Missed(f"no {engine}")
    return f"engines/pose.onnx, {engine.stat().st_size / 1e6:.1f} MB, held against the network"


def stream_bundled(folder):
    return streamed(folder, "bundled")


def stream_exported(folder):
    return streamed(folder, "exported", "--pose", "engines/pose.onnx")


def streamed(folder, name, *options):
    """Stream the clip, and hold poses and video against its truth."""
    run(folder, name, "runtime.stream", "--video", "clip.mp4", "--out", f"{name}.mp4", "--jsonl", f"{name}.jsonl",
        *options)
    frames = playable_frames(folder / f"{name}.mp4")
    rating = rate(folder / f"{name}.jsonl", folder / "clip.json")
    if frames != FRAMES:
        raise Missed(f"{frames} of {FRAMES} frames play")
    if rating.found < LEAST_FOUND * rating.persons or not rating.oks >= LEAST_OKS:
        raise Missed(f"{rating}; asked are {LEAST_FOUND:.0%} and OKS {LEAST_OKS}")
    return f"{frames} frames play; {rating.found} of {rating.persons} persons found, mean OKS {rating.oks:.2f}"


def measure_bundled(folder):
    ap = measured(folder, "ap_bundled", MODELS / "pose.onnx")
    if not ap >= LEAST_AP:
        raise Missed(f"AP {ap:.3f} on rendered people, asked is {LEAST_AP}")
    return f"AP {ap:.3f} on rendered people"


def measure_exported(folder):
    before = read_ap(folder, "ap_bundled")
    ap = measured(folder, "ap_exported", "engines/pose.onnx")
    if not ap >= before - MOST_LOSS:
        raise Missed(f"AP {ap:.3f}, {before:.3f} before: more than {MOST_LOSS} lost in a few steps")
    return f"AP {ap:.3f}, {before:.3f} before"


def measured(folder, name, engine):
    run(folder, name, "eval.coco", "--engine", engine, "--annotations", "test/person_keypoints.json", "--images",
        "test/images", "--out", name)
    return read_ap(folder, name)


def read_ap(folder, name):
    return json.loads((folder / name / "metrics.json").read_text())["AP"]


TENSORFLOW = ("tensorflow", "keras")
STEPS = (
    Step("render", (), render),
    Step("stream", ("render",), stream_bundled),
    Step("measure", ("render", "pycocotools"), measure_bundled),
    Step("train", ("render", *TENSORFLOW), train),
    Step("export", ("train", "onnx", "tf2onnx", "onnxslim"), export),
    Step("stream-exported", ("export",), stream_exported),
    Step("measure-exported", ("measure", "export"), measure_exported),
)
