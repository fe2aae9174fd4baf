"""The sharded, streamed classifier on T workers against the dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.classifier.labels import sample_classes
from tests import reference
from tests.parallel import cases
from tests.reference import relative_error

TOLERANCE = 1e-5
# At tau = 0.01 logits reach 100, and float32 keeps 1e-5 of them.
COLD_TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda num_workers: f"T{num_workers}")
def results(request, job):
    folder = job(request.param) / "classifier"
    return {name: dict(np.load(folder / f"{name}.npz")) for name in cases.CASES | cases.ROUNDED_CASES}


@pytest.mark.parametrize("name", cases.CASES)
def test_equals_dense_reference(results, name):
    case, actual = cases.CASES[name], results[name]
    tolerance = COLD_TOLERANCE if case.temperature < 0.02 else TOLERANCE
    dense = reference.DenseClassifier(
        cases.weights(),
        temperature=case.temperature,
        smoothing=case.smoothing,
        smoothing_loss=case.smoothing_loss,
    )
    lists = None
    for step in range(cases.STEPS):
        if case.smoothing and step % cases.LISTS_EVERY == 0:
            before, lists = lists, reference.hard_negatives(dense.weights, cases.NUM_HARD_NEGATIVES)
            np.testing.assert_array_equal(actual[f"lists_{step}"], lists)
            churn = np.nan if before is None else np.mean([len(set(a) - set(b)) for a, b in zip(lists, before)])
            assert actual[f"churn_{step}"] == pytest.approx(churn / cases.NUM_HARD_NEGATIVES, nan_ok=True)
        embeddings, ids = cases.batch(step)
        hard_negatives = lists[ids] if case.smoothing else None
        if case.sampled_classes:
            loss, gradient, top1 = dense.sampled_step(embeddings, ids, actual[f"sample_{step}"], cases.LEARNING_RATE)
        else:
            loss, gradient, top1 = dense.step(embeddings, ids, hard_negatives, cases.LEARNING_RATE)
        # A sample may leave a loss of next to nothing, the difference of two logits of up to 100.
        np.testing.assert_allclose(actual[f"loss_{step}"], loss, rtol=tolerance, atol=1e-6)
        assert relative_error(actual[f"gradient_{step}"], gradient) < tolerance
        assert actual[f"top1_{step}"] == pytest.approx(top1, abs=1e-6)
        if f"weights_{step}" in actual:
            assert relative_error(actual[f"weights_{step}"], dense.weights) < tolerance
            assert relative_error(actual[f"momentum_{step}"], dense.buffer) < tolerance


@pytest.mark.parametrize("name", cases.ROUNDED_CASES)
def test_rounded_rows_follow_the_dense_reference(results, name):
    """Each step from what is stored: exact but for the rounding, which is below one number to the next and unbiased."""
    case, actual = cases.ROUNDED_CASES[name], results[name]
    dense = reference.DenseClassifier(
        quantised(cases.weights()), temperature=0.15, smoothing=case.smoothing, smoothing_loss="marginal"
    )
    wrong = {"weights": [], "momentum": []}
    for step in range(cases.STEPS):
        if case.smoothing and step % cases.LISTS_EVERY == 0:
            lists = reference.hard_negatives(dense.weights, cases.NUM_HARD_NEGATIVES)
            np.testing.assert_array_equal(actual[f"lists_{step}"], lists)
        embeddings, ids = cases.batch(step)
        loss, gradient, _ = dense.step(embeddings, ids, lists[ids] if case.smoothing else None, cases.LEARNING_RATE)
        np.testing.assert_allclose(actual[f"loss_{step}"], loss, rtol=TOLERANCE)
        assert relative_error(actual[f"gradient_{step}"], gradient) < TOLERANCE
        for part, exact in (("weights", dense.weights), ("momentum", dense.buffer)):
            if f"{part}_scales_{step}" in actual:
                scales = actual[f"{part}_scales_{step}"][:, np.newaxis]
                wrong[part].append((actual[f"{part}_{step}"] - exact) / scales)
            else:
                np.testing.assert_allclose(actual[f"{part}_{step}"], exact, rtol=2.0**-7, atol=1e-6)
        dense.weights, dense.buffer = (actual[f"{part}_{step}"].astype(np.float64) for part in wrong)
    for errors in filter(len, map(np.array, wrong.values())):
        assert 0.9 < np.abs(errors).max() < 1 + 1e-3
        assert np.abs(errors.mean()) < 4 * errors.std() / np.sqrt(errors.size)


def quantised(rows: np.ndarray) -> np.ndarray:
    """Rows at the nearest whole multiples of the smallest power of two by which they fit into int8."""
    scales = 2.0 ** np.ceil(np.log2(np.abs(rows).max(axis=1, keepdims=True) / 127.0))
    return np.round(rows / scales) * scales


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("name", cases.ROUNDED_CASES)
def test_rows_are_rounded_alike_on_any_number_of_workers(job, num_workers, name):
    """By the same random bits: a number differs by one at most, where sums over the workers differ, and rarely."""
    alone, together = (np.load(job(workers) / "classifier" / f"{name}.npz") for workers in (1, num_workers))
    last = cases.STEPS - 1
    np.testing.assert_allclose(together[f"loss_{last}"], alone[f"loss_{last}"], rtol=1e-3)
    actual, expected = (run[f"weights_{last}"] for run in (together, alone))
    scales = alone[f"weights_scales_{last}"][:, np.newaxis]
    assert np.mean(actual != expected) < 0.02
    assert np.abs((actual - expected) / scales).max() <= 1


def test_some_instances_are_recognised_and_some_are_not(results):
    top1 = [results["marginal"][f"top1_{step}"] for step in range(cases.STEPS)]
    assert 0 < np.mean(top1) < 1  # else the comparison above would say nothing


def test_samples_are_the_same_on_any_number_of_workers(results):
    for step in range(cases.STEPS):
        expected = sample_classes(cases.NUM_INSTANCES, cases.CASES["sampled"].sampled_classes, 0, step)
        np.testing.assert_array_equal(results["sampled"][f"sample_{step}"], expected)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_whole_training_step_equals_dense_reference(num_workers, job):
    from tests.parallel import tasks

    actual = dict(np.load(job(num_workers) / "train_step" / "train_step.npz"))
    dense = reference.DenseClassifier(cases.weights(), temperature=0.15, smoothing=0.2, smoothing_loss="marginal")
    kernel = tasks.linear_encoder().trainable_variables[0].numpy().astype(np.float64)
    buffer = np.zeros_like(kernel)
    for step in range(cases.STEPS):
        if step % cases.LISTS_EVERY == 0:
            lists = reference.hard_negatives(dense.weights, cases.NUM_HARD_NEGATIVES)
        views, ids = tasks.views_of(step)
        inputs, ids = views.reshape([2 * len(ids), -1]).astype(np.float64), np.repeat(ids, 2)
        loss, gradient, _ = dense.step(inputs @ kernel, ids, lists[ids], cases.LEARNING_RATE)
        kernel, buffer = reference.sgd(kernel, inputs.T @ gradient, buffer, cases.LEARNING_RATE)
        assert relative_error(actual[f"loss_{step}"], loss) < TOLERANCE
    assert relative_error(actual["kernel"], kernel) < TOLERANCE
    assert relative_error(actual["weights"], dense.weights) < TOLERANCE
    # Ids and lists of hard negatives travel once.
    gathered = ["hard_negatives_lists", "whole_step_embeddings", "whole_step_ids"]
    assert actual["gathered"].tolist() == (gathered if num_workers > 1 else [])
    mean, variance = moving_statistics()
    np.testing.assert_allclose(actual["moving_mean"], mean, rtol=TOLERANCE, atol=1e-6)
    np.testing.assert_allclose(actual["moving_variance"], variance, rtol=TOLERANCE)


def moving_statistics() -> tuple[np.ndarray, np.ndarray]:
    """What BN learns from the pixels: a step towards the mean over all groups of the global batch, whoever has them.

    Groups and steps count by their instances.
    """
    from tests.parallel import tasks

    moving = np.stack([np.zeros(3), np.ones(3)])
    for step in range(cases.STEPS):
        views, ids = tasks.views_of(step)
        groups = [
            views[begin : begin + cases.MICRO_BATCH].reshape([-1, 3]) for begin in range(0, len(ids), cases.MICRO_BATCH)
        ]
        values = [[pixels.mean(0, np.float64), pixels.var(0, np.float64, ddof=1)] for pixels in groups]
        mean = np.average(values, axis=0, weights=[len(pixels) for pixels in groups])
        moving = moving + 0.1 * min(1, len(ids) / cases.MICRO_BATCH / tasks.FULL_BATCH_GROUPS) * (mean - moving)
    return moving[0], moving[1]
