"""Record files: the same ids and global order for every number of workers, exact resumption, damage that is named."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data import pipeline
from instcls_tf.data import records as records_module
from instcls_tf.data import sample as sample_module
from instcls_tf.data.augment import make_views
from instcls_tf.data.labelled import labels_of, open_splits
from instcls_tf.data.prepare import prepare
from instcls_tf.data.records import Shards
from instcls_tf.data.sample import sample
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import partition
from instcls_tf.errors import UserError
from tests.images import write_images

COUNT, BATCH, MICRO = 53, 12, 4
STEPS = 5


@pytest.fixture
def prepared(tmp_path):
    """53 grey images in two classes, in shards of a few records each."""
    for index in range(COUNT):
        path = tmp_path / "photos" / "train" / ("even" if index % 2 == 0 else "odd") / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(np.full([4, 4, 3], 4 * index, np.uint8)).numpy())
    return tmp_path / "photos", tmp_path / "records"


@pytest.fixture
def records(prepared, monkeypatch):
    photos, output = prepared
    _prepare(photos, output, monkeypatch)
    return f"records:{output}"


def _prepare(photos, output, monkeypatch, shard_bytes=900):
    from instcls_tf.data import prepare as module

    write = module._write
    with monkeypatch.context() as patch:
        patch.setattr(module, "_order", np.arange)  # so that tests know which is where
        # Shards of a megabyte would hold all.
        patch.setattr(module, "_write", lambda s, o, split, size, *rest: write(s, o, split, shard_bytes, *rest))
        return prepare(f"folder:{photos}", str(output), 1)


def test_a_sample_is_spread_over_records_and_folders(prepared, records):
    """And read at a few places of the records only."""
    for dataset in (records, f"folder:{prepared[0]}"):
        source = open_source(dataset)
        assert sample(source, COUNT) is source
        few = sample(source, 20)
        batches = pipeline.inference_batches(few, image_size=4, batch_size=20)
        ((images, ids, labels),) = batches
        places = images.numpy()[:, 0, 0, 0] // 4 // 2 + np.where(labels.numpy() == 0, 0, 27)  # in the order of ids
        np.testing.assert_array_equal(ids, np.arange(20))
        assert len(set(places.tolist())) == 20
        assert np.all(np.diff(places) > 0)
        assert np.diff(places).max() <= 4
        assert (labels.numpy() == 0).sum() in (10, 11)


def test_a_sample_of_large_records_is_smaller(prepared, records, monkeypatch):
    """And still spread over all of them: each of its places has its share of the memory, or one image."""
    sizes = [path.stat().st_size for path in prepared[0].rglob("*.png")]
    monkeypatch.setattr(sample_module, "_MOST_BYTES", 16 * min(sizes))
    few = sample(open_source(records), 40)
    assert few.num_instances == 16
    assert sum(map(len, few.encoded)) <= 16 * max(sizes)
    assert set(few.labels.tolist()) == {0, 1}
    assert few.loader()(tf.constant(15, tf.int64)).shape == (4, 4, 3)


def _steps(dataset, workers, first=0, last=2 * STEPS, batch=BATCH):
    """Per step, ids of the global batch and the grey of each row."""
    source = open_source(dataset)
    settings = {"views": make_views("none", 4, 0), "batch_size": batch, "num_views": 1, "seed": 3}
    shares = [
        pipeline.training_batches(
            source, first_step=first, last_step=last, micro_batch=MICRO, rank=rank, num_workers=workers, **settings
        )
        for rank in range(workers)
    ]
    steps = []
    for step in zip(*(share.as_numpy_iterator() for share in shares)):
        ids = np.concatenate([ids[ids >= 0] for _, ids in step])
        grey = np.concatenate([views[ids >= 0, 0, 0, 0, 0] for views, ids in step])
        steps.append((ids.tolist(), grey.tolist()))
    return steps


def test_records_have_the_ids_and_labels_of_the_folder(prepared, records):
    source, photos = open_source(records), open_source(f"folder:{prepared[0]}")
    assert source.num_instances == COUNT and source.class_names == ("even", "odd")
    assert len(source.paths) > 5
    load = source.loader()
    for position, (record, instance_id, label) in enumerate(source.records(0, COUNT, in_order=True)):
        assert int(instance_id) == position
        assert record[1].numpy().decode() == photos.paths[position]
        assert int(label) == photos.labels[position]
        assert np.array_equal(load(record), photos.loader()(tf.constant(position, tf.int64)))


@pytest.mark.parametrize("batch", [BATCH, 100])
def test_the_global_order_is_the_same_for_every_number_of_workers(prepared, records, batch):
    steps = partition.steps_per_epoch(COUNT, batch)
    alone = _steps(records, 1, last=2 * steps, batch=batch)
    paths = tuple(open_source(f"folder:{prepared[0]}").paths)
    grey_of = [4 * int(path[-7:-4]) for path in paths]
    for epoch in (alone[:steps], alone[steps:]):
        assert sorted(itertools.chain(*(ids for ids, _ in epoch))) == list(range(COUNT))
    assert [ids for ids, _ in alone[:steps]] != [ids for ids, _ in alone[steps:]]
    for ids, grey in alone:
        assert grey == [grey_of[i] for i in ids], "the same id is the same file"
    for workers in (2, 3):
        assert _steps(records, workers, last=2 * steps, batch=batch) == alone


@pytest.mark.parametrize(("workers", "first"), [(2, 4), (3, 7)])
def test_a_run_resumed_in_mid_epoch_sees_the_rest(records, workers, first):
    assert _steps(records, workers, first=first) == _steps(records, 1)[first:]


def test_an_unreadable_file_keeps_its_id_in_records(prepared, monkeypatch):
    photos, output = prepared
    (photos / "train" / "odd" / "001.png").write_bytes(b"torn")
    _prepare(photos, output, monkeypatch)
    source = open_source(f"records:{output}")
    seen = [i for _, ids, _ in pipeline.inference_batches(source, image_size=4, batch_size=9) for i in ids.numpy()]
    missing = tuple(open_source(f"folder:{photos}").paths).index("odd/001.png")
    assert sorted(seen) == [-1, *(i for i in range(COUNT) if i != missing)]
    assert source.bad.reasons == {"odd/001.png": "not an image"}


def _record_ends(path):
    content, ends, position = path.read_bytes(), [], 0
    while position < len(content):
        position += 16 + int.from_bytes(content[position : position + 8], "little")
        ends.append(position)
    return ends


@pytest.mark.parametrize("kind", ["boundary", "inside", "flipped"])
def test_a_damaged_shard_is_named(prepared, records, kind):
    shard = prepared[1] / "train-00002.tfrecord"
    content, ends = bytearray(shard.read_bytes()), _record_ends(shard)
    if kind == "flipped":
        content[ends[0] + 40] ^= 1
        shard.write_bytes(content)
    else:
        shard.write_bytes(content[: ends[0] if kind == "boundary" else ends[0] + 30])
        with pytest.raises(UserError, match=rf"{shard}: has \d+ bytes, its index says {len(content)} bytes"):
            open_source(records)
        index = prepared[1] / "index.json"  # As if the index did not know.
        known = json.loads(index.read_text())
        known["splits"]["train"][2]["bytes"] = shard.stat().st_size
        index.write_text(json.dumps(known))
    source = open_source(records)
    seen = [i for _, ids, _ in pipeline.inference_batches(source, image_size=4, batch_size=9) for i in ids.numpy()]
    wanted = json.loads((prepared[1] / "index.json").read_text())["splits"]["train"][2]["records"]
    assert len(seen) == COUNT and seen.count(-1) == wanted - 1
    assert source.bad.damage == {str(shard): f"{shard}: damaged or cut off, 1 of its {wanted} records can be read"}


def test_a_stream_that_begins_behind_the_damage_tells_of_it(prepared, records):
    shard = prepared[1] / "train-00002.tfrecord"
    content, ends = bytearray(shard.read_bytes()), _record_ends(shard)
    content[ends[0] + 40] ^= 1
    shard.write_bytes(content)
    source, begin = open_source(records), sum(open_source(records).shards.counts[:2])
    list(source.shards.read(int(begin) + 3, int(begin) + 4))
    assert source.bad.damage == {str(shard): f"{shard}: damaged or cut off, 1 of its {len(ends)} records can be read"}


def test_groups_of_records_are_of_many_classes(tmp_path):
    """BN normalises a group by itself; a folder per class lists the images of one class one after the other."""
    write_images(tmp_path / "photos", [f"train/{index // 24}/{index}.png" for index in range(192)])
    prepare(f"folder:{tmp_path}/photos", str(tmp_path / "records"), 1)
    source = open_source(f"records:{tmp_path}/records")
    labels = labels_of(source)
    settings = {"views": make_views("none", 4, 0), "batch_size": 64, "num_views": 1, "seed": 3, "micro_batch": 16}
    for _, ids in pipeline.training_batches(source, last_step=6, **settings):
        for group in np.split(labels[ids.numpy()], 4):
            assert len(set(group.tolist())) >= 4


def test_a_split_has_its_own_labels_or_none(tmp_path):
    """As of competitions, whose test images are in no folders: refused as those of the folder are."""
    names = ["train/a/0.png", "train/b/1.png", "test/2.png", "test/3.png", "val/b/4.png", "val/b/5.png"]
    write_images(tmp_path / "photos", names)
    prepare(f"folder:{tmp_path}/photos", str(tmp_path / "records"), 1)
    dataset = f"records:{tmp_path}/records"
    assert open_source(dataset).class_names == ("a", "b")
    assert open_source(dataset, "test").class_names is None
    with pytest.raises(UserError, match="the test split has no labels"):
        open_splits(dataset)
    assert labels_of(open_splits(dataset, test_split="val").test).tolist() == [1, 1]
    index = tmp_path / "records" / "index.json"  # of an earlier version
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "classes_of"}))
    assert open_source(dataset, "test").class_names == ("a", "b")


def test_buffers_hold_fewer_of_large_records(records, monkeypatch):
    source = open_source(records)
    assert [source.shards._buffer(streams) for streams in (1, 4, 10_000)] == [16_384, 4096, 64]
    size = sum(os.path.getsize(path) for path in source.shards.paths) / COUNT
    monkeypatch.setattr(records_module, "_BUFFER_BYTES", 100.5 * size)
    assert [source.shards._buffer(streams) for streams in (1, 4, 10_000)] == [100, 25, 8]
    ids = [i for ids, _ in _steps(records, 1, last=STEPS) for i in ids]
    assert sorted(ids) == list(range(COUNT))


def test_what_prepare_cannot_read_is_told(prepared, tmp_path):
    photos, _ = prepared
    (photos / "train" / "odd" / "001.png").unlink()
    (photos / "train" / "odd" / "001.png").symlink_to("nowhere.png")
    way_out = "mend them or take them away, or give a larger --max_bad_fraction than 0.01"
    with pytest.raises(UserError, match=rf"1 of 53 files .* cannot be read: .*001.png: no regular file; {way_out}$"):
        prepare(f"folder:{photos}", str(tmp_path / "one"), 1)
    assert list((tmp_path / "one").iterdir()) == []
    prepare(f"folder:{photos}", str(tmp_path / "more"), 1, max_bad_fraction=0.02)
    for index in range(COUNT, 100):
        shutil.copy(photos / "train" / "odd" / "003.png", photos / "train" / "odd" / f"{index:03}.png")
    said = []
    prepare(f"folder:{photos}", str(tmp_path / "other"), 1, say=said.append)
    name = photos / "train" / "odd" / "001.png"
    problem = f"1 of 100 files of the train split cannot be read: {name}: no regular file; their records are empty"
    assert said == [problem]


def test_an_output_that_cannot_be_written(prepared):
    photos, output = prepared
    (output / "train-00000.tfrecord").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^--output={output}: cannot write train-00000.tfrecord there"):
        prepare(f"folder:{photos}", str(output), 1)
    assert not (output / "index.json").exists()


def test_wrong_records_are_explained(prepared, records, tmp_path):
    with pytest.raises(UserError, match=r"no split 'test', wanted one of train"):
        open_source(records, "test")
    with pytest.raises(UserError, match=r"cannot read .*index.json \(No such file or directory\)"):
        open_source(f"records:{tmp_path}/none")
    with pytest.raises(UserError, match="holds prepared images already"):
        prepare(f"folder:{prepared[0]}", str(prepared[1]), 1)
    (prepared[1] / "train-00000.tfrecord").unlink()
    with pytest.raises(UserError, match=r"train-00000.tfrecord: no such file"):
        open_source(records)


def test_all_shards_that_are_missing_are_named_at_once(prepared, records):
    for index in (0, 2):
        (prepared[1] / f"train-0000{index}.tfrecord").unlink()
    with pytest.raises(UserError) as error:
        open_source(records)
    assert str(error.value).startswith(f"--dataset={records}: 2 shards are not as they were: {prepared[1]}/train-00000")
    assert str(error.value).count("no such file") == 2


def test_an_index_with_a_byte_order_mark_is_read(prepared, records):
    index = prepared[1] / "index.json"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert open_source(records).num_instances == COUNT


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"", '{"format": 1}'.encode("utf-16"), b"\xff"])
def test_an_index_that_is_none_is_explained(prepared, records, content):
    index = prepared[1] / "index.json"
    index.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_source(records)
    assert str(error.value) == f"--dataset={records}: cannot understand {index}"


def test_records_in_a_folder_whose_name_is_no_text(prepared, monkeypatch, tmp_path):
    photos, _ = prepared
    named = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    os.rename(photos, named)
    _prepare(named, os.path.join(named, "records"), monkeypatch)
    source = open_source(f"records:{named}/records")
    seen = [i for _, ids, _ in pipeline.inference_batches(source, image_size=4, batch_size=9) for i in ids.numpy()]
    assert sorted(i for i in seen if i >= 0) == list(range(COUNT))


def test_prepare_says_what_it_leaves_out(prepared, tmp_path):
    photos, _ = prepared
    (photos / "train" / ".thumbnails").mkdir()
    said = []
    prepare(f"folder:{photos}", str(tmp_path / "other"), 1, say=said.append)
    assert said == [f"folder:{photos}: 1 folder that programs made ('.thumbnails') was not looked into"]
    with pytest.raises(UserError) as error:
        prepare(str(photos), str(tmp_path / "third"), 1)
    assert str(error.value) == f"--dataset={photos}: did you mean folder:{photos}?"


def test_a_pass_in_order_reads_every_record_once(records, monkeypatch):
    parts, read = [], Shards.read
    monkeypatch.setattr(
        Shards, "read", lambda self, *ends, **options: parts.append(ends) or read(self, *ends, **options)
    )
    batches = pipeline.inference_batches(open_source(records), image_size=4, batch_size=BATCH)
    assert parts == [(0, 48), (48, COUNT)]
    assert np.concatenate([ids for _, ids, _ in batches]).tolist() == list(range(COUNT))
