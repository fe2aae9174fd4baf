"""Specifications of sweeps: what they say, and the sentence about each mistake."""

from __future__ import annotations

import json
import math
import re

import pytest

from flags.sweep import config_of
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import cores
from instcls_tf.errors import UserError
from instcls_tf.sweep.beside import keep_side_by_side
from instcls_tf.sweep.spec import Spec, read_spec
from instcls_tf.sweep.trials import NO_PART, best_setting, final_trials, identity, search_trials, trials_before_final
from tests.commands import ROOT

SPEC = """
workdir = "{folder}/sweep"
minutes = 10
cores = 1
side_by_side = 2
seeds = [3, 4]
trials = 4

[base]
flagfile = "{folder}/base.flags"
dataset = "digits"
scale_learning_rate = false

[arms.ours.flags]
smoothing = 0
[arms.ours.grid]
learning_rate = [0.1, 0.2]
temperature = [0.1, 0.3]

[arms.simclr.flags]
method = "simclr"
[arms.simclr.random]
learning_rate = {{ log_uniform = [0.01, 1.0] }}
color_strength = {{ uniform = [0.25, 1] }}
views = {{ choice = [2, 4] }}
"""


@pytest.fixture
def read(tmp_path):
    """The specification above with parts of its text replaced."""

    def from_text(*changes: tuple[str, str]) -> Spec:
        (tmp_path / "base.flags").write_text("--image_size=16\n--epochs=7\n--dataset=cifar10\n--batch_size=64\n")
        text = SPEC.format(folder=tmp_path)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "spec.toml").write_text(text)
        return read_spec(str(tmp_path / "spec.toml"), config_of)

    return from_text


def test_flags_of_base_and_of_arms_make_the_recipes(read, tmp_path):
    spec = read()
    assert (spec.workdir, spec.minutes, spec.epochs) == (f"{tmp_path}/sweep", 10, None)
    assert (spec.cores, spec.side_by_side, spec.seeds, spec.search_seeds) == (1, 2, (3, 4), (3,))
    assert (spec.validation, spec.seed, spec.measurements) == (0.1, 0, 0)
    for settings in spec.arms.values():
        for setting in settings:
            config = setting.config
            assert (config.dataset, config.image_size, config.batch_size) == ("digits", 16, 64)  # base before flagfile
            assert config.scale_learning_rate is False
            assert {name: getattr(config, name) for name in setting.flags} == setting.flags
    assert {setting.config.method for setting in spec.arms["simclr"]} == {"simclr"}
    assert {setting.config.temperature for setting in spec.arms["simclr"]} == {0.2}  # the method's own


def test_all_arms_have_the_images_of_base(read, tmp_path):
    """Presets of arms name datasets: that of base holds, and without one there images that differ are refused."""
    (tmp_path / "arm.flags").write_text("--dataset=cifar100\n--data_dir=/x\n--tfds_split=train[:10%]\n--views=3\n")
    arm = ("smoothing = 0", f"flagfile = '{tmp_path}/arm.flags'")
    configs = [setting.config for settings in read(arm).arms.values() for setting in settings]
    assert {(config.dataset, config.data_dir, config.tfds_split) for config in configs} == {("digits", None, "train")}
    assert {setting.config.views for setting in read(arm).arms["ours"]} == {3}
    with pytest.raises(UserError) as refusal:
        read(arm, ('dataset = "digits"\n', ""))
    assert str(refusal.value).endswith(
        "arms.ours: --dataset=cifar100: is of the arm's flagfile, and arms are compared on the same images: give"
        " dataset in base"
    )
    same = read(("smoothing = 0", f"flagfile = '{tmp_path}/base.flags'"), ('dataset = "digits"\n', ""))
    assert {setting.config.dataset for settings in same.arms.values() for setting in settings} == {"cifar10"}


def test_a_grid_is_every_combination(read):
    points = [(s.flags["learning_rate"], s.flags["temperature"]) for s in read().arms["ours"]]
    assert points == [(0.1, 0.1), (0.1, 0.3), (0.2, 0.1), (0.2, 0.3)]
    assert all(setting.flags["smoothing"] == 0 for setting in read().arms["ours"])


def test_draws_fill_their_ranges_and_more_trials_begin_with_the_same(read):
    many = read(("trials = 4", "trials = 200\nunequal_trials = true")).arms["simclr"]
    rates = [setting.flags["learning_rate"] for setting in many]
    strengths = [setting.flags["color_strength"] for setting in many]
    assert len(many) == 200
    assert 0.01 <= min(rates) < 0.02 and 0.5 < max(rates) <= 1
    assert sum(math.log10(rate) < -1 for rate in rates) == pytest.approx(100, abs=25)  # half of the decades
    assert 0.25 <= min(strengths) < 0.3 and 0.95 < max(strengths) <= 1
    assert sum(strength < 0.625 for strength in strengths) == pytest.approx(100, abs=25)
    assert {setting.flags["views"] for setting in many} == {2, 4}
    assert many[:4] == read().arms["simclr"]
    assert read(('dataset = "digits"', 'dataset = "digits"\nepochs_ = 1'), ("\nepochs_ = 1", "")).arms == read().arms
    others = read(("trials = 4", "trials = 4\nseed = 1")).arms["simclr"]
    assert not {setting.flags["learning_rate"] for setting in others} & set(rates[:4])


def test_arms_that_share_a_range_share_its_draws(read):
    random = "[arms.ours.random]\nlearning_rate = { log_uniform = [0.01, 1.0] }\n"
    spec = read(("[arms.ours.grid]\nlearning_rate = [0.1, 0.2]\ntemperature = [0.1, 0.3]\n", random))
    ours, simclr = ([s.flags["learning_rate"] for s in settings] for settings in spec.arms.values())
    assert ours == simclr


def test_json_says_the_same(read, tmp_path):
    spec = read()
    base = {"flagfile": f"{tmp_path}/base.flags", "dataset": "digits", "scale_learning_rate": False}
    grid = {"learning_rate": [0.1, 0.2], "temperature": [0.1, 0.3]}
    values = {
        "workdir": f"{tmp_path}/sweep", "minutes": 10, "side_by_side": 2, "base": base, "seeds": [3, 4],
        "arms": {"ours": {"flags": {"smoothing": 0}, "grid": grid}},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(values))
    assert read_spec(str(tmp_path / "spec.json"), config_of).arms["ours"] == spec.arms["ours"]


def test_the_specification_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where its flagfile is
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "spec.toml").write_text(text)
    spec = read_spec(str(tmp_path / "spec.toml"), config_of)
    assert {name: len(settings) for name, settings in spec.arms.items()} == {"ours": 8, "simclr": 8}


TWO = "has 3 setting(s) and ours has 4: wanted as many for each arm, or unequal_trials = true"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("minutes = 10", "minute = 10", "minutes: wanted either minutes, the same for each trial, or epochs"),
        ("minutes = 10", "minutes = 10\nepochs = 3", "minutes: wanted either minutes, the same for each trial, or"),
        ("minutes = 10", "minutes = true", "minutes: true must be a number of minutes above 0"),
        ("minutes = 10", "minutes = 0", "minutes: 0 must be a number of minutes above 0"),
        ("cores = 1", "cores = 1\ncore = 1", "core: no such key; did you mean cores?"),
        ("cores = 1", "cores = 0", "cores: 0 must be a whole number of at least 1"),
        ("[3, 4]", "[3, 3]", "seeds: [3, 3] must be a list of different whole numbers"),
        ("[3, 4]", "[]", "seeds: [] must be a list of different whole numbers"),
        ("trials = 4", "trials = 4\nvalidation = 1", "validation: 1 must be a fraction above 0 and below 1"),
        ("trials = 4", "trials = 3", f"arms.simclr: {TWO}"),
        ("trials = 4\n", "", "arms.simclr.trials: is missing: wanted the number of random draws, here or for all arms"),
        ("smoothing = 0", "view = 2", "arms.ours: --view: no such flag; did you mean --views?"),
        ("smoothing = 0", "smoothing = 'x'", "arms.ours: --smoothing=x: must be a number"),
        ("smoothing = 0", "smoothing = 2", "arms.ours: --smoothing=2.0: must be 0 or more and below 1"),
        ("smoothing = 0", "smoothing = [0]", "arms.ours.smoothing: must be a word, a number, true or false"),
        ("smoothing = 0", "cache = '/tmp/x'", "base: cache must be ram, or left out: trials"),
        ("smoothing = 0", "seed = 0", "arms.ours.flags.seed: no flag of an arm or of base: give seeds"),
        ("smoothing = 0", "dataset = 'x'", "arms.ours.flags.dataset: no flag of an arm or of base: give it"),
        ("smoothing = 0", "temperature = 1", "arms.ours.grid.temperature: is among the fixed flags, too"),
        ("[arms.ours.flags]", "[arms.'a/b'.flags]", "arms.a/b: must be of letters, digits and _ . + -"),
        ("[0.1, 0.3]", "0.1", "arms.ours.grid.temperature: 0.1 must be a list of at least one value"),
        ("[0.1, 0.3]", "[0.1, 0.1]", "arms.ours.grid.temperature: has a value twice"),
        ("[arms.ours.grid]", "[arms.ours.random]\nviews = {choice=[2]}\n[arms.ours.grid]", "arms.ours.random: beside"),
        ("log_uniform = [0.01", "log_uniform = [0.0", 'arms.simclr.random.learning_rate: {"log_uniform": [0.0,'),
        ("uniform = [0.25, 1]", "uniform = [1, 1]", 'arms.simclr.random.color_strength: {"uniform": [1, 1]} must be'),
        ("choice = [2, 4]", "choice = []", 'arms.simclr.random.views: {"choice": []} must be a choice of at least one'),
        ("choice = [2, 4]", "chosen = [2]", 'arms.simclr.random.views: {"chosen": [2]} must be one of { log_uniform'),
        ("[base]", "[base]\nmax_steps = 3", "base.max_steps: no flag of an arm or of base: give minutes or epochs for"),
        ("[base]", "[base]\nextend_epochs = 3", "base.extend_epochs: no flag of an arm or of base: give minutes or"),
        ("[base]", "[base]\nfoo = 3", "base: --foo: no such flag"),
        ("[base]", "[base", "is no TOML (Expected"),
        ("/sweep", "/s*", "workdir: --workdir="),
        ("base.flags", "other.flags", "base: --flagfile: cannot read"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_the_key(read, tmp_path, old, new, sentence):
    with pytest.raises(UserError) as refusal:
        read((old, new))
    assert str(refusal.value).startswith(f"--spec={tmp_path}/spec.toml: {sentence}")
    assert "\n" not in str(refusal.value)


def test_unequal_budgets_may_be_wanted(read):
    spec = read(("trials = 4", "trials = 3\nunequal_trials = true"))
    assert [len(settings) for settings in spec.arms.values()] == [4, 3]


def test_trials_take_turns_and_have_folders_of_their_own(read):
    spec = read(("trials = 4", "trials = 4\nsearch_seeds = [3, 5]"))
    trials = search_trials(spec)
    names = [(trial.setting.arm, trial.seed) for trial in trials]
    assert names == 4 * [("ours", 3), ("ours", 5), ("simclr", 3), ("simclr", 5)]
    assert len(trials) == len({trial.folder for trial in trials}) == len({trial.key for trial in trials}) == 16
    assert len({trial.dataset for trial in trials}) == 1
    config = trials[0].config(epochs=9, measurements=4)
    assert (config.epochs, config.seed, config.online_knn_every) == (9, 3, 2)
    assert (config.workdir, config.dataset) == (trials[0].folder, trials[0].dataset)
    assert config.dataset.startswith(f"folder:{spec.workdir}/images-")
    for epochs, measured in ((3, 3), (10, 10), (19, 9), (20, 10), (25, 8)):
        assert epochs // trials[0].config(epochs, 10).online_knn_every == measured


def test_a_trial_is_known_again_by_all_that_makes_a_difference(read):
    def keys(*changes: tuple[str, str]) -> set[str]:
        return {trial.key for trial in search_trials(read(*changes))}

    for same in ("log_every = 3", "stall_timeout = 60.0", "keep_checkpoints = 5", "gauge_every = 2"):
        assert keys() == keys(('dataset = "digits"', f'dataset = "digits"\n{same}')), same
    assert keys() < keys(("[3, 4]", "[3, 4]\nsearch_seeds = [3, 4]"))
    for change in (
        ("minutes = 10", "minutes = 11"),
        ("minutes = 10", "epochs = 10"),
        ("side_by_side = 2", "side_by_side = 1"),
        ("[3, 4]", "[5]"),
        ("trials = 4", "trials = 4\nvalidation = 0.2"),
        ('dataset = "digits"', 'dataset = "digits"\nwidth_multiplier = 0.5'),
        ('dataset = "digits"', 'dataset = "digits"\nrecompute = "always"'),  # fewer epochs in the same minutes
    ):
        assert not keys() & keys(change), change
    changed = {"recompute": "always", "class_passes": "xla", "extend_epochs": 2}
    known = identity(PretrainConfig(stall_timeout=9.0, keep_checkpoints=5, **changed), NO_PART)
    assert known == {**identity(PretrainConfig(), NO_PART), **changed}


def test_the_best_setting_is_chosen_by_its_mean_and_runs_with_all_seeds(read):
    spec = read(("trials = 4", "trials = 4\nsearch_seeds = [3, 5]"))
    trials = search_trials(spec)
    ours = [trial for trial in trials if trial.setting.arm == "ours"]
    accuracies = [0.1, 0.9, 0.6, 0.6, 0.9, None, 0.5, 0.5]  # by setting and seed; one has diverged
    results = [{"key": trial.key, "accuracy": found} for trial, found in zip(ours, accuracies)]
    assert best_setting(spec, "ours", results[:-1]) is None
    assert best_setting(spec, "ours", results) == spec.arms["ours"][1]
    assert best_setting(spec, "simclr", results) is None
    final = final_trials(spec, results)
    assert [(trial.setting, trial.seed) for trial in final] == [(spec.arms["ours"][1], seed) for seed in (3, 4)]
    assert {trial.dataset for trial in final} == {"digits"}
    assert not {trial.key for trial in final} & {trial.key for trial in trials}
    failed = [{"key": trial.key, "accuracy": None} for trial in ours]
    assert best_setting(spec, "ours", failed) is None


def test_the_part_of_a_dataset_is_in_the_slice_already(read, monkeypatch):
    """Trials of the search see a folder that was made of the part, the final ones take it from the dataset."""
    part = ('dataset = "digits"', 'dataset = "cifar10"\ntfds_split = "train[:80%]"')
    spec = read(part)
    results = [{"key": trial.key, "accuracy": 0.5} for trial in search_trials(spec)]
    for trials, split in ((search_trials(spec), "train"), (final_trials(spec, results), "train[:80%]")):
        for config in (trial.config(1, 0) for trial in trials):
            config.validate()
            assert config.tfds_split == split
    other = read(("digits", "cifar10"))
    assert not {trial.dataset for trial in search_trials(spec)} & {trial.dataset for trial in search_trials(other)}
    # Judged by another bank, it is another trial; the bank of the search is all of the slice's train.
    searched, final = search_trials(spec), final_trials(spec, results)
    monkeypatch.setattr("instcls_tf.sweep.trials.bank_split", lambda config: "train")
    assert search_trials(spec) == searched
    assert not {trial.key for trial in final_trials(spec, results)} & {trial.key for trial in final}


@pytest.mark.parametrize(("epochs", "before", "prior_every"), [(5, 0, 0), (6, 0, 5), (7, 2, 0), (8, 2, 5)])
def test_a_prior_after_the_end_of_a_trial_is_none(read, epochs, before, prior_every):
    arm = f"smoothing = 0\nprior_every = 5\ncontrast_epochs = {before}"
    trial = search_trials(read(("smoothing = 0", arm)))[0]
    config = trial.config(epochs, 0)
    config.validate()
    assert (config.prior_every, trial.setting.config.prior_every) == (prior_every, 5)


def test_an_arm_of_one_setting_needs_no_search(read):
    one = ("[arms.ours.grid]\nlearning_rate = [0.1, 0.2]\ntemperature = [0.1, 0.3]\n", "")
    spec = read(one, ("trials = 4", "trials = 4\nunequal_trials = true"))
    assert best_setting(spec, "ours", []) == spec.arms["ours"][0]
    assert {trial.setting.arm for trial in trials_before_final(spec)} == {"simclr"}
    assert [trial.setting.arm for trial in final_trials(spec, [])] == ["ours", "ours"]


def test_a_flagfile_says_nothing_about_the_length(read, tmp_path):
    """As the recipe of an extended run does."""
    (tmp_path / "long.flags").write_text("--dataset=cifar10\n--epochs=7\n--extend_epochs=5\n--exposures=900\n")
    spec = read(("base.flags", "long.flags"))
    configs = [setting.config for settings in spec.arms.values() for setting in settings]
    assert {(config.extend_epochs, config.exposures) for config in configs} == {(0, 0)}


def test_a_sweep_goes_on_side_by_side_as_it_began(read, monkeypatch):
    """On a machine with another number of cores its trials are still known."""
    free = ("side_by_side = 2\n", "")
    monkeypatch.setattr(cores, "allowed", lambda: 4)
    spec = read(free)
    assert spec.side_by_side == 4
    keep_side_by_side(spec.workdir, spec.cores, spec.side_by_side)
    monkeypatch.setattr(cores, "allowed", lambda: 2)
    assert [trial.key for trial in search_trials(read(free))] == [trial.key for trial in search_trials(spec)]
    keep_side_by_side(spec.workdir, spec.cores, 3)
    assert read(free).side_by_side == 4
    assert read(free, ("cores = 1", "cores = 2")).side_by_side == 1
    assert read().side_by_side == 2
