"""TensorFlow 1 checkpoints in Keras networks, against the same networks written out in TensorFlow 1."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402
from keras import layers  # noqa: E402

from runtime.errors import BadInput  # noqa: E402
from train.pose_network import build_pose_network  # noqa: E402
from train.resnet_v1 import PixelMeans, resnet_v1  # noqa: E402
from train.slim_checkpoint import checkpoint_variables, load_imagenet, load_snapshot_of_seed  # noqa: E402

v1 = tf.compat.v1
SIZE = 64
KEYPOINTS = 17
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def normalised_convolution(name, *shape, channels):
    return {f"{name}/weights": shape} | {
        f"{name}/BatchNorm/{vector}": (channels,) for vector in ("gamma", "beta", "moving_mean", "moving_variance")}


def backbone_shapes(depth):
    """Names and shapes of TF-Slim's ResNet v1, without its classifier."""
    scope = f"resnet_v1_{depth}"
    shapes = normalised_convolution(f"{scope}/conv1", 7, 7, 3, 64, channels=64)
    before = 64
    for block, (units, width) in enumerate(zip(UNITS[depth], (64, 128, 256, 512), strict=True), start=1):
        for unit in range(1, units + 1):
            place = f"{scope}/block{block}/unit_{unit}/bottleneck_v1"
            if unit == 1:
                shapes |= normalised_convolution(f"{place}/shortcut", 1, 1, before, 4 * width, channels=4 * width)
            shapes |= normalised_convolution(f"{place}/conv1", 1, 1, before, width, channels=width)
            shapes |= normalised_convolution(f"{place}/conv2", 3, 3, width, width, channels=width)
            shapes |= normalised_convolution(f"{place}/conv3", 1, 1, width, 4 * width, channels=4 * width)
            before = 4 * width
    return shapes


def head_shapes():
    shapes = {"out/weights": (1, 1, 256, KEYPOINTS), "out/biases": (KEYPOINTS,)}
    for number, before in ((1, 2048), (2, 256), (3, 256)):
        shapes |= normalised_convolution(f"up{number}", 4, 4, 256, before, channels=256)
    return shapes


def random_value(name, shape, rng):
    """At scales that keep activations their size. Eight channels of each 3×3 hardly vary: there the epsilon counts."""
    still = np.where((np.arange(shape[-1]) < 8) & ("/conv2/" in name), 3e-3, 1.0)
    kind = name.split("/")[-1]
    if kind == "weights":
        fan_in = np.prod(shape[:3]) if not name.startswith("up") else shape[0] * shape[1] * shape[3] / 4
        gain = 0.01 if shape[:2] == (7, 7) else 1.0  # pixels are a hundred times larger than what follows
        return rng.standard_normal(shape, np.float32) * np.float32(gain * (2 / fan_in) ** 0.5) * still
    if kind == "gamma":
        return rng.uniform(0.4, 1.0, shape)
    if kind == "moving_variance":
        return rng.uniform(0.5, 2.0, shape) * still**2
    return rng.normal(0, 0.3, shape) * (still if kind == "moving_mean" else 1.0)


def seed_forward(x, variables):
    """TF-SimpleHumanPose, as it runs outside training: the maps of the four blocks, and (B, H/4, W/4, K)."""
    def norm(x, name, relu):
        scope = f"{name}/BatchNorm/"
        x, _, _ = v1.nn.fused_batch_norm(
            x, variables[f"{scope}gamma"], variables[f"{scope}beta"], variables[f"{scope}moving_mean"],
            variables[f"{scope}moving_variance"], epsilon=max(1e-9, 1.001e-5), is_training=False)  # TensorFlow 1's max
        return tf.nn.relu(x) if relu else x

    def convolution(x, name, stride=1, relu=True):
        kernel = variables[f"{name}/weights"]
        margin = (kernel.shape[0] - 1) // 2
        x = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        return norm(v1.nn.conv2d(x, kernel, [1, stride, stride, 1], "VALID"), name, relu)

    x = convolution(x, "resnet_v1_50/conv1", stride=2)
    x = v1.nn.max_pool(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), [1, 3, 3, 1], [1, 2, 2, 1], "VALID")
    maps = []
    for block, units in enumerate(UNITS[50], start=1):
        for unit in range(1, units + 1):
            place = f"resnet_v1_50/block{block}/unit_{unit}/bottleneck_v1"
            stride = 2 if block > 1 and unit == 1 else 1
            shortcut = convolution(x, f"{place}/shortcut", stride, relu=False) if unit == 1 else x
            x = convolution(convolution(x, f"{place}/conv1"), f"{place}/conv2", stride)
            x = tf.nn.relu(shortcut + convolution(x, f"{place}/conv3", relu=False))
        maps.append(x)
    for number in (1, 2, 3):
        rows, columns = 2 * x.shape[1], 2 * x.shape[2]
        x = v1.nn.conv2d_transpose(x, variables[f"up{number}/weights"], [1, rows, columns, 256], [1, 2, 2, 1], "SAME")
        x = norm(x, f"up{number}", relu=True)
    return maps, v1.nn.conv2d(x, variables["out/weights"], [1, 1, 1, 1], "SAME") + variables["out/biases"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.float32)  # BGR


@pytest.fixture(scope="module")
def tensorflow1(image):
    """A folder with `resnet_v1_50.ckpt` (one file) and `snapshot_140.ckpt` (two), and the maps of the ImageNet network
    and of the snapshot: of RGB less RGB means, and of BGR less the means in the wrong order."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), *write_checkpoints(folder, image)


def write_checkpoints(folder, image):
    """Both files of `tensorflow1`, and what it gives besides."""
    rng, zeros = np.random.default_rng(0), v1.zeros_initializer()
    with tf.Graph().as_default(), v1.Session() as session:
        rate = v1.Variable(5e-4, trainable=False)
        backbone = {name: v1.get_variable(name, shape, initializer=zeros)
                    for name, shape in backbone_shapes(50).items()}
        head = {name: v1.get_variable(name, shape, initializer=zeros) for name, shape in head_shapes().items()}
        classifier = [v1.get_variable("resnet_v1_50/logits/weights", (1, 1, 2048, 10)),
                      v1.get_variable("resnet_v1_50/logits/biases", (10,)),
                      v1.get_variable("resnet_v1_50/mean_rgb", (3,)), v1.train.get_or_create_global_step()]
        pixels = v1.placeholder(tf.float32, (1, SIZE, SIZE, 3))
        maps, heatmaps = seed_forward(pixels, backbone | head)
        snapshot = [*backbone.values(), *head.values(), rate]
        optimiser = v1.train.AdamOptimizer(rate)
        trained = [backbone["resnet_v1_50/conv1/weights"], head["up1/BatchNorm/gamma"], head["out/biases"]]
        optimiser.apply_gradients([(tf.zeros_like(variable), variable) for variable in trained])
        session.run(v1.global_variables_initializer(), {
            variable.initial_value: random_value(name, tuple(variable.shape), rng)
            for name, variable in (backbone | head).items()})
        alone = dict(write_meta_graph=False, write_state=False)
        v1.train.Saver([*backbone.values(), *classifier], write_version=v1.train.SaverDef.V1).save(
            session, f"{folder}/resnet_v1_50.ckpt", **alone)
        v1.train.Saver(snapshot + optimiser.variables()).save(session, f"{folder}/snapshot_140.ckpt", **alone)
        means = np.array([123.68, 116.78, 103.94], "float32")
        return (session.run(maps, {pixels: image[..., ::-1] - means}), session.run(heatmaps, {pixels: image - means}))


@pytest.fixture(scope="module")
def network():
    return build_pose_network(KEYPOINTS, (SIZE, SIZE), "resnet_v1_50", decoder="deconvolution", attention_blocks=0,
                              decoder_width=256, backbone_weights=None)


def assert_same(ours, theirs):
    ours = np.asarray(ours)
    assert 0.05 < theirs.std() < 50, "a network that says nothing, or nothing but noise, proves nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_imagenet_weights_give_the_same_maps(tensorflow1, network, image):
    folder, maps, _ = tensorflow1
    load_imagenet(network, folder / "resnet_v1_50.ckpt")
    features = keras.Model(network.inputs[0], [network.get_layer(f"block{block}_unit{unit}_out").output
                                               for block, unit in enumerate(UNITS[50], start=1)])
    for ours, theirs in zip(features(image), maps, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("suffix", ["", ".index"])
def test_a_snapshot_of_the_seed_gives_the_same_heatmaps(tensorflow1, network, image, suffix):
    folder, _, heatmaps = tensorflow1
    network.get_layer("out").kernel.assign(np.zeros((1, 1, 256, KEYPOINTS)))
    assert load_snapshot_of_seed(network, f"{folder}/snapshot_140.ckpt{suffix}") == 140
    assert_same(network(image), heatmaps.transpose(0, 3, 1, 2))  # ours are (B, K, H/4, W/4)


def test_a_snapshot_without_a_number_has_no_epoch(tensorflow1, network, tmp_path):
    for part in ("index", "data-00000-of-00001"):
        (tmp_path / f"best.ckpt.{part}").symlink_to(tensorflow1[0] / f"snapshot_140.ckpt.{part}")
    assert load_snapshot_of_seed(network, tmp_path / "best.ckpt") is None


@pytest.mark.parametrize("depth, convolutions", [(101, 104), (152, 155)])
def test_deeper_networks_have_the_checkpoints_names_and_shapes(depth, convolutions):
    pixels = layers.Input((32, 32, 3))
    maps = resnet_v1(pixels, depth)
    assert [tuple(x.shape) for x in maps] == [(None, 8, 8, 256), (None, 4, 4, 512), (None, 2, 2, 1024),
                                              (None, 1, 1, 2048)]
    variables = checkpoint_variables(keras.Model(pixels, maps), f"resnet_v1_{depth}")
    assert len(variables) == 5 * convolutions
    assert {name: tuple(variable.shape) for name, variable in variables.items()} == backbone_shapes(depth)


@pytest.fixture(scope="module")
def stem(network):
    """The layers up to stride 4: what a small checkpoint fills."""
    return keras.Model(network.inputs[0], network.get_layer("block1_unit3_out").output)


def stem_shapes():
    return {name: shape for name, shape in backbone_shapes(50).items() if name.split("/")[1] in ("conv1", "block1")}


def write_zeros(path, shapes, **options):
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.Saver([v1.get_variable(name, initializer=np.zeros(shape, np.float32))
                                for name, shape in shapes.items()], **options)
        session.run(v1.global_variables_initializer())
        saver.save(session, str(path), write_meta_graph=False, write_state=False)
    return path


def test_what_optimisers_leave_behind_is_left_aside(stem, tmp_path):
    slots = {f"resnet_v1_50/conv1/weights/{name}": (7, 7, 3, 64)
             for name in ("Momentum", "Adam", "Adam_1", "RMSProp", "RMSProp_1", "ExponentialMovingAverage")}
    scalars = {name: () for name in ("beta1_power", "beta2_power", "Variable", "global_step")}
    load_imagenet(stem, write_zeros(tmp_path / "stem.ckpt", stem_shapes() | slots | scalars))
    assert not stem.get_layer("conv1").kernel.numpy().any()


@pytest.mark.parametrize("change, words", [
    ({"resnet_v1_50/conv1/weights": None},
     r"missing 1 \(resnet_v1_50/conv1/weights\)\. The file holds resnet_v1_50 without a pose head"),
    ({"resnet_v1_50/conv1/biases": (64,)}, r"left over 1 \(resnet_v1_50/conv1/biases\)"),
    ({"resnet_v1_50/conv1/weights": (7, 7, 1, 64)},
     r"of another shape 1 \(resnet_v1_50/conv1/weights is \(7, 7, 1, 64\), not \(7, 7, 3, 64\)\)"),
    ({f"resnet_v1_50/block1/unit_{unit}/bottleneck_v1/conv1/weights": None for unit in (1, 2)} | {"up1/weights": (1,)},
     r"missing 2 \(.*\); left over 1 \(up1/weights\)\. The file holds resnet_v1_50 with a pose head"),
])
def test_tensors_that_do_not_fit_are_named(stem, tmp_path, change, words):
    shapes = {name: shape for name, shape in (stem_shapes() | change).items() if shape is not None}
    path = write_zeros(tmp_path / "stem.ckpt", shapes)
    before = stem.get_weights()
    with pytest.raises(BadInput, match=words):
        load_imagenet(stem, path)
    for ours, old in zip(stem.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, old)


def test_another_depth_is_hinted_at(network, tmp_path):
    """Up to stride 8 a 152 has all that a 50 has, and four units more."""
    half = keras.Model(network.inputs[0], network.get_layer("block2_unit4_out").output)
    shapes = {name: shape for name, shape in backbone_shapes(152).items() if not re.search("/block[34]/", name)}
    path = write_zeros(tmp_path / "resnet_v1_152.ckpt", shapes)
    with pytest.raises(BadInput, match="tensors left over 60 .*, …\\). The file holds resnet_v1_152"):
        load_imagenet(half, path)
    with pytest.raises(BadInput, match="no ResNet v1 of depth 34; choose one of 50, 101, 152"):
        resnet_v1(network.inputs[0], 34)


def test_other_networks_are_refused(stem, tmp_path):
    strange = layers.Conv2D(8, 1, name="neck32_conv")(stem.output)
    with pytest.raises(BadInput, match="has neck32_conv besides; set backbone = 'resnet_v1_50'"):
        load_snapshot_of_seed(keras.Model(stem.inputs[0], strange), tmp_path / "snapshot_1.ckpt")
    path = write_zeros(tmp_path / "vgg.ckpt", {"vgg_16/conv1/weights": (3, 3, 3, 64)})
    with pytest.raises(BadInput, match="should hold one ResNet v1 .* but has none; its tensors are vgg_16/conv1"):
        load_imagenet(stem, path)


def cut(path, part):
    file = path.with_name(path.name + part)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm, words", [
    (lambda path: path.with_name("stem.ckpt.index").unlink(), "no checkpoint at .*stem.ckpt; give the path"),
    (lambda path: path.with_name("stem.ckpt.index").write_text("no checkpoint"), "is no TensorFlow checkpoint"),
    (lambda path: cut(path, ".index"), "is no TensorFlow checkpoint"),
    (lambda path: cut(path, ".data-00000-of-00001"), "is no TensorFlow checkpoint"),
    (lambda path: path.with_name("stem.ckpt.data-00000-of-00001").unlink(), "is no TensorFlow checkpoint"),
    (lambda path: shutil.copy(__file__, path), "is no TensorFlow checkpoint"),
])
def test_files_that_cannot_be_read_are_named(stem, tmp_path, harm, words):
    path = write_zeros(tmp_path / "stem.ckpt", stem_shapes())
    harm(path)
    if path.is_file():
        path.with_name("stem.ckpt.index").unlink()
    stem.get_layer("conv1").kernel.assign(np.ones((7, 7, 3, 64)))
    with pytest.raises(BadInput, match=words) as caught:
        load_imagenet(stem, path)
    assert "\n" not in str(caught.value)
    assert stem.get_layer("conv1").kernel.numpy().all()


def test_an_old_checkpoint_cut_short_and_a_folder_are_refused(stem, tmp_path):
    path = write_zeros(tmp_path / "old.ckpt", stem_shapes(), write_version=v1.train.SaverDef.V1)
    load_imagenet(stem, path)
    cut(path, "")
    with pytest.raises(BadInput, match="old.ckpt is no TensorFlow checkpoint"):
        load_imagenet(stem, path)
    with pytest.raises(BadInput, match="no checkpoint at"):
        load_imagenet(stem, tmp_path)


def test_a_weights_file_carries_the_means(tmp_path):
    def build(means):
        pixels = layers.Input((2, 2, 3))
        return keras.Model(pixels, PixelMeans(means, name="pixel_means")(pixels))

    build((1.0, 2.0, 3.0)).save_weights(tmp_path / "means.weights.h5")
    network = build((0.0, 0.0, 0.0))
    assert not network.trainable_variables
    network.load_weights(tmp_path / "means.weights.h5")
    assert np.asarray(network(np.full((1, 2, 2, 3), 5.0)))[0, 1, 1].tolist() == [4.0, 3.0, 2.0]
