"""What is refused before anything is touched, beyond what the recipe itself can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from absl.flags import FlagValues

from flags.pretraining import config_from_flags
from instcls_tf.config import INSTANCE, METHODS, PretrainConfig
from instcls_tf.data.folder import open_folder
from instcls_tf.errors import UserError
from instcls_tf.pretraining import opening, preflight
from instcls_tf.pretraining.steps import note_of_length
from instcls_tf.run.checkpoint import latest
from instcls_tf.run.workdir import begin_run, load_run


def config_of(workdir, **changes) -> PretrainConfig:
    settings = {"dataset": "digits", "batch_size": 64, "micro_batch": 32, **changes}
    return PretrainConfig(workdir=str(workdir), **settings)


def begin_and_save(config: PretrainConfig) -> PretrainConfig:
    """A run with what every checkpoint has."""
    begin_run(config)
    (folder := Path(config.workdir) / "checkpoints").mkdir()
    (folder / "ckpt-00000004.index").touch()
    return config


def refusal_of(config: PretrainConfig, given: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as refusal:
        preflight.open_training_data(config, given=given)
    return str(refusal.value)


def test_a_run_goes_on_with_as_many_workers_as_it_has_groups(tmp_path, monkeypatch):
    """Not told to take another --micro_batch, which is the run's."""
    config = begin_and_save(config_of(tmp_path))
    for workers in (1, 2):
        monkeypatch.setattr(preflight, "launched_rank_and_size", lambda workers=workers: (0, workers))
        preflight.open_training_data(config)
    monkeypatch.setattr(preflight, "launched_rank_and_size", lambda: (0, 4))
    assert refusal_of(config) == (
        f"--workdir={tmp_path}: its run has 2 BN group(s) in a batch (--micro_batch=32 of --batch_size=64), one at"
        f" least for each worker: wanted at most 2 workers, not 4, to continue it"
    )
    new = "--micro_batch=32: must be at most 21, for each of the 4 workers to have a BN group of --batch_size=64, or at"
    assert refusal_of(config_of(tmp_path / "new")) == f"{new} most 2 workers"


@pytest.mark.parametrize("method", METHODS)
def test_how_a_run_goes_on_elsewhere_is_a_flag_of_its_method(tmp_path, method):
    """Class weights are taken over by --extend_from, which the paper's method has; others go on with their encoder."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abcef":
        (photos / f"{name}.jpg").write_text(name)
    settings = {"dataset": f"folder:{photos}", "method": method, "hard_negatives": 1}
    config = begin_and_save(config_of(tmp_path / "run", extend_epochs=1, **settings))
    open_folder(config.dataset, "train").write_manifest(config.workdir)
    (photos / "d.jpg").touch()
    flag = f"--{'extend_from' if method == INSTANCE else 'init'}={config.workdir}"
    sentence = refusal_of(config)
    assert sentence.startswith(f"--dataset={config.dataset}: 'd.jpg' was added after the run in")
    assert sentence.endswith(f"or begin another one in another folder, with {flag} to go on from this one")
    for name in "dab":  # of these d is new, and two of five may be gone
        (photos / f"{name}.jpg").unlink()
    assert preflight.open_training_data(config).changes.vanished == ("a.jpg", "b.jpg")
    (photos / "c.jpg").unlink()
    assert refusal_of(config) == (
        f"--dataset={config.dataset}: 3 of the 5 images of the run in --workdir={config.workdir} are gone, such as"
        f" 'a.jpg': bring them back to continue the run (is a disk not mounted?), or begin another one in another"
        f" folder, with {flag} to go on from this one"
    )
    with pytest.raises(UserError) as refusal:
        opening._refuse_another_extension(
            config.replace(extend_epochs=2), SimpleNamespace(num_instances=3), f"{config.workdir}/ckpt-00099999"
        )
    sentence = str(refusal.value)
    assert f"begin another run from this one with --init={config.workdir}" in sentence
    assert ("--extend_from" in sentence) == (method == INSTANCE)


@pytest.mark.parametrize("far", ["far", "near/far/away"])
def test_a_folder_that_is_gone_is_one_of_a_disk(tmp_path, far):
    """Fewer than half of the images, but nobody takes away all of a folder's without knowing of it."""
    names = ["a.jpg", *(f"near/{index}.jpg" for index in range(6)), *(f"{far}/{index}.jpg" for index in range(3))]
    for path in (tmp_path / "photos" / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    config = begin_and_save(config_of(tmp_path / "run", dataset=f"folder:{tmp_path}/photos", hard_negatives=1))
    open_folder(config.dataset, "train").write_manifest(config.workdir)
    for name in ("a", "near/0", "near/1", f"{far}/0", f"{far}/1"):
        (tmp_path / "photos" / f"{name}.jpg").unlink()
    assert len(preflight.open_training_data(config).changes.vanished) == 5
    for name in ("near/0", "near/1", "a"):
        (tmp_path / "photos" / f"{name}.jpg").write_text(name)
    (tmp_path / "photos" / far / "2.jpg").unlink()
    sentence = refusal_of(config)
    assert "3 of the 10 images of the run in" in sentence
    assert f"are gone, among them all below '{far.removesuffix('/away')}': bring" in sentence
    assert "give --max_bad_fraction=0.3 to go on without them, or begin another one" in sentence
    source = preflight.open_training_data(config.replace(max_bad_fraction=0.3))
    assert len(source.changes.vanished) == 3


def test_home_is_expanded_from_python_too(tmp_path, monkeypatch):
    """As it is on the command line, and in `dataset`: no folder of that name is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {name: f"~/{name}" for name in ("workdir", "data_dir", "init", "extend_from", "cache")}
    whole = {name: f"{tmp_path}/{name}" for name in paths}
    for config in (
        preflight.recipe_of_call(None, None, paths),
        preflight.recipe_of_call(None, "photos", paths),
        preflight.recipe_of_call(PretrainConfig(**paths), None, {}),
    ):
        assert {name: getattr(config, name) for name in paths} == whole
    assert preflight.recipe_of_call(None, None, {"cache": "ram", "init": "a/~"}) == PretrainConfig(
        cache="ram", init="a/~"
    )
    config = begin_and_save(config_of(tmp_path / "run"))
    assert load_run("~/run") == config
    assert latest("~/run") == f"{tmp_path}/run/checkpoints/ckpt-00000004"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"method": "simclr", "moco_queue": 5},
            "--moco_queue=5: is of --method=moco_v2, --method=simclr has nothing of the kind: leave it out",
        ),
        (
            {"tfds_split": "train[:10%]"},
            "--tfds_split=train[:10%]: is of TFDS datasets, --dataset=digits is none: leave it out, or add"
            " --tfds_split=train after a flagfile that has it",
        ),
        (
            {"method": "diet", "class_momentum": 0.5},
            "--class_momentum=0.5: is of --diet_optimizer=sgd, adamw has averages of its own: leave it out",
        ),
        (
            {"method": "pic", "pic_window": 0, "pic_stride": 5},
            "--pic_stride=5: is of a window that slides, --pic_window=0 has none: leave it out",
        ),
        (
            {"prior_every": 7, "epochs": 7},
            "--prior_every=7: must be below the 7 epoch(s) of the classification, or 0 for one prior",
        ),
        (
            {"prior_every": 4, "contrast_epochs": 3, "epochs": 7},
            "--prior_every=4: must be below the 4 epoch(s) of the classification, or 0 for one prior",
        ),
        (
            {"prior_every": 7, "epochs": 5, "exposures": 7 * 1437},
            "--prior_every=7: must be below the 7 epoch(s) of the classification, or 0 for one prior",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused_and_a_run_that_began_with_it_goes_on(tmp_path, changes, sentence):
    config = begin_and_save(config_of(tmp_path / "run", **changes))
    assert preflight.open_training_data(config).num_instances == 1437
    assert refusal_of(config.replace(workdir=str(tmp_path / "new"))) == sentence


@pytest.mark.parametrize(
    ("given", "effect", "why"),
    [
        (
            {"color_strength": 0.25, "augmentation": "digits"},
            {"augmentation": "simclr"},
            "is of --augmentation=simclr, --augmentation=digits has nothing of the kind",
        ),
        (
            {"smoothing_loss": "cross_entropy", "smoothing": 0.0},
            {"smoothing": 0.1},
            "is of smoothing, --smoothing=0 has none",
        ),
        (
            {"batch_contrast_temperature": 0.1, "method": "simclr"},
            {"method": "instance", "batch_contrast": 1.0},
            "is of NT-Xent, without --batch_contrast or --contrast_epochs there is none",
        ),
        ({"data_dir": "tfds"}, {}, "is of TFDS datasets, --dataset=digits is none"),
    ],
)
def test_what_has_no_effect_is_refused_if_it_is_no_presets(tmp_path, given, effect, why):
    """A preset may have it; a run that began with it goes on."""
    new, name = config_of(tmp_path / "new", **given), next(iter(given))
    assert refusal_of(new, (name,)) == f"--{name}={given[name]}: {why}: leave it out"
    preflight.open_training_data(new, given=("augmentation", "smoothing", "method"))
    preflight.open_training_data(new.replace(data_dir=None), given=("data_dir",))
    preflight.open_training_data(begin_and_save(config_of(tmp_path / "run", **given)), given=given)
    if effect:
        preflight.open_training_data(new.replace(**effect), given=(*given, *effect))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "cifar10", "tfds_split": "train[:10%]"},
        {"method": "diet", "class_momentum": 0.5, "diet_optimizer": "sgd"},
        {"method": "pic", "pic_window": 8, "pic_stride": 5},
        {"prior_every": 6, "epochs": 7},
        {"prior_every": 7, "epochs": 7, "extend_epochs": 1},
        {"prior_every": 7, "epochs": 5, "exposures": 8 * 1437},
    ],
)
def test_the_same_where_it_has_an_effect(tmp_path, changes):
    config = config_of(tmp_path, **changes)
    config.validate()
    config.validate_with_data(1437)


def test_a_run_keeps_the_length_it_began_with(tmp_path):
    """Also one of `--epochs=5` after a preset of 600,000 exposures that began when these still counted."""
    config = begin_and_save(config_of(tmp_path, epochs=5, exposures=600_000))
    now = preflight.recipe_of_call(config, None, {"epochs": 5})
    assert now == config and config_from_flags(FlagValues(), **vars(config.replace(exposures=0))) == config
    preflight.open_training_data(now)
    other = preflight.recipe_of_call(config, None, {"epochs": 6})
    assert "a run with --epochs=5, this one has --epochs=6: give the same flags" in refusal_of(other)


def test_what_is_told_of_a_length_by_exposures(tmp_path):
    config = config_of(tmp_path, epochs=5, exposures=600_000)
    told = "length: 200 epochs, by --exposures=600000 instead of --epochs=5"
    assert note_of_length(config, 3000, begins=True) == f"{told}; --exposures=0 takes --epochs"
    assert note_of_length(config, 3000, begins=False) == f"{told}, as the run began"
    assert note_of_length(config, 200_000, begins=True) is None
    assert note_of_length(config.replace(exposures=0), 3000, begins=True) is None
