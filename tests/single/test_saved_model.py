"""The exported SavedModel, read back the three ways that users read it: Serving, Keras and tf.saved_model.load."""

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import networks
from instcls_tf.data.augment import make_views
from instcls_tf.errors import UserError
from instcls_tf.export.saved_model import export_saved_model

IMAGE_SIZE = 32


def small_encoder() -> tf.keras.Model:
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=0.125, stem="small", embedding_size=16)
    rng = np.random.default_rng(1)
    for layer in networks.batch_norm_layers(encoder):  # a trained network's statistics are not 0 and 1
        gamma, variance = rng.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
        beta, mean = rng.normal(0, 0.2, (2, layer.gamma.shape[0]))
        layer.set_weights([gamma, beta, mean, variance])
    return encoder


def random_images(batch: int, size: int = IMAGE_SIZE) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[tf.keras.Model, str]:
    encoder = small_encoder()
    networks.batch_norm_probe(encoder)  # as after the contrastive prior
    path = str(tmp_path_factory.mktemp("export") / "encoder" / "1")
    export_saved_model(encoder, path, image_size=IMAGE_SIZE)
    return encoder, path


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported[1])


@pytest.mark.parametrize("batch", [1, 5])
def test_signature_equals_the_encoder_in_inference_mode(exported, loaded, batch):
    encoder, _ = exported
    images = random_images(batch)
    outputs = loaded.signatures["serving_default"](images=tf.constant(images))
    assert set(outputs) == {"features", "projection"}
    features = encoder.get_layer("backbone")(images, training=False)
    projection = tf.math.l2_normalize(encoder(images, training=False), axis=1)
    np.testing.assert_allclose(outputs["features"], features, atol=1e-5)
    np.testing.assert_allclose(outputs["projection"], projection, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(outputs["projection"], axis=1), 1, atol=1e-5)


def test_signature_takes_uint8_only(loaded):
    signature = loaded.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("images", tf.uint8, [None, None, None, 3])
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
        signature(images=tf.constant(random_images(1), tf.float32))


def test_other_sizes_are_cropped_to_the_central_square(loaded):
    wide = np.full((1, 48, 80, 3), 255, np.uint8)
    wide[:, :, 16:64] = 100
    tall = wide.transpose(0, 2, 1, 3)
    signature = loaded.signatures["serving_default"]
    expected = signature(images=tf.fill([1, IMAGE_SIZE, IMAGE_SIZE, 3], tf.constant(100, tf.uint8)))["features"]
    for images in (wide, tall, wide[:, :20, 30:50]):  # the last is smaller than the model's images
        np.testing.assert_allclose(signature(images=tf.constant(images))["features"], expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 61), (150, 133), (20, 31)])
def test_signature_prepares_images_as_the_evaluation_does(exported, loaded, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    views, draws = make_views("none", IMAGE_SIZE, 0), tf.zeros([1, 1])
    prepared = views.augment(views.crop(tf.constant(image), draws), draws)
    expected = exported[0].get_layer("backbone")(prepared, training=False)
    got = loaded.signatures["serving_default"](images=tf.constant(image[None]))["features"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_serving_style_graph_session_reads_it(exported):
    encoder, path = exported
    images = random_images(2)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = meta_graph.signature_def["serving_default"]
        names = {key: info.name for key, info in signature.outputs.items()}
        outputs = session.run(names, {signature.inputs["images"].name: images})
    np.testing.assert_allclose(outputs["features"], encoder.get_layer("backbone")(images, training=False), atol=1e-5)


def test_gradients_reach_every_variable_after_loading(exported, loaded):
    encoder, _ = exported
    assert len(loaded.trainable_variables) == len(encoder.trainable_variables)
    with tf.GradientTape() as tape:
        outputs = loaded.signatures["serving_default"](images=tf.constant(random_images(4)))
        loss = tf.reduce_sum(outputs["projection"][:, 0])
    gradients = tape.gradient(loss, loaded.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients) > 0


def test_keras_loads_a_model_to_fine_tune(exported):
    encoder, path = exported
    model = tf.keras.models.load_model(path)
    images = random_images(4)
    np.testing.assert_allclose(model(images, training=False), encoder(images, training=False), atol=1e-4)
    moving_mean = networks.batch_norm_layers(model)[0].moving_mean
    before = moving_mean.numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.get_layer("backbone")(images, training=True))
    gradients = tape.gradient(loss, model.get_layer("backbone").trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert not np.array_equal(before, moving_mean)


def test_it_holds_the_encoders_variables_and_no_classifier(exported):
    encoder, path = exported
    stored = [shape for name, shape in tf.train.list_variables(f"{path}/variables/variables") if "VARIABLE" in name]
    assert sorted(stored) == sorted(w.shape.as_list() for w in encoder.weights)


def test_mixed_precision_encoder_returns_float32(tmp_path):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        encoder = small_encoder()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    export_saved_model(encoder, str(tmp_path / "model"), image_size=IMAGE_SIZE)
    images = random_images(3)
    outputs = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"](images=tf.constant(images))
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    features = encoder.get_layer("backbone")(images, training=False)
    np.testing.assert_allclose(outputs["features"], features, rtol=0.02, atol=0.02)


def test_an_occupied_output_is_refused(tmp_path):
    encoder = tf.keras.Model()  # never reached
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--output=.*folder is not empty"):
        export_saved_model(encoder, str(tmp_path / "folder"), image_size=IMAGE_SIZE)
    with pytest.raises(UserError, match=r"--output=.*file is a file"):
        export_saved_model(encoder, str(tmp_path / "folder" / "file"), image_size=IMAGE_SIZE)
    with pytest.raises(UserError, match=r"--output=.*cannot be written"):
        export_saved_model(encoder, str(tmp_path / "folder" / "file" / "inside"), image_size=IMAGE_SIZE)
    assert (tmp_path / "folder" / "file").read_text() == "mine"


class _HalfSavedEncoder(tf.keras.Model):
    """Stands for an encoder whose saving stops half-way."""

    def get_layer(self, name):
        return tf.keras.Sequential(name=name)

    def save(self, path, **kwargs):
        tf.io.gfile.makedirs(path)
        raise tf.errors.ResourceExhaustedError(None, None, "disk full")


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    with pytest.raises(tf.errors.ResourceExhaustedError):
        export_saved_model(_HalfSavedEncoder(), str(tmp_path / "model"), image_size=IMAGE_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_readable_by_others(tmp_path, exported):
    target = tmp_path / "model"
    target.mkdir()
    mode = target.stat().st_mode  # the umask's; a temporary folder would be 0700
    export_saved_model(exported[0], str(target), image_size=IMAGE_SIZE)
    assert (target / "saved_model.pb").exists()
    assert target.stat().st_mode == mode
    assert list(tmp_path.iterdir()) == [target]
