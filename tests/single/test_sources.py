"""Sources: stable ids, labels, and what a user is told about a wrong dataset."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.data.labelled import open_labelled, open_splits
from instcls_tf.data.overlap import common_files, overlapping
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import chosen_split, open_source
from instcls_tf.errors import UserError


def _write(path, value=0, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full([6, 5, channels], value, np.uint8)
    encode = tf.io.encode_jpeg if path.suffix.lower() in (".jpg", ".jpeg") else tf.io.encode_png
    path.write_bytes(encode(image).numpy())


def _labelled(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "ant", "bee"):
            for index in range(count):
                _write(tmp_path / split / name / f"{index}.png", 10 * index)
    return f"folder:{tmp_path}"


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A prepared dataset `tiny_pictures` of 23 images in several shards; image i is grey i and has label i % 3."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    examples = [{"image": np.full([6, 5, 3], i, np.uint8), "label": i % 3} for i in range(23)]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
        }
    )
    config = tfds.download.DownloadConfig(num_shards=4)
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_pictures", "1.0.0", features, {"train": enumerate(examples)}, data_dir=folder, download_config=config
    )
    plain = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_texts", "1.0.0", plain, {"train": enumerate([{"text": "a"}, {"text": "b"}])}, data_dir=folder
    )
    return str(folder)


def test_digits_splits_are_fixed_and_stratified():
    train, test = open_source("digits"), open_source("digits", "test")
    assert (train.num_instances, test.num_instances) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    assert train.images.dtype == np.uint8 and train.images.shape == (1437, 8, 8, 3) and train.images.max() == 255
    assert np.array_equal(open_source("digits").images, train.images)
    shares = np.bincount(train.labels) / 1437 - np.bincount(test.labels) / 360
    assert np.abs(shares).max() < 0.005
    assert np.array_equal(train.loader()(tf.constant(7, tf.int64)), train.images[7])


def test_folder_ids_are_ranks_of_relative_paths(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a.jpeg", "c/d/e/F.PnG", "b/notes.txt", "b/._2.png"):
        _write(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert tuple(source.paths) == ("a.jpeg", "b/10.JPG", "b/2.png", "c/d/e/F.PnG")
    assert source.num_instances == 4
    assert source.class_names is None and (source.labels == -1).all()


def test_folder_enters_a_linked_folder_once(tmp_path):
    _write(tmp_path / "a" / "1.png")
    _write(tmp_path / "a" / "2.png")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert tuple(open_source(f"folder:{tmp_path}").paths) == ("a/1.png", "a/2.png")


def test_folder_labels_are_ranks_of_class_folders(tmp_path):
    dataset = _labelled(tmp_path)
    train, test = open_source(dataset), open_source(dataset, "test")
    assert train.class_names == test.class_names == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_folder_test_split_may_lack_a_class_and_be_called_val(tmp_path):
    dataset = _labelled(tmp_path)
    os.rename(tmp_path / "test", tmp_path / "val")
    for path in (tmp_path / "val" / "ant").iterdir():
        path.unlink()
    test = open_source(dataset, "test")
    assert test.class_names == ("ant", "bee", "cat")
    assert test.labels.tolist() == [1, 1, 2, 2]


def test_decoding_gives_rgb_for_every_kind_of_file(tmp_path):
    from PIL import Image

    colour = Image.new("RGB", (5, 6), (200, 100, 50))
    colour.save(tmp_path / "0.bmp")
    colour.convert("L").save(tmp_path / "1.bmp")
    colour.convert("RGBA").save(tmp_path / "2.png")
    colour.convert("L").save(tmp_path / "3.png")
    colour.convert("L").save(tmp_path / "4.jpg")
    colour.save(tmp_path / "5.gif", save_all=True, append_images=[Image.new("RGB", (5, 6))])
    load = open_source(f"folder:{tmp_path}").loader()
    images = [load(tf.constant(i, tf.int64)).numpy() for i in range(6)]
    assert all(image.shape == (6, 5, 3) and image.dtype == np.uint8 for image in images)
    grey = np.asarray(colour.convert("L"))[0, 0]
    for i, expected in enumerate([(200, 100, 50), grey, (200, 100, 50), grey, grey, (200, 100, 50)]):
        assert np.abs(images[i][0, 0].astype(int) - expected).max() <= 2, i


def test_a_broken_file_is_empty_and_reported(tmp_path):
    _write(tmp_path / "good.png")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tmp_path / "void.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}")
    sizes = [image.shape[0] for image in tf.data.Dataset.range(3).map(source.loader())]
    assert sizes == [6, 0, 0]
    assert set(source.bad.reasons) == {f"{tmp_path}/torn.jpg", f"{tmp_path}/void.png"}
    assert source.bad.reasons[f"{tmp_path}/void.png"] == "empty"


def test_tfds_ids_are_places_in_shards(tfds_dir):
    source = open_source("tiny_pictures", data_dir=tfds_dir)
    assert len(source.builder.info.splits["train"].shard_lengths) == 4
    assert source.num_instances == 23 and source.class_names == ("x", "y", "z")
    load = source.loader()
    ordered = list(source.records(0, 23, in_order=True))
    assert [int(instance_id) for _, instance_id, _ in ordered] == list(range(23))
    grey_of = {int(instance_id): int(load(record)[0, 0, 0]) for record, instance_id, _ in ordered}
    assert sorted(grey_of.values()) == list(range(23))
    records = list(source.records(4, 19))
    part = [(int(instance_id), int(load(record)[0, 0, 0]), int(label)) for record, instance_id, label in records]
    assert sorted(instance_id for instance_id, _, _ in part) == list(range(4, 19))
    assert all(grey_of[instance_id] == grey and label == grey % 3 for instance_id, grey, label in part)


def test_a_part_of_a_tfds_split_has_ids_of_its_own(tfds_dir):
    whole = open_source("tiny_pictures", data_dir=tfds_dir)
    part = open_source("tiny_pictures", "train[25%:75%]", tfds_dir)
    assert 10 <= part.num_instances <= 13
    ordered = list(part.records(0, part.num_instances, in_order=True))
    assert [int(instance_id) for _, instance_id, _ in ordered] == list(range(part.num_instances))
    names = [record[1].numpy() for record, _, _ in whole.records(0, 23, in_order=True)]
    first = names.index(ordered[0][0][1].numpy())
    assert [record[1].numpy() for record, _, _ in ordered] == names[first : first + part.num_instances]
    assert names[0].startswith(b"tiny_pictures-train.tfrecord-00000-of-00004__0")


def test_what_is_learned_from_does_not_judge(tfds_dir):
    """As of TFDS datasets that have a train split alone."""
    for train_split in ("train", "train[:60%]"):
        with pytest.raises(UserError, match=r"^--test_split=train\[50%:\]: has images of --train_split=train"):
            open_splits("tiny_pictures", tfds_dir, train_split, "train[50%:]")
    splits = open_splits("tiny_pictures", tfds_dir, "train[:50%]", "train[50%:]")
    assert splits.train.num_instances + splits.test.num_instances == 23


def test_parts_of_a_tfds_split_that_overlap(tfds_dir):
    first, second, third = (
        open_source(name, split, tfds_dir)
        for name, split in [
            ("tiny_pictures", "train[:50%]"), ("tiny_pictures:1.0.0", "train[25%:]"), ("tiny_pictures", "train[50%:]"),
        ]
    )  # fmt: skip
    whole = open_source("tiny_pictures:1.0.0", data_dir=tfds_dir)
    assert overlapping(first, second).startswith(whole.shards.paths[1])
    assert overlapping(first, third) is None
    assert len(common_files(open_source("tiny_pictures", data_dir=tfds_dir), whole)) == 4


def test_a_tfds_file_cut_at_a_record_is_named(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
    shard = sorted((tmp_path / "tiny_pictures" / "1.0.0").glob("*.tfrecord-00001-*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: 16 + int.from_bytes(content[:8], "little")])
    source = open_source("tiny_pictures", data_dir=str(tmp_path))
    assert sum(1 for _ in source.records(0, 23)) == 23
    ((path, sentence),) = source.bad.damage.items()
    assert path == str(shard) and "damaged or cut off, 1 of its " in sentence


def test_wrong_folders_are_explained(tmp_path):
    def message(path, split="train"):
        with pytest.raises(UserError) as error:
            open_source(f"folder:{path}", split)
        return str(error.value)

    missing = tmp_path / "missing"
    assert message(missing) == f"--dataset=folder:{missing}: no such folder"
    (tmp_path / "empty").mkdir()
    suffixes = f"({', '.join(IMAGE_SUFFIXES)})"
    assert message(tmp_path / "empty") == f"--dataset=folder:{tmp_path}/empty: no images {suffixes} in that folder"
    _write(tmp_path / "one" / "1.png")
    assert message(tmp_path / "one" / "1.png").endswith("1.png: not a folder, wanted a folder of images")
    assert message(tmp_path / "one").endswith("one image only, wanted at least 2 images: every image is a class")
    _write(tmp_path / "one" / "2.png")
    path = tmp_path / "one"
    assert message(path, "test") == (
        f"--dataset=folder:{path}: no test split, wanted a folder {path}/test or {path}/val"
    )


def test_unknown_class_in_the_test_split_is_explained_where_labels_are_asked_for(tmp_path):
    dataset = _labelled(tmp_path)
    _write(tmp_path / "test" / "dog" / "0.png")
    sentence = f"class folder 'dog' is missing in {tmp_path}/train"
    for asks in (lambda: open_labelled(dataset, "test"), lambda: prepare(dataset, str(tmp_path / "records"), 1)):
        with pytest.raises(UserError, match=f"^--dataset={dataset}: {sentence}$"):
            asks()
    test = open_source(dataset, "test")
    assert test.class_names is None and set(test.labels) == {-1} and test.num_instances == len(test.labels) > 1
    assert test.notes == (f"{sentence}: {tmp_path}/test is taken without labels",)
    _write(tmp_path / "test" / "emu" / "0.png")
    with pytest.raises(UserError, match=f": 2 class folders 'dog', 'emu' are missing in {tmp_path}/train"):
        open_labelled(dataset, "test")


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("digits", "val", "--dataset=digits: no split 'val', wanted train or test"),
        (
            "no_such_set",
            "train",
            "--dataset=no_such_set: no such dataset, wanted digits, folder:PATH, records:PATH or a TFDS name",
        ),
        (
            "no such set",
            "train",
            "--dataset=no such set: no such dataset, wanted digits, folder:PATH, records:PATH or a TFDS name,"
            " NAME[/CONFIG][:1.2.3]",
        ),
        ("cifar10", "train", "--dataset=cifar10: not prepared, run first: tfds build cifar10 --data_dir={dir}"),
        ("tiny_pictures", "test", "--dataset=tiny_pictures: no split 'test', wanted one of train"),
        ("tiny_texts", "train", "--dataset=tiny_texts: wanted a dataset with an image feature named 'image'"),
    ],
)
def test_wrong_names_are_explained(dataset, split, message, tfds_dir):
    with pytest.raises(UserError) as error:
        open_source(dataset, split, tfds_dir)
    assert str(error.value) == message.format(dir=tfds_dir)


def test_opening_a_folder_or_the_digits_does_not_import_tensorflow(tmp_path):
    _write(tmp_path / "1.png")
    _write(tmp_path / "2.png")
    code = (
        "import sys; from instcls_tf.data.sources import open_source\n"
        f"open_source('digits'); open_source('folder:{tmp_path}'); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_palette_is_looked_up_in_a_bmp(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, [6, 5, 3]).astype(np.uint8)
    for index in range(2):
        Image.fromarray(pixels).quantize(16).save(tmp_path / f"{index}.bmp")
    load = open_source(f"folder:{tmp_path}").loader()
    expected = np.asarray(Image.open(tmp_path / "0.bmp").convert("RGB"))
    np.testing.assert_array_equal(load(tf.constant(0, tf.int64)), expected)


def test_digest_of_ids_sees_another_list_of_files(tmp_path):
    for index in range(3):
        _write(tmp_path / f"{index}.png")
    dataset = f"folder:{tmp_path}"
    before = open_source(dataset).ids_digest()
    assert open_source(dataset).ids_digest() == before
    os.rename(tmp_path / "1.png", tmp_path / "9.png")
    assert open_source(dataset).ids_digest() != before


@pytest.mark.parametrize(
    ("of_run", "dataset", "split", "chosen"),
    [
        ("stl10", None, None, "unlabelled"),
        ("stl10", "stl10", None, "unlabelled"),
        ("stl10", None, "test", "test"),
        ("stl10", "cifar10", None, "train"),
        ("folder:/data/photos", None, None, "train"),  # whose flag says nothing about it
        ("digits", None, "test", "test"),
    ],
)
def test_the_split_that_is_meant(of_run, dataset, split, chosen):
    """Without a word about it, what the run was trained on."""
    assert chosen_split(PretrainConfig(dataset=of_run, tfds_split="unlabelled"), dataset, split) == chosen
