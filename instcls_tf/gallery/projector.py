"""What TensorBoard's projector shows: features, names and one sheet of thumbnails, beside the run's log."""

from __future__ import annotations

import io
import math
import os

import numpy as np
from PIL import Image

from instcls_tf import files
from instcls_tf.errors import shown
from instcls_tf.gallery.layout import principal_components
from instcls_tf.gallery.pages import Exhibit, sheet_of
from instcls_tf.run.log import tensorboard_folder

# TensorBoard shows sheets of up to 8192 pixels a side, and grows slow above some thousand points of many numbers.
_MOST_IMAGES, _MOST_NUMBERS, _PIXELS = 5000, 64, 48

_CONFIG = """embeddings {
  tensor_name: "features"
  tensor_path: "projector/features.tsv"
  metadata_path: "projector/metadata.tsv"
  sprite {
    image_path: "projector/thumbnails.png"
    single_image_dim: %d
    single_image_dim: %d
  }
}
"""


def write_projector(workdir: str, exhibit: Exhibit, vectors: np.ndarray) -> None:
    """Writes `WORKDIR/tensorboard/projector/` and the file that leads TensorBoard there.

    Args:
      workdir: the run's folder.
      exhibit: names, labels and thumbnails of n images; of more than 5,000 some, evenly spread.
      vectors: `[n, F]`, their features; their 64 first principal components are written.

    Raises:
      UserError: a file cannot be written.
    """
    count = len(exhibit.names)
    chosen = np.linspace(0, count - 1, min(count, _MOST_IMAGES)).round().astype(int)
    components, _ = principal_components(vectors[chosen], _MOST_NUMBERS)
    folder = tensorboard_folder(workdir)
    table = "".join("\t".join(f"{value:.4g}" for value in row) + "\n" for row in components.tolist())
    files.write(os.path.join(folder, "projector", "features.tsv"), table.encode())
    files.write(
        os.path.join(folder, "projector", "metadata.tsv"), _metadata(exhibit, chosen).encode("utf-8", "replace")
    )
    thumbnails = _small(exhibit.thumbnails[chosen])
    side = math.ceil(math.sqrt(len(chosen)))
    picture = io.BytesIO()
    Image.fromarray(sheet_of(thumbnails, side)).save(picture, "png")
    files.write(os.path.join(folder, "projector", "thumbnails.png"), picture.getvalue())
    size = thumbnails.shape[1]
    files.write(os.path.join(folder, "projector_config.pbtxt"), (_CONFIG % (size, size)).encode())


def _metadata(exhibit: Exhibit, chosen: np.ndarray) -> str:
    """Names, and classes where there are any; one column has no header, as TensorBoard wants it."""
    names = [shown(exhibit.names[i]) for i in chosen.tolist()]
    labels, classes = exhibit.labels, exhibit.class_names
    if labels is None or classes is None:
        return "".join(f"{name}\n" for name in names)
    of_images = [shown(classes[label]) if 0 <= label < len(classes) else "" for label in labels[chosen].tolist()]
    return "name\tclass\n" + "".join(f"{name}\t{label}\n" for name, label in zip(names, of_images))


def _small(thumbnails: np.ndarray) -> np.ndarray:
    """At most 48 pixels a side, by leaving out rows and columns."""
    return thumbnails[:, :: -(-thumbnails.shape[1] // _PIXELS), :: -(-thumbnails.shape[1] // _PIXELS)]
