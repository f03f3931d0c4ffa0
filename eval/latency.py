"""How long an engine takes, how much memory and how much energy: each combination in a process of its own.

Its process opens the engine, runs it once (the cold start) and then waits for its turns. Machines drift (heat, other
work), so all processes take turns, several rounds over: A B C A B C …, and what is compared was measured in the same
round. What is timed is `engine.run` alone: pixels in, heatmaps or boxes out.
"""

import contextlib
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.backends import library_of
from runtime.engine import open_engine
from runtime.errors import BadInput

ROUNDS = 5
POWERCAP = Path("/sys/class/powercap")
MEMORY_STATUS, MEMORY_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Combination:
    """What one process measures.

    Attributes:
        engine: path of the file.
        backend: a name that `open_engine` takes.
        threads: of one run.
        batch: items of one run.
        inputs: .npy file of the items, (N, H, W, 3) uint8 BGR of the engine's input size; a run takes the next ones,
            from the first again after the last.
    """

    engine: Path
    backend: str
    threads: int
    batch: int
    inputs: Path

    def __str__(self):
        return f"{self.engine} ({self.backend}, threads {self.threads}, batch {self.batch})"


@dataclass
class Measured:
    """What has been measured of a combination so far; times in seconds.

    Attributes:
        opened: to open the engine, without the import of its library.
        first: its first run.
        turns: of each turn, the time of every run.
        joules: of each turn; empty where the machine does not tell.
        memory: bytes, the most that was resident, less what Python, the imports and the inputs took before; None where
            the system does not tell.
    """

    combination: Combination
    opened: float
    first: float
    turns: list[list[float]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    memory: int | None = None


def measure(combinations, seconds, measured, rounds=ROUNDS, progress=True):
    """Measure all of them; `measured` grows as it goes, so what is done outlives Ctrl-C.

    Args:
        combinations: list of `Combination`.
        seconds: of warm runs for each, in all rounds together.
        measured: list that takes a `Measured` each, in the order of `combinations`.
        progress: whether to show a progress bar.

    Raises:
        BadInput: an engine cannot be opened, or its process was killed.
    """
    turns = len(combinations) * (1 + rounds)
    bar = tqdm(total=turns, desc="measuring", unit="turn", miniters=1, disable=None if progress else True)
    with bar, contextlib.ExitStack() as stack:
        processes = []
        for combination in combinations:
            process = stack.enter_context(contextlib.closing(EngineProcess(combination)))
            measured.append(Measured(combination, *process.cold()))
            processes.append(process)
            bar.update()
        for _ in range(rounds):
            for process, result in zip(processes, measured, strict=True):
                times, joules, result.memory = process.turn(seconds / rounds)
                result.turns.append(times)
                result.joules += [] if joules is None else [joules]
                bar.update()


def statistics(measured):
    """The figures of one combination, as they stand in bench.json: None for what was not measured.

    Args:
        measured: `Measured`.

    Returns:
        dict: open_ms, first_run_ms and cold_ms (both together); rounds and runs that p50_ms, p90_ms, p99_ms (of one
        run), items_per_second and ms_per_item (p50 / batch) come from; memory_mb (10⁶ bytes); joules_per_item.
    """
    batch = measured.combination.batch
    times = np.concatenate([[], *measured.turns])
    figures = {
        "open_ms": 1000 * measured.opened,
        "first_run_ms": 1000 * measured.first,
        "cold_ms": 1000 * (measured.opened + measured.first),
        "rounds": len(measured.turns),
        "runs": len(times),
        "memory_mb": None if measured.memory is None else measured.memory / 1e6,
        "joules_per_item": sum(measured.joules) / (len(times) * batch) if measured.joules else None,
    }
    if not len(times):
        return figures | dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "items_per_second", "ms_per_item"))
    p50, p90, p99 = (float(value) for value in 1000 * np.percentile(times, (50, 90, 99)))
    return figures | {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "ms_per_item": p50 / batch,
                      "items_per_second": len(times) * batch / float(times.sum())}


def time_ratio(measured, reference):
    """How many times as long as the reference: of each round the ratio of the medians, of these the middle one.

    Returns:
        (middle, lowest, highest), or None before the first round.
    """
    ratios = [float(np.median(times) / np.median(others))
              for times, others in zip(measured.turns, reference.turns, strict=False)]
    return (float(np.median(ratios)), min(ratios), max(ratios)) if ratios else None


class EngineProcess:
    """The process of one combination: `cold()` first, then `turn()` as often as you like, `close()` in the end.

    Both raise BadInput where the engine cannot be opened or the process was killed.
    """

    def __init__(self, combination):
        self.combination = combination
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(combination, theirs), daemon=True)
        with _interrupts_held():
            self._process.start()
        theirs.close()

    @property
    def pid(self):
        return self._process.pid

    def cold(self):
        """Seconds to open the engine and of its first run."""
        return self._answer()

    def turn(self, seconds):
        """Seconds of every run in so many seconds, at least one run; joules or None; bytes of memory or None."""
        try:
            self._pipe.send(seconds)
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def close(self):
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _answer(self):
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended() from error
        if isinstance(answer, BadInput):
            raise answer
        return answer

    def _ended(self):
        self._process.join()
        return BadInput(f"the process of {self.combination} ended with exit code {self._process.exitcode}; if that is "
                        "-9, memory ran out: measure fewer combinations at once")


@contextlib.contextmanager
def _interrupts_held():
    """Ctrl-C waits until the end of the block, and never comes to a process started in it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(combination, pipe):
    """What the process does: the cold start, then a turn for every number of seconds that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module(library_of(combination.backend))  # part of neither the cold start nor the memory
    batches = _batches(combination)
    before = _start_counting_memory()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone, and with it the reason to go on
        start = time.perf_counter()
        try:
            engine = open_engine(combination.engine, threads=combination.threads, backend=combination.backend)
        except BadInput as error:
            pipe.send(error)
            return
        opened = time.perf_counter()
        engine.run(next(batches))
        pipe.send((opened - start, time.perf_counter() - opened))
        while True:
            times, joules = _turn(engine, batches, pipe.recv())
            pipe.send((times, joules, None if before is None else _memory("VmHWM") - before))


def _turn(engine, batches, seconds):
    engine.run(next(batches))  # not counted: the caches are full of what the others left
    energy = read_energy()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        batch = next(batches)
        start = time.perf_counter()
        engine.run(batch)
        times.append(time.perf_counter() - start)
    return times, used_energy(energy, read_energy())


def _batches(combination):
    """The items in batches, round and round: an endless iterator over (batch, H, W, 3)."""
    items = np.load(combination.inputs)
    count = -(-len(items) // combination.batch)
    chosen = np.arange(count * combination.batch) % len(items)
    return itertools.cycle(items[chosen].reshape(count, combination.batch, *items.shape[1:]))


def memory_obstacle():
    """Why memory cannot be measured here, or None."""
    if not MEMORY_STATUS.is_file():
        return f"this system has no {MEMORY_STATUS}"
    return None if os.access(MEMORY_RESET, os.W_OK) else f"{MEMORY_RESET} cannot be written"


def _start_counting_memory():
    """Bytes resident now, from where the peak counts anew; None where the system does not tell.

    `getrusage` would not do: its peak is never reset, and a new process inherits its parent's.
    """
    if memory_obstacle():
        return None
    gc.collect()
    MEMORY_RESET.write_text("5")
    return _memory("VmRSS")


def _memory(name):
    """A line of /proc/self/status in bytes: VmRSS is what is resident, VmHWM the most that was (man 5 proc)."""
    lines = dict(line.split(":", 1) for line in MEMORY_STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def _packages(folder):
    """RAPL's counters of whole processors; those of cores and memory are part of them or overlap."""
    return [path for path in sorted(folder.glob("intel-rapl:*"))
            if (path / "name").read_text().startswith("package")]


def energy_obstacle(folder=POWERCAP):
    """Why energy cannot be measured here, or None."""
    packages = _packages(folder)
    if not packages:
        return f"this machine has no energy counter in {folder}/intel-rapl*"
    if not os.access(packages[0] / "energy_uj", os.R_OK):
        return f"{packages[0]}/energy_uj cannot be read: run as root, or allow it with chmod a+r"
    return None


def read_energy(folder=POWERCAP):
    """Of each processor, the counter and the value at which it starts from 0 again, in microjoules; or None.

    https://docs.kernel.org/power/powercap/powercap.html; Intel's RAPL, which Linux offers for AMD under the same name.
    """
    if energy_obstacle(folder):
        return None
    return [tuple(int((path / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            for path in _packages(folder)]


def used_energy(before, after):
    """Joules between two readings of the whole machine, whoever used them; None where there are none."""
    if before is None or after is None:
        return None
    return sum((end - start) % (limit + 1) for (start, limit), (end, _) in zip(before, after, strict=True)) / 1e6
