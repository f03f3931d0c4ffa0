"""The last of `python -m train --check`: a batch learnt by heart.

The network trains on a few samples as training would, but without augmentation; `runtime` then finds the persons in
the photos as streaming would, and that is compared with the annotations. Tried on 8 crops of 256x192, share of the
keypoints found: MobileNetV2 from ImageNet 97 % after 10 steps, with the squared error 97 % after 40, ResNet-50 from
random weights 91 % of 2 crops after 30. With each other's labels 10 %, with mirrored pictures 51 %, with labels moved
by a stride all, but 4 pixels beside. A detector finds all persons after 20 to 30 steps, with each other's labels a
quarter. What is wrong in the annotations themselves is learnt by heart and does not show.
"""

import math
import time
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from runtime.crop import crop_region
from runtime.detect import PersonDetector
from runtime.errors import BadInput
from runtime.nms import box_iou
from runtime.pose import PoseEstimator
from train.datasets import read_stored
from train.loader import Samples

CROPS = 8  # in the batch that is learnt; fewer where they are large
STEPS, LOOK_EVERY, SECONDS = 80, 10, 40.0  # of learning it, at most
LEARNT = 0.9  # share of its keypoints or persons that must be found then
OFFSET = {"pose": 2.0, "person": 4.0}  # pixels of the input: half the smallest stride
STILL = dict(flip=0.0, scale=0.0, shift=0.0, rotation_chance=0.0, half_body=0.0, stretch=1.0, mosaic=0.0,
             occlusion=0.0, low_resolution=0.0, colour=0.0)
LEARNING = dict(optimizer="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=5, decay_epochs=1, epochs=1000,
                weight_decay=0.0, clip_norm=1.0, ema=0.0, accumulate=1)


def check_batch(report, ranked, config):
    """Learn a batch by heart and find its persons, see the top of this file. `ranked`: pairs of rank and item."""
    import tensorflow as tf
    gpu = bool(tf.config.get_visible_devices("GPU"))
    effort = math.prod(config.input_size) / (192 * 256) * (1 if config.backbone == "mobilenetv2" else 4)
    items = [item for _, item in sorted(ranked, key=lambda pair: pair[0], reverse=True)]
    items = items[:CROPS if gpu else max(2, min(CROPS, round(CROPS / effort)))]
    if not items:
        report.add("one batch", "", [("note", "not tried: no image with somebody in it could be decoded")])
        return
    config = replace(config, batch=len(items), sampling={}, **STILL, **LEARNING)
    samples = Samples(config, items)
    samples.pick = lambda number: number
    pixels, labels, _ = samples.part(0, len(items))
    photos = [read_stored(item)[0] for item in items]
    try:
        network = _network(config, gpu)
    except BadInput as error:
        report.add("one batch", "", [("wrong", f"not tried: {error}")])
        return
    if not network.trainable_variables:
        report.add("one batch", "", [("wrong", "nothing in the network is trainable")])
        return
    summary, findings = _learn(network, config, pixels, labels, lambda engine: _found(engine, items, photos, config))
    report.add("one batch", summary, findings)


def _network(config, gpu):
    """The network in training precision (a CPU's other ones are too slow), the batch norms of which forget at once."""
    import keras

    from train.checkpoint import build_network
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision if gpu else "float32")
    try:
        network = build_network(config)
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # their usual averages would lag far behind so short a training
    return network


def _learn(network, config, pixels, labels, look):
    """Train on a batch until `look` (engine → share found, offset) finds it: summary and findings of a report."""
    import tensorflow as tf

    from train.network_engine import NetworkEngine
    from train.step import build_optimizer, training_step
    network.compile(build_optimizer(config, STEPS))
    step = training_step(tf.distribute.get_strategy(), network, network.optimizer, config)
    batches = iter(tf.data.Dataset.from_tensors((pixels, labels)).repeat())
    engine = NetworkEngine(network, config)
    (before, _), losses, offset, end = look(engine), [], np.zeros(2), math.inf
    share, learnt = before, False
    for _ in tqdm(range(STEPS), desc="learning one batch", leave=False, disable=None):
        losses.append(float(step(batches)))
        if not math.isfinite(losses[-1]):
            break
        end = min(end, time.monotonic() + SECONDS)  # the first step also compiles, however long that takes
        late = time.monotonic() > end
        if len(losses) % LOOK_EVERY == 0 or late:
            network(tf.cast(pixels, tf.float32), training=True)  # batch norms take the statistics of these weights
            share, offset = look(engine)
            learnt = share >= LEARNT and np.abs(offset).max() < OFFSET[config.task]
            if learnt or late:
                break
    sample, what = ("crops", "keypoints") if config.task == "pose" else ("photos", "persons")
    story = (f"{len(pixels)} {sample}, {len(losses)} steps: loss {losses[0]:.3g} → {losses[-1]:.3g}, {what} "
             f"found {before:.0%} → {share:.0%}")
    if learnt:
        return story, []
    if not math.isfinite(losses[-1]):
        return "", [("wrong", f"{story}; the loss is no number: see precision, and the weights that it starts from")]
    if share >= LEARNT:
        return "", [("wrong", f"{story}, but {offset[0]:+.1f}, {offset[1]:+.1f} pixels beside their labels; targets "
                              "and decoder disagree (aligned_cells, input_size)")]
    if len(losses) < STEPS / 2 and losses[-1] < 0.95 * losses[0]:
        return story, [("note", f"learnt in part only in the {SECONDS:.0f} s that there are; a GPU tells more")]
    return "", [("wrong", f"{story}; the network does not learn what it is shown: are the labels those of the "
                          "pictures, and do backbone_weights, freeze_stem and batch_norm fit?")]


def _found(engine, items, photos, config):
    """Share of keypoints or persons of items that `runtime` finds in their photos, and by how much they lie beside
    their labels: median x, y in pixels of the input."""
    if config.task == "person":
        return _found_persons(engine, items, photos)
    from train.pose_network import HEATMAP_STRIDE
    blur = HEATMAP_STRIDE * config.sigma  # the target itself is no sharper than that
    return _found_keypoints(engine, items, photos, max(0.05 * config.input_size[1], blur))


def _found_keypoints(engine, items, photos, tolerance):
    estimate, offsets = PoseEstimator(engine), []
    for person, photo in zip(items, photos, strict=True):
        (centre,), (extent,) = crop_region(person.box, engine.input_size, engine.padding)
        points = person.keypoints[:, :2]
        shown = (person.keypoints[:, 2] > 0) & (np.abs(points - centre) < extent / 2).all(1)
        found = estimate(photo, person.box[None])[0, :, :2]
        offsets.append((found - points)[shown] * engine.input_size[0] / extent[0])
    distances = np.linalg.norm(np.concatenate(offsets), axis=1)
    return np.mean(distances < tolerance), np.median(np.concatenate(offsets), axis=0)


def _found_persons(engine, items, photos):
    detect, found, offsets = PersonDetector(engine), [], [np.zeros((0, 2))]
    for photo, pixels in zip(items, photos, strict=True):
        wanted, scale = photo.boxes[photo.boxes[:, 4] > 0, :4], min(engine.input_size / np.array(pixels.shape[1::-1]))
        boxes = np.concatenate([detect(pixels)[0], np.zeros((1, 4))])  # an empty one for those who are not found
        overlap = box_iou(wanted, boxes)
        hits = overlap.max(1) > 0.5
        found += hits.tolist()
        nearest = boxes[overlap.argmax(1)][hits]
        offsets.append(((nearest - wanted[hits])[:, :2] + (nearest - wanted[hits])[:, 2:]) / 2 * scale)
    middles = np.concatenate(offsets)
    return np.mean(found), np.median(middles, axis=0) if len(middles) else np.zeros(2)
