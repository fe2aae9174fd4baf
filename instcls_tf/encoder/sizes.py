"""How large an encoder is, counted from its settings: parameters and activations, without TensorFlow.

Mirrors the networks of `networks.py` layer by layer; the tests hold both against each other.
"""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.config import IMAGENET_STEM, RESNET50, RESNET_DEPTHS, PretrainConfig


class EncoderSizes(NamedTuple):
    """Numbers of values, not bytes."""

    parameters: int  # trainable ones
    statistics: int  # moving means and variances of BN
    activations: int  # what one image leaves behind for the backward pass
    largest_activation: int  # of one layer, for one image
    products: int  # multiplications of the forward pass of one image; training takes about three times as many

    def activation_bytes(self, images: int, mixed: bool) -> int:
        """What a forward and backward pass over so many images keeps.

        Args:
          images: how many.
          mixed: whether in a number type of two bytes.
        """
        values = self.activations + 2 * self.largest_activation  # gradients travel between two layers
        return images * values * (2 if mixed else 4)


class _Walk:
    """Goes through a network from the image on; `side` and `channels` are those of the last output."""

    def __init__(self, side: int):
        self.side, self.channels = side, 3
        self.parameters = self.statistics = self.activations = self.largest = self.products = 0
        self._keep()  # the normalised image

    def _keep(self, extra: int = 0) -> None:
        size = self.channels * (self.side + extra) ** 2
        self.activations += size
        self.largest = max(self.largest, size)

    def conv_bn(self, channels: int, kernel: int, *, stride: int = 1, relu: bool = True) -> None:
        """BN keeps its input and ReLU its output; a strided convolution keeps its padded input as well."""
        padding = kernel // 2
        if stride > 1 and padding:
            self._keep(extra=2 * padding)
        self.parameters += kernel * kernel * self.channels * channels + 2 * channels
        self.statistics += 2 * channels
        self.side = (self.side + 2 * padding - kernel) // stride + 1
        self.products += kernel * kernel * self.channels * channels * self.side**2
        self.channels = channels
        self._keep()
        if relu:
            self._keep()

    def max_pool(self) -> None:
        """3x3, stride 2, padded by 1."""
        self._keep(extra=2)
        self.side = (self.side + 2 - 3) // 2 + 1
        self._keep()

    def average_pool(self) -> None:
        """Over all places."""
        self.side = 1
        self._keep()

    def block(self, layers: list[tuple[int, int, int]], stride: int) -> None:
        """A residual block of `(channels, kernel, stride)` convolutions; the last one's ReLU follows the sum."""
        side, channels = self.side, self.channels
        for index, (out, kernel, step) in enumerate(layers, start=1):
            self.conv_bn(out, kernel, stride=step, relu=index < len(layers))
        if stride != 1 or channels != self.channels:
            out = self.channels
            self.side, self.channels = side, channels
            self.conv_bn(out, 1, stride=stride, relu=False)
        self._keep()

    def dense(self, size: int) -> None:
        """A linear map of a vector."""
        self.parameters += self.channels * size + size
        self.products += self.channels * size
        self.channels = size
        self._keep()


def sizes_of(config: PretrainConfig) -> EncoderSizes:
    """The encoder of a recipe."""
    return encoder_sizes(
        encoder=config.encoder,
        width_multiplier=config.width_multiplier,
        stem=config.stem,
        mlp_head=config.mlp_head,
        embedding_size=config.embedding_size,
        image_size=config.image_size,
    )


def encoder_sizes(
    *, encoder: str, width_multiplier: float, stem: str, mlp_head: bool, embedding_size: int, image_size: int
) -> EncoderSizes:
    """Counts backbone and projection head; the arguments are the settings of the same names."""
    walk = _Walk(image_size)
    width = round(64 * width_multiplier)
    if stem == IMAGENET_STEM:
        walk.conv_bn(width, 7, stride=2)
        walk.max_pool()
    else:
        walk.conv_bn(width, 3)
    for stage, depth in enumerate(RESNET_DEPTHS[encoder]):
        channels = width * 2**stage
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            if encoder == RESNET50:
                walk.block([(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)], stride)
            else:
                walk.block([(channels, 3, stride), (channels, 3, 1)], stride)
    walk.average_pool()
    if mlp_head:
        walk.dense(walk.channels)
    walk.dense(embedding_size)
    return EncoderSizes(walk.parameters, walk.statistics, walk.activations, walk.largest, walk.products)
