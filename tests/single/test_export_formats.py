"""Exports for PyTorch, Detectron2 and ONNX: names, values, and what is refused; `scripts.export_matrix` runs them."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.export import numpy_resnet, runtimes, self_check, tensor_file
from instcls_tf.export.card import _facts, card_of
from instcls_tf.export.commands import export_of_run
from instcls_tf.export.formats import FORMATS
from instcls_tf.export.names import FORMAT_NAMES
from instcls_tf.export.subject import Subject
from instcls_tf.export.torchvision import state_dict
from instcls_tf.export.writing import export
from tests.commands import ROOT
from tests.encoders import trained_encoder

IMAGE_SIZE = 32
BLOCKS = {"resnet50": ([3, 4, 6, 3], [1, 3, 1]), "resnet18": ([2, 2, 2, 2], [3, 3])}


def torchvision_names(architecture: str) -> set[str]:
    """The keys of torchvision's `state_dict()` without `fc`, from its published architecture."""
    depths, kernels = BLOCKS[architecture]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", *(f"bn1.{part}" for part in norm)}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            place = f"layer{stage}.{block}"
            for index in range(1, len(kernels) + 1):
                names |= {f"{place}.conv{index}.weight", *(f"{place}.bn{index}.{part}" for part in norm)}
            if block == 0 and (stage > 1 or architecture == "resnet50"):
                names |= {f"{place}.downsample.0.weight", *(f"{place}.downsample.1.{part}" for part in norm)}
    return names


def moco_name(name: str) -> str:
    """As MoCo's convert-pretrain-to-detectron2.py replaces parts of names."""
    if "layer" not in name:
        name = "stem." + name
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for place in (1, 2, 3):
        name = name.replace(f"bn{place}", f"conv{place}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {
        name: Subject(trained_encoder(encoder=name, width_multiplier=1, stem="imagenet"), IMAGE_SIZE, 0.875)
        for name in BLOCKS
    }


@pytest.fixture(scope="module")
def exported(subjects, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Folders by format and architecture."""
    folders = {}
    for form, name in (("torchvision", "resnet18"), ("torchvision", "resnet50"), ("detectron2", "resnet50")):
        folders[form, name] = tmp_path_factory.mktemp("exports") / "model"
        export(FORMATS[form], subjects[name], str(folders[form, name]))
    return folders


@pytest.mark.parametrize("name", BLOCKS)
def test_torchvision_finds_every_weight(exported, subjects, name):
    arrays, metadata = tensor_file.read(str(exported["torchvision", name] / "model.safetensors"))
    assert arrays.keys() == torchvision_names(name)
    assert metadata == {"format": "pt"}
    backbone = subjects[name].encoder.get_layer("backbone")
    np.testing.assert_array_equal(
        arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0), backbone.get_layer("layer2_0_conv1").kernel
    )
    np.testing.assert_array_equal(
        arrays["layer4.0.downsample.1.running_var"], backbone.get_layer("layer4_0_downsample_bn").moving_variance
    )
    counted = sum(array.size for key, array in arrays.items() if array.dtype == np.float32 and "running" not in key)
    assert counted == {"resnet50": 23_508_032, "resnet18": 11_176_512}[name]


def test_a_resnet50_has_318_names():
    assert len(torchvision_names("resnet50")) == 318


@pytest.mark.parametrize("name", BLOCKS)
def test_the_card_has_torchvisions_name_and_timm_its_settings(exported, name):
    folder = exported["torchvision", name]
    card = self_check.read_card(str(folder))
    assert (card["architecture"], card["verified_in"]) == (name, f"numpy {np.__version__}")
    assert card["max_error"] <= 1e-5
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == (name, 0)
    np.testing.assert_allclose(config["pretrained_cfg"]["mean"], [0.485, 0.456, 0.406])
    np.testing.assert_allclose(config["pretrained_cfg"]["std"], [0.229, 0.224, 0.225])


def test_detectron2_has_mocos_names_and_the_same_bits(exported):
    arrays, _ = tensor_file.read(str(exported["torchvision", "resnet50"] / "model.safetensors"))
    with open(exported["detectron2", "resnet50"] / "model.pkl", "rb") as file:
        found = pickle.load(file)
    assert found["matching_heuristics"] is True
    assert found["model"].keys() == {moco_name(name) for name in arrays}
    for name, array in arrays.items():
        assert array.tobytes() == found["model"][moco_name(name)].tobytes(), name
    assert {"stem.conv1.norm.running_mean", "res2.0.shortcut.norm.bias", "res5.2.conv3.weight"} <= found["model"].keys()
    recipe = (exported["detectron2", "resnet50"] / "R50-C4.yaml").read_text()
    assert "PIXEL_MEAN: [123.675, 116.280, 103.530]" in recipe
    assert "PIXEL_STD: [58.395, 57.120, 57.375]" in recipe


def test_numpy_computes_what_the_network_does(subjects):
    backbone = subjects["resnet18"].encoder.get_layer("backbone")
    images = np.random.default_rng(0).integers(0, 256, [2, 45, 70, 3], dtype=np.uint8)  # odd, so that padding matters
    card = {"input": subjects["resnet18"].input_facts(any_size=False)}
    found = numpy_resnet.features(state_dict(backbone), runtimes._prepared(images, card))
    assert self_check.relative_error(found, backbone(images, training=False)) < 1e-5


def test_a_small_stem_is_computed_as_well():
    backbone = trained_encoder().get_layer("backbone")
    images = np.random.default_rng(0).integers(0, 256, [1, 20, 24, 3], dtype=np.uint8)
    card = {"input": Subject(trained_encoder(), 32).input_facts(any_size=False)}
    found = numpy_resnet.features(state_dict(backbone), runtimes._prepared(images, card))
    assert self_check.relative_error(found, backbone(images, training=False)) < 1e-5


def test_a_wrong_layout_is_found_before_it_is_written(subjects, tmp_path):
    def write_mirrored(subject: Subject, folder: str) -> None:
        FORMATS["torchvision"].write(subject, folder)
        path = f"{folder}/model.safetensors"
        arrays, metadata = tensor_file.read(path)
        arrays["layer3.1.conv2.weight"] = np.ascontiguousarray(arrays["layer3.1.conv2.weight"][..., ::-1])
        tensor_file.write(path, arrays, metadata)

    mirrored = FORMATS["torchvision"]._replace(write=write_mirrored)
    with pytest.raises(UserError, match=r"not written, because numpy .* computes something else"):
        export(mirrored, subjects["resnet18"], str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"width_multiplier": 0.5}, {"stem": "small"}, {"encoder": "resnet10"}])
def test_networks_that_torchvision_has_not_are_refused(tmp_path, changes):
    encoder = networks.build_encoder(**{"encoder": "resnet18", "stem": "imagenet", **changes})
    wanted = "wanted a run with --encoder=resnet50 or resnet18, --width_multiplier=1 and --stem=imagenet"
    with pytest.raises(UserError, match=wanted):
        export(FORMATS["torchvision"], Subject(encoder, 32), str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def test_detectron2_wants_a_resnet50(subjects, tmp_path):
    with pytest.raises(UserError, match="wants a run with --encoder=resnet50"):
        export(FORMATS["detectron2"], subjects["resnet18"], str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["onnx", "onnx_int8"])
def test_onnx_names_what_is_missing(subjects, tmp_path, monkeypatch, name):
    """Before a run is read; and with the Pythons that the page names."""
    form = FORMATS[name]._replace(needed=("tensorflow", "no_such_package"))
    monkeypatch.setitem(FORMATS, name, form)
    pythons = "on CPython 3.10 to 3.12"
    sentence = f"--format={name}: needs no_such_package (pip install '.[onnx]', {pythons}), which is not installed"
    for act in (
        lambda: export(form, subjects["resnet18"], str(tmp_path / "model")),
        lambda: export_of_run(str(tmp_path / "no run"), str(tmp_path / "model"), name),
    ):
        with pytest.raises(UserError) as refusal:
            act()
        assert str(refusal.value) == sentence
    assert list(tmp_path.iterdir()) == []
    assert pythons in (ROOT / "docs" / "export.md").read_text()


def assert_same_outputs(model, subject: Subject, batch: int, height: int, width: int) -> None:
    images = np.stack([self_check.blocks(height, width, seed) for seed in range(batch)])
    features, projection = subject.outputs(images)
    outputs = model(images)
    assert self_check.relative_error(outputs["features"], features) < 1e-5
    assert self_check.relative_error(outputs["projection"], projection) < 1e-5


def test_onnx_computes_what_the_network_does(tmp_path):
    for package in ("tf2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)  # of the extra `onnx`
    subject = Subject(trained_encoder(), IMAGE_SIZE, 0.875)
    card = export(FORMATS["onnx"], subject, str(tmp_path / "model"))
    _, _, model = runtimes.open_model(str(tmp_path / "model"), card)
    for height, width in [(1, 1), (20, 31), (32, 32), (33, 47), (64, 64), (97, 60), (375, 500), (500, 375)]:
        for batch in (1, 3):
            assert_same_outputs(model, subject, batch, height, width)


def test_litert_computes_what_the_network_does(tmp_path):
    subject = Subject(trained_encoder(), IMAGE_SIZE, 0.875)
    card = export(FORMATS["litert"], subject, str(tmp_path / "model"))
    assert card["verified_in"] == f"tensorflow {tf.__version__}"
    _, _, model = runtimes.open_model(str(tmp_path / "model"), card)
    for batch, height, width in [(1, 1, 1), (3, 32, 32), (1, 47, 33), (2, 375, 500)]:
        assert_same_outputs(model, subject, batch, height, width)


def test_onnx_in_8_bits_points_the_same_way(tmp_path):
    for package in ("tf2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    card = export(FORMATS["onnx_int8"], Subject(trained_encoder(), IMAGE_SIZE, 0.875), str(tmp_path / "model"))
    assert 1e-9 < card["max_error"] < card["tolerance"] == 0.01
    assert [path.name for path in (tmp_path / "model").glob("*.onnx")] == ["model.onnx"]


def test_the_words_of_the_flag_are_the_formats():
    assert tuple(FORMATS) == FORMAT_NAMES


def test_a_changed_file_does_not_pass_the_check(exported, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in exported["torchvision", "resnet18"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert self_check.main([str(folder), "numpy"]) == 0
    assert "as exported" in capsys.readouterr().out
    arrays, metadata = tensor_file.read(str(folder / "model.safetensors"))
    arrays["layer4.1.conv2.weight"][7] *= 1.001
    tensor_file.write(str(folder / "model.safetensors"), arrays, metadata)
    assert self_check.main([str(folder), "numpy"]) == 1
    assert "NOT as exported" in capsys.readouterr().err


class _Program:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return self.function, ("run by the pickle",)


@pytest.mark.parametrize(("function", "name"), [(print, r"\w+\.print"), (np.genfromtxt, r"numpy.*\.genfromtxt")])
def test_a_pickle_that_would_run_something_is_refused(exported, tmp_path, capsys, function, name):
    source = exported["detectron2", "resnet50"]
    (tmp_path / "model_card.json").write_bytes((source / "model_card.json").read_bytes())
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"conv1.weight": _Program(function)}}))
    with pytest.raises(UserError, match=f"the pickle holds {name}, and arrays only are loaded"):
        self_check.run(str(tmp_path))
    assert "run by the pickle" not in capsys.readouterr().out


_CARD = '{"format": "FORMAT", "self_check": [], "input": {}, "tolerance": 1e-5, "metric": "relative error"}'
MISTAKES = {
    "no folder": (None, "holds no export"),
    "no json": ("{", "cannot be read as a model card"),
    "another json": ("{}", "is no model card of an export"),
    "unknown format": (_CARD.replace("FORMAT", "tar"), "has the unknown format tar"),
    "no file": (_CARD.replace("FORMAT", "detectron2"), "model.pkl: is missing"),
}


@pytest.mark.parametrize(("card", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_no_export_is_refused(tmp_path, card, sentence):
    if card is not None:
        (tmp_path / "model_card.json").write_text(card)
    with pytest.raises(UserError, match=sentence):
        self_check.run(str(tmp_path))


def test_cut_tensor_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_file.write(str(path), {"a": np.ones([3, 2], np.float32), "b": np.zeros([], np.int64)}, {"format": "pt"})
    content = path.read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    for length in (0, 5, 40, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            tensor_file.read(str(path))


def test_cosine_distance_sees_the_direction_alone():
    expected = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert self_check.cosine_distance(5 * expected, expected) == pytest.approx(0)
    assert self_check.cosine_distance([[3.0, 4.0], [1.0, 1.0]], expected) == pytest.approx(1 - 0.5**0.5)
    assert self_check.cosine_distance(np.full([2, 2], np.nan), expected) == np.inf


def test_relative_error_is_of_the_rows_largest_number():
    expected = np.array([[1000.0, 1.0], [0.001, 0.0]])
    assert self_check.relative_error(expected + [[0.0, 0.01], [0.0, 0.0]], expected) == pytest.approx(1e-5)
    assert self_check.relative_error(expected + [[0.0, 0.0], [1e-6, 0.0]], expected) == pytest.approx(1e-3)
    assert self_check.relative_error(expected[:, :1], expected) == np.inf
    assert self_check.relative_error(np.full([2, 2], np.nan), expected) == np.inf


@pytest.mark.parametrize(("method", "said"), [("diet", "untrained"), ("instance", "float32, 16 of the head")])
def test_the_card_says_what_was_trained(method, said):
    """DIET's projection stays as it was drawn."""
    subject = Subject(trained_encoder(), 32, origin={"recipe": {"method": method}})
    (row,) = re.findall(r"^\| projection \| (.*) \|$", _facts(card_of(subject, "onnx", True)), re.MULTILINE)
    assert row.startswith(said)
