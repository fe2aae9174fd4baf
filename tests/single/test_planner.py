"""Every formula of the plan against small cases worked out by hand."""

from __future__ import annotations

import re

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.data.order import Shares
from instcls_tf.encoder.sizes import encoder_sizes
from instcls_tf.errors import UserError
from instcls_tf.plan import classifier_bytes, measured, planner
from instcls_tf.plan.answer import plan_run
from tests.recipes import PLANNED as TINY

# 4 instances with 2 views: B = 8 rows of D = 2; K = 3; N = 10 classes on T = 3 workers, the first of which owns 4.
DTYPE_FLAGS = ("class_weights_dtype", "class_momentum_dtype")
SIZES = encoder_sizes(
    encoder="resnet18", stem="small", width_multiplier=0.125, image_size=8, embedding_size=2, mlp_head=True
)


@pytest.fixture(scope="module")
def plan() -> planner.Plan:
    return planner.make_plan(TINY, 10, 3, device="cpu")


def test_memory_of_the_classifier(plan):
    memory = plan.memory
    assert memory["class weights"] == memory["momentum of class weights"] == 4 * 2 * 4
    one_thread = 4 * (2 * 32 + 64) * 4 + 2 * 64 * 32 * 4  # columns padded to 32, rows to 64
    assert memory["tile workspace"] == one_thread
    two = planner.make_plan(TINY, 10, 3, device="cpu", threads=2).memory
    assert two["tile workspace"] == one_thread, "so few classes are not worth a second thread"
    two = planner.make_plan(TINY, 3 * 150, 3, device="cpu", threads=2).memory
    assert two["tile workspace"] == 2 * (75 * (2 * 32 + 64) * 4 + 2 * 64 * 32 * 4)
    one_tile = 4 * (2 * 8 + 8 * 2) * 4  # all 4 classes are in it
    assert planner.make_plan(TINY, 10, 3, device="gpu").memory["tile workspace"] == one_tile
    assert memory["allocator"] == 3  # 4 % of 64 bytes
    # Eight [8, 2] arrays; 8 rows with 4 labels each, of which a worker owns 11.
    assert memory["gathered batch"] == 8 * 8 * 2 * 4 + 32 * 16 + 11 * 48
    assert memory["lists of hard negatives"] == 4 * 3 * 4


def test_a_classifier_alone_steps_or_draws_its_rows():
    state = 2 * 10 * 2 * 4
    tile, batch = 10 * (2 * 32 + 64) * 4 + 2 * 64 * 32 * 4, 8 * 8 * 2 * 4 + 8 * 16 + 8 * 48
    assert classifier_bytes.peak_bytes(10, 1, 8, 2, 0) == state + 6 + tile + batch
    drawing = 4 * 8192 * 128 * 4
    assert classifier_bytes.peak_bytes(9000, 1, 8, 128, 0) == round(1.04 * 2 * 9000 * 128 * 4) + drawing


def test_bfloat16_halves_what_is_kept(plan):
    names = ("class weights", "momentum of class weights")
    for kept in ({"class_weights_dtype": "bfloat16"}, {"class_momentum_dtype": "bfloat16"}):
        memory = planner.make_plan(TINY.replace(**kept), 10, 3, device="cpu").memory
        assert [memory[name] for name in names] == [16 if dtype in kept else 32 for dtype in DTYPE_FLAGS]


def test_int8_takes_a_byte_and_a_scale():
    both = dict.fromkeys(DTYPE_FLAGS, "int8")
    memory = planner.make_plan(TINY.replace(**both), 10, 3, device="cpu").memory
    assert memory["class weights"] == memory["momentum of class weights"] == 4 * (2 * 1 + 4)
    kept = {"weights_dtype": "int8", "momentum_dtype": "int8"}
    state = 2 * 10 * (2 + 4)
    tile, batch = 10 * (2 * 32 + 64) * 4 + 2 * 64 * 32 * 4, 8 * 8 * 2 * 4 + 8 * 16 + 8 * 48
    assert classifier_bytes.peak_bytes(10, 1, 8, 2, 0, **kept) == state + 5 + tile + batch


@pytest.mark.parametrize("name", DTYPE_FLAGS)
def test_int8_is_of_cpus(name):
    wanted = "float32 or bfloat16 on a GPU, where rows of int8 cannot be written (a CPU is --device=cpu)"
    with pytest.raises(UserError, match=f"^--{name}=int8: must be {re.escape(wanted)}$"):
        planner.check_device(TINY.replace(**{name: "int8"}), "gpu")
    planner.check_device(TINY.replace(**{name: "int8"}), "cpu")


def test_memory_of_the_encoder(plan):
    memory = plan.memory
    assert memory["encoder weights"] == 4 * (SIZES.parameters + SIZES.statistics)
    assert memory["encoder momentum"] == 4 * SIZES.parameters
    assert memory["encoder gradients"] == 2 * 4 * SIZES.parameters
    assert memory["activations"] == 2 * 4 * (SIZES.activations + 2 * SIZES.largest_activation)
    assert memory["views of a step"] == 2 * 2 * 3 * 8 * 8, "the first worker has 2 of the 4 groups"
    mixed = planner.make_plan(TINY.replace(precision="mixed_bfloat16"), 10, 3).memory
    assert 2 * mixed["activations"] == memory["activations"]
    assert mixed["encoder weights"] == memory["encoder weights"] + 2 * SIZES.parameters
    alone = planner.make_plan(TINY.replace(micro_batch=4), 10, 1).memory
    assert alone["encoder gradients"] == 4 * SIZES.parameters


def test_memory_of_plain_data_parallelism(plan):
    memory = plan.data_parallel_memory
    assert memory["class weights"] == memory["momentum of class weights"] == 10 * 2 * 4
    assert memory["gradient of class weights"] == 2 * 10 * 2 * 4
    assert memory["logits of the local rows"] == 3 * 10 * 4
    assert memory["allocator"] == 18  # 4 % of 440 bytes
    assert plan.data_parallel_peak_bytes == sum(memory.values())
    assert classifier_bytes.data_parallel_bytes(10, 1, 8, 2)["gradient of class weights"] == 10 * 2 * 4


def test_the_peak_is_a_step_or_a_search(plan):
    assert plan.search_bytes == 2 * 48 + 2 * 10 * 2 * 4 + 2 * 2**22 * 4
    absent = sum(plan.memory[name] for name in ("gathered batch", "activations", "views of a step"))
    assert plan.search_bytes > absent
    assert plan.peak_bytes == sum(plan.memory.values()) - absent + plan.search_bytes
    without = planner.make_plan(TINY.replace(smoothing=0.0), 10, 3)
    assert without.search_bytes == 0 and "lists of hard negatives" not in without.memory
    assert without.peak_bytes == sum(without.memory.values())
    large_images = planner.make_plan(TINY.replace(image_size=512), 10, 3)
    assert large_images.peak_bytes == sum(large_images.memory.values())


def test_a_worker_that_keeps_the_activations_of_all_its_groups():
    """B / V = 4 instances in groups of 1: two of them on one of three workers, 16 rows of four on one."""
    config = TINY.replace(micro_batch=1)
    for workers, groups in [(1, 4), (3, 2)]:
        again, kept = (planner.make_plan(config.replace(recompute=of), 10, workers).memory for of in ("auto", "never"))
        assert kept["activations"] == groups * again["activations"]


def test_the_contrast_within_the_batch():
    """8 rows, at most 3 of them here: 8 matrices of [3, 8]; D = 2 numbers, id, rank and 5 numbers a row travel."""
    plain, contrast = planner.make_plan(TINY, 10, 3), planner.make_plan(TINY.replace(batch_contrast=1.0), 10, 3)
    assert contrast.memory == {**plain.memory, "batch contrast": 8 * 3 * 8 * 4}
    assert contrast.wire_step == {**plain.wire_step, "batch contrast": 8 * (2 * 4 + 2 * 4 + 5 * 4) * 2 // 3}


def test_bytes_on_the_wire(plan):
    assert plan.wire_step == {
        "embeddings": 64 * 2 // 3,
        "instance ids": 64 * 2 // 3,
        "hard negatives of the batch": 48 * 2 // 3,
        "softmax sums and maximum": 2 * 128 * 2 // 3,
        "gradient of the embeddings": 2 * 64 * 2 // 3,
        "encoder gradients": 2 * 4 * SIZES.parameters * 2 // 3,
        "BN statistics": 2 * 4 * (SIZES.statistics + 1) * 2 // 3,
    }
    assert plan.steps_per_epoch == 3
    assert plan.wire_epoch == {
        "steps": 3 * sum(plan.wire_step.values()),
        "hard negatives: class weights": 80 * 2 // 3,
    }
    moments = 2 * 4 * (3 * SIZES.statistics // 2) * 2 // 3
    assert plan.wire_prior == 2 * (120 * 2 // 3 + 3 * moments)
    assert planner.make_plan(TINY.replace(classifier_init="raw_fixed_bn"), 10, 3).wire_prior == 120 * 2 // 3
    assert planner.make_plan(TINY.replace(classifier_init="random"), 10, 3).wire_prior == 0


def test_one_worker_sends_nothing():
    alone = planner.make_plan(TINY, 10, 1)
    assert sum(alone.wire_step.values()) + sum(alone.wire_epoch.values()) + alone.wire_prior == 0


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("of", [{}, {"batch_contrast": 1.0}, {"recompute": "never", "temperature": 0.02}])
def test_a_batch_has_no_more_than_all_images(of, workers):
    """B where there are more images; of fewer, all of them."""
    small = TINY.replace(micro_batch=64, **of)
    plans = [planner.make_plan(small.replace(batch_size=size), 500, workers) for size in (4096, 500)]
    assert plans[0] == plans[1]
    assert plans[0] != planner.make_plan(small.replace(batch_size=400), 500, workers)


@pytest.mark.parametrize("num_instances", [1, 5, 63, 64, 65, 500, 1000])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_the_largest_share_of_a_batch(num_instances, workers):
    """As the pipeline cuts batches into groups, and groups into shares."""
    config = TINY.replace(batch_size=512, micro_batch=64)
    batch = planner.batch_of(config, num_instances, workers)
    shares = [Shares(num_instances, 512, 64, rank, workers) for rank in range(workers)]
    assert batch.local_instances == max(share.share_size(share.full_batch) for share in shares)
    assert batch.local_instances == max(share.rows for share in shares)
    spans = [share.groups(share.full_batch) for share in shares]
    assert batch.local_groups == max(end - begin for begin, end in spans)
    assert (batch.instances, batch.rows) == (min(512, num_instances), 2 * min(512, num_instances))


def memory_of(config: PretrainConfig, num_instances: int) -> dict[str, int]:
    return planner.make_plan(config, num_instances, 2, device="cpu").memory


@pytest.mark.parametrize(
    ("change", "num_instances", "wanted"),
    [
        ({}, 10**8, "a smaller --num_instances or more machines"),
        (
            {"image_size": 512},
            1000,
            "a smaller --micro_batch, --image_size or --encoder, the largest part is activations",
        ),
        (
            {"batch_size": 4096, "batch_contrast": 1.0},
            4096,
            "a smaller --batch_size, the largest part is batch contrast",
        ),
        ({"batch_size": 10**6, "image_size": 64}, 10**6, "a smaller --batch_size, the largest part is views of a step"),
        (
            {"width_multiplier": 8.0},
            1000,
            "a smaller --width_multiplier or --encoder, the largest part is encoder gradients",
        ),
        ({"hard_negatives": 1000}, 10**7, "a smaller --hard_negatives, the largest part is lists of hard negatives"),
    ],
)
def test_what_takes_less_memory(change, num_instances, wanted):
    config = TINY.replace(**change)
    memory = memory_of(config, num_instances)
    assert planner.less_memory(config, num_instances, 2, memory) == wanted
    alone = planner.less_memory(config, num_instances, 2, memory, machines=False)
    assert alone == wanted.removesuffix(" or more machines")


@pytest.mark.parametrize(
    ("change", "machines", "wanted"),
    [
        ({}, True, "fewer images, --class_weights_dtype=bfloat16 or more machines"),
        ({}, False, "fewer images or --class_weights_dtype=bfloat16"),
        ({"class_weights_dtype": "bfloat16"}, True, "fewer images or more machines"),
        ({"class_weights_dtype": "bfloat16"}, False, "fewer images"),
    ],
)
def test_fewer_of_the_images_that_are_there(change, machines, wanted):
    """Whose number no flag says."""
    config, count = TINY.replace(**change), 10**8
    memory = memory_of(config, count)
    assert planner.less_memory(config, count, 2, memory, machines=machines, of_images=True) == wanted
    narrower = memory_of(config.replace(class_weights_dtype="bfloat16"), count)
    assert (sum(narrower.values()) < sum(memory.values())) == ("dtype" in wanted)


@pytest.mark.parametrize(
    ("change", "wanted", "smaller"),
    [
        (
            {"recompute": "auto", "micro_batch": 64},
            "a smaller --micro_batch, --image_size or --encoder",
            {"micro_batch": 32, "image_size": 256},
        ),
        (
            {"recompute": "never", "micro_batch": 32},
            "--recompute=auto, or a smaller --batch_size, --image_size or --encoder",
            {"recompute": "auto", "batch_size": 32, "image_size": 256},
        ),
        (
            {"recompute": "never", "micro_batch": 64},
            "a smaller --batch_size, --image_size or --encoder",
            {"batch_size": 32, "image_size": 256},
        ),
    ],
)
def test_what_is_named_makes_the_activations_smaller(change, wanted, smaller):
    config = TINY.replace(encoder="resnet50", image_size=512, batch_size=128, **change)
    activations = memory_of(config, 1000)["activations"]
    said = planner.less_memory(config, 1000, 2, memory_of(config, 1000))
    assert said == f"{wanted}, the largest part is activations"
    for name, value in {**smaller, "encoder": "resnet18"}.items():
        assert f"--{name}" in said
        assert memory_of(config.replace(**{name: value}), 1000)["activations"] < activations, name
    others = {"micro_batch": config.micro_batch // 2, "recompute": "auto"}.items() - smaller.items()
    for name, value in others:
        if value != getattr(config, name):
            assert memory_of(config.replace(**{name: value}), 1000)["activations"] == activations, name


@pytest.mark.parametrize(
    ("dtype", "of_a_number", "of_a_class"), [("float32", 4, 0), ("bfloat16", 2, 0), ("int8", 1, 4)]
)
def test_a_checkpoint(dtype, of_a_number, of_a_class):
    """Weights and momentum of the encoder and of all 10 classes; in mid-epoch 3 hard negatives of each."""
    plan = planner.make_plan(TINY.replace(class_weights_dtype=dtype), 10, 3)
    encoder = 4 * (2 * SIZES.parameters + SIZES.statistics)
    assert plan.checkpoint_bytes == encoder + 10 * (2 * of_a_number + of_a_class) + 10 * 2 * 4
    assert plan.checkpoint_lists_bytes == 10 * 3 * 4
    text = plan_run(TINY.replace(width_multiplier=1.0), 10**6, 2, 32.0, "cpu", None).text
    assert re.search(r"^A checkpoint: 0\.\d+ GB, and 0\.012 more in mid-epoch, of hard negatives$", text, re.MULTILINE)


def test_the_largest_number_that_fits():
    assert planner.largest_num_instances(lambda n: 7 * n, 100) == 14
    assert planner.largest_num_instances(lambda n: 7 * n, 98) == 14
    assert planner.largest_num_instances(lambda n: 7 * n, 97) == 13
    assert planner.largest_num_instances(lambda n: 7 * n, 6) == 0
    assert planner.largest_num_instances(lambda n: 0, 0) == 2**31 - 1


def test_this_design_holds_more_classes_than_data_parallelism():
    """As in Fig. 3, whose ratio at 64 workers is 6.4."""

    def largest(attribute: str) -> int:
        def peak(n: int) -> int:
            return getattr(planner.make_plan(PretrainConfig(), n, 64), attribute)

        return planner.largest_num_instances(peak, 32 * 10**9, 64)

    assert largest("peak_bytes") > 6.4 * largest("data_parallel_peak_bytes") > 0


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ((None, 1, 32.0, "gpu"), "--num_instances is missing: how many images, each a class, the run is to have"),
        ((5, 0, 32.0, "gpu"), "--workers=0: must be at least 1"),
        ((5, 6, 32.0, "gpu"), "--num_instances=5: must be at least the 6 workers and at most 2147483647"),
        ((2**31, 6, 32.0, "gpu"), "--num_instances=2147483648: must be at least the 6 workers and at most 2147483647"),
        ((5, 1, 0.0, "gpu"), "--memory_limit=0.0: must be a number above 0, in GB"),
        ((5, 1, float("nan"), "gpu"), "--memory_limit=nan: must be a number above 0, in GB"),
        ((5, 1, 32.0, "tpu"), "--device=tpu: must be one of cpu, gpu"),
    ],
)
def test_mistakes(asked, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        planner.check(*asked)


def test_a_cache_in_memory_is_told_beside_the_plan():
    """All workers of a machine have one; at most the pixels of the smallest crop, enlarged to the whole image."""
    config = PretrainConfig(dataset="folder:/data/photos", cache="ram", image_size=96, crop_min_area=0.2)
    answer = plan_run(config, 200_000, 2, 32.0, "cpu", None)
    assert answer.result["most_cache_bytes"] == 200_000 * 3 * 96**2 * 5
    assert "Not in it: --cache=ram, at most about 27.648 GB on each machine" in answer.text
    assert "most_cache_bytes" not in plan_run(config.replace(cache=None), 200_000, 2, 32.0, "cpu", None).result


def test_measured_hours_are_told_by_their_parts():
    slow = measured.Hours("", 12.5, 0.0, 90.0, 7200.0, 0.5)
    fast = measured.Hours("--image_size=64", 250.0, 30.0, 0.0, 100.0, 200_000.0)
    first, *lines = measured.text_of([slow, fast], 5.0).splitlines()
    assert first.startswith("Measured here, in one process, with 5 s of training steps: ")
    assert [line.split("  ")[-1] for line in lines] == [
        "2.0 hours (prior 90 seconds, training 2.0 hours)",
        "2.3 days (cache 30 seconds, training 100 seconds, searches for hard negatives, at best 2.3 days)",
    ]
