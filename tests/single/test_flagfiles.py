"""Flagfiles in the place where they are named, in whatever encoding they come."""

from __future__ import annotations

import codecs

import pytest

from flags.sweep import config_of
from instcls_tf import flagfiles
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.pretraining.preflight import recipe_of_call
from tests.recipes import CHANGED


def test_lines_take_the_place_of_the_file(tmp_path):
    (tmp_path / "a.flags").write_text(f"# a comment\n\n--epochs=3\n  --flagfile={tmp_path}/b.flags \n// another\n")
    (tmp_path / "b.flags").write_text("--dataset=folder:/data/my photos\r\n--seed=1\r--noplain")
    words = ["--seed=0", f"--flagfile={tmp_path}/a.flags", "-flagfile", f"{tmp_path}/b.flags", "--", "--flagfile=no"]
    inner = ["--dataset=folder:/data/my photos", "--seed=1", "--noplain"]
    assert flagfiles.expand(words) == ["--seed=0", "--epochs=3", *inner, *inner, "--", "--flagfile=no"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.flags").write_text("--epochs=3\n")
    assert flagfiles.expand(["--flagfile=~/a.flags"]) == ["--epochs=3"]


@pytest.mark.parametrize(
    ("before", "after", "length"),
    [
        ([], [], (20, 600_000)),
        ([], ["--epochs=5"], (5, 0)),
        ([], ["-epochs", "5"], (5, 0)),
        ([], ["--seed=1", "--epochs=5", "--exposures=900"], (5, 900)),
        ([], ["--epochs=5", "--exposures=900"], (5, 900)),
        (["--exposures=900"], ["--epochs=5"], (5, 0)),  # the file has overwritten them
        (["--epochs=5"], [], (20, 600_000)),  # as every flag before a file that has it
    ],
)
def test_epochs_after_a_preset_are_the_length_of_the_run(tmp_path, before, after, length):
    preset = f"--flagfile={flagfiles.PRESETS}/photos.flags"
    config = config_of([*before, preset, *after])
    assert (config.epochs, config.exposures) == length
    if "-epochs" not in after:
        (tmp_path / "own.flags").write_text("\n".join([*before, preset, *after]))
        assert config_of([f"--flagfile={tmp_path}/own.flags"]) == config
        assert PretrainConfig.from_flagfile(str(tmp_path / "own.flags"), precision=config.precision) == config


@pytest.mark.parametrize(
    ("files", "after", "length"),
    [
        (["--epochs=5"], [], (5, 0)),
        (["--epochs\n5\n--seed=1"], [], (5, 0)),
        (["--exposures=900\n--epochs=5"], [], (5, 900)),
        (["--epochs=5\n--exposures=900"], [], (5, 900)),
        (["--exposures=900\n--epochs=5"], ["--epochs=6"], (6, 0)),
        (["--exposures=900"], [], (20, 900)),
        (["--seed=1"], [], (20, 600_000)),
        (["--seed=1", "--epochs=5"], [], (5, 0)),
        (["--epochs=5"], ["--exposures=900"], (5, 900)),
        (["--exposures=900\n--epochs=5", "--epochs=6"], [], (6, 0)),
    ],
)
def test_epochs_of_a_file_after_a_preset_are_the_length_of_the_run(tmp_path, files, after, length):
    words = [f"--flagfile={flagfiles.PRESETS}/photos.flags"]
    for number, text in enumerate(files):
        (tmp_path / f"{number}.flags").write_text(text)
        words.append(f"--flagfile={tmp_path}/{number}.flags")
    config = config_of([*words, *after])
    assert (config.epochs, config.exposures) == length
    (tmp_path / "own.flags").write_text("\n".join([*words, *after]))
    assert config_of([f"--flagfile={tmp_path}/own.flags"]) == config
    assert PretrainConfig.from_flagfile(str(tmp_path / "own.flags"), precision=config.precision) == config


@pytest.mark.parametrize("text", ["--dataset=folder:/data/café\n", "--dataset=folder:/data/東京\n"])
def test_a_byte_order_mark_alone_is_accepted(tmp_path, text):
    (tmp_path / "a.flags").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert flagfiles.expand([f"--flagfile={tmp_path}/a.flags"]) == [text.strip()]


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "UTF-16 or binary data"),
        ("latin-1", "another encoding"),
    ],
)
def test_another_encoding(tmp_path, encoding, found):
    path = tmp_path / "a.flags"
    path.write_bytes("--dataset=folder:/data/café\n".encode(encoding))
    with pytest.raises(UserError) as refusal:
        flagfiles.expand([f"--flagfile={path}"])
    assert str(refusal.value) == f"--flagfile={path}: is in {found}, wanted UTF-8"


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.flags").write_text(f"--flagfile={tmp_path}/b.flags\n")
    (tmp_path / "b.flags").write_text(f"--flagfile={tmp_path}/a.flags\n")
    for word, sentence in [
        (f"--flagfile={tmp_path}", f"--flagfile: cannot read {tmp_path} (Is a directory)"),
        (f"--flagfile={tmp_path}/a.flags", f"--flagfile: {tmp_path}/a.flags names itself"),
        ("--flagfile", "--flagfile is missing the path of a file"),
    ]:
        with pytest.raises(UserError) as refusal:
            flagfiles.expand([word])
        assert str(refusal.value) == sentence


# --------------------------------------------------------------------------------------------- without a command line


def test_a_preset_by_its_name_and_a_file_by_its_path(tmp_path):
    photos = PretrainConfig.from_flagfile("photos", workdir="run", epochs=3)
    assert photos == PretrainConfig.from_flagfile(str(flagfiles.PRESETS / "photos.flags"), workdir="run", epochs=3)
    assert (photos.image_size, photos.encoder, photos.epochs, photos.scale_learning_rate) == (96, "resnet18", 3, False)
    (tmp_path / "run.flags").write_text("# run 12ab\n" + CHANGED.as_flags())
    assert PretrainConfig.from_flagfile(str(tmp_path / "run.flags")) == CHANGED
    (tmp_path / "own.flags").write_text(f"--flagfile={flagfiles.PRESETS}/digits.flags\n--seed=7\n--nomlp_head\n")
    own = PretrainConfig.from_flagfile(str(tmp_path / "own.flags"))
    assert own == PretrainConfig.from_flagfile("digits", seed=7, mlp_head=False)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        *[(f"--report={word}", {"report": True}) for word in ("true", "True", "TRUE", "t", "T", "1")],
        *[(f"--report={word}", {"report": False}) for word in ("false", "False", "f", "F", "0")],
        ("--report", {"report": True}),
        ("--noreport", {"report": False}),
        ("-noreport\n-epochs=3", {"report": False, "epochs": 3}),
        ("--epochs\n3\n--dataset\n--report", {"epochs": 3, "dataset": "--report"}),
    ],
)
def test_a_spelling_is_the_same_for_commands_and_from_python(tmp_path, text, settings):
    (tmp_path / "own.flags").write_text(text)
    assert PretrainConfig.from_flagfile(str(tmp_path / "own.flags")) == PretrainConfig(**settings)
    assert config_of([f"--flagfile={tmp_path}/own.flags"]) == PretrainConfig(**settings)


@pytest.mark.parametrize("word", ["yes", "no", "on", "2", ""])
def test_no_truth_value_by_either_way(tmp_path, word):
    (tmp_path / "own.flags").write_text(f"--report={word}\n")
    for read in (PretrainConfig.from_flagfile, lambda path: config_of([f"--flagfile={path}"])):
        with pytest.raises(UserError):
            read(str(tmp_path / "own.flags"))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("fotos", {}, "preset 'fotos': there is none of this name, did you mean 'photos'?; wanted cifar10, digits, "),
        ("photos", {"epoch": 3}, "'epoch' is no setting of PretrainConfig, did you mean 'epochs'?"),
        ("photos", {"xyzzy": 3}, "'xyzzy' is no setting of PretrainConfig"),
        ("no/such.flags", {}, "--flagfile: cannot read no/such.flags (No such file or directory)"),
    ],
)
def test_what_is_no_preset_or_setting(name, settings, sentence):
    with pytest.raises(UserError) as refusal:
        PretrainConfig.from_flagfile(name, **settings)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--epoch=3", "'epoch' is no setting of PretrainConfig, did you mean 'epochs'?"),
        ("--epochs=many", "cannot understand the line '--epochs=many'"),
        ("--mlp_head=perhaps", "cannot understand the line '--mlp_head=perhaps'"),
        ("--noepochs", "cannot understand the line '--noepochs'"),
    ],
)
def test_a_line_that_is_no_setting(tmp_path, line, sentence):
    (tmp_path / "a.flags").write_text(f"{line}\n")
    with pytest.raises(UserError) as refusal:
        PretrainConfig.from_flagfile(str(tmp_path / "a.flags"))
    assert str(refusal.value) == f"{tmp_path}/a.flags: {sentence}"


@pytest.mark.parametrize(
    ("settings", "length"),
    [({}, (20, 600_000)), ({"epochs": 5}, (5, 0)), ({"epochs": 5, "exposures": 900}, (5, 900))],
)
def test_epochs_beside_a_preset_from_python(settings, length):
    photos = PretrainConfig.from_flagfile("photos")
    for config in (
        PretrainConfig.from_flagfile("photos", **settings),
        recipe_of_call(None, "photos", settings),
        recipe_of_call(photos, None, settings),
    ):
        assert (config.epochs, config.exposures) == length


def test_settings_win_over_a_recipe_and_a_preset():
    config = PretrainConfig(workdir="run", epochs=3)
    assert recipe_of_call(config, None, {"epochs": 4}) == config.replace(epochs=4)
    assert recipe_of_call(None, "photos", {"image_size": 64}) == PretrainConfig.from_flagfile("photos", image_size=64)
    assert recipe_of_call(None, None, {"epochs": 4}) == PretrainConfig(epochs=4)
    with pytest.raises(UserError, match="'photos': comes in the place of a config"):
        recipe_of_call(config, "photos", {})
    with pytest.raises(UserError, match="'epoch' is no setting of PretrainConfig, did you mean 'epochs'"):
        recipe_of_call(config, None, {"epoch": 4})
