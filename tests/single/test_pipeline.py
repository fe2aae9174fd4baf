"""Batches: every id once per epoch, the same global order for every number of workers, exact resumption, padding."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.config import Window
from instcls_tf.data.augment import make_views
from instcls_tf.data.permutation import permute
from instcls_tf.data.pipeline import inference_batches, training_batches
from instcls_tf.data.sliding_window import sliding_window_ids
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.distributed.partition import steps_per_epoch
from instcls_tf.distributed.workers import fix_seeds

SIZE = 8
GREY = 7  # Image i is uniformly grey 7 * i, so that pixels prove which image stands behind an id.


@pytest.fixture(autouse=True)
def global_seed():
    """As pretraining sets it by default; streams must not mind."""
    fix_seeds(0)


def _zip_equal(*parts):
    """`zip(strict=True)`, which Python 3.9 lacks."""
    parts = [list(part) for part in parts]
    assert len({len(part) for part in parts}) == 1
    return zip(*parts)


def _source(count):
    images = np.broadcast_to((GREY * np.arange(count)).astype(np.uint8)[:, None, None, None], [count, 8, 8, 3]).copy()
    return DigitsSource("grey", ("even", "odd"), images, (np.arange(count) % 2).astype(np.int32))


def _train(source, batch, workers, last, first=0, seed=5, preset="none", num_views=1, micro=1, **others):
    """Per worker, the list of its batches."""
    views = make_views(preset, SIZE, seed)
    settings = {"views": views, "batch_size": batch, "micro_batch": micro, "num_views": num_views, "seed": seed}
    settings.update(num_workers=workers, **others)
    return [
        list(training_batches(source, first_step=first, last_step=last, rank=rank, **settings).as_numpy_iterator())
        for rank in range(workers)
    ]


def _global(workers, part=1):
    """Per step, the workers' rows (of ids, or of pixels) joined by rank, padding dropped."""
    return [np.concatenate([x[part][x[1] >= 0] for x in step]) for step in _zip_equal(*workers)]


@pytest.fixture(scope="module")
def tfds_source(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    examples = [{"image": np.full([9, 9, 3], GREY * i, np.uint8), "label": i % 2} for i in range(23)]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
    )
    config = tfds.download.DownloadConfig(num_shards=4)
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_greys", "1.0.0", features, {"train": enumerate(examples)}, data_dir=folder, download_config=config
    )
    return open_source("tiny_greys", data_dir=str(folder))


def test_steps_per_epoch():
    assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    # PIC's: 3 windows of 33 make the 99 visits of an epoch, in 9 steps each.
    assert steps_per_epoch(100, 4, window=Window(33, 1)) == 27
    assert steps_per_epoch(100, 4, window=Window(100, 1)) == steps_per_epoch(100, 4)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 255, 257, 1437])
def test_permute_is_a_permutation(size):
    order = permute(tf.range(size, dtype=tf.int64), 3, tf.constant(2, tf.int64), size).numpy()
    assert sorted(order) == list(range(size))


def test_permute_mixes_neighbours_and_epochs():
    size = 20_000
    places = tf.range(size, dtype=tf.int64)
    orders = [permute(places, 0, tf.constant(epoch, tf.int64), size).numpy() for epoch in range(8)]
    for first, second in zip(orders, orders[1:]):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    # Ten sorted classes in batches of 200: a class count has the variance of a random draw.
    counts = np.stack([np.bincount(batch * 10 // size, minlength=10) for batch in np.split(orders[0], 100)])
    assert 0.75 < counts.var() / (200 * 0.1 * 0.9) < 1.25


def test_permute_reaches_ten_million_ids_without_storing_them():
    places = tf.constant([0, 1, 9_999_999], tf.int64)
    ids = permute(places, 0, tf.constant(0, tf.int64), 10_000_000).numpy()
    assert len(set(ids)) == 3 and ids.min() >= 0 and ids.max() < 10_000_000


@pytest.mark.parametrize(("count", "batch"), [(13, 4), (9, 4), (12, 4), (5, 8), (10, 3), (7, 1), (11, 5)])
def test_every_id_once_per_epoch_and_the_same_order_for_every_number_of_workers(count, batch):
    steps = steps_per_epoch(count, batch)
    alone = _global(_train(_source(count), batch, 1, 2 * steps))
    for epoch in range(2):
        assert sorted(np.concatenate(alone[epoch * steps : (epoch + 1) * steps])) == list(range(count))
    assert [len(ids) for ids in alone[:steps]] == [min(batch, count - s * batch) for s in range(steps)]
    for workers in (2, 3):
        shares = _train(_source(count), batch, workers, 2 * steps)
        assert {len(batches) for batches in shares} == {2 * steps}
        for expected, got in _zip_equal(alone, _global(shares)):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("count", "batch", "micro"), [(23, 10, 4), (26, 11, 3), (9, 9, 4), (20, 5, 8)])
def test_workers_share_whole_groups(count, batch, micro):
    steps = steps_per_epoch(count, batch)
    alone = _global(_train(_source(count), batch, 1, steps))
    for workers in (1, 2, 3):
        shares = _train(_source(count), batch, workers, steps, micro=micro)
        for step, expected in enumerate(alone):
            np.testing.assert_array_equal(_global(shares)[step], expected)
            groups = [[], *(share[step][1].tolist() for share in shares)]
            begin = 0
            for group in groups:
                assert begin % micro == 0 or begin == len(expected)
                begin += sum(instance_id >= 0 for instance_id in group)
            # The even split of whole groups: no worker has two more than another.
            counts = [-(-sum(i >= 0 for i in share[step][1]) // micro) for share in shares]
            assert sum(counts) == -(-len(expected) // micro) and max(counts) - min(counts) <= 1


def test_order_depends_on_epoch_and_seed():
    epochs = np.concatenate(_global(_train(_source(13), 13, 1, 2)))
    assert not np.array_equal(epochs[:13], epochs[13:])
    assert not np.array_equal(epochs[:13], np.concatenate(_global(_train(_source(13), 13, 1, 1, seed=6))))


def test_an_empty_share_is_one_row_of_padding():
    first, second = _train(_source(9), 4, 2, 3)
    assert [batch[1].tolist() for batch in (first[2], second[2])] == [[first[2][1][0]], [-1]]
    assert first[2][1][0] >= 0
    for batches in (first, second):
        assert [len(ids) for _, ids in batches] == [2, 2, 1]
        assert [len(views) for views, _ in batches] == [2, 2, 1]


def test_more_workers_than_instances_in_a_batch():
    shares = _train(_source(5), 2, 3, 3)
    assert [[ids.tolist() for _, ids in batches] for batches in shares][2] == [[-1], [-1], [-1]]
    assert sorted(np.concatenate(_global(shares))) == list(range(5))


def test_pixels_belong_to_their_ids_and_have_the_promised_types():
    batches = _train(_source(13), 4, 2, 4, num_views=2)
    for views, ids in (batch for worker in batches for batch in worker):
        assert views.dtype == np.uint8 and views.shape == (len(ids), 2, SIZE, SIZE, 3) and ids.dtype == np.int32
        for view, instance_id in _zip_equal(views, ids):
            assert instance_id < 0 or (view == GREY * instance_id).all()


@pytest.mark.parametrize("first", [3, 6])
def test_resume_continues_with_the_same_ids_and_pixels(first):
    whole = _train(_source(13), 4, 2, 8, preset="simclr", num_views=2)
    rest = _train(_source(13), 4, 2, 8, first=first, preset="simclr", num_views=2)
    for expected, got in _zip_equal(whole, rest):
        assert len(got) == 8 - first
        for (pixels, ids), (other_pixels, other_ids) in _zip_equal(expected[first:], got):
            np.testing.assert_array_equal(ids, other_ids)
            np.testing.assert_array_equal(pixels[ids >= 0], other_pixels[ids >= 0])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_window_slides_over_all_images(workers):
    """13 images, windows of 5 that move on by 2: two steps each, of 3 and 2 images, in the window's own order."""
    steps = _global(_train(_source(13), 3, workers, 26, window=Window(5, 2)))
    windows = [np.concatenate(pair).tolist() for pair in zip(steps[::2], steps[1::2])]
    assert [len(step) for step in steps[:4]] == [3, 2, 3, 2]
    for number, window in enumerate(windows):
        places = tf.range(5, dtype=tf.int64)
        assert window == sliding_window_ids(places, 5, number, 13, 5, 2).numpy().tolist()
    visits = np.bincount(np.concatenate(windows), minlength=13)
    assert visits.tolist() == [5] * 13  # the window has been all around twice, 26 places of 13
    rest = _global(_train(_source(13), 3, workers, 26, first=9, window=Window(5, 2)))
    assert [step.tolist() for step in rest] == [step.tolist() for step in steps[9:]]


def test_pixels_do_not_depend_on_the_number_of_workers():
    source = open_source("digits")
    alone = _global(_train(source, 50, 1, 30, first=26, preset="digits", num_views=2), part=0)
    for workers in (2, 3):
        shares = _global(_train(source, 50, workers, 30, first=26, preset="digits", num_views=2), part=0)
        for expected, got in _zip_equal(alone, shares):
            # A matrix product over another number of rows may round one grey level differently.
            assert np.abs(expected.astype(int) - got).max() <= 1


def test_two_views_of_one_image_differ():
    ((batch,),) = _train(open_source("digits"), 16, 1, 1, preset="digits", num_views=2)
    assert (batch[0][:, 0] != batch[0][:, 1]).any(axis=(1, 2, 3)).all()


def test_views_of_one_image_differ_between_epochs():
    source = open_source("digits")
    (batches,) = _train(DigitsSource("ten", None, source.images[:10], source.labels[:10]), 10, 1, 2, preset="digits")
    first, second = (views[np.argsort(ids)] for views, ids in batches)
    assert (first != second).any(axis=(1, 2, 3, 4)).all()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, 11, 40])
def test_stream_shows_every_id_once_per_epoch(tfds_source, workers, batch):
    steps = steps_per_epoch(23, batch)
    shares = _train(tfds_source, batch, workers, 2 * steps, micro=4)
    assert {len(batches) for batches in shares} == {2 * steps}
    joined = _global(shares)
    for epoch in range(2):
        assert sorted(np.concatenate(joined[epoch * steps : (epoch + 1) * steps])) == list(range(23))
    assert [len(ids) for ids in joined[:steps]] == [min(batch, 23 - s * batch) for s in range(steps)]


def test_an_id_of_a_stream_always_has_the_same_image(tfds_source):
    """Whichever worker shows it in whichever epoch, training or not; and all images that were written have one."""
    greys = collections.defaultdict(set)
    for workers in (1, 2, 3):
        for views, ids in (batch for share in _train(tfds_source, 6, workers, 8, num_views=2) for batch in share):
            for view, instance_id in _zip_equal(views, ids):
                greys[instance_id].update(np.unique(view).tolist())
    for images, ids, labels in inference_batches(tfds_source, image_size=SIZE, batch_size=5).as_numpy_iterator():
        for image, instance_id, label in _zip_equal(images, ids, labels):
            greys[instance_id].update(np.unique(image).tolist())
            assert label == image[0, 0, 0] // GREY % 2
    greys.pop(-1, None)  # padding
    assert greys.keys() == set(range(23)) and all(len(of_id) == 1 for of_id in greys.values())
    assert sorted(grey for of_id in greys.values() for grey in of_id) == [GREY * place for place in range(23)]


def test_stream_resumes_and_shuffles_by_epoch_and_seed(tfds_source):
    whole = _train(tfds_source, 4, 2, 14, micro=2)
    rest = _train(tfds_source, 4, 2, 14, first=3, micro=2)
    for expected, got in _zip_equal(_global(whole)[3:], _global(rest)):
        np.testing.assert_array_equal(expected, got)
    first, second = (np.concatenate(_global(whole)[begin : begin + 6]) for begin in (0, 6))
    assert sorted(first) == sorted(second) and not np.array_equal(first, second)
    other = np.concatenate(_global(_train(tfds_source, 4, 2, 6, seed=6, micro=2)))
    assert not np.array_equal(first, other)


def test_stream_and_random_access_share_the_padding_rule(tfds_source):
    lengths = [[len(ids) for _, ids in batches] for batches in _train(tfds_source, 11, 3, 3)]
    expected = [[len(ids) for _, ids in batches] for batches in _train(_source(23), 11, 3, 3)]
    assert lengths == expected == [[4, 4, 1], [4, 4, 1], [3, 3, 1]]


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_inference_passes_once_with_labels(kind, workers, tfds_source):
    source = _source(23) if kind == "memory" else tfds_source
    settings = {"image_size": SIZE, "batch_size": 5, "num_workers": workers}
    shares = [list(inference_batches(source, rank=rank, **settings).as_numpy_iterator()) for rank in range(workers)]
    assert {len(batches) for batches in shares} == {5}
    rows = [(images, ids, labels) for batches in shares for images, ids, labels in batches]
    assert all(images.shape == (len(ids), SIZE, SIZE, 3) and images.dtype == np.uint8 for images, ids, _ in rows)
    ids = np.concatenate([ids for _, ids, _ in rows])
    labels = np.concatenate([labels for _, _, labels in rows])
    assert sorted(ids[ids >= 0]) == list(range(23))
    assert labels.dtype == ids.dtype == np.int32 and (labels[ids < 0] == -1).all()
    if kind == "memory":
        assert np.array_equal(labels[ids >= 0], ids[ids >= 0] % 2)
        grey = np.concatenate([images[:, 0, 0, 0] for images, _, _ in rows])
        assert np.array_equal(grey[ids >= 0], GREY * ids[ids >= 0])
    if workers == 1:
        assert ids.tolist() == list(range(23))


@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.5])
def test_inference_sees_what_resizing_and_cropping_the_centre_leaves(tmp_path, fraction):
    """At 0.875 of 224: the shorter side to 256 and the centre 224 of it, as everybody judges on ImageNet."""
    random = np.random.default_rng(0)
    shapes = [(300, 400), (280, 260), (512, 384)]
    for index, (height, width) in enumerate(shapes):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.png")
    source = open_source(f"folder:{tmp_path}")
    ((images, ids, _),) = inference_batches(source, image_size=224, batch_size=3, center_crop_fraction=fraction)
    for image, index in zip(images.numpy(), ids.numpy()):
        with Image.open(tmp_path / f"{index}.png") as picture:
            height, width = shapes[index]
            scale = round(224 / fraction) / min(height, width)
            resized = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2) for side in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float64)
        assert np.abs(image - expected).mean() < 2.0, "the same but for parts of a pixel"
        if fraction < 1:
            whole = np.asarray(resized.resize((224, 224)), np.float64)
            assert np.abs(image - whole).mean() > 10.0


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_inference_order_is_shuffled_by_its_seed(kind, tfds_source):
    source = _source(23) if kind == "memory" else tfds_source
    orders = []
    for seed in (1, 1, 2):
        batches = inference_batches(source, image_size=SIZE, batch_size=5, shuffle_seed=seed)
        orders.append([int(i) for _, ids, _ in batches.as_numpy_iterator() for i in ids])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(23)) != orders[0]


def test_one_dataset_serves_many_epochs_without_tracing_again():
    views, traces = make_views("none", SIZE, 0), []
    crop = type(views).crop
    counted = type("Counted", (type(views),), {"crop": lambda self, *a: traces.append(1) or crop(self, *a)})
    views = counted(views.preset, SIZE, 0, views.layers)
    batches = training_batches(_source(9), views=views, batch_size=4, num_views=1, seed=0, last_step=300)
    assert len(batches) == 300
    before = len(traces)
    assert sum(1 for _ in batches) == 300 and len(traces) == before


def test_a_broken_file_keeps_its_row_without_an_id_and_is_reported(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(np.full([4, 4, 3], 50 + index, np.uint8)).numpy())
    (tmp_path / "2.png").write_bytes(b"torn")
    source = open_source(f"folder:{tmp_path}")
    batches = inference_batches(source, image_size=SIZE, batch_size=2, micro_batch=2)
    (_, ids, _), (other, other_ids, _) = batches
    assert ids.numpy().tolist() == [0, 1] and other_ids.numpy().tolist() == [-1, 3]
    assert (other.numpy() == 53).all(), "its pixels are those of a good neighbour"
    assert source.bad.reasons == {f"{tmp_path}/2.png": "not an image"}


def test_no_thread_tunes_a_pipeline(tfds_source):
    """Letting go of an iterator may wait for TensorFlow's autotuner for up to a minute."""
    source = _source(10)
    views = make_views("none", 8, 0)
    training = training_batches(source, views=views, batch_size=5, num_views=1, seed=0, micro_batch=1, last_step=1)
    inference, records = inference_batches(source, image_size=8, batch_size=5), tfds_source.records(0, 3)
    for batches in (training, inference, records):
        assert batches.options().autotune.enabled is False
