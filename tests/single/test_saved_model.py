"""The exported SavedModel, read back the three ways that users read it: Serving, Keras and tf.saved_model.load."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

from instcls_tf.data.augment import Views
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.export.saved_model import SAVED_MODEL
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import export
from tests.encoders import trained_encoder
from tests.full_disk import full_disk

IMAGE_SIZE = 32


def random_images(batch: int, size: int = IMAGE_SIZE) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[tf.keras.Model, str]:
    encoder = trained_encoder()
    networks.batch_norm_probe(encoder)  # as after the contrastive prior
    target = tmp_path_factory.mktemp("export") / "encoder" / "1"
    target.mkdir(parents=True)  # an empty folder is filled
    mode = target.stat().st_mode  # the umask's; a temporary folder would be 0700
    export(SAVED_MODEL, Subject(encoder, IMAGE_SIZE, center_crop_fraction=0.875), str(target))
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode == mode  # readable by others
    return encoder, str(target)


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
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["projection"], projection, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(outputs["projection"], axis=1), 1, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("shape", [(1, 0, 16, 3), (2, 16, 0, 3), (0, IMAGE_SIZE, IMAGE_SIZE, 3), (0, 0, 0, 3)])
def test_what_is_no_image_is_answered_with_the_shape_wanted(exported, loaded, shape):
    wanted = "[images: wanted uint8 [batch, height, width, 3] of at least one image of at least 1 x 1 pixels, found]"
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        loaded.signatures["serving_default"](images=tf.zeros(shape, tf.uint8))
    assert f"assertion failed: {wanted} [{' '.join(map(str, shape))}]" in error.value.message
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:  # as Serving runs it
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], exported[1])
        signature = meta_graph.signature_def["serving_default"]
        outputs = [info.name for info in signature.outputs.values()]
        with pytest.raises(tf.errors.InvalidArgumentError, match="wanted uint8"):
            session.run(outputs, {signature.inputs["images"].name: np.zeros(shape, np.uint8)})


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 61), (150, 133), (20, 31)])
def test_signature_prepares_images_as_the_evaluation_does(exported, loaded, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # An image of the encoder's own size has been cut already.
    fraction = 1.0 if height == width == IMAGE_SIZE else 0.875
    views, draws = Views("none", IMAGE_SIZE, 0, (), center_crop_fraction=fraction), tf.zeros([1, 1])
    prepared = views.augment(views.crop(tf.constant(image), draws), draws)
    expected = exported[0].get_layer("backbone")(prepared, training=False)
    got = loaded.signatures["serving_default"](images=tf.constant(image[None]))["features"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_serving_style_graph_session_reads_it(exported):
    encoder, path = exported
    images = random_images(2)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = meta_graph.signature_def["serving_default"]
        names = {key: info.name for key, info in signature.outputs.items()}
        outputs = session.run(names, {signature.inputs["images"].name: images})
    np.testing.assert_allclose(
        outputs["features"], encoder.get_layer("backbone")(images, training=False), rtol=1e-5, atol=1e-5
    )


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def test_projection_means_the_same_everywhere(exported, loaded):
    encoder, _ = exported
    images = random_images(3)
    expected = tf.math.l2_normalize(encoder(images, training=False), axis=1)
    by_signature = loaded.signatures["projection"](images=tf.constant(images))
    assert set(by_signature) == {"projection"}
    np.testing.assert_allclose(by_signature["projection"], expected, atol=1e-5)
    np.testing.assert_allclose(loaded.projection(loaded.backbone(images)), expected, atol=1e-5)


def test_files_give_what_their_pixels_give(loaded):
    images = random_images(3, size=48)
    files = [encoded(image, kind) for image, kind in zip(images, ["PNG", "BMP", "PNG"])]
    found = loaded.signatures["jpeg"](image_bytes=tf.constant(files))
    expected = loaded.signatures["serving_default"](images=tf.constant(images))
    assert found["ok"].numpy().tolist() == [True] * 3
    for name in ("features", "projection"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_files_of_the_encoders_own_size_are_cut_as_all_others(exported, loaded):
    """No file has been cut already: where the run is judged, its centred square is seen."""
    images = random_images(2)
    views, draws = Views("none", IMAGE_SIZE, 0, (), center_crop_fraction=0.875), tf.zeros([1, 1])
    cut = tf.concat([views.augment(views.crop(tf.constant(image), draws), draws) for image in images], axis=0)
    files = tf.constant([encoded(image, "PNG") for image in images])
    expected = exported[0].get_layer("backbone")(cut, training=False)
    found = loaded.signatures["jpeg"](image_bytes=files)["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_bad_file_does_not_fail_the_batch(exported, loaded):
    good = encoded(random_images(1)[0], "JPEG")
    files = [good, good[: len(good) // 2], b"", b"no image", good]
    found = loaded.signatures["jpeg"](image_bytes=tf.constant(files))
    alone = loaded.signatures["jpeg"](image_bytes=tf.constant([good] * 5))
    assert found["ok"].numpy().tolist() == [True, False, False, False, True]
    for name in ("features", "projection"):
        rows = found[name].numpy()
        assert np.isfinite(rows).all() and not rows[1:4].any() and rows[0].any()
        np.testing.assert_array_equal(rows[[0, 4]], alone[name].numpy()[[0, 4]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="image_bytes: wanted the bytes of at least one file"):
        loaded.signatures["jpeg"](image_bytes=tf.constant([], tf.string))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:  # as Serving runs it
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], exported[1])
        signature = meta_graph.signature_def["jpeg"]
        names = {key: info.name for key, info in signature.outputs.items()}
        served = session.run(names, {signature.inputs["image_bytes"].name: files})
    np.testing.assert_allclose(served["features"], found["features"], rtol=1e-5, atol=1e-5)


def test_a_step_without_keras_changes_every_variable(exported):
    encoder, path = exported
    loaded = tf.saved_model.load(path)
    assert len(loaded.trainable_variables) == len(encoder.trainable_variables)
    images = random_images(4)
    np.testing.assert_allclose(
        loaded.backbone(tf.cast(images, tf.float32), training=True), loaded.backbone(images, training=True), rtol=1e-6
    )
    before = [variable.numpy() for variable in loaded.variables]
    with tf.GradientTape() as tape:
        projection = loaded.projection(loaded.backbone(images, training=True))
        loss = tf.reduce_sum(projection * np.random.default_rng(0).normal(size=projection.shape))
    for variable, gradient in zip(loaded.trainable_variables, tape.gradient(loss, loaded.trainable_variables)):
        variable.assign_sub(0.1 * gradient)
    assert all((variable.numpy() != old).any() for variable, old in zip(loaded.variables, before))  # BN's as well


def test_gradients_reach_every_variable_through_the_signature(loaded):
    with tf.GradientTape() as tape:
        outputs = loaded.signatures["serving_default"](images=tf.constant(random_images(4)))
        loss = tf.reduce_sum(outputs["projection"][:, 0])
    gradients = tape.gradient(loss, loaded.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients) > 0


def test_the_card_tells_what_was_written(exported):
    folder = Path(exported[1])
    card = json.loads((folder / "assets.extra" / "model_card.json").read_text())
    assert (card["format"], card["feature_size"], card["projection_size"]) == ("saved_model", 64, 16)
    assert card["verified_in"] == f"tensorflow {tf.__version__}"
    assert 0 <= card["max_error"] <= card["tolerance"] == 1e-5
    assert [case["shape"] for case in card["self_check"]] == [[32, 32], [69, 98], [17, 22]]
    front, _, text = (folder / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "image-feature-extraction"
    assert "largest relative error" in text


def test_keras_loads_a_model_to_fine_tune(exported):
    encoder, path = exported
    model = tf.keras.models.load_model(path)
    images = random_images(4)
    expected = tf.math.l2_normalize(encoder(images, training=False), axis=1)
    np.testing.assert_allclose(model(images, training=False), expected, atol=1e-5)
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
        encoder = trained_encoder()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    export(SAVED_MODEL, Subject(encoder, IMAGE_SIZE), str(tmp_path / "model"))
    images = random_images(3)
    outputs = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"](images=tf.constant(images))
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    features = encoder.get_layer("backbone")(images, training=False)
    np.testing.assert_allclose(outputs["features"], features, rtol=0.02, atol=0.02)


def test_an_occupied_output_is_refused(tmp_path):
    encoder = tf.keras.Model()  # never reached
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--output=.*folder: is not empty"):
        export(SAVED_MODEL, Subject(encoder, IMAGE_SIZE), str(tmp_path / "folder"))
    with pytest.raises(UserError, match=r"--output=.*file: is a file"):
        export(SAVED_MODEL, Subject(encoder, IMAGE_SIZE), str(tmp_path / "folder" / "file"))
    with pytest.raises(UserError, match=r"--output=.*cannot be written"):
        export(SAVED_MODEL, Subject(encoder, IMAGE_SIZE), str(tmp_path / "folder" / "file" / "inside"))
    assert (tmp_path / "folder" / "file").read_text() == "mine"


def test_a_full_disk_is_one_sentence(exported, tmp_path):
    """Which TensorFlow tells in an error of its own; nothing is left."""
    target = str(tmp_path / "full")
    with full_disk(4096), pytest.raises(UserError, match=rf"^--output={target}: cannot be written \(.*File too large"):
        export(SAVED_MODEL, Subject(exported[0], IMAGE_SIZE, center_crop_fraction=0.875), target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a*b", "a[1]"])
def test_a_name_that_tensorflow_cannot_load_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"--output=.*which TensorFlow reads as a pattern"):
        export(SAVED_MODEL, Subject(tf.keras.Model(), IMAGE_SIZE), str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
