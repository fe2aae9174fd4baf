"""A ResNet's weights as torchvision publishes them, from its architecture alone; nothing comes from the package."""

from __future__ import annotations

import numpy as np

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet18": (2, 2, 2, 2), "resnet10": (1, 1, 1, 1)}


def random_state_dict(architecture: str, width: int, stem: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by torchvision's names, `fc` included; BN as training leaves it.

    Args:
      architecture: resnet18 or resnet50, or what a ResNet-10 of theirs would be.
      width: channels of the first convolution.
      stem: side of its kernel, 7 or 3.
      seed: of the draws.
    """
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}

    def conv_bn(conv: str, bn: str, out: int, channels: int, kernel: int) -> None:
        scale = np.sqrt(2 / (kernel * kernel * channels))
        arrays[f"{conv}.weight"] = scale * random.normal(size=[out, channels, kernel, kernel])
        arrays[f"{bn}.weight"], arrays[f"{bn}.running_var"] = random.uniform(0.5, 1.5, [2, out])
        arrays[f"{bn}.bias"], arrays[f"{bn}.running_mean"] = random.normal(0, 0.2, [2, out])
        arrays[f"{bn}.num_batches_tracked"] = np.array(100)

    conv_bn("conv1", "bn1", width, 3, stem)
    channels = width
    for stage, depth in enumerate(DEPTHS[architecture]):
        inner = width * 2**stage
        sizes = [(inner, 1), (inner, 3), (4 * inner, 1)] if architecture == "resnet50" else [(inner, 3), (inner, 3)]
        for block in range(depth):
            place, before = f"layer{stage + 1}.{block}", channels
            for index, (out, kernel) in enumerate(sizes, start=1):
                conv_bn(f"{place}.conv{index}", f"{place}.bn{index}", out, channels, kernel)
                channels = out
            if block == 0 and (stage > 0 or before != channels):
                conv_bn(f"{place}.downsample.0", f"{place}.downsample.1", channels, before, 1)
    arrays["fc.weight"], arrays["fc.bias"] = random.normal(size=[1000, channels]), np.zeros([1000])
    return {name: value.astype(np.int64 if value.ndim == 0 else np.float32) for name, value in arrays.items()}
