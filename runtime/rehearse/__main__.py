"""Rehearsals on this machine, offline, on rendered people: the whole product, its faults, and a long run.

    python -m runtime.rehearse                 train a little, export, stream, measure: some five minutes
    python -m runtime.rehearse --faults        cameras, watchers, disks, engines and signals that fail
    python -m runtime.rehearse --soak 60       an hour on two cameras that come and go
"""

import argparse
import signal
from pathlib import Path

from runtime.errors import BadInput, run_command

LONGEST = 60 * 24 * 31  # minutes of a soak
FASTEST = 25  # pictures a second: those that are rendered


def main(argv=None):
    """Run the command. argv: its arguments, those of the process if None. Returns the exit code, 1 where one fails."""
    arguments = parse_arguments(argv)
    # In the background Ctrl-C is ignored, and SIGTERM would leave what was started running: both end everything.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    folder = Path(arguments.out).resolve()
    # Inside, since each has more to import than the others need.
    if arguments.soak is not None:
        from runtime.rehearse.soak import soak
        passed = soak(arguments.soak, arguments.rate, folder / "soak")
    elif arguments.faults is not None:
        from runtime.rehearse.faults import faults
        passed = faults(arguments.faults, folder / "faults")
    else:
        from runtime.rehearse.product import product
        passed = product(folder / "product")
    return 0 if passed else 1


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m runtime.rehearse", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="exit codes: 0 all passed, 1 something failed, 2 a one-line error")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--faults", nargs="*", metavar="NAME", help="play all faults, or those of these names")
    which.add_argument("--soak", type=float, metavar="MINUTES",
                       help="stream for so long, while cameras fail and return; memory, threads, handles and age are "
                            "judged at the end")
    parser.add_argument("--rate", type=float, default=5, metavar="FPS",
                        help="of --soak: pictures a second of each camera (default: %(default)g)")
    parser.add_argument("--out", default="output/rehearsal", metavar="DIR", help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.soak is not None and not 1 <= arguments.soak <= LONGEST:
        raise BadInput(f"--soak {arguments.soak:g} is not in 1..{LONGEST} minutes")
    if not 1 <= arguments.rate <= FASTEST:
        raise BadInput(f"--rate {arguments.rate:g} is not in 1..{FASTEST} pictures a second")
    if arguments.faults:
        from runtime.rehearse.faults import FAULTS
        unknown = [name for name in arguments.faults if name not in FAULTS]
        if unknown:
            raise BadInput(f"--faults {unknown[0]} is none of {', '.join(FAULTS)}")
    return arguments


def _stop(number, _):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    run_command(main)
