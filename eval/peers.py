"""Public models to measure beside: TinyPose and PicoDet of PaddleDetection in OpenVINO's form, YOLOX-nano in ONNX.

They go through the same crops, decoding and score as our engines; only what each wants of its input and of its raw
output is as its makers have it: YOLOX its NMS, TinyPose the blur of DARK. Files by these names in one folder are used,
those that are not there are left out. Each network has `prepare`, which makes its input of uint8 BGR pixels, and
`infer`, which runs it: the part that is timed.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from runtime.backends import LOAD_ERRORS
from runtime.detect import PersonDetector
from runtime.errors import BadInput
from runtime.keypoints import COCO, PERSON_PADDING
from runtime.nms import nms
from runtime.pose import PoseEstimator

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of RGB in 0..1
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# By which YOLOX's own evaluation goes (its demos take 0.45); PicoDet's makers have 0.6, as we do.
YOLOX_NMS, YOLOX_SCORE = 0.65, 0.01
# Zhang et al. 2020 blur a map of 48×64 cells, learnt from Gaussians of two cells, by so many cells.
DARK_KERNEL = 11


def open_poses(folder):
    """{name: pose estimator} of the peers that find keypoints."""
    path = Path(folder) / "tinypose_256x192.xml"
    return {"TinyPose": BlurredPose(TinyPose(path))} if path.is_file() else {}


def open_detectors(folder, threshold):
    """{name: person detector} of the peers that find persons."""
    folder = Path(folder)
    detectors: dict[str, Any] = {}
    if (folder / "picodet_s_320_person.xml").is_file():
        detectors["PicoDet"] = PicoDet(folder / "picodet_s_320_person.xml", threshold)
    if (folder / "yolox_nano_416.onnx").is_file():
        detectors["YOLOX-nano"] = PersonDetector(Yolox(folder / "yolox_nano_416.onnx"), threshold)
    return detectors


class BlurredPose(PoseEstimator):
    """`PoseEstimator` of maps that were learnt as Gaussians: DARK with the blur of Zhang et al. 2020, which
    `runtime.decode` leaves out as maps trained by cross-entropy do not need it."""

    def decode(self, outputs):
        return super().decode({"heatmaps": blurred(outputs["heatmaps"])} if self.decoding == "dark" else outputs)


def blurred(maps):
    """(N, K, h, w) maps, each blurred by a Gaussian and then as high as it was."""
    result = np.empty_like(maps)
    height, width = maps.shape[2:]
    for before, after in zip(maps.reshape(-1, height, width), result.reshape(-1, height, width), strict=True):
        soft = cv2.GaussianBlur(before, (DARK_KERNEL, DARK_KERNEL), 0, borderType=cv2.BORDER_CONSTANT)
        after[:] = soft * (before.max() / max(soft.max(), np.finfo(np.float32).tiny))
    return result


class TinyPose:
    """A pose engine, as of `runtime.engine.Engine`: crops 192×256, heatmaps 48×64 whose cell j lies at pixel 4·j."""

    kind, input_size, padding, schema, aligned_cells = "pose", (192, 256), PERSON_PADDING, COCO, False

    def __init__(self, path):
        self._network = _openvino(path)

    def run(self, batch):
        maps = [self.infer(self.prepare(crop))[0].copy() for crop in batch]
        return {"heatmaps": np.maximum(np.concatenate(maps), 0)}

    def prepare(self, crop):
        """(256, 192, 3) uint8 BGR → (1, 3, 256, 192) float32."""
        return _imagenet(crop)

    def infer(self, ready):
        return self._network.infer({0: ready})


class PicoDet:
    """A person detector, as of `runtime.detect`: the frame is stretched to 320×320."""

    input_size = (320, 320)

    def __init__(self, path, threshold):
        self._network, self.threshold = _openvino(path), threshold

    def __call__(self, frame):
        found = self.infer(self.prepare(frame))
        boxes, scores = found[0][0], found[1][0, 0]
        good = scores >= self.threshold
        height, width = frame.shape[:2]
        boxes, scores = boxes[good] / self.input_size[0] * np.array([width, height] * 2), scores[good]
        kept = nms(boxes, scores)
        return np.clip(boxes[kept], 0, [width, height, width, height]).astype(np.float32), scores[kept]

    def prepare(self, frame):
        """(H, W, 3) uint8 BGR → (1, 3, 320, 320) float32."""
        return _imagenet(cv2.resize(frame, self.input_size))

    def infer(self, ready):
        return self._network.infer({0: ready})


class Yolox:
    """A person engine: BGR 0..255, letterboxed to 416×416 with grey 114 as ours; cells of strides 8, 16 and 32 (Ge et
    al. 2021)."""

    kind, input_size, stretch = "person", (416, 416), 1.0
    strides = (8, 16, 32)

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except LOAD_ERRORS as error:
            raise BadInput(f"{path} cannot be opened; fetch it again") from error
        [port] = self._session.get_inputs()
        self._input = port.name
        sides = [side // stride for stride in self.strides for side in self.input_size[:1]]
        self._cells = np.concatenate([np.stack(np.meshgrid(np.arange(side), np.arange(side)), 2).reshape(-1, 2)
                                      for side in sides])
        self._stride = np.repeat(self.strides, [side**2 for side in sides])[:, None]

    def run(self, batch):
        """(1, 416, 416, 3) → the boxes that NMS leaves: one frame, like an engine with NMS in its graph."""
        [boxed] = batch
        cells = self.infer(self.prepare(boxed))[0]
        middles = (cells[..., :2] + self._cells) * self._stride
        halves = np.exp(cells[..., 2:4]) * self._stride / 2
        boxes, scores = np.concatenate([middles - halves, middles + halves], 2)[0], (cells[..., 4] * cells[..., 5])[0]
        likely = scores >= YOLOX_SCORE
        kept = nms(boxes[likely], scores[likely], YOLOX_NMS)
        return {"kept_boxes": boxes[likely][kept], "kept_scores": scores[likely][kept]}

    def infer(self, ready):
        return self._session.run(None, {self._input: ready})

    def prepare(self, boxed):
        """(416, 416, 3) uint8 BGR → (1, 3, 416, 416) float32."""
        return np.ascontiguousarray(boxed.transpose(2, 0, 1)[None], np.float32)


def _imagenet(picture):
    """(H, W, 3) uint8 BGR → (1, 3, H, W) float32 RGB, normalised."""
    scaled = (picture[..., ::-1].astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def _openvino(path):
    """An inference request of one thread in float32 (OpenVINO takes bfloat16 of its own accord where the CPU can)."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise BadInput(f"OpenVINO is not installed, which {path} needs: pip install openvino, or leave out --peers"
                       ) from error
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        return openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-120:]
        raise BadInput(f"{path} cannot be opened, or its .bin is missing ({reason}); fetch it again") from error
