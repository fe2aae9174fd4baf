"""Weights to start from: every file and layout gives the features that it has elsewhere, or one sentence."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.export import numpy_resnet, tensor_file
from instcls_tf.export.torchvision import state_dict
from instcls_tf.initial import arrays, kinds
from instcls_tf.initial.matching import fill, match
from instcls_tf.initial.start import initialize_encoder, keep_starting_weights, load_starting_encoder
from instcls_tf.run.workdir import begin_run
from tests.encoders import trained_encoder
from tests.reference import relative_error
from tests.torch_layout import random_state_dict

SETTINGS = {"encoder": "resnet18", "width_multiplier": 0.125, "stem": "small", "embedding_size": 16}


def new_encoder(**changes) -> tf.keras.Model:
    return networks.build_encoder(**{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def plain() -> tf.keras.Model:
    """Only to be matched with."""
    return new_encoder()


def small_state(**changes) -> dict[str, np.ndarray]:
    return {**random_state_dict("resnet18", 8, 3), **changes}


def written(folder, state: dict[str, np.ndarray]) -> str:
    np.savez(folder / "weights.npz", **state)
    return str(folder / "weights.npz")


def refusal(encoder: tf.keras.Model, state: dict[str, np.ndarray]) -> str:
    before = [variable.numpy() for variable in encoder.variables]
    with pytest.raises(UserError) as caught:
        fill(encoder, match(encoder, state, "w.npz"))
    for variable, value in zip(encoder.variables, before):
        np.testing.assert_array_equal(variable, value)
    return str(caught.value).removeprefix("--init=w.npz: ")


# ------------------------------------------------------------------------------------------- the same features as there


@pytest.mark.parametrize(
    ("name", "stem", "side"),
    [("resnet18", "imagenet", 45), ("resnet50", "imagenet", 32), ("resnet50", "small", 21), ("resnet10", "small", 21)],
)
def test_features_are_those_of_torchvisions_layout(tmp_path, name, stem, side):
    state = random_state_dict(name, 8, {"imagenet": 7, "small": 3}[stem])
    encoder = new_encoder(encoder=name, stem=stem)
    notes = initialize_encoder(encoder, written(tmp_path, state))
    assert notes == ["left out: fc", "the projection head starts from random weights"]
    pixels = np.random.default_rng(1).integers(0, 256, [3, side, side, 3]).astype(np.float32)
    prepared = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    wanted = numpy_resnet.features(state, prepared.transpose(0, 3, 1, 2).astype(np.float32))
    found = encoder.get_layer("backbone")(pixels, training=False).numpy()
    assert relative_error(found, wanted) < 1e-5
    assert np.std(wanted) > 0.01


def test_what_is_exported_starts_as_it_was(tmp_path):
    """And the head stays as the seed drew it, for an export has none."""
    trained, encoder, fresh = trained_encoder(), new_encoder(seed=5), new_encoder(seed=5)
    tensor_file.write(str(tmp_path / "model.safetensors"), state_dict(trained.get_layer("backbone")), {})
    initialize_encoder(encoder, str(tmp_path))  # the folder of the export
    for mine, theirs in zip(encoder.get_layer("backbone").variables, trained.get_layer("backbone").variables):
        np.testing.assert_array_equal(mine, theirs)
    for mine, drawn in zip(encoder.get_layer("projection").variables, fresh.get_layer("projection").variables):
        np.testing.assert_array_equal(mine, drawn)


def test_a_saved_model_gives_all_it_has(tmp_path):
    trained, encoder = trained_encoder(), new_encoder(seed=5)
    trained.save(str(tmp_path / "model"), save_format="tf", include_optimizer=False, save_traces=False)
    assert initialize_encoder(encoder, str(tmp_path / "model")) == ["its projection head is taken as well"]
    for mine, theirs in zip(encoder.variables, trained.variables):
        np.testing.assert_array_equal(mine, theirs)


def test_starting_weights_are_kept_to_the_last_bit(tmp_path):
    from instcls_tf.config import PretrainConfig

    trained = trained_encoder(mlp_head=False)
    keep_starting_weights(str(tmp_path), trained)
    config = PretrainConfig(workdir=str(tmp_path), mlp_head=False, **SETTINGS)
    for mine, theirs in zip(load_starting_encoder(str(tmp_path), config).variables, trained.variables):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(UserError, match=r"start\.safetensors: is missing: the run began before"):
        load_starting_encoder(str(tmp_path / "other"), config)


# --------------------------------------------------------------------------------------------------- names of others


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "model.encoder."])
def test_what_stands_before_names_is_left_out(plain, prefix):
    state = small_state()
    values = match(plain, {prefix + name: value for name, value in state.items()}, "w").values
    np.testing.assert_array_equal(values["conv1.weight"].transpose(3, 2, 0, 1), state["conv1.weight"])


def test_moco_gives_its_query_encoder_and_its_head():
    """Its head is ours: two linear maps with a ReLU between them."""
    random = np.random.default_rng(2)
    head = {"fc.0.weight": [64, 64], "fc.0.bias": [64], "fc.2.weight": [16, 64], "fc.2.bias": [16]}
    query = {name: value for name, value in small_state().items() if not name.startswith("fc.")}
    query |= {name: random.normal(size=shape).astype(np.float32) for name, shape in head.items()}
    state = {f"module.encoder_q.{name}": value for name, value in query.items()}
    state |= {f"module.encoder_k.{name}": value + 1 for name, value in query.items()}
    state["module.queue"] = np.zeros([16, 100], np.float32)
    encoder = new_encoder()
    matched = match(encoder, state, "w")
    assert matched.notes == ["left out: encoder_k, queue", "its projection head is taken as well"]
    fill(encoder, matched)
    features = np.abs(random.normal(size=[5, 64])).astype(np.float32)
    hidden = np.maximum(features @ query["fc.0.weight"].T + query["fc.0.bias"], 0)
    wanted = hidden @ query["fc.2.weight"].T + query["fc.2.bias"]
    np.testing.assert_allclose(encoder.get_layer("projection")(features), wanted, rtol=1e-5, atol=1e-5)
    other = match(new_encoder(embedding_size=8), state, "w")
    assert other.notes == [
        "left out: encoder_k, queue, projection of another shape",
        "the projection head starts from random weights",
    ]


def test_the_weights_are_found_within_checkpoints_of_pytorch():
    state = {"conv1.weight": 1}
    for content in (state, {"state_dict": state, "epoch": 3}, {"model": {"state_dict": state}},
                    {"student": {}, "teacher": state}):  # fmt: skip
        assert arrays._state_in(content) == state
    assert arrays._state_in([1]) == {}


# ------------------------------------------------------------------------------------------------ what does not fit


def test_every_weight_is_accounted_for(plain):
    state, encoder = small_state(), plain
    missing = {name: value for name, value in state.items() if name not in ("layer2.1.bn2.running_var", "bn1.bias")}
    assert refusal(encoder, missing) == "lacks 2 weights: bn1.bias, layer2.1.bn2.running_var"
    assert refusal(encoder, {**state, "layer1.0.se.weight": np.ones([2], np.float32)}) == (
        "1 weights are left over, which this network has not: layer1.0.se.weight"
    )
    for name in ("layer1.0.se.fc.0.weight", "layer4.1.head.weight", "conv1.predictor.bias"):  # no classifier
        assert refusal(encoder, {**state, name: np.ones([2], np.float32)}) == (
            f"1 weights are left over, which this network has not: {name}"
        )
    assert refusal(encoder, {**state, "layer3.0.bn1.weight": np.ones([9], np.float32)}) == (
        "layer3.0.bn1.weight has shape (9,), wanted (32,)"
    )
    assert refusal(encoder, {**state, "bn1.bias": np.full([8], np.nan, np.float32)}) == (
        "bn1.bias has values that are not finite"
    )


def test_another_network_is_told_by_its_flags(plain):
    encoder = plain
    assert refusal(encoder, random_state_dict("resnet50", 16, 7)) == (
        "is of --encoder=resnet50 --width_multiplier=0.25 --stem=imagenet, this run of --encoder=resnet18"
        " --width_multiplier=0.125 --stem=small"
    )
    deeper = {**small_state(), "layer1.2.conv1.weight": np.zeros([8, 8, 3, 3], np.float32)}
    assert (
        refusal(encoder, deeper) == "is a ResNet of 3, 2, 2, 2 basic blocks, wanted one of resnet50, resnet18, resnet10"
    )
    assert refusal(encoder, {"stem.0.weight": np.ones([3], np.float32)}).startswith("holds no ResNet, wanted one")
    both = {f"{prefix}{name}": value for prefix in ("a.", "b.") for name, value in small_state().items()}
    assert refusal(encoder, both).startswith("holds 2 networks (a., b.), wanted one whose weights have torchvision's")


@pytest.mark.parametrize("version", ["2.6.0", "2.10.1+cpu", "3.0.0a0", "2.5.1+cu121", "1.13.1", "unknown"])
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.PTH.tar", "pytorch_model.bin"])
def test_pytorch_reads_weights_only_from_2_6_on(tmp_path, monkeypatch, name, version):
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda module: "there")
    monkeypatch.setattr(kinds.importlib.metadata, "version", lambda package: version)
    path = tmp_path / name
    path.touch()
    if version in ("2.6.0", "2.10.1+cpu", "3.0.0a0"):
        assert kinds.kind_of(str(path)) == (kinds.TORCH, str(path))
        return
    with pytest.raises(UserError) as refusal:
        kinds.kind_of(str(path))
    assert str(refusal.value) == (
        f"--init={path}: PyTorch {version} may run programs that such a file holds (CVE-2025-32434), wanted 2.6 or"
        f" later, or its state dict as .safetensors"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("R-50.pkl", "is a pickle, which may run any program when it is opened, and is not opened here; wanted"),
        ("model.h5", "of an unknown kind, wanted the folder of a run or of a Keras SavedModel, or weights as"),
        ("no.npz", "no such file or folder, wanted the folder of a run"),
        ("folder", "holds neither a run nor a SavedModel, wanted"),
        ("model.pth", "reading it needs PyTorch, which is not installed: install it, or write its state dict as"),
    ],
)
def test_what_cannot_be_started_from(tmp_path, monkeypatch, name, sentence):
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda module: None)
    (tmp_path / "folder").mkdir()
    if not name.startswith(("no", "folder")):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        kinds.kind_of(str(tmp_path / name))
    assert str(caught.value).startswith(f"--init={tmp_path / name}: {sentence}")


def test_a_run_without_a_checkpoint_is_named_by_its_flag(tmp_path):
    begin_run(PretrainConfig(dataset="digits", workdir=str(tmp_path / "run")))
    with pytest.raises(UserError, match=f"^--init={tmp_path / 'run'}: the run has not saved a checkpoint yet"):
        arrays.read_arrays(str(tmp_path / "run"))


def test_files_that_are_damaged_or_hold_objects(tmp_path):
    np.savez(tmp_path / "objects.npz", conv=np.array([{}], object))
    (tmp_path / "damaged.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "whole.npz", conv=np.arange(1000.0))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "spoilt.npz").write_bytes(whole[:2000] + b"spoilt" + whole[2006:])
    np.save(tmp_path / "one.npy", np.arange(9.0))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("objects", "damaged", "cut", "spoilt", "one"):
        with pytest.raises(UserError, match=rf"{name}\.npz: is no \.npz of plain arrays"):
            arrays.read_arrays(str(tmp_path / f"{name}.npz"))


def test_safetensors_of_other_number_types(tmp_path):
    """bfloat16 is the upper half of a float32."""
    values = np.array([1.5, -2.0, 0.15625], np.float32)
    halves = values.astype(np.float16)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    header = json.dumps({
        "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
        "b": {"dtype": "F16", "shape": [1, 3], "data_offsets": [6, 12]},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
    }).encode()  # fmt: skip
    content = upper.tobytes() + halves.tobytes() + struct.pack("<q", 7)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    found = arrays.read_arrays(str(tmp_path / "w.safetensors"))
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], values[None])
    assert found["a"].dtype == found["b"].dtype == np.float32
