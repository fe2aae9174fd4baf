"""The networks against an independent NumPy ResNet, and their contract: shapes, names, seeds, dtypes, probe."""

import re

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.encoder import networks
from instcls_tf.errors import UserError

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet18": (2, 2, 2, 2), "resnet10": (1, 1, 1, 1)}
NARROW = 1 / 16  # 4 channels in the first stage: the oracle below is slow


@pytest.fixture
def policy():
    """Sets the global mixed-precision policy for one test."""
    yield tf.keras.mixed_precision.set_global_policy
    tf.keras.mixed_precision.set_global_policy("float32")


def random_images(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def randomize_batch_norm(model: tf.keras.Model) -> None:
    """Leaves no gamma, beta, mean or variance at a value that hides a mistake."""
    rng = np.random.default_rng(1)
    for layer in networks.batch_norm_layers(model):
        size = layer.gamma.shape[0]
        gamma, variance = rng.uniform(0.5, 1.5, (2, size))
        beta, mean = rng.normal(0, 0.2, (2, size))
        layer.set_weights([gamma, beta, mean, variance])


class NumpyResNet:
    """ResNet v1.5 as torchvision describes it, in float64, from weights by name. Records the input of every BN."""

    def __init__(self, backbone: tf.keras.Model, encoder: str, stem: str):
        self.weights = {layer.name: [w.astype(np.float64) for w in layer.get_weights()] for layer in backbone.layers}
        self.encoder, self.stem = encoder, stem
        self.bn_inputs = {}

    def conv(self, x, name, stride=1):
        (kernel,) = self.weights[name]
        pad = kernel.shape[0] // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width = ((side - kernel.shape[0]) // stride + 1 for side in x.shape[1:3])
        return sum(
            x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width] @ kernel[i, j]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )

    def norm(self, x, name):
        self.bn_inputs[name] = x
        gamma, beta, mean, variance = self.weights[name]
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def max_pool(self, x):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
        return np.max(
            [x[:, i::2, j::2][:, :height, :width] for i in range(3) for j in range(3)],
            axis=0,
        )

    def block(self, x, name, stride):
        if self.encoder == "resnet50":
            strides = {"1": 1, "2": stride, "3": 1}
        else:
            strides = {"1": stride, "2": 1}
        y = x
        for index, conv_stride in strides.items():
            y = self.norm(self.conv(y, f"{name}_conv{index}", conv_stride), f"{name}_bn{index}")
            if index != max(strides):
                y = np.maximum(y, 0)
        if f"{name}_downsample_conv" in self.weights:
            x = self.norm(self.conv(x, f"{name}_downsample_conv", stride), f"{name}_downsample_bn")
        return np.maximum(x + y, 0)

    def __call__(self, images):
        x = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        x = self.conv(x, "conv1", stride=2 if self.stem == "imagenet" else 1)
        x = np.maximum(self.norm(x, "bn1"), 0)
        if self.stem == "imagenet":
            x = self.max_pool(x)
        for stage, depth in enumerate(DEPTHS[self.encoder], start=1):
            for index in range(depth):
                x = self.block(x, f"layer{stage}_{index}", stride=2 if stage > 1 and index == 0 else 1)
        return x.mean(axis=(1, 2))


@pytest.mark.parametrize("size", [(32, 32), (37, 50)], ids=["even", "odd"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("encoder", list(DEPTHS))
def test_backbone_equals_numpy_resnet(encoder, stem, size):
    backbone = networks.BACKBONES[encoder](width_multiplier=NARROW, stem=stem)
    randomize_batch_norm(backbone)
    images = random_images(2, *size)
    expected = NumpyResNet(backbone, encoder, stem)(images)
    features = backbone(images, training=False)
    assert features.dtype == tf.float32
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize(
    ("encoder", "parameters"), [("resnet50", 23_508_032), ("resnet18", 11_176_512), ("resnet10", 4_905_792)]
)
def test_parameter_counts_are_those_of_torchvisions_blocks(encoder, parameters):
    backbone = networks.BACKBONES[encoder]()
    assert sum(int(np.prod(w.shape)) for w in backbone.trainable_weights) == parameters


@pytest.mark.parametrize("encoder", list(DEPTHS))
def test_layers_with_weights_have_torchvisions_names(encoder):
    backbone = networks.BACKBONES[encoder](width_multiplier=NARROW)
    expected = {"conv1", "bn1"}
    for stage, depth in enumerate(DEPTHS[encoder], start=1):
        for block in range(depth):
            for index in (1, 2, 3)[: 3 if encoder == "resnet50" else 2]:
                expected |= {f"layer{stage}_{block}_conv{index}", f"layer{stage}_{block}_bn{index}"}
        if encoder == "resnet50" or stage > 1:
            expected |= {f"layer{stage}_0_downsample_conv", f"layer{stage}_0_downsample_bn"}
    assert {layer.name for layer in backbone.layers if layer.weights} == expected


@pytest.mark.parametrize(
    ("encoder", "name", "stride"),
    [("resnet50", "conv1", 1), ("resnet50", "conv2", 2), ("resnet50", "conv3", 1), ("resnet18", "conv1", 2)],
)
def test_stride_is_where_v1_5_has_it(encoder, name, stride):
    backbone = networks.BACKBONES[encoder](width_multiplier=NARROW)
    for stage in (2, 3, 4):
        assert backbone.get_layer(f"layer{stage}_0_{name}").strides == (stride, stride)


def test_batch_norm_settings():
    for layer in networks.batch_norm_layers(networks.resnet50(width_multiplier=NARROW)):
        assert type(layer) is tf.keras.layers.BatchNormalization
        assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)


def test_convolutions_are_he_normal_by_fan_out():
    backbone = networks.resnet18(width_multiplier=0.5)
    for name in ("layer2_0_conv1", "layer4_0_downsample_conv"):
        kernel = backbone.get_layer(name).kernel.numpy()
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.03)
        assert abs(kernel).max() > 2.5 * kernel.std()  # not truncated


@pytest.mark.parametrize(
    ("stem", "size", "grid"), [("imagenet", (224, 224), 7), ("imagenet", (97, 97), 4), ("small", (32, 32), 4)]
)
def test_any_image_size_gives_the_same_feature_size(stem, size, grid):
    backbone = networks.resnet50(width_multiplier=0.125, stem=stem)
    assert backbone(random_images(2, *size)).shape == (2, 256)
    last = tf.keras.Model(backbone.input, backbone.get_layer("layer4_2_out").output)
    assert last(random_images(1, *size)).shape == (1, grid, grid, 256)


@pytest.mark.parametrize(("encoder", "width", "features"), [("resnet50", 0.5, 1024), ("resnet18", 0.25, 128)])
def test_width_multiplier_scales_the_features(encoder, width, features):
    model = networks.build_encoder(encoder=encoder, width_multiplier=width, embedding_size=24)
    assert model.get_layer("backbone").output_shape == (None, features)
    assert model.get_layer("projection").get_layer("fc1").kernel.shape == (features, features)
    assert model(random_images(3, 32, 32)).shape == (3, 24)


def test_mlp_head_is_dense_relu_dense():
    head = networks.projection_head(16, 5, seed=3)
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    hidden_kernel, hidden_bias, kernel, bias = head.get_weights()
    assert hidden_kernel.shape == (16, 16)
    expected = np.maximum(x @ hidden_kernel + hidden_bias, 0) @ kernel + bias
    np.testing.assert_allclose(head(x), expected, rtol=1e-5, atol=1e-5)


def test_head_without_mlp_is_one_linear_map():
    head = networks.projection_head(16, 5, mlp=False)
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    kernel, bias = head.get_weights()
    np.testing.assert_allclose(head(x), x @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_mlp_head_false_reaches_the_encoder():
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=NARROW, mlp_head=False)
    assert [w.shape for w in encoder.get_layer("projection").get_weights()] == [(32, 128), (128,)]


def test_uint8_and_float_pixels_are_the_same():
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=NARROW, stem="small")
    images = random_images(2, 16, 16)
    np.testing.assert_array_equal(encoder(images), encoder(images.astype(np.float32)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_computes_low_and_returns_float32(policy, dtype):
    reference = networks.build_encoder(encoder="resnet18", width_multiplier=0.125, stem="small")
    policy(f"mixed_{dtype}")
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=0.125, stem="small")
    images = random_images(2, 16, 16)
    embedding = encoder(images)
    assert embedding.dtype == tf.float32
    assert encoder.get_layer("backbone").output.dtype == tf.float32
    backbone = encoder.get_layer("backbone")
    assert backbone.get_layer("normalize").output.dtype == tf.float32  # 8 bits of mantissa would lose pixel values
    assert backbone.get_layer("layer3_0_conv2").output.dtype == dtype
    assert all(w.dtype == tf.float32 for w in encoder.weights)
    cosine = tf.reduce_sum(tf.math.l2_normalize(embedding, 1) * tf.math.l2_normalize(reference(images), 1), axis=1)
    assert tf.reduce_min(cosine) > 0.99


def test_no_two_layers_start_with_the_same_values():
    encoder = networks.build_encoder(width_multiplier=NARROW)
    kernels = [w.numpy() for w in encoder.weights if "kernel" in w.name]
    assert len(kernels) == 55
    # Signs rather than values, and the first 48 only: the same draw at another scale or in another shape counts too.
    draws = {tuple(np.sign(kernel.ravel()[:48])) for kernel in kernels}
    assert len(draws) == len(kernels)


def test_seed_fixes_the_weights():
    first, again, other = (
        networks.build_encoder(encoder="resnet18", width_multiplier=NARROW, seed=seed).get_weights()
        for seed in (0, 0, 1)
    )
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    kernels = [(a, c) for a, c in zip(first, other) if a.ndim > 1]
    assert len(kernels) == 22
    assert not any(np.array_equal(a, c) for a, c in kernels)


@pytest.mark.parametrize("zero_gamma", [True, False])
@pytest.mark.parametrize("encoder", ["resnet50", "resnet18"])
def test_zero_gamma_makes_a_block_its_shortcut(encoder, zero_gamma):
    backbone = networks.BACKBONES[encoder](width_multiplier=NARROW, zero_init_last_gamma=zero_gamma)
    names = ("layer2_0_out", "layer2_1_out", "layer3_0_downsample_bn", "layer3_0_out")
    taps = tf.keras.Model(backbone.input, [backbone.get_layer(name).output for name in names])
    before, after, shortcut, with_shortcut = taps(random_images(2, 64, 64), training=False)
    assert np.array_equal(before, after) == zero_gamma
    assert np.array_equal(tf.nn.relu(shortcut), with_shortcut) == zero_gamma


def test_batch_norm_layers_run_from_input_to_output_through_nested_models():
    encoder = networks.build_encoder(width_multiplier=NARROW)
    names = [layer.name for layer in networks.batch_norm_layers(encoder)]
    assert len(names) == len(set(names)) == 53
    assert names[0] == "bn1"
    main_path = [name for name in names if "downsample" not in name]
    assert main_path == ["bn1"] + [
        f"layer{stage}_{block}_bn{index}"
        for stage, depth in enumerate(DEPTHS["resnet50"], start=1)
        for block in range(depth)
        for index in (1, 2, 3)
    ]
    for stage in (1, 2, 3, 4):  # the shortcut's BN is fed before the next block's
        position = names.index(f"layer{stage}_0_downsample_bn")
        assert names.index(f"layer{stage}_0_bn1") < position < names.index(f"layer{stage}_1_bn1")


def test_batch_norm_statistics_are_the_variables_that_training_does_not_differentiate():
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=NARROW)
    statistics = networks.batch_norm_statistics(encoder)
    assert {id(v) for v in statistics} == {id(v) for v in encoder.non_trainable_variables}
    assert len(statistics) == 2 * 20


def test_probe_gives_the_embedding_and_the_input_of_every_batch_norm():
    encoder = networks.build_encoder(width_multiplier=NARROW)
    randomize_batch_norm(encoder)
    images = random_images(2, 33, 33)
    embedding, inputs = networks.batch_norm_probe(encoder)(images, training=False)
    np.testing.assert_allclose(embedding, encoder(images, training=False), rtol=1e-5, atol=1e-5)
    oracle = NumpyResNet(encoder.get_layer("backbone"), "resnet50", "imagenet")
    oracle(images)
    layers = networks.batch_norm_layers(encoder)
    assert len(inputs) == len(layers) == 53
    for layer, value in zip(layers, inputs):
        expected = oracle.bn_inputs[layer.name]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4 * abs(expected).max(), err_msg=layer.name)


def test_probe_shares_the_weights_and_leaves_the_statistics_alone():
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=NARROW)
    probe = networks.batch_norm_probe(encoder)
    assert {id(w) for w in probe.weights} == {id(w) for w in encoder.weights}
    before = encoder.get_weights()
    probe(random_images(2, 32, 32), training=False)
    for a, b in zip(before, encoder.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_statistics_from_the_probe_are_those_of_keras_training():
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=NARROW, stem="small")
    images = random_images(3, 16, 16)
    _, inputs = networks.batch_norm_probe(encoder)(images, training=False)
    mean, variance = tf.nn.moments(inputs[0], [0, 1, 2])
    rows = np.prod(inputs[0].shape[:3])
    first = networks.batch_norm_layers(encoder)[0]
    expected_mean = 0.9 * first.moving_mean + 0.1 * mean
    expected_variance = 0.9 * first.moving_variance + 0.1 * variance * rows / (rows - 1)  # the fused kernel's estimate
    encoder(images, training=True)
    np.testing.assert_allclose(first.moving_mean, expected_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.moving_variance, expected_variance, rtol=1e-5)


def test_checkpoint_round_trip(tmp_path):
    saved, restored = (
        networks.build_encoder(encoder="resnet18", width_multiplier=NARROW, stem="small", seed=seed) for seed in (0, 1)
    )
    randomize_batch_norm(saved)
    networks.batch_norm_probe(saved)  # a second model on the same layers must not disturb the first
    path = tf.train.Checkpoint(encoder=saved).write(str(tmp_path / "checkpoint"))
    status = tf.train.Checkpoint(encoder=restored).read(path)
    status.assert_consumed()
    images = random_images(2, 16, 16)
    np.testing.assert_array_equal(restored(images, training=False), saved(images, training=False))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"encoder": "resnet51"}, "encoder='resnet51': must be one of resnet50, resnet18, resnet10"),
        ({"stem": "tiny"}, "stem='tiny': must be one of imagenet, small"),
        ({"width_multiplier": 0.001}, "width_multiplier=0.001: must be above 1/128, so that a channel is left"),
        ({"embedding_size": 0}, "embedding_size=0: must be at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_argument(wrong, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        networks.build_encoder(**wrong)
