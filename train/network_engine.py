"""A Keras network behind the interface of `runtime.engine`, so that training measures what streaming runs."""

import keras
import numpy as np

from runtime.keypoints import SCHEMAS
from train.detector_network import deployed_person_network
from train.pose_network import deployed_pose_network


class NetworkEngine:
    """Attributes and `run` as of `runtime.engine.Engine`; `network` is the Keras model that ships."""

    def __init__(self, network, config):
        self.kind = config.task
        self.input_size = tuple(config.input_size)
        self.schema = SCHEMAS[config.keypoints]
        self.padding, self.stretch, self.aligned_cells = config.padding, config.stretch, config.aligned_cells
        self.network = deployed(network, config)

    def run(self, batch):
        """(N, H, W, 3) uint8 BGR → {output name: float32 array}."""
        # Padded to a power of two, since TensorFlow builds a graph for each size of batch that it meets.
        padded = np.zeros((1 << (len(batch) - 1).bit_length(), *np.shape(batch)[1:]), np.float32)
        padded[:len(batch)] = batch
        outputs = self.network.predict_on_batch(padded)
        return {name: keras.ops.convert_to_numpy(value)[:len(batch)] for name, value in outputs.items()}


def deployed(network, config):
    """The Keras model with the outputs that an engine has."""
    if config.task == "pose":
        return deployed_pose_network(network, config.head, tuple(config.input_size), SCHEMAS[config.keypoints],
                                     config.sigma, config.loss)
    return deployed_person_network(network)
