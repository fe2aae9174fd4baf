"""The encoder as a TensorFlow SavedModel: to be served, and to be fine-tuned."""

import os
import tempfile

import tensorflow as tf

from instcls_tf.errors import UserError


def export_saved_model(encoder: tf.keras.Model, output_dir: str, *, image_size: int) -> None:
    """Writes the encoder, without the instance classifier, as a SavedModel.

    The signature "serving_default" takes `images`, uint8 [batch, height, width, 3] of any batch and size, pixel values
    in 0..255, and returns

    - `features`, float32 [batch, F]: the backbone's average-pooled output, for linear classifiers and retrieval;
    - `projection`, float32 [batch, D]: the head's output, L2-normalised, because the loss trains its direction only.

    BN is in inference mode there. Images of another size than `image_size` are cropped to their central square and
    resized. To fine-tune, load the folder with `tf.keras.models.load_model` (gives back the encoder; BN follows its
    `training` argument) or with `tf.saved_model.load` (the same variables). TensorFlow Serving expects the folder's
    name to be a version number, as in "encoder/1".

    Args:
      encoder: A model of `networks.build_encoder`.
      output_dir: Folder to write; it may exist if it is empty. It appears only when it is complete.
      image_size: Side in pixels of the square images that the encoder sees.

    Raises:
      UserError: `output_dir` holds something already, or cannot be written.
    """
    output_dir = os.path.abspath(output_dir)
    _refuse_occupied(output_dir)
    parent = os.path.dirname(output_dir)
    try:
        os.makedirs(parent, exist_ok=True)
        # Beside the target, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as scratch:
            complete = os.path.join(scratch, "saved_model")  # unlike scratch itself, readable by other users
            signature = _serving_signature(encoder, image_size)
            encoder.save(complete, save_format="tf", include_optimizer=False, signatures={"serving_default": signature})
            os.replace(complete, output_dir)
    except OSError as error:
        raise UserError(f"--output={output_dir} cannot be written: {error.strerror or error}.") from error


def _refuse_occupied(output_dir: str) -> None:
    if os.path.isdir(output_dir):
        if os.listdir(output_dir):
            raise UserError(f"--output={output_dir} is not empty; name a new or an empty folder.")
    elif os.path.lexists(output_dir):
        raise UserError(f"--output={output_dir} is a file; name a new or an empty folder.")


def _serving_signature(encoder: tf.keras.Model, image_size: int) -> tf.types.experimental.GenericFunction:
    backbone, projection = encoder.get_layer("backbone"), encoder.get_layer("projection")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        features = backbone(_central_square(images, image_size), training=False)  # [b, F]
        embedding = projection(features, training=False)  # [b, D]
        return {"features": features, "projection": tf.math.l2_normalize(embedding, axis=1)}

    return serve


def _central_square(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """Uint8 [b, h, w, 3] to [b, image_size, image_size, 3]: the centred square, resized.

    Pixel for pixel what the training's un-augmented images are (`data.augment`, preset "none"), rounding included, so
    that a linear classifier fitted on extracted features fits these too. An image of the right size passes unchanged.
    """
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    size = [image_size, image_size]
    resized = tf.cond(
        side > 2 * image_size,  # as there: plain bilinear does not alias before
        lambda: tf.image.resize(square, size, antialias=True),
        lambda: tf.image.resize(square, size),
    )
    return tf.cast(resized + 0.5, tf.uint8)  # rounds as the views do; interpolation stays within [0, 255]
