"""Each term of a modelled step against small cases worked out by hand, and the rates it is made from."""

from __future__ import annotations

import json
import math
import re

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.plan import planner, rates, scaling, step_model
from instcls_tf.plan.rates import GivenRates
from instcls_tf.plan.step_model import (
    CLASSIFIER,
    CLASSIFIER_MESSAGES,
    ENCODER,
    ENCODER_MESSAGES,
    SEARCH,
    Rates,
    Setting,
    Step,
)
from tests.commands import ROOT
from tests.recipes import PLANNED

# B = 8 instances with 2 views, in 4 BN groups; D = 2, K = 3; N = 100 on T workers.
TINY = PLANNED.replace(batch_size=8, micro_batch=2)
RATES = Rates(10.0, 1000.0, 0.25, 1e5, 2e5)
APART = Setting(overlap=False)


def test_work_of_a_step():
    """3 workers, the first with two of four groups and 34 classes; 4 products of 16 rows; 13 steps an epoch."""
    terms = step_model.step(TINY, 100, 3, RATES, APART).terms
    assert terms[ENCODER] == pytest.approx(4 / 10)
    assert terms[CLASSIFIER] == pytest.approx(4 * 2 * 16 * 34 * 2 / 1000)
    gathered = (100 * 2 * 4 * 2 // 3) / 2e5
    assert terms[SEARCH] == pytest.approx((2 * 100 * 34 * 2 / 1000 + gathered) / 13)
    assert step_model.step(TINY.replace(smoothing=0.0), 100, 3, RATES, APART).terms[SEARCH] == 0


def test_messages_of_a_step():
    """Three gathers and two sums for the classifier, two sums for the encoder; log2(4) latencies each."""
    terms, wire = step_model.step(TINY, 100, 4, RATES, APART).terms, planner.make_plan(TINY, 100, 4).wire_step
    gathers = ("embeddings", "instance ids", "hard negatives of the batch")
    sums = ("softmax sums and maximum", "gradient of the embeddings")
    assert terms[CLASSIFIER_MESSAGES] == pytest.approx(
        5 * 2 * 0.25 + sum(wire[name] for name in gathers) / 2e5 + sum(wire[name] for name in sums) / 1e5
    )
    of_encoder = (wire["encoder gradients"] + wire["BN statistics"]) / 1e5
    assert terms[ENCODER_MESSAGES] == pytest.approx(2 * 2 * 0.25 + of_encoder)
    assert set(planner.GATHERED) & wire.keys() == set(gathers)


def test_a_small_temperature_takes_a_product_and_a_message_more():
    """Logits for the maxima, and two of them of each of 16 rows, at log2(4) latencies."""
    terms, cold = (
        step_model.step(config, 100, 4, RATES, APART).terms for config in (TINY, TINY.replace(temperature=0.02))
    )
    assert cold[CLASSIFIER] == pytest.approx(5 / 4 * terms[CLASSIFIER])
    of_maxima = planner.reduce_bytes(2 * 16 * 4, 4) / 1e5 + 2 * 0.25
    assert cold[CLASSIFIER_MESSAGES] == pytest.approx(terms[CLASSIFIER_MESSAGES] + of_maxima)
    assert all(cold[name] == terms[name] for name in (ENCODER, SEARCH, ENCODER_MESSAGES))


def test_one_worker_sends_nothing():
    step = step_model.step(TINY, 100, 1, RATES, Setting())
    assert step.terms[CLASSIFIER_MESSAGES] == step.terms[ENCODER_MESSAGES] == step.hidden == 0
    assert step.seconds == pytest.approx(sum(step.terms.values()))


def test_gradients_hide_behind_the_backward_pass():
    """Of the last of 2 groups, two thirds of its time; no more than the message takes; nothing on one machine."""
    slow, fast = Rates(10.0, 1000.0, 0.25, 1e5, 2e5), Rates(10.0, 1000.0, 0.0, 1e12, 1e12)
    step = step_model.step(TINY, 100, 2, slow, Setting())
    assert step.hidden == pytest.approx(2 / 3 * 0.4 / 2)
    assert step.seconds == pytest.approx(sum(step.terms.values()) - step.hidden)
    sent = planner.make_plan(TINY, 100, 2).wire_step["encoder gradients"]
    assert step_model.step(TINY, 100, 2, fast, Setting()).hidden == pytest.approx(sent / 1e12)
    assert step_model.step(TINY, 100, 2, slow, Setting(one_machine=True)).hidden == 0


def test_workers_of_one_machine_share_its_rates():
    alone, four = (step_model.step(TINY, 100, n, RATES, Setting(one_machine=True)).terms for n in (1, 4))
    assert four[ENCODER] == pytest.approx(alone[ENCODER]) and four[CLASSIFIER] == pytest.approx(alone[CLASSIFIER])


@pytest.mark.parametrize("one_machine", [False, True])
def test_without_messages_nothing_is_lost(one_machine):
    """Workers with a machine each are T times as fast as one, those that share one machine are as fast."""
    free = RATES._replace(latency_seconds=0.0, sum_bytes_per_second=1e30, gather_bytes_per_second=1e30)
    asked = scaling.Asked([96], [1, 2, 4, 8], free, Setting(one_machine=one_machine), 1.0, "cpu")
    points = scaling.plan_scaling(TINY, asked, None).result["points"]
    assert [point["efficiency"] for point in points] == pytest.approx([1.0] * 4)
    faster = [points[0]["seconds_per_step"] / point["seconds_per_step"] for point in points]
    assert faster == pytest.approx([1.0] * 4 if one_machine else [1.0, 2.0, 4.0, 8.0])


def test_plain_data_parallelism():
    """3 products of the 4 rows of 2 instances with all classes; the gradient of all class weights is summed."""
    step = step_model.plain_step(TINY, 100, 4, RATES, APART)
    assert step.terms[CLASSIFIER] == pytest.approx(3 * 2 * 4 * 100 * 2 / 1000)
    assert step.terms[CLASSIFIER_MESSAGES] == pytest.approx(2 * 0.25 + 2 * 800 * 3 / 4 / 1e5)
    assert step.terms[SEARCH] == 0
    hidden = step_model.plain_step(TINY, 100, 4, RATES._replace(latency_seconds=9.0), Setting()).hidden
    assert hidden == pytest.approx(2 / 3 * 0.2), "the class weights' gradient hides as well"


def test_what_is_hidden_is_not_the_largest():
    terms = {ENCODER: 3.0, CLASSIFIER: 2.0, SEARCH: 0.0, CLASSIFIER_MESSAGES: 3.5, ENCODER_MESSAGES: 4.0}
    assert Step(terms, 0.0).largest == ENCODER_MESSAGES
    assert Step(terms, 3.0).largest == CLASSIFIER_MESSAGES
    assert Step(terms, 5.0).largest == ENCODER


def test_points(tmp_path):
    asked = scaling.Asked([100, 1000], [1, 2, 8], RATES, Setting(), 1e-4, "cpu")
    picture = tmp_path / "new" / "steps.png"
    answer = scaling.plan_scaling(TINY, asked, str(picture))
    result, text = answer.result, answer.text
    assert [(point["num_instances"], point["workers"]) for point in result["points"]] == [
        (n, workers) for n in (100, 1000) for workers in (1, 2, 8)
    ]
    first, second, third = result["points"][:3]
    assert first["efficiency"] == 1
    assert second["efficiency"] == pytest.approx(first["seconds_per_step"] / 2 / second["seconds_per_step"])
    assert second["seconds_per_epoch"] == pytest.approx(13 * second["seconds_per_step"])
    assert (second["micro_batch"], third["micro_batch"]) == (2, 1), "eight workers need eight groups"
    assert not first["fits"] and first["memory_bytes"] == planner.make_plan(TINY, 100, 1, device="cpu").peak_bytes
    for words in ("N = 1,000", "* does not fit into 0.0001 GB", "From 8 workers on BN groups are smaller"):
        assert words in text
    answer.picture.draw(str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_of_the_documentation():
    """Its figures, and the stars of what does not fit."""
    lines = (ROOT / "docs" / "planning.md").read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| N | T = 1 |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 : start + 5]]
    config, workers = PretrainConfig.from_flagfile("imagenet", workdir="unused"), [1, 4, 16, 64, 256]
    asked = scaling.Asked([], workers, Rates(68.2, 12e12, 1e-4, 1.45e9, 1.45e9), Setting(), 32.0, "gpu")
    for number, *cells, plain, largest in rows:
        numbers = [int(number.replace(",", ""))]
        points = scaling.plan_scaling(config, asked._replace(numbers=numbers), None).result["points"]
        told = [(*cell.partition(" ")[0].partition("*")[:2],) for cell in [*cells, plain]]
        found = [(point["seconds_per_step"], point["fits"]) for point in points]
        found.append((points[3]["plain_seconds_per_step"], points[3]["plain_fits"]))
        for (seconds, star), (modelled, fits) in zip(told, found, strict=True):
            assert f"{modelled:.{len(seconds.partition('.')[2])}f}" == seconds and (star == "") == fits
        assert largest == f"the {points[0]['largest_term']}"
        for cell, point in zip(cells[1:], points[1:]):
            assert f"({100 * point['efficiency']:.0f} %)" in cell


def doctor_file(tmp_path, workers=4, topics=("collectives", "step"), **figures):
    network = {"latency_seconds": 0.002, "sum_bytes_per_second": 1e8, "gather_bytes_per_second": 2e8}
    step = {"encoder_seconds": 0.5, "classifier_seconds": 0.25, "local_images": 64, "classifier_operations": 10**9}
    measured = {"collectives": network, "step": {**step, **figures}}
    findings = [{"topic": topic, "level": "ok", "figures": measured[topic]} for topic in topics]
    path = tmp_path / "doctor.json"
    path.write_text(f"memory  fine\n[1,0]<stdout>:{json.dumps({'workers': workers, 'findings': findings})}\n")
    return str(path)


def test_rates_of_the_doctor(tmp_path):
    found = rates.rates_of(GivenRates(), TINY, doctor_file(tmp_path), 256)
    assert found == pytest.approx(Rates(128.0, 4e9, 0.001, 2 * 0.75 * 1e8, 0.75 * 2e8))
    given = rates.rates_of(GivenRates(5.0, 6.0, 0.0, 7.0), TINY, doctor_file(tmp_path), 256)
    assert given == Rates(5.0, 6e9, 0.0, 7e9, 7e9)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"encoder": "resnet50"}, "images_per_second"),
        ({"stem": "imagenet"}, "images_per_second"),
        ({"width_multiplier": 1.0}, "images_per_second"),
        ({"image_size": 224}, "images_per_second"),
        ({"views": 4}, "images_per_second"),
        ({"precision": "mixed_bfloat16"}, "images_per_second"),
        ({"class_products_dtype": "bfloat16"}, "gigaflops"),
    ],
)
def test_rates_of_another_recipe(tmp_path, change, flag):
    """The doctor tells what its step was one of; a rate that is given is taken instead."""
    ((name, value),) = change.items()
    path = doctor_file(tmp_path, recipe=step_model.share_of(TINY.replace(**change), 100, 2)["recipe"])
    own = getattr(TINY, name)
    sentence = (
        f"--doctor={path}: has measured a step of --{name}={value}, which is {own} here: let it measure these flags, or"
        f" give --{flag}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        rates.rates_of(GivenRates(), TINY, path, 2)
    assert rates.rates_of(GivenRates(**{flag: 7.0}), TINY, path, 2)
    assert rates.rates_of(GivenRates(), TINY.replace(**change), path, 2)


def test_rates_of_an_answer_without_its_recipe(tmp_path):
    assert rates.rates_of(GivenRates(), TINY, doctor_file(tmp_path), 2)


def test_a_message_takes_as_long_as_the_doctor_s(tmp_path):
    """The model, at the doctor's own number of workers, gives back what it has measured."""
    found = rates.rates_of(GivenRates(), TINY, doctor_file(tmp_path), 4)
    assert found.latency_seconds * math.log2(4) == pytest.approx(0.002)
    assert planner.reduce_bytes(10**8, 4) / found.sum_bytes_per_second == pytest.approx(1.0)
    assert planner.gather_bytes(2 * 10**8, 4) / found.gather_bytes_per_second == pytest.approx(1.0)


def test_the_doctor_s_workers_share_one_machine(tmp_path):
    """The model, at the doctor's own number of workers, gives back the work that it has measured."""
    found = rates.rates_of(GivenRates(), TINY, doctor_file(tmp_path, local_images=2), 4, one_machine=True)
    assert step_model.step(TINY, 100, 4, found, Setting(one_machine=True)).terms[ENCODER] == pytest.approx(0.5)


def test_a_batch_has_no_more_than_all_images():
    apart = [step_model.step(TINY, n, 1, RATES, APART).terms[ENCODER] for n in (4, 8, 100)]
    assert 2 * apart[0] == pytest.approx(apart[1]) and apart[1] == pytest.approx(apart[2])


def test_few_images_are_shared_out_as_a_batch_of_them():
    """32 of 64 images are on either of two workers, 8 on each of eight, and so few make smaller groups for 16."""
    many = TINY.replace(batch_size=4096, micro_batch=8)
    asked = scaling.Asked([64], [1, 2, 8, 16], RATES, APART, 1.0, "cpu")
    found, same = (
        scaling.plan_scaling(config, asked, None).result["points"] for config in (many, many.replace(batch_size=64))
    )
    assert found == same
    assert [point["terms"][ENCODER] * 10 for point in found] == pytest.approx([64, 32, 8, 4])
    assert [point["micro_batch"] for point in found] == [8, 8, 8, 4]


@pytest.mark.parametrize(("batch_size", "workers", "size"), [(500, 8, 64), (500, 16, 32), (9, 4, 2), (4096, 256, 16)])
def test_groups_are_as_even_as_each_worker_having_one_allows(batch_size, workers, size):
    config = TINY.replace(batch_size=batch_size, micro_batch=64)
    assert scaling.for_workers(config, 10_000, workers).micro_batch == size


def test_int8_is_modelled_on_cpus_only():
    config = TINY.replace(class_weights_dtype="int8")
    on = {device: scaling.Asked([100], [1], RATES, Setting(), 1.0, device) for device in ("cpu", "gpu")}
    assert scaling.plan_scaling(config, on["cpu"], None).result["points"][0]["fits"]
    with pytest.raises(UserError, match=r"^--class_weights_dtype=int8: must be float32 or bfloat16 on a GPU"):
        scaling.plan_scaling(config, on["gpu"], None)


@pytest.mark.parametrize(
    ("given", "topics", "figures", "sentence"),
    [
        (GivenRates(), None, {}, "--images_per_second is missing: give it, or --doctor=FILE, which has measured it"),
        (GivenRates(1.0), None, {}, "--gigaflops is missing: give it, or --doctor=FILE, which has measured it"),
        (GivenRates(), ("collectives",), {}, "--images_per_second is missing: --doctor=PATH has not measured a step"),
        (GivenRates(), ("step",), {}, "--latency_seconds is missing: --doctor=PATH has not measured several workers"),
        (
            GivenRates(),
            ("collectives", "step"),
            {"classifier_seconds": None},
            "--gigaflops is missing: --doctor",
        ),
        (GivenRates(bandwidth=0.0), None, {}, "--bandwidth=0.0: must be a number above 0"),
        (GivenRates(latency_seconds=-1.0), None, {}, "--latency_seconds=-1.0: must be 0 or more"),
    ],
)
def test_rates_that_are_not_there(tmp_path, given, topics, figures, sentence):
    path = doctor_file(tmp_path, 2, topics, **figures) if topics else None
    with pytest.raises(UserError, match=f"^{re.escape(sentence.replace('PATH', path or ''))}"):
        rates.rates_of(given, TINY, path, 2)


@pytest.mark.parametrize("content", ["", "{}", '{"workers": 1, "findings": [3]}', "no JSON", '{"top1": 0.5}'])
def test_a_file_that_is_not_the_doctor_s(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    wanted = "is no answer of the doctor, wanted what `python -m scripts.doctor --json` printed"
    with pytest.raises(UserError, match=f"^--doctor={re.escape(str(path))}: {wanted}$"):
        rates.rates_of(GivenRates(), TINY, str(path), 2)
    with pytest.raises(UserError, match=r"no\.json: cannot be read"):
        rates.rates_of(GivenRates(), TINY, str(tmp_path / "no.json"), 2)


def test_one_worker_needs_no_network():
    assert rates.rates_of(GivenRates(1.0, 2.0), TINY, None, 1).products_per_second == 2e9
