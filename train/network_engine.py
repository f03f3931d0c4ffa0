"""A Keras network behind the interface of `runtime.engine`, so that training measures what streaming runs."""

import keras
import numpy as np

from runtime.keypoints import SCHEMAS
from train.detector_network import deployed_person_network
from train.pose_network import deployed_pose_network


class NetworkEngine:
    """Attributes and `run` as of `runtime.engine.OnnxEngine`; `network` is the Keras model that ships."""

    def __init__(self, network, config):
        self.kind = config.task
        self.input_size = tuple(config.input_size)
        self.schema = SCHEMAS[config.keypoints]
        self.aligned_cells = config.aligned_cells
        self.network = deployed(network, config)

    def run(self, batch):
        """(N, H, W, 3) uint8 BGR → {output name: float32 array}."""
        outputs = self.network.predict_on_batch(np.asarray(batch, np.float32))
        return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def deployed(network, config):
    """The Keras model with the outputs that an engine has."""
    if config.task == "pose":
        return deployed_pose_network(network, config.head, tuple(config.input_size), config.sigma, config.loss)
    return deployed_person_network(network)
