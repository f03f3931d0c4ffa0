"""What a run tells while it goes: a progress bar, a text log, TensorBoard, a table and a picture of its curves.

`output/log/NAME/` holds train.log, history.csv, curves.png and tensorboard/.
"""

import csv
import time

import tensorflow as tf
from tqdm import tqdm

from runtime.errors import BadInput
from train.checkpoint import OUTPUT

WRITTEN_EVERY = 30.0  # seconds between two lines of the text log


class Log:
    """The log of one run from `place` on; `steps` are those of an epoch."""

    def __init__(self, config, steps, place):
        self.config, self.steps = config, steps
        self.folder = OUTPUT / "log" / config.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.text = (self.folder / "train.log").open("a", buffering=1)
        except OSError as error:
            raise BadInput(f"{self.folder} cannot be written: {error.strerror}; free some space or see to its rights"
                           ) from error
        self.curves = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
        self.gpu = bool(tf.config.get_visible_devices("GPU"))
        self.written = 0.0
        done = (place.epoch * steps + place.step) * config.batch
        self.bar = tqdm(total=config.epochs * steps * config.batch, initial=done, unit=" crops" if config.task == "pose"
                        else " images", unit_scale=True, dynamic_ncols=True, mininterval=1)

    def step(self, place, loss, rate):
        """Show a place in the run, the mean loss of its epoch so far, and the learning rate."""
        self.bar.set_description(f"epoch {place.epoch + 1}/{self.config.epochs} step {place.step}/{self.steps}")
        shown = {"loss": f"{loss:.4f}", "lr": f"{rate:.2g}"}
        if self.gpu:
            shown["GPU"] = f"{tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**30:.1f} GiB"
        self.bar.set_postfix(shown, refresh=False)
        step = place.epoch * self.steps + place.step
        self.bar.update(step * self.config.batch - self.bar.n)
        now = time.monotonic()
        if now - self.written > WRITTEN_EVERY or place.step == self.steps:
            self.written = now
            self._write(f"epoch {place.epoch + 1} step {place.step}/{self.steps} "
                        + " ".join(f"{name} {value}" for name, value in shown.items())
                        + f" {self.bar.format_dict['rate'] or 0:.1f}{self.bar.unit}/s")
            with self.curves.as_default(step=step):
                tf.summary.scalar("loss", loss)
                tf.summary.scalar("learning_rate", rate)

    def epoch(self, epoch, loss, figures):
        """Note an epoch that is done."""
        row = {"epoch": epoch, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "loss": round(loss, 5), **figures}
        append_history(self.folder / "history.csv", row)
        plot_history(self.folder / "history.csv")
        with self.curves.as_default(step=epoch * self.steps):
            for name, value in figures.items():
                tf.summary.scalar(f"validation/{name}", value)
        line = ", ".join(f"{name} {value}" for name, value in row.items() if name != "time")
        self._write(line)
        tqdm.write(line)

    def _write(self, line):
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def close(self):
        self.bar.close()
        self.text.close()
        self.curves.close()


def append_history(path, figures):
    """Add a row to a CSV file; rows of later epochs, from a run that was cut off, give way to it."""
    rows = read_history(path, figures["epoch"])
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in [*rows, figures] for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows([*rows, figures])


def read_history(path, before):
    """The rows of a history.csv whose epoch is less than `before`: dicts of strings."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["epoch"]) < before]


def plot_history(path):
    """Draw the curves of a history.csv beside it: one panel a figure, over epochs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("epoch", "time")]
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False)
    for name, panel in zip(names, panels[0], strict=True):
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        panel.set(title=name, xlabel="epoch")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path.with_name("curves.png"), dpi=100)
    pyplot.close(figure)
