"""The benchmarks of classifier and step: sensible figures at small sizes, and mistakes in one sentence."""

import hashlib
import json
import math
import re
import sys

import pytest
import tensorflow as tf

from instcls_tf.benchmark import encoder, environments, timing
from instcls_tf.benchmark.other_workers import OtherWorkers
from instcls_tf.benchmark.sizes import ClassifierBenchmark
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.plan import classifier_bytes
from tests.commands import run_script

SIZES = ["--num_instances=3001", "--embedding_size=16", "--hard_negatives=7", "--repeats=2"]


def test_classifier_on_two_workers():
    finished = run_script("benchmark", "classifier", *SIZES, "--batch_rows=33", workers=2)
    assert finished.status == 0, finished.output
    (answer,) = re.findall(r"{.*}", finished.stdout)  # the launcher puts its tag before it and sometimes behind it
    result = json.loads(answer)
    assert result["workers"] == 2 and result["state_bytes"] == 2 * 4 * 1501 * 16
    assert result["ratio_to_matmul"] == pytest.approx(result["seconds_per_step"] / result["bare_matmul_seconds"])
    for name in ("bare_matmul_seconds", "seconds_per_step", "plain_seconds_per_step"):
        assert result[name] > 0, name
    assert result["peak_bytes_above_state"] < result["peak_bytes"] < result["peak_rss_bytes"] < 4e9
    assert result["planned_bytes"] > result["state_bytes"]


def test_checks(tmp_path):
    recipe = ["--image_size=8", "--encoder=resnet18", "--width_multiplier=0.125", "--stem=small", "--batch_size=8"]
    words = ["--micro_batch=4", *recipe, *SIZES[:3], "--repeats=2", f"--folder={tmp_path}"]
    finished = run_script("benchmark", "checks", *words)
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    low, high = result["checks_share_quartiles"]
    assert low <= result["checks_share"] <= high < 1
    assert result["steps_per_epoch"] == 376
    assert result["save_share"] == pytest.approx(
        result["save_seconds"] / (result["save_seconds"] + 376 * result["seconds_per_step"])
    )
    for name in ("checksum_share", "watchdog_share", "save_share"):
        assert 0 < result[name] < 1, name
    assert result["restore_seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_checkpoint(tmp_path):
    finished = run_script("benchmark", "checkpoint", *SIZES[:2], "--repeats=2", f"--folder={tmp_path}")
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["workers"] == 1 and result["bytes"] == 2 * 4 * 3001 * 16
    assert {name for name in result if name.endswith("_seconds") and result[name] > 0} == {
        f"{name}_seconds" for name in ("save", "check", "restore", "bare_write", "bare_read")
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subject", ["checks", "checkpoint"])
def test_a_folder_that_is_not_there(subject):
    finished = run_script("benchmark", subject, "--folder=/nowhere")
    assert finished.status == 2 and finished.stderr == "error: --folder=/nowhere: must be a folder to write into\n"


def test_scaling(tmp_path):
    picture = tmp_path / "new" / "scaling.png"
    sizes = [
        "--num_instances=2000,1000",
        "--workers=1",
        "--batch_rows=33",
        "--class_momentum_dtype=bfloat16",
        *SIZES[1:],
    ]
    finished = run_script("benchmark", "scaling", *sizes, f"--output={picture}")
    assert finished.status == 0, finished.output
    *table, last = finished.stdout.splitlines()
    result = json.loads(last)
    assert [point["num_instances"] for point in result["points"]] == [1000, 2000]
    assert result["points"][1]["state_bytes"] == (4 + 2) * 2000 * 16
    times = [point["seconds_per_step"] for point in result["points"]]
    assert result["seconds_per_million_classes"] == pytest.approx(sum(times) / 3000 * 1e6)
    assert table[-1].startswith("| 2,000 | ") and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num_instances=1e6"], "--num_instances=1e6: must be whole numbers"),
        (["--num_instances=5000,50"], "--hard_negatives=100: must be at least 1 and below --num_instances=50"),
        (["--workers=0"], "--workers=0: must be at least 1"),
        (
            ["--output=/proc/x.png"],
            "--output=/proc/x.png: cannot write this file (No such file or directory)",
        ),
    ],
)
def test_scaling_that_cannot_be_measured(arguments, sentence):
    finished = run_script("benchmark", "scaling", *arguments)
    assert finished.status == 2 and finished.stderr == f"error: {sentence}\n"


def test_hard_negatives_agree_with_faiss():
    finished = run_script("benchmark", "hard_negatives", *SIZES)
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["agreement"] > 0.999  # ties and float32 may swap the last members
    assert result["ratio_to_faiss"] == pytest.approx(result["seconds"] / result["faiss_seconds"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_instances": 0}, "--num_instances=0: must be at least 1"),
        ({"repeats": 0}, "--repeats=0: must be at least 1"),
        ({"class_momentum_dtype": "float16"}, "--class_momentum_dtype=float16: must be one of float32, bfloat16, int8"),
        ({"batch_rows": 2}, "--batch_rows=2: must be at least the 3 workers"),
        ({"temperature": 0.0}, "--temperature=0.0: must be a number above 0"),
        ({"smoothing": 1.0}, "--smoothing=1.0: must be 0 or more and below 1"),
        ({"num_instances": 100}, "--hard_negatives=100: must be at least 1 and below --num_instances=100"),
        ({"num_instances": 2}, "--num_instances=2: must be at least the 3 workers"),
        ({"as_worker_of": 4}, "--as_worker_of=4: must be 0 under a launcher of 3 workers: one stands for all"),
        (
            {"as_worker_of": 1},
            "--as_worker_of=1: must be at least 2 workers, or 0 for those that are there",
        ),
    ],
)
def test_sizes_that_cannot_be_measured(changes, sentence):
    with pytest.raises(UserError) as refusal:
        ClassifierBenchmark(**changes).validate(num_workers=3)
    assert str(refusal.value) == sentence


def test_seconds_are_the_median_without_the_first_call(monkeypatch):
    durations, now = [50.0, 4.0, 1.0, 2.0], [100.0]

    def action():
        now[0] += durations.pop(0)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert seconds_of(action, 3) == 2 and durations == []


ENCODER = ["--encoder=resnet18", "--width_multiplier=0.125", "--image_size=16", "--images=4", "--repeats=2"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_encoder(num_workers):
    finished = run_script("benchmark", "encoder", *ENCODER, "--precision=float32", workers=num_workers)
    assert finished.status == 0, finished.output
    result = json.loads(re.findall(r"{.*}", finished.stdout)[-1])
    assert result["workers"] == num_workers and result["precision"] == "float32" and not result["ratio_to_peer"]
    (figures,) = result["by_name"].values()
    assert 0 < figures["slowest"] <= figures["images_per_second"] <= figures["fastest"]


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--images=1", "--images=1: must be at least 2, over which BN takes its statistics"),
        (
            "--environments=peers",
            "--width_multiplier=0.125: must be 1.0 with --environments: the ResNet that torchvision has",
        ),
    ],
)
def test_an_encoder_that_cannot_be_measured(flag, sentence):
    finished = run_script("benchmark", "encoder", *ENCODER, flag)
    assert finished.status == 2 and finished.stderr == f"error: {sentence}\n"


def test_a_peer_that_does_not_start_is_a_failure(tmp_path):
    """It is told beside the figures of the others."""
    environment = tmp_path / "torch"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)  # which has no PyTorch
    made_of = hashlib.sha256(repr((environments.PACKAGES["torch"], sys.version)).encode()).hexdigest()
    (environment / "made_of").write_text(made_of)
    words = ["--encoder=resnet18", "--image_size=32", "--images=2", "--repeats=1", f"--environments={tmp_path}"]
    finished = run_script("benchmark", "encoder", *words)
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["by_name"]["this design"]["images_per_second"] > 0
    assert "No module named 'torch'" in result["by_name"]["PyTorch"]["failure"]


STAND_IN = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    if int(line) > 5:
        sys.exit("out of memory")
    print(0.5 * int(line), flush=True)
"""


def test_a_peer_takes_turns(monkeypatch, tmp_path):
    (tmp_path / "peer.py").write_text(STAND_IN)
    monkeypatch.setattr(encoder, "_PROGRAM", str(tmp_path / "peer.py"))
    with encoder._peer({}, sys.executable) as turn:
        assert [turn(3), turn(1)] == [1.5, 0.5]
        for _ in range(2):  # when it ends, and when it has ended
            with pytest.raises(UserError, match=r"^PyTorch ended with status 1: out of memory$"):
                turn(6)
    (tmp_path / "peer.py").write_text(STAND_IN.replace("print(0.5", "print('hello', 0.5"))
    with (
        pytest.raises(UserError, match=r"^PyTorch said 'hello 1.0', wanted seconds$"),
        encoder._peer({}, sys.executable),
    ):
        pass
    with pytest.raises(UserError, match=r"^/nowhere: cannot be started"), encoder._peer({}, "/nowhere"):
        pass


def test_a_peer_that_hangs_is_ended(monkeypatch, tmp_path):
    (tmp_path / "peer.py").write_text(STAND_IN.replace("sys.exit(", "__import__('time').sleep(1000) or sys.exit("))
    monkeypatch.setattr(encoder, "_PROGRAM", str(tmp_path / "peer.py"))
    monkeypatch.setattr(encoder, "_PATIENCE_SECONDS", 2)
    with encoder._peer({}, sys.executable) as turn:
        assert turn(3) == 1.5
        with pytest.raises(UserError, match=r"^PyTorch was ended: no answer in 2 s, or memory ran out$"):
            turn(6)


def test_a_peer_that_ends_leaves_the_figures_of_the_others(monkeypatch, tmp_path):
    (tmp_path / "peer.py").write_text(STAND_IN.replace("> 5", "== 5"))  # a turn, but not the first two steps
    monkeypatch.setattr(encoder, "_PROGRAM", str(tmp_path / "peer.py"))
    monkeypatch.setattr(encoder, "_python", lambda environments: sys.executable)
    config = PretrainConfig(encoder="resnet18", image_size=16)
    result = encoder.measure_encoder(config, images=2, repeats=2, environments=str(tmp_path)).result
    assert set(result["by_name"]["this design"]) == {"images_per_second", "slowest", "fastest"}
    failure = {"failure": "PyTorch ended with status 1: out of memory"}
    assert result["by_name"] == {**result["by_name"], "PyTorch": failure, "PyTorch, compiled": failure}
    assert result["ratio_to_peer"] == {}


STEP = ["--encoder=resnet18", "--stem=small", "--image_size=16", "--width_multiplier=0.25", "--repeats=2"]
PARTS = ("data_wait_seconds", "encoder_seconds", "classifier_seconds", "communication_seconds")


def test_step_on_two_workers_whose_shares_differ():
    sizes = ["--dataset=digits", "--augmentation=digits", "--hard_negatives=7", "--batch_size=11", "--micro_batch=4"]
    finished = run_script("benchmark", "step", *STEP, *sizes, workers=2)
    assert finished.status == 0, finished.output
    (line,) = [line for line in finished.stdout.splitlines() if "{" in line]
    result = json.JSONDecoder().raw_decode(line[line.index("{") :])[0]  # the launcher may put its tag behind, too
    assert (result["workers"], result["num_instances"]) == (2, 1437)
    assert result["parts_seconds"] == pytest.approx(sum(result[part] for part in PARTS))
    assert result["parts_to_step"] == pytest.approx(result["parts_seconds"] / result["seconds_per_step"])
    assert result["images_per_second"] == pytest.approx(11 / result["seconds_per_step"])
    assert all(result[part] > 0 for part in PARTS)
    saved = result["together_seconds"] - result["one_by_one_seconds"]
    assert result["overlap_seconds_saved"] == pytest.approx(saved, abs=1e-9)


@pytest.mark.parametrize(("rank", "ids"), [(0, range(8)), (1, range(8, 11))])
def test_synthetic_images_are_shared_out_in_groups(monkeypatch, rank, ids):
    from instcls_tf.benchmark import step
    from instcls_tf.distributed import collectives

    monkeypatch.setattr(collectives, "_size", 2)
    monkeypatch.setattr(collectives, "_rank", rank)
    config = PretrainConfig(batch_size=11, micro_batch=4, image_size=5, views=3)
    views, instance_ids = step.synthetic_batch(config, num_instances=50)
    assert views.shape == [len(ids), 3, 5, 5, 3] and views.dtype == "uint8"
    assert instance_ids.numpy().tolist() == list(ids)


def test_step_with_wrong_sizes():
    finished = run_script("benchmark", "step", *STEP, "--num_instances=50")
    assert finished.status == 2 and "must be below --num_instances=50\n" in finished.stderr
    finished = run_script("benchmark", "step", *STEP, "--batch_contrast=1")
    assert finished.status == 2 and finished.stderr.startswith("error: --batch_contrast=1.0: must be 0, NT-Xent")
    finished = run_script("benchmark", "step", *STEP, "--repeats=0")
    assert (finished.status, finished.stderr) == (2, "error: --repeats=0: must be at least 1\n")


def test_one_worker_s_share_of_a_classifier():
    finished = run_script("benchmark", "classifier", *SIZES, "--as_worker_of=4", "--batch_rows=34")
    assert finished.status == 0, finished.output
    *table, last = finished.stdout.splitlines()
    result = json.loads(last)
    assert (result["workers"], result["as_worker_of"], result["local_instances"]) == (1, 4, 751)
    assert result["collectives_included"] is False and "without collectives" in table[0]
    assert result["state_bytes"] == 2 * 4 * 751 * 16
    assert result["planned_bytes"] == classifier_bytes.peak_bytes(3001, 4, 34, 16, 7, threads=result["threads"])
    for name in ("bare_matmul_seconds", "seconds_per_step", "plain_seconds_per_step"):
        assert result[name] > 0, name


@pytest.mark.parametrize("temperature", [0.02, 0.001])
def test_one_worker_s_share_at_a_small_temperature(temperature):
    """Most rows have no label on its classes, and so no maximum of their own."""
    words = ["--as_worker_of=4", "--batch_rows=34", "--smoothing=0", "--nobare", "--noplain"]
    finished = run_script("benchmark", "classifier", *SIZES, *words, f"--temperature={temperature}")
    assert finished.status == 0, finished.output
    assert json.loads(finished.stdout.splitlines()[-1])["seconds_per_step"] > 0


def test_what_other_workers_send_completes_the_batch():
    settings = ClassifierBenchmark(3001, 34, 16, hard_negatives=7, as_worker_of=4)
    others = OtherWorkers(settings)
    assert others.gathered(tf.zeros([9, 16]), "layer_embeddings").shape == [34, 16]
    ids, ranks = tf.unstack(others.gathered(tf.zeros([9, 2], tf.int32), "layer_ids"), axis=1)
    assert ids.shape == [34] and set(ranks[9:].numpy()) == {1, 2, 3} and max(ids) < 3001
    assert others.gathered(tf.zeros([9, 7], tf.int32), "lists_of_rows").shape == [34, 7]
    # Of random directions: the 2,250 classes of the others, each with exp(1 / (2 D tau^2)).
    sums = others.summed(tf.ones([3, 34]), "layer_sums")
    assert sums[:, 5].numpy() == pytest.approx([1 + 2250 * math.exp(1 / (2 * 16 * 0.15**2)), 2, 1])
    assert others.summed(tf.ones([34, 16]), "layer_embedding_gradient").numpy().max() == 1


@pytest.mark.parametrize(("given", "rows"), [([], 8192), (["--batch_rows=64"], 64)])
def test_rows_of_a_share_are_the_paper_s_unless_given(given, rows):
    finished = run_script("benchmark", "classifier", "--as_worker_of=2", "--num_instances=2147483647", *given)
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["batch_rows"] == rows and result["seconds_per_step"] is None, "a terabyte fits nowhere"
