"""The rivals' losses, gradients and weights on T workers with unequal shares against references in float64."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests import method_references as reference
from tests.commands import run_command, under_launcher
from tests.parallel import method_cases as cases
from tests.reference import normalize, relative_error, sgd

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda num_workers: f"T{num_workers}")
def results(request, tmp_path_factory):
    """From a method's name to what its steps gave; all methods in one launch."""
    folder = tmp_path_factory.mktemp(f"methods{request.param}")
    command = [sys.executable, "-m", "tests.parallel.method_tasks", str(folder)]
    finished = run_command(under_launcher(request.param, command))
    assert finished.status == 0, finished.output[-8000:]
    return lambda name: dict(np.load(folder / f"{name}.npz"))


def close(actual, expected) -> bool:
    """Equal up to float32's rounding; exactly 0 where nothing is to be learned."""
    return relative_error(actual, expected) < TOLERANCE if np.any(expected) else not np.any(actual)


@pytest.mark.parametrize("name, views, temperature", [("simclr", 2, 0.2), ("simclr_three_views", 3, 0.5)])
def test_simclr(results, name, views, temperature):
    actual = results(name)
    for step in range(cases.STEPS):
        embeddings, ids = cases.batch(step, views)
        assert close(actual[f"loss_{step}"], reference.nt_xent(embeddings, ids, temperature)), step
        gradient = reference.numerical_gradient(lambda x, ids=ids: reference.nt_xent(x, ids, temperature), embeddings)
        alone = step in (cases.SINGLE, cases.EMPTY)
        assert close(actual[f"gradient_{step}"], 0 * gradient if alone else gradient), step
        if step != cases.EMPTY:
            top1 = reference.nearest_is_own(embeddings, ids)
            assert actual[f"top1_{step}"] == pytest.approx(top1), step
    top1 = [actual[f"top1_{step}"] for step in range(cases.STEPS)]
    assert 0 < np.mean(top1) < 0.9  # else the comparison above would say nothing


def test_moco_v2(results):
    actual = results("moco_v2")
    queue, end = actual["first_queue"].astype(np.float64), 0
    for step in range(cases.STEPS):
        queries, ids = cases.batch(step, views=1)
        keys = cases.keys()[step, ids]
        assert close(actual[f"loss_{step}"], reference.info_nce(queries, keys, queue, 0.2)), step
        gradient = reference.numerical_gradient(
            lambda x, keys=keys, queue=queue: reference.info_nce(x, keys, queue, 0.2), queries
        )
        assert close(actual[f"gradient_{step}"], gradient), step
        hits = np.sum(normalize(queries) * keys, axis=1) > np.max(normalize(queries) @ queue.T, axis=1, initial=-1)
        assert actual[f"top1_{step}"] == pytest.approx(hits.mean() if len(ids) else 0), step
        queue = queue.copy()
        for key in keys:
            queue[end % cases.QUEUE] = key
            end += 1
    assert end > 2 * cases.QUEUE
    np.testing.assert_array_equal(actual["queue"], queue)


@pytest.mark.parametrize("name, smoothing", [("diet_adamw", 0.8), ("diet_sgd", 0.3)])
def test_diet(results, name, smoothing):
    actual = results(name)
    weights, buffer, adamw = actual["first_weights"].astype(np.float64), 0.0, reference.AdamW(0.05)
    for step in range(cases.STEPS):
        features, ids = cases.batch(step)
        assert close(actual[f"loss_{step}"], reference.diet(features, weights, ids, smoothing)), step
        gradient = reference.numerical_gradient(
            lambda x, w=weights, ids=ids: reference.diet(x, w, ids, smoothing), features
        )
        assert close(actual[f"gradient_{step}"], gradient), step
        if len(ids):
            top1 = np.mean(np.argmax(features @ weights.T, axis=1) == ids)
            assert actual[f"top1_{step}"] == pytest.approx(top1), step
        gradient = reference.numerical_gradient(
            lambda w, x=features, ids=ids: reference.diet(x, w, ids, smoothing), weights
        )
        if name == "diet_sgd":
            weights, buffer = sgd(weights, gradient, buffer, cases.learning_rate(step), 0.9, 0.05)
        else:
            weights = adamw.step(weights, gradient, 0.05 * cases.learning_rate(step))
    assert relative_error(actual["weights"], weights) < TOLERANCE


def test_pic(results):
    actual, classes_of = results("pic"), reference.RecentClasses(cases.RECENT)
    weights, buffer = actual["first_weights"].astype(np.float64), 0.0
    for step in range(cases.STEPS):
        embeddings, ids = cases.batch(step)
        classes = classes_of.of_step(ids)
        assert len(classes) < cases.NUM_INSTANCES

        def loss(x, w, ids=ids, classes=classes):
            return reference.pic(x, w, ids, classes, 0.2)

        assert close(actual[f"loss_{step}"], loss(embeddings, weights)), step
        gradient = reference.numerical_gradient(lambda x, w=weights, loss=loss: loss(x, w), embeddings)
        assert close(actual[f"gradient_{step}"], gradient), step
        gradient = reference.numerical_gradient(lambda w, x=embeddings, loss=loss: loss(x, w), weights)
        weights, buffer = sgd(weights, gradient, buffer, cases.learning_rate(step), 0.9, 0.02)
    assert relative_error(actual["weights"], weights) < TOLERANCE
    assert relative_error(actual["momentum"], buffer) < TOLERANCE
    assert relative_error(actual["kept_weights"], weights) > 1e-3  # classes that are out are yet to be moved


def test_initial_weights_do_not_depend_on_the_number_of_workers(results):
    from instcls_tf.methods.diet import DIET

    alone = DIET(cases.NUM_INSTANCES, cases.SIZE)
    np.testing.assert_array_equal(results("diet_adamw")["first_weights"], alone.local_weights)
