"""What does not fit into the free memory is said, not tried; and the rest is measured."""

from __future__ import annotations

import json
import re

import pytest

from instcls_tf.benchmark import classifier, fitting, hard_negatives, memory, scaling, step
from instcls_tf.benchmark.sizes import ClassifierBenchmark
from instcls_tf.doctor import judgement, measure
from instcls_tf.errors import UserError
from instcls_tf.plan import classifier_bytes
from tests.commands import run_script
from tests.recipes import PLANNED

# No machine holds the weights of so many classes, a terabyte of them.
TOO_MANY = "--num_instances=2147483647"
MISFIT = r"does not fit: needs [\d.]+ GB of [\d.]+ GB free"
RECIPE = ["--image_size=8", "--encoder=resnet10", "--width_multiplier=0.125", "--stem=small", "--batch_size=8"]


@pytest.fixture
def free(monkeypatch):
    """Sets what the machine has free."""
    return lambda size: monkeypatch.setattr(fitting, "free_bytes", lambda: size)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_nothing_of_it_fits(num_workers):
    finished = run_script("benchmark", "classifier", TOO_MANY, workers=num_workers)
    assert finished.status == 0, finished.output
    result = json.loads(re.findall(r"{.*}", finished.stdout)[0])
    assert result["workers"] == num_workers
    for name in ("seconds_per_step", "bare_matmul_seconds", "ratio_to_matmul", "plain_seconds_per_step", "peak_bytes"):
        assert result[name] is None, name
    assert len(re.findall(MISFIT, finished.stdout)) == 3
    assert result["needed_bytes"] == int(1.1 * result["planned_bytes"]) > result["free_bytes"]


def test_the_rest_is_measured(free):
    """Room for this design, not for 33 x 20,000 logits."""
    settings = ClassifierBenchmark(20_000, 512, 16, hard_negatives=7, repeats=1)
    sizes = (20_000, 1, 512, 16)
    own = classifier_bytes.peak_bytes(*sizes, 7)
    bare, plain = (
        classifier_bytes.bare_products_bytes(*sizes),
        sum(classifier_bytes.data_parallel_bytes(*sizes).values()),
    )
    free((own + bare) // 2)
    assert own < bare < plain
    result, text, *_ = classifier.measure_classifier(settings)
    assert result["seconds_per_step"] > 0 and result["state_bytes"] == 2 * 4 * 20_000 * 16
    assert result["bare_matmul_seconds"] is result["ratio_to_matmul"] is None
    assert result["bare_needed_bytes"] == int(1.1 * bare)
    lines = text.splitlines()
    assert re.fullmatch(rf"\| three bare products \| {MISFIT} \|  \|", lines[2]), text
    assert re.fullmatch(r"\| this design \| [\d.e-]+ \|  \|", lines[3]), text


def test_what_a_worker_keeps_is_room_for_the_next():
    fit = fitting.look(0, reused_bytes=10**15)
    assert fit.free_bytes > 10**15 and str(fit) == "fits"


def test_without_a_system_that_tells_it_is_tried(free):
    free(None)
    assert fitting.look(10**18).holds


def test_bytes_of_bare_products():
    """B = 8 rows and the first of 3 workers' 4 of 10 classes, D = 2: logits, weights, embeddings, their gradients."""
    parts = 8 * 4 * 4 + 2 * (4 + 8) * 2 * 4
    assert classifier_bytes.bare_products_bytes(10, 3, 8, 2) == parts + round(0.04 * parts)


def test_a_sweep_over_n_goes_on(tmp_path):
    picture = tmp_path / "scaling.png"
    sizes = ["--num_instances=1000,2147483647", "--workers=1", "--batch_rows=33", "--hard_negatives=7", "--repeats=1"]
    finished = run_script("benchmark", "scaling", *sizes, f"--output={picture}")
    assert finished.status == 0, finished.output
    *table, last = finished.stdout.splitlines()
    result = json.loads(last)
    first, second = result["points"]
    assert second["seconds_per_step"] is None
    assert result["seconds_per_million_classes"] == pytest.approx(first["seconds_per_step"] * 1000)
    assert re.match(rf"\| 2,147,483,647 \| {MISFIT} \| \| \| ", table[-1])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_point_of_a_sweep_fits():
    assert set(scaling._summary([]).values()) == {None}


@pytest.mark.parametrize(
    ("subject", "arguments"),
    [
        ("step", RECIPE),
        ("checks", RECIPE),
        ("checkpoint", []),
        ("hard_negatives", []),
    ],
)
def test_what_is_nothing_without_its_classifier(subject, arguments):
    finished = run_script("benchmark", subject, TOO_MANY, *arguments)
    assert finished.status == 2, finished.output
    wanted = "wanted a smaller --num_instances or more machines"
    assert re.fullmatch(rf"error: benchmark {subject}: {MISFIT} for a worker, {wanted}\n", finished.stderr)


@pytest.mark.parametrize("subject", ["step", "checks"])
def test_activations_that_do_not_fit(free, subject):
    """Fewer classes would help nobody."""
    config = PLANNED.replace(dataset="synthetic", image_size=512)
    free(10**7)
    wanted = "wanted a smaller --micro_batch, --image_size or --encoder, the largest part is activations"
    with pytest.raises(UserError, match=f"^benchmark {subject}: {MISFIT} for a worker, {wanted}$"):
        step.refuse_misfit(subject, config, 1000)
    fit, less = measure.fit_of(config, 1000)
    assert not fit.holds and f"wanted {less}" == wanted


def test_classes_of_real_images_that_do_not_fit(free):
    """No flag says how many these are."""
    config = PLANNED.replace(dataset="folder:/data/photos")
    free(10**7)
    wanted = "fewer images, --class_weights_dtype=bfloat16 or more machines"
    with pytest.raises(UserError, match=f"^benchmark step: {MISFIT} for a worker, wanted {wanted}$"):
        step.refuse_misfit("step", config, 10**8)
    fit, less = measure.fit_of(config, 10**8)
    assert not fit.holds and less == wanted


def test_faiss_that_does_not_fit(monkeypatch):
    left = iter([10**12, 10**6])  # what is free before either search
    monkeypatch.setattr(fitting, "free_bytes", lambda: next(left))
    result, text, *_ = hard_negatives.measure_hard_negatives(3001, 16, 7, 1)
    assert result["seconds"] > 0 and result["faiss_seconds"] is None is result["ratio_to_faiss"]
    assert re.search(f"^FAISS: {MISFIT}$", text, re.MULTILINE)


def test_a_limit_above_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * 10**9)
    wanted = "at most 4.2, the GB that are free for each of 2 worker(s) and its libraries"
    with pytest.raises(UserError, match=f"^--memory_limit=5: must be {re.escape(wanted)}$"):
        memory.measure_memory([1.0, 5.0], memory.Sizes(2, 64, 16))


def test_the_doctor_says_it():
    finished = run_script("doctor", *RECIPE, TOO_MANY)
    assert finished.status == 2 and finished.stderr.startswith("error: a run would not do here, because of: step")
    assert re.search(rf"^step +PROBLEM: {MISFIT}$", finished.stdout, re.MULTILINE)
    assert "-> a smaller --num_instances or more machines; python -m scripts.plan says what fits\n" in finished.stdout
    part = {"encoder_seconds": 0.2, "classifier_seconds": None, "communication_seconds": 0.1}
    slow = judgement.of_step({**part, "communication_seconds": 0.3}, 0, {})
    assert slow.level == judgement.OK and "the classifier alone does not fit" in slow.says
