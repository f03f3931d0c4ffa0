"""Images shared out to processes, each with engines of its own."""

import collections
import os
from concurrent.futures.process import BrokenProcessPool

from eval.scoring import Runner
from eval.subject import make_runner, open_subject
from runtime.backends import EngineFailed
from runtime.errors import BadInput
from runtime.gpus import gpu_numbers

AHEAD = 8  # images that each process may be ahead of the oldest one that is not done

_runner: Runner | None = None  # of a process that works


def run_jobs(jobs, arguments, runner):
    """Iterate over the `ImagePoses` of jobs, in their order; close it to end its processes.

    Every image is done alone, so that how many processes there are changes nothing in the results (of one kind of
    device). Job i goes to process i modulo their number.

    Args:
        jobs: from `eval.scoring.jobs_of`.
        arguments: of eval.coco, checked. Where `arguments.workers` is more than one, each process opens its engines by
            them, and has one GPU where `arguments.gpu` names several.
        runner: `Runner` of this process, which works where there is one worker only.

    Raises:
        BadInput: what the runner raises; or a process died or failed.
    """
    if arguments.workers == 1:
        yield from map(runner, jobs)
        return
    start_processes = _process_starter()
    gpus = worker_gpus(arguments.gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    pools = [start_processes(1) for _ in range(arguments.workers)]
    ahead: collections.deque = collections.deque()
    try:
        for number, job in enumerate(jobs):
            if len(ahead) == AHEAD * len(pools):
                yield ahead.popleft().result()
            worker = number % len(pools)
            ahead.append(pools[worker].submit(_run, job, arguments, gpus[worker] if gpus else None))
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise BadInput(f"one of {len(pools)} workers was killed, as happens where memory runs out: fewer --workers "
                       "need less; --continue goes on where this ended") from error
    finally:
        # One after the other, each waited for: with wait=False a pool's pipe may close under Python's own
        # clean-up at exit, which then fails half way, and the other pools' processes wait for ever.
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def worker_gpus(gpus, visible=None):
    """CUDA_VISIBLE_DEVICES for each worker, where several GPUs are asked for, else [].

    Args:
        gpus: "0-1" and the like, as TensorFlow counts them.
        visible: CUDA_VISIBLE_DEVICES of this process, among which it counts; None or empty for all.
    """
    numbers = gpu_numbers(gpus)
    if len(numbers) < 2:
        return []
    names = visible.split(",") if visible else range(max(numbers) + 1)
    return [str(names[number]) for number in numbers]


def _process_starter():
    try:
        from train.loader import start_processes  # spawned, deaf to Ctrl-C, and end with this process
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed, which --workers needs: make dev") from error
    return start_processes


def _run(job, arguments, gpu):
    """Do a job in a process of its own, which opens its engines for the first."""
    global _runner
    try:
        if _runner is None:
            if gpu is not None:  # before TensorFlow is imported, which then sees this one only
                os.environ["CUDA_VISIBLE_DEVICES"], arguments.gpu = gpu, "0"
            _runner = make_runner(arguments, open_subject(arguments))
        return _runner(job)
    except Exception as error:  # not all of TensorFlow's and ONNX Runtime's come through a pipe
        if isinstance(error, BadInput) and not isinstance(error, EngineFailed):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"a worker failed at {job.image['file_name']}: {type(error).__name__}: {reason}; --continue "
                       "goes on where this ended") from error
