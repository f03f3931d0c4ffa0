"""Train a pose network or a person detector.

    python -m train --config configs/pose.toml --gpu 0,1
    python -m train --config configs/person.toml --gpu cpu --set epochs=20 --continue
    python -m train --config configs/coco.toml --check

Writes a snapshot of the weights after every epoch to output/model_dump/NAME, curves and logs to output/log/NAME, and a
picture of the first inputs with their targets to output/vis/NAME.
"""

import argparse
import os
import sys

from runtime.errors import run_command
from train.config import add_config_arguments, load_config

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--gpu", default="0", metavar="0,1", help="GPU numbers, 0,1 or 0-1, or cpu (default: 0)")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on where the run stopped")
    parser.add_argument("--check", action="store_true",
                        help="do not train: look for mistakes in data and config, and learn one batch, in a minute")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.check:
        from train.check import check
        from train.devices import choose_strategy
        if arguments.gpu == "cpu":
            choose_strategy("cpu")
        return check(config)

    from train.devices import choose_strategy
    from train.fit import train
    from train.validate import validator
    strategy = choose_strategy(arguments.gpu)
    train(config, strategy, resume=arguments.resume, evaluate=validator(config))
    return 0


if __name__ == "__main__":
    try:
        run_command(main)
    except SystemExit as end:
        # tf.data's threads may still be reading ahead, and would abort the interpreter's own way out.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
