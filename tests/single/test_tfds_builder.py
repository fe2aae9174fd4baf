"""TFDS by name: what is on the disk is opened, what is wrong with a name is said, and the network is never asked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from tests.commands import TIMEOUT

ROOT = Path(__file__).resolve().parents[2]
OTHERS = "digits, folder:PATH, records:PATH"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """`mnist` as its code does not have it, `plain` in two versions, `several` with two configurations, and `voc`."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    image = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 2, 3), encoding_format="png")})
    examples = [{"image": np.full([2, 2, 3], value, np.uint8)} for value in range(3)]
    for name, version, config in [
        ("mnist", "9.0.0", None),
        ("plain", "1.0.0", None),
        ("plain", "1.2.0", None),
        ("several", "1.0.0", "big"),
        ("several", "1.0.0", "small"),
        ("voc", "4.0.0", "2007"),
    ]:
        tfds.dataset_builders.store_as_tfds_dataset(
            name, version, image, {"train": enumerate(examples)}, config=config, data_dir=folder
        )
    (folder / "several" / ".config" / "metadata.json").unlink()  # which names the default
    return str(folder)


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("plain", "plain/1.2.0"),
        ("plain:1.0.0", "plain/1.0.0"),
        ("plain:1.*.*", "plain/1.2.0"),
        ("Plain", "plain/1.2.0"),
        ("several/big", "several/big/1.0.0"),
        ("several/small:1.0.0", "several/small/1.0.0"),
        ("mnist:9.0.0", "mnist/9.0.0"),
        ("voc/2007", "voc/2007/4.0.0"),
        ("voc", "voc/2007/4.0.0"),
    ],
)
def test_what_is_prepared_is_opened(data_dir, name, opened):
    source = open_source(name, data_dir=data_dir)
    assert source.num_instances == 3 and source.builder.data_dir == f"{data_dir}/{opened}"


UNKNOWN = f"no such dataset, wanted {OTHERS} or a TFDS name"
MISTAKES = {
    "huggingface:mnist": f"datasets of 'huggingface' cannot be read, wanted {OTHERS} or a name of TFDS itself",
    "kaggle:mnist": f"datasets of 'kaggle' cannot be read, wanted {OTHERS} or a name of TFDS itself",
    "mnist:7.7.7": "no version '7.7.7', wanted one of 3.0.1, 9.0.0",
    "plain:3.*.*": "no version '3.*.*', wanted one of 1.0.0, 1.2.0",
    "mnist:latest": "no version 'latest', wanted one of 3.0.1, 9.0.0",
    "mnist:3.0": "no version '3.0', wanted one of 3.0.1, 9.0.0",
    "Mnist:3": "no version '3', wanted one of 3.0.1, 9.0.0",
    "plain:1.0": "no version '1.0', wanted one of 1.0.0, 1.2.0",
    "voc/2007:4.0": "no version '4.0', wanted one of 4.0.0",
    "voc/2099:4.0": "no configuration '2099', wanted one of 2007, 2012",
    "several:1.0": "wanted one of its configurations, several/big, small",
    "mnist/a b": "cannot be understood, wanted mnist[/CONFIG][:1.2.3]",
    "no_such_set:3.0": f"{UNKNOWN}, NAME[/CONFIG][:1.2.3]",
    "voc/2099": "no configuration '2099', wanted one of 2007, 2012",
    "voc/2007:1.0.0": "no version '1.0.0', wanted one of 4.0.0",
    "several/medium": "no configuration 'medium', wanted one of big, small",
    "several": "wanted one of its configurations, several/big, small",
    "plain/train": "no configuration 'train', it has none",
    "cifar10/plain": "no configuration 'plain', it has none",
    "plain/key=value": "wanted a TFDS name without arguments (key)",
    "mnist": "not prepared, run first: tfds build mnist --data_dir={dir}, or name a version that is there: mnist:9.0.0",
    "mnist:3.0.1": "not prepared, run first: tfds build mnist:3.0.1 --data_dir={dir}, or name a version that is there:"
    " mnist:9.0.0",
    "cifar10": "not prepared, run first: tfds build cifar10 --data_dir={dir}",
    "voc/2012": "not prepared, run first: tfds build voc/2012 --data_dir={dir}",
    "cifra10": f"{UNKNOWN}; did you mean cifar10?",
    "no_such_set": UNKNOWN,
    "no such set": f"{UNKNOWN}, NAME[/CONFIG][:1.2.3]",
    "/photos": "did you mean folder:/photos?",
    "./photos": "did you mean folder:./photos?",
    "~/photos": "did you mean folder:~/photos?",
    ".": "did you mean folder:.?",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_with_a_name_is_said(data_dir, name):
    with pytest.raises(UserError) as error:
        open_source(name, data_dir=data_dir)
    assert str(error.value) == f"--dataset={name}: {MISTAKES[name]}".format(dir=data_dir)


def test_folders_of_images_and_of_records_are_guessed(tmp_path, monkeypatch):
    for name in ("my-photos", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name, meant in [
        ("my-photos", "folder:my-photos"),
        ("photos", "folder:photos"),
        ("shards", "records:shards"),
        (str(tmp_path / "shards"), f"records:{tmp_path}/shards"),
    ]:
        with pytest.raises(UserError) as error:
            open_source(name, data_dir=str(tmp_path / "tfds"))
        assert str(error.value).endswith(f"did you mean {meant}?")


def test_a_dataset_beside_its_data_dir_is_no_folder_of_images(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir)
    assert open_source("voc/2007", data_dir=".").num_instances == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"not JSON"])
def test_damaged_data_are_answered(data_dir, tmp_path, damage):
    shutil.copytree(Path(data_dir) / "plain", tmp_path / "plain")
    (tmp_path / "plain" / "1.2.0" / "dataset_info.json").write_bytes(damage)
    with pytest.raises(UserError) as error:
        open_source("plain", data_dir=str(tmp_path))
    assert str(error.value).startswith("--dataset=plain: TFDS cannot open what is prepared of it (")
    assert "\n" not in str(error.value)


# Ends the process at the first look-up or connection in Python; what is not Python goes by the proxy.
WITHOUT_NETWORK = """
import os, socket, sys
def refuse(event, arguments):
    of_network = event == "socket.connect" and arguments[0].family != socket.AF_UNIX
    if of_network or event.startswith(("socket.getaddrinfo", "socket.gethostby", "socket.sendto")):
        os.write(1, f"{event} {arguments[1:]}".encode())
        os._exit(9)
sys.addaudithook(refuse)
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
for name in sys.argv[2:]:
    try:
        open_source(name, data_dir=sys.argv[1])
    except UserError:
        print(name)
"""
ABSENT = ["cifar10", "cifar11", "huggingface:mnist", "mnist:9.9.9", "mnist:3.0", "voc/2099", "kaggle:x"]


def test_the_network_is_not_asked(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {**os.environ, **{f"{kind}_proxy": address for kind in ("http", "https", "all", "HTTP", "HTTPS")}}
        command = [sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path / "none"), *ABSENT]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0 and done.stdout.split() == ABSENT, done.stdout + done.stderr
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
