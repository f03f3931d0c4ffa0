"""ImageNet backbones and the layers that both networks are built from.

A backbone is a Keras model from BGR pixels (float, 0..255, NHWC) to feature maps at strides 4, 8, 16 and 32.
Colour order and normalisation live inside it, so that training, ONNX and TensorRT all see frames as OpenCV
hands them over.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from runtime.errors import BadInput
from train.resnet_v1 import UNITS, resnet_v1

# Where the strides 4, 8, 16 and 32 end. MobileNetV2's are the expanded maps just before the next stride: wider than the
# block outputs (192 against 32 channels) and computed anyway.
TAPS = {
    "mobilenetv2": ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu", "block_16_project_BN"),
    "resnet50": ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    "resnet101": ("conv2_block3_out", "conv3_block4_out", "conv4_block23_out", "conv5_block3_out"),
    "resnet152": ("conv2_block3_out", "conv3_block8_out", "conv4_block36_out", "conv5_block3_out"),
    **{f"resnet_v1_{depth}": tuple(f"block{block}_unit{units[block - 1]}_out" for block in (1, 2, 3, 4))
       for depth, units in UNITS.items()},
}
# The last layer of stride 4, for freezing: what lies before it holds edges and textures, which ImageNet
# taught well, and costs a third of a training step, for its maps are large (docs/models.md).
STEM_ENDS = {
    "mobilenetv2": "block_2_add",
    **{f"resnet{depth}": "conv2_block3_out" for depth in UNITS},
    **{f"resnet_v1_{depth}": "block1_unit3_out" for depth in UNITS},
}
# The layers that make the channels inside MobileNetV2's blocks, 32 and then six times the block's own, in order.
EXPANDING = ("Conv1", *(f"block_{number}_expand" for number in range(1, 17)))
KERAS_MAKERS = {"mobilenetv2": keras.applications.MobileNetV2, "resnet50": keras.applications.ResNet50,
                "resnet101": keras.applications.ResNet101, "resnet152": keras.applications.ResNet152}


class BackboneWeightsError(BadInput):
    """The ImageNet weights are missing or belong to another network."""


def build_backbone(name, input_size, weights="imagenet", freeze_stem=False, expansions=()):
    """Backbone from BGR pixels to feature maps.

    Args:
        name: "mobilenetv2"; "resnet50", 101 or 152 of keras.applications; "resnet_v1_50", 101 or 152 of TF-Slim and
            TF-SimpleHumanPose.
        input_size: (width, height) in pixels, both multiples of 32.
        weights: "imagenet" (downloaded by keras.applications), the path of a no-top `.weights.h5` file of
            keras.applications or, for resnet_v1_*, of a TF-Slim checkpoint; None for random weights.
        freeze_stem: keep the ImageNet weights and statistics of the layers up to stride 4 as they are.
        expansions: of a MobileNetV2 out of which `train.prune` has taken channels, how many each layer of `EXPANDING`
            makes; empty for as many as published.

    Returns:
        keras.Model, (B, H, W, 3) float BGR 0..255 → maps at strides 4, 8, 16, 32.
    """
    if name not in TAPS:
        raise BadInput(f"unknown backbone {name!r}; choose one of {', '.join(TAPS)}")
    width, height = input_size
    if width % 32 or height % 32:
        raise BadInput(f"input size {width}x{height} is not a multiple of 32 in both directions")
    if expansions and (name != "mobilenetv2" or len(expansions) != len(EXPANDING)):
        raise BadInput(f"expansions needs backbone = 'mobilenetv2' and {len(EXPANDING)} numbers, not {name!r} and "
                       f"{len(expansions)}")
    if expansions and weights is not None:
        raise BackboneWeightsError("no ImageNet weights are as narrow as expansions says: give init_weights, which "
                                   "train.prune makes, or backbone_weights = '' to start from random ones")
    slim = name.startswith("resnet_v1_")
    if slim and weights == "imagenet":
        raise BackboneWeightsError(f"the ImageNet weights of {name} are a file of TF-Slim: make data "
                                   f"DATASET=imagenet, then backbone_weights = 'data/imagenet_weights/{name}.ckpt'")
    if not slim and weights not in ("imagenet", None) and not Path(weights).is_file():
        raise BackboneWeightsError(f"no backbone weights at {weights}; give the path of a keras.applications "
                                   "no-top .weights.h5 file, or backbone_weights = 'imagenet' to download them")

    pixels = layers.Input((height, width, 3), name="pixels")
    if slim:
        network = keras.Model(pixels, resnet_v1(pixels, int(name.rpartition("_")[2]))[-1])
        if weights is not None:
            from train.slim_checkpoint import load_imagenet  # needs TensorFlow; the network itself does not
            load_imagenet(network, weights)
    else:
        network = KERAS_MAKERS[name](input_tensor=_normalised(pixels, name), include_top=False, weights=None)
        if expansions:
            network = _narrowed(network, pixels, expansions)
        if weights is not None:
            _load_imagenet(network, name, weights)

    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.99  # MobileNetV2's 0.999 lags thousands of steps behind the weights

    backbone = keras.Model(pixels, [network.get_layer(tap).output for tap in TAPS[name]], name=name)
    if freeze_stem:
        names = [layer.name for layer in backbone.layers]
        for layer in backbone.layers[: names.index(STEM_ENDS[name]) + 1]:
            layer.trainable = False
    return backbone


def _narrowed(network, pixels, expansions):
    """A MobileNetV2 whose expanding layers make so many channels."""
    widths = dict(zip(EXPANDING, expansions, strict=True))

    def narrow(layer):
        settings = layer.get_config()
        if layer.name in widths:
            settings["filters"] = widths[layer.name]
        return type(layer).from_config(settings)

    return keras.models.clone_model(network, [pixels], narrow)


def _normalised(pixels, name):
    """What keras.applications' networks were trained on, but for MobileNetV2's channel order."""
    if name == "mobilenetv2":
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(pixels)
    mean_bgr = np.array([103.939, 116.779, 123.68], "float32")
    return layers.Rescaling(1.0, offset=-mean_bgr, name="normalise")(pixels)


def _load_imagenet(network, name, weights):
    """Load no-top ImageNet weights; MobileNetV2 saw RGB, so its first kernel is turned round to take BGR.
    (keras.applications' ResNets were trained on BGR as it is.)"""
    maker = KERAS_MAKERS[name]
    shape = network.inputs[0].shape[1:]
    try:
        source = maker(input_shape=shape, include_top=False, weights="imagenet" if weights == "imagenet" else None)
        if weights != "imagenet":
            source.load_weights(weights)
    except (ValueError, OSError) as error:
        raise BackboneWeightsError(f"{weights} does not hold {name} weights: {error}") from error
    except Exception as error:  # what keras.utils.get_file raises, of no narrower class
        if "URL fetch failure" not in str(error):
            raise
        raise BackboneWeightsError(f"ImageNet weights cannot be fetched: {error}; give a file as backbone_weights, or "
                                   "'' to start from random weights") from error
    values = source.get_weights()
    if name == "mobilenetv2":
        values[0] = values[0][:, :, ::-1, :]
    network.set_weights(values)


class LayerNorm(layers.Layer):
    """Layer normalisation over the last axis (Ba et al. 2016), spelled so that ONNX Runtime fuses it:
    Keras' own does not match the pattern."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")

    def call(self, x):
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.power(centred, 2.0), axis=-1, keepdims=True)
        return centred / ops.sqrt(variance + 1e-6) * self.gamma + self.beta


def conv_bn(x, filters, kernel=1, activation="relu", name=None):
    """Convolution without bias, batch norm, activation (None for none)."""
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.99, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_act")(x) if activation else x


def separable_bn(x, filters, kernel=5, name=None):
    """Depthwise then pointwise convolution, batch norm and ReLU after the pair (Howard et al. 2017)."""
    x = layers.DepthwiseConv2D(kernel, padding="same", use_bias=False, name=f"{name}_dw")(x)
    return conv_bn(x, filters, 1, name=f"{name}_pw")


def upsample(x, name):
    """Twice the size, bilinear: one Resize in ONNX, where nearest becomes Tiles."""
    return layers.UpSampling2D(2, interpolation="bilinear", name=name)(x)


def merged(coarse, skip, stride):
    """The next map of a feature pyramid (Lin et al. 2017): the coarse one enlarged, the backbone's added."""
    lateral = conv_bn(skip, coarse.shape[-1], activation=None, name=f"lateral{stride}")  # `train.prune` reads the name
    x = layers.Add(name=f"merge{stride}")([upsample(coarse, f"upsample{stride}"), lateral])
    return layers.Activation("relu", name=f"merge{stride}_relu")(x)
