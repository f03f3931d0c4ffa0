"""The pose network: backbone, self-attention over the stride-32 map, a small decoder, heatmaps or SimCC.

    256×192 BGR ─ MobileNetV2 ┬ stride 4 ──────────────────────────────────────────────┐
                              ├ stride 8 ──────────────────────────────┐               │
                              ├ stride 16 ─────────────┐               │               │
                              └ stride 32 ─ attention ─ up, add, mix ─ up, add, mix ─ up, add, mix ─ 64×48 maps

Everything is Keras 3 with `keras.ops`, so the network also runs on Keras' other backends.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from runtime.errors import BadInput
from train.backbone import LayerNorm, build_backbone, conv_bn, merged, separable_bn
from train.losses import SIMCC_SPLIT, SQUARE_PEAK, simcc_peak
from train.resnet_v1 import BN_EPSILON

HEATMAP_STRIDE = 4
# √area of a person by the crop's height, for `expected_similarity`. Half of COCO's people have more than 0.4, at a
# padding of 1.25; a little below gave the best AP, most of whose thresholds ask for more than half of the similarity
# (docs/models.md).
PERSON_SIZE = 0.3


def build_pose_network(num_keypoints, input_size=(192, 256), backbone="mobilenetv2", head="heatmap",
                       decoder="pyramid", attention_blocks=2, attention_width=192, channel_attention=False,
                       decoder_width=128, backbone_weights="imagenet", freeze_stem=False, expansions=()):
    """Network from BGR crops to logits.

    Args:
        num_keypoints: K.
        input_size: (width, height) of the crop in pixels, multiples of 32.
        backbone, backbone_weights, freeze_stem, expansions: see `build_backbone`.
        head: "heatmap" for (B, K, H/4, W/4) logits, or "simcc" (Li et al. 2022) for one vector
            (B, K, (W + H)·SIMCC_SPLIT) of x logits followed by y logits.
        decoder: "pyramid", the small one above, of decoder_width channels, half of them at stride 4; or
            "deconvolution", three transposed convolutions of decoder_width channels from stride 32 to 4 (Xiao et al.
            2018), which takes no other map and gives heatmaps only.
        attention_blocks: transformer blocks over the stride-32 map; 0 leaves the attention out.
        channel_attention: weigh the channels of each level of the pyramid by what its whole map holds, see
            `squeeze_excitation`.

    Returns:
        keras.Model, (B, H, W, 3) float BGR 0..255 → logits. The softmax belongs to the loss and to the
        exported graph.
    """
    if head not in ("heatmap", "simcc"):
        raise BadInput(f"unknown head {head!r}; choose heatmap or simcc")
    if decoder not in ("pyramid", "deconvolution"):
        raise BadInput(f"unknown decoder {decoder!r}; choose pyramid or deconvolution")
    if decoder == "deconvolution" and head != "heatmap":
        raise BadInput(f"head = {head!r} needs decoder = 'pyramid'; a deconvolution decoder gives heatmaps")
    if decoder == "deconvolution" and channel_attention:
        raise BadInput("channel_attention = true needs decoder = 'pyramid', whose levels it weighs")
    width, height = input_size
    features = build_backbone(backbone, input_size, backbone_weights, freeze_stem, expansions)
    stride4, stride8, stride16, stride32 = features.outputs

    x = stride32
    if attention_blocks or decoder == "pyramid":
        x = self_attention(conv_bn(x, attention_width, activation=None, name="neck32"),
                           attention_blocks, attention_width, heads=attention_width // 32)
    if decoder == "deconvolution":
        return keras.Model(features.inputs[0], _deconvolutions(x, num_keypoints, decoder_width), name="pose")
    x = conv_bn(x, decoder_width, activation=None, name="up32")
    x = _pyramid_level(x, stride16, 16, channel_attention)
    x = _pyramid_level(x, stride8, 8, channel_attention)
    if head == "heatmap":
        x = conv_bn(x, (decoder_width + 1) // 2, activation=None, name="up8")
        x = _pyramid_level(x, stride4, 4, channel_attention)
        x = layers.Conv2D(num_keypoints, 1, name="heatmap")(x)
        logits = layers.Permute((3, 1, 2), name="logits")(x)
    else:
        x = layers.Conv2D(num_keypoints, 1, name="maps")(x)
        x = layers.Reshape((num_keypoints, -1), name="flat_maps")(layers.Permute((3, 1, 2), name="maps_first")(x))
        x = layers.Dense(256, activation="relu", name="simcc_hidden")(x)
        logits = layers.Dense(round((width + height) * SIMCC_SPLIT), name="logits")(x)
    return keras.Model(features.inputs[0], logits, name="pose")


def _pyramid_level(coarse, skip, stride, channel_attention):
    """The map of the next stride, mixed."""
    x = merged(coarse, skip, stride)
    mixed = separable_bn(x, x.shape[-1], name=f"mix{stride}")
    if channel_attention:
        mixed = squeeze_excitation(mixed, name=f"mix{stride}")
    return layers.Add(name=f"mix{stride}")([x, mixed])


def squeeze_excitation(x, name, reduction=4):
    """Each channel times a gate of 0 to 2 that two layers draw from all channels' means (Hu et al. 2018); it starts
    at 1, as if it were not there."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = layers.Conv2D(x.shape[-1] // reduction, 1, name=f"{name}_excite_in")(gate)
    gate = layers.Activation("relu", name=f"{name}_excite_relu")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, kernel_initializer="zeros", name=f"{name}_excite_out")(gate)
    return x * (2 * ops.sigmoid(gate))


def _deconvolutions(x, num_keypoints, width):
    """Three transposed convolutions and a 1×1 one, under TF-SimpleHumanPose's names: (B, K, H/4, W/4)."""
    for number in (1, 2, 3):
        x = layers.Conv2DTranspose(width, 4, strides=2, padding="same", use_bias=False, name=f"up{number}_deconv",
                                   kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01))(x)
        x = layers.BatchNormalization(momentum=0.99, epsilon=BN_EPSILON, name=f"up{number}_bn")(x)
        x = layers.Activation("relu", name=f"up{number}_relu")(x)
    x = layers.Conv2D(num_keypoints, 1, kernel_initializer="he_normal", name="out")(x)
    return layers.Permute((3, 1, 2), name="logits")(x)


def self_attention(x, blocks, width, heads):
    """Pre-norm transformer blocks (Vaswani et al. 2017, Xiong et al. 2020) over the cells of a feature map.

    x: (B, H, W, C) with C = width → the same shape.
    """
    if blocks == 0:
        return x
    rows, columns = x.shape[1:3]
    tokens = layers.Reshape((rows * columns, width), name="tokens")(x)
    tokens = tokens + position_encoding(rows, columns, width)
    for block in range(1, blocks + 1):
        normed = LayerNorm(name=f"attention{block}_norm")(tokens)
        query, key, value = (
            layers.Permute((2, 1, 3), name=f"attention{block}_{part}_heads")(
                layers.Reshape((rows * columns, heads, width // heads), name=f"attention{block}_{part}_split")(
                    layers.Dense(width, name=f"attention{block}_{part}")(normed)))
            for part in ("query", "key", "value"))
        scores = ops.matmul(query * (heads / width) ** 0.5, ops.transpose(key, (0, 1, 3, 2)))
        mixed = ops.transpose(ops.matmul(ops.softmax(scores, axis=-1), value), (0, 2, 1, 3))
        mixed = layers.Reshape((rows * columns, width), name=f"attention{block}_merge")(mixed)
        tokens = tokens + layers.Dense(width, name=f"attention{block}_out")(mixed)

        normed = LayerNorm(name=f"feedforward{block}_norm")(tokens)
        hidden = layers.Dense(2 * width, activation="relu", name=f"feedforward{block}_in")(normed)
        tokens = tokens + layers.Dense(width, name=f"feedforward{block}_out")(hidden)
    return layers.Reshape((rows, columns, width), name="attended_map")(LayerNorm(name="attention_norm")(tokens))


def position_encoding(rows, columns, width):
    """Sine-cosine position encoding of a grid (Carion et al. 2020): half the channels for y, half for x.

    Positions are fractions of the grid, so that one set of weights serves several input sizes.
    Returns (1, rows·columns, width) float32.
    """
    frequencies = 2 * math.pi * np.exp(np.linspace(0, math.log(max(rows, columns)), width // 4))
    y = (np.arange(rows) + 0.5)[:, None] / rows * frequencies
    x = (np.arange(columns) + 0.5)[:, None] / columns * frequencies
    y = np.repeat(np.concatenate([np.sin(y), np.cos(y)], axis=1)[:, None], columns, axis=1)
    x = np.repeat(np.concatenate([np.sin(x), np.cos(x)], axis=1)[None], rows, axis=0)
    return np.concatenate([y, x], axis=2).reshape(1, rows * columns, width).astype("float32")


def deployed_pose_network(network, head, input_size, schema, sigma, loss="cross_entropy"):
    """The network that ships: values instead of logits, scaled to 1 at the peak of a certain keypoint.

    Heatmaps of the cross-entropy hold the similarity to expect, see `expected_similarity`; those of the squared error
    are scaled alone.

    Returns:
        keras.Model with outputs {"heatmaps": (B, K, h, w)} or {"simcc_x": (B, K, W·split), "simcc_y": …}.
    """
    logits = network.outputs[0]
    if head == "heatmap" and loss == "squared":
        return keras.Model(network.inputs[0], {"heatmaps": ops.maximum(logits * (1 / SQUARE_PEAK), 0.0)})
    if head == "heatmap":
        _, keypoints, rows, columns = logits.shape
        chances = ops.softmax(ops.reshape(logits, (-1, keypoints, rows * columns)), axis=-1)
        maps = ops.reshape(chances, (-1, keypoints, rows, columns))
        return keras.Model(network.inputs[0], {"heatmaps": expected_similarity(maps, schema.sigmas, sigma)})
    bins = round(input_size[0] * SIMCC_SPLIT)
    scale = 1 / simcc_peak()
    return keras.Model(network.inputs[0], {"simcc_x": ops.softmax(logits[..., :bins], axis=-1) * scale,
                                           "simcc_y": ops.softmax(logits[..., bins:], axis=-1) * scale})


def expected_similarity(maps, sigmas, sigma):
    """The object keypoint similarity to expect of each cell as an answer.

    A map says with what chance the keypoint lies where. The best answer is the cell whose neighbourhood holds most of
    it, and OKS says how wide a neighbourhood counts: a Gaussian, wide for hips, narrow for eyes. So the peak lies where
    the metric wants it, also between two guesses, and its height is the score that this answer will earn on average.

    Args:
        maps: (B, K, h, w), each of sum 1.
        sigmas: the schema's K, as shares of the person's size.
        sigma: in cells, of the Gaussians that the maps were trained on: a certain keypoint is one, and peaks at 1.

    Returns:
        (B, K, h, w).
    """
    rows, columns = maps.shape[2:]
    widths = 2 * np.array(sigmas) * PERSON_SIZE * rows  # OKS: exp(-d² / 2(2σs)²)
    down, across = (np.exp(-np.square(np.arange(side)[:, None] - np.arange(side)) / (2 * widths[:, None, None] ** 2))
                    for side in (rows, columns))
    down *= (1 + (sigma / widths) ** 2)[:, None, None]
    return ops.matmul(ops.matmul(down[None].astype("float32"), maps), across[None].astype("float32"))
