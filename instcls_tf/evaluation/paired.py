"""Whether one network is better than another by more than chance, told from what each makes of the same images.

A sign test: if the two were equally good, the difference at each image could as well have the other sign. Images at
which they do not differ tell nothing. No TensorFlow.
"""

from __future__ import annotations

import numpy as np

# Standard errors beyond which a difference is no chance: of images that each ask others for their label; and of images
# that are each other's neighbours, where the means of equally good networks scatter up to 1.4 times as widely.
OF_HITS, OF_AGREEMENTS = 2.0, 3.0


def compared(first: np.ndarray, second: np.ndarray | float, errors: float) -> int | None:
    """1 if the first of two networks is better, -1 if it is worse, 0 if chance may make as much of a difference.

    Args:
      first: `[M]`, what a network makes of some images: hits (bool), or shares in 0..1.
      second: what the other makes of the same images; their mean where no more is known.
      errors: see above.

    Returns:
      None of so few images that not even the largest difference at all of them would tell.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(differences) <= errors**2:
        return None
    total, error = differences.sum(), np.sqrt(np.square(differences).sum())
    return int(np.sign(total)) if abs(total) > errors * error else 0
