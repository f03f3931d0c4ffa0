"""ResNet v1 (He et al. 2015, arXiv:1512.03385) as TF-Slim names it and as TF-SimpleHumanPose builds it.

The stride lies in the 3×3 convolution of a block's first unit. TF-Slim's own network strides at the end of the block
before, which amounts to striding the first 1×1 convolution, and pads its pool at the far edges only. Its ImageNet
weights fit either network; in this one they are a start to be tuned, not a classifier to be used as it is.

Layers carry the checkpoint's names: `resnet_v1_50/block1/unit_2/bottleneck_v1/conv3/weights` is the kernel of
`block1_unit2_conv3`, and `…/conv3/BatchNorm/gamma` belongs to `block1_unit2_conv3_bn`; see `train.slim_checkpoint`.
"""

from keras import initializers, layers

from runtime.errors import BadInput

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # depth → units of each block
IMAGENET_MEANS = (103.94, 116.78, 123.68)  # BGR, what TF-Slim subtracts

# TF-SimpleHumanPose asks for 1e-9 and TF-Slim for 1e-5, but TensorFlow 1's fused batch norm, their default since 1.3,
# raised anything smaller to this, cuDNN's least. So it is what both kinds of checkpoint were trained with.
BN_EPSILON = 1.001e-5


class PixelMeans(layers.Layer):
    """Subtracts channel means, kept among the weights so that a weights file carries those it was trained with.

    (B, H, W, 3) float BGR 0..255 → the same shape, less the weight `mean` (3,) in BGR order, which is never trained.
    """

    def __init__(self, mean=IMAGENET_MEANS, **options):
        super().__init__(**options)
        self.initial_mean = tuple(mean)

    def build(self, shape):
        self.mean = self.add_weight(shape=(3,), initializer=initializers.Constant(self.initial_mean), trainable=False,
                                    name="mean")

    def call(self, pixels):
        return pixels - self.mean

    def get_config(self):
        return {**super().get_config(), "mean": self.initial_mean}


def resnet_v1(pixels, depth):
    """The layers of a ResNet v1, from pixels to feature maps.

    Args:
        pixels: Keras tensor (B, H, W, 3), float BGR 0..255, H and W multiples of 32.
        depth: 50, 101 or 152; any other is BadInput.

    Returns:
        Maps at strides 4, 8, 16, 32, of 256, 512, 1024, 2048 channels: the outputs of `block1_unit3_out` and so on.
    """
    if depth not in UNITS:
        raise BadInput(f"no ResNet v1 of depth {depth}; choose one of {', '.join(map(str, UNITS))}")
    x = PixelMeans(name="pixel_means")(pixels)
    x = layers.ReLU(name="conv1_relu")(_conv_bn(x, 64, 7, stride=2, name="conv1"))
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # zeros do for a maximum: after ReLU nothing is below
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    maps = []
    for block, units in enumerate(UNITS[depth], start=1):
        for unit in range(1, units + 1):
            stride = 2 if unit == 1 and block > 1 else 1
            x = _bottleneck(x, 32 * 2**block, stride, name=f"block{block}_unit{unit}")
        maps.append(x)
    return tuple(maps)


def _bottleneck(x, width, stride, name):
    """1×1, 3×3 with the stride, 1×1 to 4·width channels, added to the input or its projection."""
    shortcut = x if x.shape[-1] == 4 * width else _conv_bn(x, 4 * width, 1, stride, f"{name}_shortcut")
    x = layers.ReLU(name=f"{name}_conv1_relu")(_conv_bn(x, width, 1, 1, f"{name}_conv1"))
    x = layers.ReLU(name=f"{name}_conv2_relu")(_conv_bn(x, width, 3, stride, f"{name}_conv2"))
    x = layers.Add(name=f"{name}_add")([shortcut, _conv_bn(x, 4 * width, 1, 1, f"{name}_conv3")])
    return layers.ReLU(name=f"{name}_out")(x)


def _conv_bn(x, filters, kernel, stride, name):
    """Convolution without bias, then batch norm."""
    if stride > 1 and kernel > 1:  # alike on all sides; TensorFlow's own "same" would pad the far ones more
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(filters, kernel, strides=stride, padding="valid" if stride > 1 else "same", use_bias=False,
                      kernel_initializer="he_normal", name=name)(x)
    return layers.BatchNormalization(momentum=0.99, epsilon=BN_EPSILON, name=f"{name}_bn")(x)
