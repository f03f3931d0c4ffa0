"""Average the weights of several runs of one network (a model soup, Wortsman et al. 2022).

    python -m train.average output/model_dump/pose/snapshot_140.weights.h5 models/pose.weights.h5 --name pose_soup
    make export RUN=pose_soup

Runs that began from the same weights and saw other data, or other augmentation, often do better together than each
alone, at no cost when they run. The averaged network's batch-norm statistics are measured on inputs of --config, which
the network is of; with `--set validation=DIR` its AP is printed. Writes the one snapshot of a run of the given name.
"""

import argparse
import contextlib
import os

import numpy as np

from runtime.errors import run_command
from train.config import add_config_arguments, load_config

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported


def main():
    arguments = parse_arguments()
    from train.checkpoint import check_same_network
    from train.loader import Loader
    from train.snapshot import new_run, write_run
    from train.validate import validator
    config = load_config(arguments.config, arguments.overrides)
    for path in arguments.weights:
        check_same_network(path, config, arguments.config)
    config = new_run(config, arguments.name, init_weights=arguments.weights[0])
    evaluate, weights = validator(config), averaged(config, arguments.weights)
    with contextlib.closing(Loader(config)) as loader:
        path, figures = write_run(config, weights, loader, evaluate)
    print(f"{path}: mean of {len(arguments.weights)}"
          + "".join(f", {name} {figure:.3f}" for name, figure in figures.items()))


def averaged(config, paths):
    """The mean of weights files that fit the network of a config: list of arrays."""
    from train.checkpoint import build_network
    weights = [build_network(config, weights=path).get_weights() for path in paths]
    return [np.mean(values, axis=0) for values in zip(*weights, strict=True)]


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m train.average", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", metavar="FILE", help=".weights.h5 files of one network, two or more")
    parser.add_argument("--name", required=True, help="of the new run's folder, output/model_dump/NAME")
    add_config_arguments(parser)
    arguments = parser.parse_args()
    if len(arguments.weights) < 2:
        parser.error("an average needs two files or more")
    return arguments


if __name__ == "__main__":
    run_command(main)
