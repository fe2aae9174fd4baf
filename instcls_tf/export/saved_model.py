"""The encoder as a TensorFlow SavedModel, without the classifier: to be served and fine-tuned, with Keras or without.

`features` are the backbone's average-pooled output, float32 [batch, F], for linear classifiers and retrieval;
`projection` is the head's output, float32 [batch, D], of unit length, because the loss trains its direction only. Both
words mean this in every signature, in `loaded.projection` and in the Keras model.

- Signature "serving_default": `images`, uint8 [batch, height, width, 3] of any batch and size, pixel values in 0..255,
  to `features` and `projection`. No image, or one without pixels, is an error that names the shape wanted.
- "projection": `images` to `projection` alone.
- "jpeg": `image_bytes`, the bytes of JPEG, PNG, GIF or BMP files [batch], to `features`, `projection` and `ok`, bool
  [batch]. A file that cannot be read gives rows of zeros and false. A JPEG is turned as its EXIF says.

BN is in inference mode there. Images of another size than the encoder's are cropped to a central square, as where the
run is judged, and resized; arrays of that very size count as prepared, files do not. With TensorFlow alone,
`tf.saved_model.load` gives `backbone(images, training)` of prepared images, uint8 or float32, and
`projection(features)`, both differentiable. `tf.keras.models.load_model` of Keras 2 gives the encoder. TensorFlow
Serving expects the folder's name to be a version number, as in "encoder/1".
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.export.image_bytes import read_image
from instcls_tf.export.preprocessing import central_square
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import Format

_WANTED_SHAPE = "images: wanted uint8 [batch, height, width, 3] of at least one image of at least 1 x 1 pixels, found"
_WANTED_BYTES = "image_bytes: wanted the bytes of at least one file [batch], found"
# Files that are decoded at a time; each of them may have `max_pixels`.
_DECODERS = 2

_USE = """
```python
import tensorflow as tf

loaded = tf.saved_model.load("{folder}")
loaded.signatures["serving_default"](images=images)      # uint8 [b, h, w, 3] of any size -> features, projection
loaded.signatures["projection"](images=images)           # -> projection alone
loaded.signatures["jpeg"](image_bytes=files)             # bytes of JPEG, PNG, GIF or BMP [b] -> also ok [b]
features = loaded.backbone(prepared, training=True)      # uint8 or float32 in 0..255, of the size above
projection = loaded.projection(features)                 # of unit length
loaded.trainable_variables
```
"""


def _write(subject: Subject, folder: str) -> None:
    model = _with_unit_projection(subject.encoder)
    backbone, projection = model.get_layer("backbone"), model.get_layer("projection")
    model.backbone, model.projection = _Backbone(backbone), _Projection(projection)
    model.save(folder, save_format="tf", include_optimizer=False, signatures=_signatures(subject, backbone, projection))


def _with_unit_projection(encoder: tf.keras.Model) -> tf.keras.Model:
    """The encoder with projections of unit length; its layers are shared, not copied."""
    head = encoder.get_layer("projection")
    features = tf.keras.Input(head.input_shape[1:], name="features")
    x = features
    for layer in head.layers[1:]:
        x = layer(x)
    unit = tf.keras.layers.UnitNormalization(axis=1, dtype="float32", name="unit")(x)
    projection = tf.keras.Model(features, unit, name="projection")
    images = tf.keras.Input((None, None, 3), name="images")
    return tf.keras.Model(images, projection(encoder.get_layer("backbone")(images)), name="encoder")


class _Backbone(tf.__internal__.tracking.AutoTrackable):
    """`loaded.backbone` of TensorFlow without Keras; it has a graph for each kind of pixels and for each mode."""

    def __init__(self, model: tf.keras.Model):
        self._call = lambda images, training: model(images, training=training)
        for dtype in (tf.float32, tf.uint8):
            for training in (False, True):
                self.__call__.get_concrete_function(tf.TensorSpec([None, None, None, 3], dtype, "images"), training)

    @tf.function(autograph=False)
    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if images.dtype == tf.uint8:
            return self(tf.cast(images, tf.float32), training)
        return self._call(images, training)


class _Projection(tf.__internal__.tracking.AutoTrackable):
    """`loaded.projection`; it has no mode, since there is no BN in it."""

    def __init__(self, model: tf.keras.Model):
        self._call = lambda features: model(features)
        self.__call__.get_concrete_function(tf.TensorSpec([None, model.input_shape[1]], tf.float32, "features"))

    @tf.function(autograph=False)
    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        return self._call(features)


def _signatures(subject: Subject, backbone: tf.keras.Model, projection: tf.keras.Model) -> dict[str, Any]:
    def outputs(square: tf.Tensor) -> dict[str, tf.Tensor]:
        features = backbone(square, training=False)  # [b, F]
        return {"features": features, "projection": projection(features, training=False)}

    def prepare(images: tf.Tensor, are_files: bool = False) -> tf.Tensor:
        size, fraction = subject.image_size, subject.center_crop_fraction
        return central_square(images, size, fraction, passes_prepared=not are_files)

    images_spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")

    @tf.function(autograph=False, input_signature=[images_spec])
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return outputs(prepare(_not_empty(images, _WANTED_SHAPE)))

    @tf.function(autograph=False, input_signature=[images_spec])
    def project(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"projection": outputs(prepare(_not_empty(images, _WANTED_SHAPE)))["projection"]}

    def read(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = read_image(encoded, subject.max_pixels, subject.background)
        ok = tf.size(image) > 0
        nothing = tf.zeros([1, 1, 3], tf.uint8)
        return prepare(tf.cond(ok, lambda: image, lambda: nothing)[None], are_files=True)[0], ok

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve_files(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        size = subject.image_size
        specs = tf.TensorSpec([size, size, 3], tf.uint8), tf.TensorSpec([], tf.bool)
        files = _not_empty(image_bytes, _WANTED_BYTES)
        square, ok = tf.map_fn(read, files, fn_output_signature=specs, parallel_iterations=_DECODERS)
        found = {name: tf.where(ok[:, None], rows, 0.0) for name, rows in outputs(square).items()}
        return {**found, "ok": ok}

    return {"serving_default": serve, "projection": project, "jpeg": serve_files}


def _not_empty(values: tf.Tensor, wanted: str) -> tf.Tensor:
    shape = tf.shape(values)
    some = tf.debugging.Assert(tf.reduce_all(shape > 0), [wanted, shape], summarize=4)
    with tf.control_dependencies([some]):
        return tf.identity(values)


SAVED_MODEL = Format("saved_model", _write, _USE, any_size=True, card_place="assets.extra")
