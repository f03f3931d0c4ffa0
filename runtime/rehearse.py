"""Rehearsals of the product: `python -m runtime.rehearse --help`."""

import argparse
import signal
from pathlib import Path

from runtime.errors import BadInput, run_command


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m runtime.rehearse", description="Rehearse.")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--faults", nargs="*", metavar="NAME")
    parser.add_argument("--rate", type=float, default=5, metavar="FPS")
    parser.add_argument("--out", default="output/rehearsal", metavar="DIR")
    arguments = parser.parse_args(argv)
    # A command started in the background ignores Ctrl-C and dies of SIGTERM at once, its stream living on.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if arguments.soak is not None:
        from runtime.soak import soak
        if not 0.5 <= arguments.soak <= 60 * 24 * 31:
            raise BadInput(f"--soak {arguments.soak:g} is not in 0.5 to 44640 minutes")
        return 0 if soak(arguments.soak, arguments.rate, Path(arguments.out)) else 1
    if arguments.faults is not None:
        from runtime.faults import faults
        return 0 if faults(arguments.faults, Path(arguments.out)) else 1
    return 0


def _stop(number, _):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    run_command(main)
