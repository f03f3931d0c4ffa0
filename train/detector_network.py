"""The person detector's network: backbone, attention, a feature pyramid, one anchor-free head for one class."""

import keras
import numpy as np
from keras import layers, ops

from train.backbone import build_backbone, conv_bn, merged, separable_bn
from train.pose_network import self_attention

STRIDES = (8, 16, 32)  # of the cells that give boxes
PRIOR = 0.01  # chance that a cell holds a person, before anything is learnt (Lin et al. 2017)


def build_person_network(input_size=(320, 320), backbone="mobilenetv2", attention_blocks=1, attention_width=192,
                         decoder_width=96, backbone_weights="imagenet", freeze_stem=False, expansions=()):
    """Network from BGR pixels to one box and one logit per cell of strides 8, 16 and 32.

    A cell gives the distances from its middle to the box's four edges, in units of its stride (FCOS, Tian et
    al. 2019), and one score that holds presence and box quality both (GFL, Li et al. 2020).

    Returns:
        keras.Model, (B, H, W, 3) float BGR 0..255 → (B, A, 5): left, top, right, bottom in input pixels, logit.
    """
    features = build_backbone(backbone, input_size, backbone_weights, freeze_stem, expansions)
    _, stride8, stride16, stride32 = features.outputs
    x = self_attention(conv_bn(stride32, attention_width, activation=None, name="neck32"),
                       attention_blocks, attention_width, heads=attention_width // 32)
    level32 = conv_bn(x, decoder_width, name="level32")
    level16 = separable_bn(merged(level32, stride16, 16), decoder_width, name="level16")
    level8 = separable_bn(merged(level16, stride8, 8), decoder_width, name="level8")

    predictions = []
    for stride, level in zip(STRIDES, (level8, level16, level32), strict=True):
        x = separable_bn(level, decoder_width, name=f"head{stride}a")
        x = separable_bn(x, decoder_width, name=f"head{stride}b")
        logit = layers.Conv2D(1, 1, bias_initializer=keras.initializers.Constant(np.log(PRIOR / (1 - PRIOR))),
                              name=f"score{stride}")(x)
        edges = layers.Conv2D(4, 1, bias_initializer=keras.initializers.Constant(1.0), name=f"edges{stride}")(x)
        predictions.append(layers.Reshape((-1, 5), name=f"cells{stride}")(
            layers.Concatenate(name=f"prediction{stride}")([edges, logit])))
    raw = layers.Concatenate(axis=1, name="cells")(predictions)

    centres, strides = cell_centres(input_size)
    distances = ops.softplus(raw[..., :4]) * strides[None, :, None]
    boxes = distances * np.array([-1, -1, 1, 1], "float32") + np.tile(centres, 2)[None]
    return keras.Model(features.inputs[0], ops.concatenate([boxes, raw[..., 4:]], axis=-1), name="person")


def cell_centres(input_size):
    """Middles (A, 2) x, y in input pixels (edges at whole numbers) and strides (A,) of all cells, float32."""
    centres, strides = [], []
    for stride in STRIDES:
        columns, rows = input_size[0] // stride, input_size[1] // stride
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        centres.append((np.stack([x, y], 1) + 0.5) * stride)
        strides.append(np.full(rows * columns, stride))
    return np.concatenate(centres).astype("float32"), np.concatenate(strides).astype("float32")


def deployed_person_network(network):
    """The network that ships: outputs {"boxes": (B, A, 4) in input pixels, "scores": (B, A) in 0..1}."""
    cells = network.outputs[0]
    return keras.Model(network.inputs[0], {"boxes": cells[..., :4], "scores": ops.sigmoid(cells[..., 4])})
