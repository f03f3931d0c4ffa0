"""Pose estimation: frames and the boxes of their persons → their keypoints."""

import numpy as np

from runtime.crop import crop_matrix, crop_region, invert, transform_points, warp_crop
from runtime.decode import DECODINGS, decode_heatmaps, decode_simcc, merge_flipped

LARGEST_BATCH = 32  # crops at once: bounds the memory of a crowded frame


class PoseEstimator:
    """Finds the keypoints of persons with a pose engine.

    Args:
        engine: from `open_engine(path, "pose")`.
        decoding: how a heatmap becomes a point, see `runtime.decode`; SimCC has one way only.
        flip_test: also run the mirror image and average: more accurate, half as fast.

    Call it with a (H, W, 3) uint8 BGR frame and (N, 4) boxes, left, top, right, bottom in its pixels; it returns
    (N, K, 3) float32: x, y in pixels of the frame, and the score. Attribute `schema` says what the K are.
    """

    def __init__(self, engine, decoding="dark", flip_test=False):
        if decoding not in DECODINGS:
            raise ValueError(f"unknown decoding {decoding!r}; choose one of {', '.join(DECODINGS)}")
        self.engine = engine
        self.schema = engine.schema
        self.decoding = decoding
        self.flip_test = flip_test

    def __call__(self, frame, boxes):
        return self.of_frames([frame], [boxes])[0]

    def of_frames(self, frames, boxes):
        """Keypoints of the persons of several frames, their crops in common batches.

        Args:
            frames: list of (H, W, 3) uint8 BGR, of any sizes.
            boxes: list of (N, 4), one a frame.

        Returns:
            list of (N, K, 3) float32, one a frame.
        """
        size = self.engine.input_size
        regions = [zip(*crop_region(persons, size, self.engine.padding), strict=True) for persons in boxes]
        crops = [(frame, crop_matrix(centre, extent, size))
                 for frame, persons in zip(frames, regions, strict=True) for centre, extent in persons]
        keypoints = np.zeros((len(crops), len(self.schema), 3), np.float32)
        for first in range(0, len(crops), LARGEST_BATCH):
            chunk = slice(first, first + LARGEST_BATCH)
            keypoints[chunk] = self.estimate(np.stack([warp_crop(*crop, size) for crop in crops[chunk]]))
        for person, (_, matrix) in zip(keypoints, crops, strict=True):
            person[:, :2] = transform_points(person[:, :2], invert(matrix))
        return np.split(keypoints, np.cumsum([len(persons) for persons in boxes])[:-1])

    def estimate(self, crops):
        """Keypoints of crops, which may come from different frames.

        Args:
            crops: (N, H, W, 3) uint8 BGR of the engine's input size, N ≥ 1.

        Returns:
            (N, K, 3) float32: x, y in pixels of the crop, and the score.
        """
        outputs = self.engine.run(crops)
        if self.flip_test:
            mirrored = self.engine.run(crops[:, :, ::-1])
            outputs = {name: self._merge(name, maps, mirrored[name]) for name, maps in outputs.items()}
        return self.decode(outputs)

    def decode(self, outputs):
        """The same of an engine's outputs for the crops."""
        size = self.engine.input_size
        if "heatmaps" in outputs:
            return decode_heatmaps(outputs["heatmaps"], size, self.decoding, self.engine.aligned_cells)
        return decode_simcc(outputs["simcc_x"], outputs["simcc_y"], size)

    def _merge(self, name, maps, mirrored):
        order = self.schema.flip_order
        if name == "simcc_y":  # a mirror leaves heights alone; only left and right change places
            return (maps + mirrored[:, order]) / 2
        return merge_flipped(maps, mirrored, order, self.engine.aligned_cells)
