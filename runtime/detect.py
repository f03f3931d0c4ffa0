"""Person detection: a frame → the boxes of its persons."""

import numpy as np

from runtime.crop import letterbox
from runtime.nms import nms

THRESHOLD = 0.4  # where the bundled detector shows few who are nobody and misses few (docs/output.md)


class PersonDetector:
    """Finds persons with a person engine.

    Args:
        engine: from `open_engine(path, "person")`, with or without NMS in the graph.
        threshold: boxes with a lower score are left out. Lower finds more persons and more that are none.

    Call it with a (H, W, 3) uint8 BGR frame; it returns boxes (N, 4) float32, left, top, right, bottom in pixels
    of the frame and clipped to it, and scores (N,) float32 in 0..1, best first.
    """

    def __init__(self, engine, threshold=THRESHOLD):
        self.engine = engine
        self.threshold = threshold

    def __call__(self, frame):
        boxed, scales = letterbox(frame, self.engine.input_size, self.engine.stretch)
        outputs = self.engine.run(boxed[None])
        suppressed = "kept_boxes" in outputs
        boxes, scores = ((outputs["kept_boxes"], outputs["kept_scores"]) if suppressed
                         else (outputs["boxes"][0], outputs["scores"][0]))
        good = scores >= self.threshold
        boxes, scores = boxes[good], scores[good]
        if not suppressed:
            kept = nms(boxes, scores)
            boxes, scores = boxes[kept], scores[kept]
        height, width = frame.shape[:2]
        boxes = np.clip(boxes / np.tile(scales, 2), 0, [width, height, width, height]).astype(np.float32)
        # What lies wholly in the letterbox's grey has no area left once it is clipped.
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[inside], scores[inside].astype(np.float32)
