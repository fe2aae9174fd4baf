"""What a file system that fails hides is taken for nothing that is not there: it is not replaced, nor begun anew."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from instcls_tf import files
from instcls_tf.claims.ledger import Ledger
from instcls_tf.claims.reproduce import ledger_page
from instcls_tf.config import PretrainConfig
from instcls_tf.data.cache import with_cache
from instcls_tf.data.folder import open_folder
from instcls_tf.data.prepare import prepare
from instcls_tf.errors import MachineError
from instcls_tf.evaluation import feature_store
from instcls_tf.gallery import pages
from instcls_tf.run.workdir import holds_this_run
from instcls_tf.sweep.beside import keep_side_by_side
from instcls_tf.sweep.held_out import refuse_other_images, write_held_out
from tests.single.test_failing_file_systems import Failing


@pytest.fixture
def config(tmp_path) -> PretrainConfig:
    """Of images that lie beside a folder of their own, as one that is called `train` would have it."""
    for name in ("x/1.jpg", "x/2.jpg", "train/x/3.jpg", "train/x/4.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return PretrainConfig(dataset=f"folder:{tmp_path}/photos", workdir=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("train", lambda config, path: open_folder(config.dataset, "train")),
        ("index.json", lambda config, path: prepare(config.dataset, os.path.dirname(path), 1)),
        ("cache", lambda config, path: with_cache(config.replace(cache=path), open_folder(config.dataset, "train"))),
        ("metrics.jsonl", lambda config, path: holds_this_run(config)),
        ("features.npz", lambda config, path: feature_store.refuse_occupied(path)),
        ("gallery", lambda config, path: pages.refuse_unfit(path)),
        ("side_by_side.txt", lambda config, path: keep_side_by_side(config.workdir, 1, 1)),
        ("images", lambda config, path: write_held_out(path, config, 0.5, 0)),
        ("images.txt", lambda config, path: refuse_other_images(path.removesuffix(".txt"), config)),
        ("results.jsonl", lambda config, path: ledger_page(Ledger("", {}, {}, ()), path, f"{path}.md")),
    ],
)
def test_what_cannot_be_looked_at_is_not_taken_for_nothing(config, monkeypatch, name, work):
    path = Path(config.workdir, name)
    path.parent.mkdir()
    path.write_text("of hours")
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0.0)
    for function in ("stat", "lstat"):
        monkeypatch.setattr(os, function, Failing(getattr(os, function), name, number=errno.EIO))
    with pytest.raises(MachineError, match=rf"/{name}: cannot be read \(Input/output error\), tried 4 times"):
        work(config, str(path))
    monkeypatch.undo()
    assert path.read_text() == "of hours" and [entry.name for entry in path.parent.iterdir()] == [name]
