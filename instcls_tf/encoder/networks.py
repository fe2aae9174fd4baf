"""The encoder: ResNet v1.5 backbones and the projection head, as Keras functional models.

Aligned with torchvision (and so with Detectron2), because weights are exchanged with both: the stride sits in the 3x3
convolution of a bottleneck, convolutions have no bias, padding is symmetric, BN has epsilon 1e-5. `keras.applications`
differs in all of these. Layer names map one to one: "layer1_0_conv1" is torchvision's "layer1.0.conv1",
"layer1_0_downsample_conv" and "_bn" are its "layer1.0.downsample.0" and ".1".

Sources: He et al., "Deep Residual Learning" (arXiv:1512.03385); Goyal et al., "Accurate, Large Minibatch SGD"
(arXiv:1706.02677) for v1.5 and the zero-initialised gamma; the two-layer head is that of the paper's Table 2.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import tensorflow as tf

from instcls_tf.checks import require_argument
from instcls_tf.config import (
    BN_MOMENTUM,
    FLOAT32,
    RESNET10,
    RESNET18,
    RESNET50,
    RESNET_DEPTHS,
    SMALL_STEM,
    STEMS,
    PretrainConfig,
)

# torchvision's values, brought to pixel values in 0..255.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def resnet50(
    *,
    width_multiplier: float = PretrainConfig.width_multiplier,
    stem: str = PretrainConfig.stem,
    zero_init_last_gamma: bool = PretrainConfig.zero_init_last_gamma,
    seed: int = PretrainConfig.seed,
    name: str = "backbone",
) -> tf.keras.Model:
    """ResNet-50 v1.5 without its classifier: 23,508,032 trainable parameters at width 1.

    Args:
      width_multiplier: scales every channel count; the first is round(64 * width_multiplier), later ones multiples.
      stem: `imagenet` (7x7 stride 2, then max pool) or `small` (3x3 stride 1, no pool: for images of CIFAR's size).
      zero_init_last_gamma: start the last BN gamma of each residual block at 0, so that the block begins as its
        shortcut.
      seed: fixes all initial weights; every layer draws its own values.
      name: of the model.

    Returns:
      A model from images `[b, H, W, 3]` of any H and W, uint8 or float, pixel values in 0..255, to globally average-
      pooled features `[b, 2048 * width_multiplier]` float32. It normalises the pixels itself. Convolutions compute in
      the current Keras mixed-precision policy.

    Raises:
      UserError: unknown stem, or a width that leaves no channel.
    """
    return _resnet(_bottleneck, RESNET_DEPTHS[RESNET50], width_multiplier, stem, zero_init_last_gamma, seed, name)


def resnet18(
    *,
    width_multiplier: float = PretrainConfig.width_multiplier,
    stem: str = PretrainConfig.stem,
    zero_init_last_gamma: bool = PretrainConfig.zero_init_last_gamma,
    seed: int = PretrainConfig.seed,
    name: str = "backbone",
) -> tf.keras.Model:
    """ResNet-18 without its classifier: 11,176,512 trainable parameters at width 1.

    Args, input and errors as for `resnet50`; the features are `[b, 512 * width_multiplier]` float32.
    """
    return _resnet(_basic_block, RESNET_DEPTHS[RESNET18], width_multiplier, stem, zero_init_last_gamma, seed, name)


def resnet10(
    *,
    width_multiplier: float = PretrainConfig.width_multiplier,
    stem: str = PretrainConfig.stem,
    zero_init_last_gamma: bool = PretrainConfig.zero_init_last_gamma,
    seed: int = PretrainConfig.seed,
    name: str = "backbone",
) -> tf.keras.Model:
    """ResNet-10, one block a stage, without its classifier: 4,905,792 trainable parameters at width 1.

    Args, input, features and errors as for `resnet18`.
    """
    return _resnet(_basic_block, RESNET_DEPTHS[RESNET10], width_multiplier, stem, zero_init_last_gamma, seed, name)


# Name (as in --encoder) -> the function that builds the backbone.
BACKBONES: dict[str, Callable[..., tf.keras.Model]] = {RESNET50: resnet50, RESNET18: resnet18, RESNET10: resnet10}


def projection_head(
    feature_size: int,
    embedding_size: int = PretrainConfig.embedding_size,
    *,
    mlp: bool = PretrainConfig.mlp_head,
    seed: int = PretrainConfig.seed,
) -> tf.keras.Model:
    """The head between the features and the classifier: Dense, ReLU, Dense, without BN.

    Args:
      feature_size: of the features, and of the hidden layer.
      embedding_size: D.
      mlp: False leaves one linear map to D (Table 2, row 1).
      seed: fixes the initial weights.

    Returns:
      A model "projection" from features `[b, feature_size]` to embeddings `[b, D]` float32. They are not normalised:
      the classifier does that.
    """
    features = tf.keras.Input((feature_size,), name="features")
    x = features
    if mlp:
        x = tf.keras.layers.Dense(
            feature_size,
            activation="relu",
            kernel_initializer=tf.keras.initializers.HeNormal(seed=_layer_seed(seed, "projection_fc1")),
            name="fc1",
        )(x)
    # float32 whatever the policy: the loss divides this direction by a temperature, which would magnify rounding.
    embedding = tf.keras.layers.Dense(
        embedding_size,
        kernel_initializer=tf.keras.initializers.LecunNormal(seed=_layer_seed(seed, "projection_fc2")),
        dtype="float32",
        name="fc2" if mlp else "fc",
    )(x)  # [b, D]
    return tf.keras.Model(features, embedding, name="projection")


def build_encoder(
    *,
    encoder: str = PretrainConfig.encoder,
    width_multiplier: float = PretrainConfig.width_multiplier,
    stem: str = PretrainConfig.stem,
    mlp_head: bool = PretrainConfig.mlp_head,
    embedding_size: int = PretrainConfig.embedding_size,
    zero_init_last_gamma: bool = PretrainConfig.zero_init_last_gamma,
    seed: int = PretrainConfig.seed,
) -> tf.keras.Model:
    """Backbone and projection head as one model (step 1 of the method).

    Args:
      encoder: `resnet50`, `resnet18` or `resnet10`.
      width_multiplier, stem, zero_init_last_gamma: see `resnet50`.
      mlp_head, embedding_size: see `projection_head`.
      seed: fixes all initial weights.

    Returns:
      A model "encoder" from images as in `resnet50` to embeddings `[b, D]` float32, not normalised. Its two parts are
      `get_layer("backbone")` and `get_layer("projection")`.

    Raises:
      UserError: a wrong value, named together with its argument.
    """
    require_argument("encoder", encoder, encoder in BACKBONES, "one of " + ", ".join(BACKBONES))
    require_argument("embedding_size", embedding_size, embedding_size >= 1, "at least 1")
    backbone = BACKBONES[encoder](
        width_multiplier=width_multiplier, stem=stem, zero_init_last_gamma=zero_init_last_gamma, seed=seed
    )
    projection = projection_head(backbone.output_shape[-1], embedding_size, mlp=mlp_head, seed=seed)
    images = tf.keras.Input((None, None, 3), name="images")
    return tf.keras.Model(images, projection(backbone(images)), name="encoder")


def make_encoder(config: PretrainConfig, precision: str = FLOAT32) -> tf.keras.Model:
    """The encoder (backbone and projection) that a recipe describes, with its random initial weights.

    Args:
      config: the recipe.
      precision: a Keras dtype policy; of this encoder alone, the global policy stays as it was.
    """
    outside = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        return build_encoder(
            encoder=config.encoder,
            width_multiplier=config.width_multiplier,
            stem=config.stem,
            mlp_head=config.mlp_head,
            embedding_size=config.embedding_size,
            zero_init_last_gamma=config.zero_init_last_gamma,
            seed=config.seed,
        )
    finally:
        tf.keras.mixed_precision.set_global_policy(outside)


def encoder_digest(encoder: tf.keras.Model) -> str:
    """A hash of all weights; the same for the same checkpoint, whatever folder it lies in."""
    digest = hashlib.sha256()
    for variable in encoder.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def batch_norm_layers(model: tf.keras.Model) -> list[tf.keras.layers.BatchNormalization]:
    """All BN layers of a functional model and of the models inside it, from the input to the output."""
    layers = []
    for layer in model.layers:  # Keras sorts them by depth: a layer comes after all that feed it
        if isinstance(layer, tf.keras.Model):
            layers += batch_norm_layers(layer)
        elif isinstance(layer, tf.keras.layers.BatchNormalization):
            layers.append(layer)
    return layers


def batch_norm_statistics(model: tf.keras.Model) -> list[tf.Variable]:
    """The moving means and variances of all BN layers, in the order of `batch_norm_layers`."""
    return [v for layer in batch_norm_layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def batch_norm_probe(encoder: tf.keras.Model) -> tf.keras.Model:
    """The encoder, with the input of every BN layer as a second output; the weights are shared, not copied.

    Called with training=False it normalises with the moving statistics and lets the caller update them afterwards, as
    the "running average of other instance features" of the contrastive prior asks.

    Args:
      encoder: a model of `build_encoder`.

    Returns:
      A model from images as in `resnet50` to embeddings `[b, D]` float32 and a list of the inputs of BN layers
      `[b, h, w, c]`. The inputs are in the order of `batch_norm_layers(encoder)` and in the policy's compute dtype:
      cast them to float32 before summing.
    """
    backbone, projection = encoder.get_layer("backbone"), encoder.get_layer("projection")
    # A nested model's inner tensors are reachable from its own input only; the head has no BN to look at.
    inputs = [layer.input for layer in batch_norm_layers(backbone)]
    return tf.keras.Model(backbone.input, (projection(backbone.output), inputs), name="batch_norm_probe")


def _resnet(
    block: Callable[..., tf.Tensor],
    depths: tuple[int, ...],
    width_multiplier: float,
    stem: str,
    zero_gamma: bool,
    seed: int,
    name: str,
) -> tf.keras.Model:
    """Normalisation, stem, four stages of `depths` blocks and global average pooling; arguments as in `resnet50`."""
    channels = round(64 * width_multiplier)
    require_argument("width_multiplier", width_multiplier, channels >= 1, "above 1/128, so that a channel is left")
    images = tf.keras.Input((None, None, 3), name="images")  # Keras casts uint8 to this input's float32
    scale = [1 / std for std in IMAGENET_STD]
    offset = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD)]
    x = tf.keras.layers.Rescaling(scale, offset, dtype="float32", name="normalize")(images)
    x = _stem(x, channels, stem, seed)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(
                x,
                channels * 2**stage,
                stride=stride,
                zero_gamma=zero_gamma,
                seed=seed,
                name=f"layer{stage + 1}_{index}",
            )
    features = tf.keras.layers.GlobalAveragePooling2D(dtype="float32", name="avgpool")(x)  # [b, F]
    return tf.keras.Model(images, features, name=name)


def _stem(x: tf.Tensor, channels: int, stem: str, seed: int) -> tf.Tensor:
    require_argument("stem", stem, stem in STEMS, "one of " + ", ".join(STEMS))
    if stem == SMALL_STEM:
        return _relu(_batch_norm(_conv(x, channels, 3, seed=seed, name="conv1"), name="bn1"), name="relu")
    x = _relu(_batch_norm(_conv(x, channels, 7, stride=2, seed=seed, name="conv1"), name="bn1"), name="relu")
    # Zeros pad the maximum as well as minus infinity would, since nothing after a ReLU is negative.
    x = tf.keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    return tf.keras.layers.MaxPooling2D(3, strides=2, name="maxpool")(x)


def _bottleneck(x: tf.Tensor, channels: int, *, stride: int, zero_gamma: bool, seed: int, name: str) -> tf.Tensor:
    """1x1, 3x3, 1x1 with 4 times the channels; v1.5 strides in the 3x3, where no input pixel is skipped."""
    y = _relu(_batch_norm(_conv(x, channels, 1, seed=seed, name=f"{name}_conv1"), name=f"{name}_bn1"), f"{name}_relu1")
    y = _conv(y, channels, 3, stride=stride, seed=seed, name=f"{name}_conv2")
    y = _relu(_batch_norm(y, name=f"{name}_bn2"), f"{name}_relu2")
    y = _conv(y, 4 * channels, 1, seed=seed, name=f"{name}_conv3")
    y = _batch_norm(y, zero_gamma=zero_gamma, name=f"{name}_bn3")
    return _add_shortcut(x, y, stride=stride, seed=seed, name=name)


def _basic_block(x: tf.Tensor, channels: int, *, stride: int, zero_gamma: bool, seed: int, name: str) -> tf.Tensor:
    """3x3, 3x3; the stride is in the first."""
    y = _conv(x, channels, 3, stride=stride, seed=seed, name=f"{name}_conv1")
    y = _relu(_batch_norm(y, name=f"{name}_bn1"), f"{name}_relu1")
    y = _conv(y, channels, 3, seed=seed, name=f"{name}_conv2")
    y = _batch_norm(y, zero_gamma=zero_gamma, name=f"{name}_bn2")
    return _add_shortcut(x, y, stride=stride, seed=seed, name=name)


def _add_shortcut(x: tf.Tensor, y: tf.Tensor, *, stride: int, seed: int, name: str) -> tf.Tensor:
    """relu(shortcut(x) + y); the shortcut is the identity wherever the shapes allow it."""
    if stride != 1 or x.shape[-1] != y.shape[-1]:
        x = _conv(x, y.shape[-1], 1, stride=stride, seed=seed, name=f"{name}_downsample_conv")
        x = _batch_norm(x, name=f"{name}_downsample_bn")
    return _relu(tf.keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_out")


def _conv(x: tf.Tensor, channels: int, kernel_size: int, *, stride: int = 1, seed: int, name: str) -> tf.Tensor:
    """A convolution without bias, padded by kernel_size // 2 on every side."""
    padding = "same"  # symmetric at stride 1, and cheaper than a padding layer
    if stride > 1:  # here "same" would depend on the image's size and shift the grid by a pixel against torchvision's
        padding = "valid"
        if kernel_size > 1:
            x = tf.keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    # torchvision's kaiming_normal_(mode="fan_out"); Keras' own HeNormal is truncated and uses fan_in.
    initializer = tf.keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal", seed=_layer_seed(seed, name)
    )
    return tf.keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=initializer,
        name=name,
    )(x)


def _batch_norm(x: tf.Tensor, *, zero_gamma: bool = False, name: str) -> tf.Tensor:
    # Keras' momentum 0.9 is PyTorch's 0.1. A plain layer, since one with a custom gradient exports a model that cannot
    # be fine-tuned.
    gamma = "zeros" if zero_gamma else "ones"
    return tf.keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=1e-5, gamma_initializer=gamma, name=name)(x)


def _relu(x: tf.Tensor, name: str) -> tf.Tensor:
    return tf.keras.layers.ReLU(name=name)(x)


def _layer_seed(seed: int, name: str) -> int:
    """A seed of the layer's own, from its place in the network.

    One seed for all would repeat the same values in all kernels of equal shape, and a random network of repeated
    kernels is useless to the contrastive prior.
    """
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF
