"""The examination from top to bottom: each machine by itself, then what the workers measure together."""

from __future__ import annotations

from typing import Any, NamedTuple

from instcls_tf.config import PretrainConfig
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.source import Source
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.doctor import judgement, machine
from instcls_tf.doctor.finding import LEVELS, PROBLEM, Finding
from instcls_tf.errors import UserError
from instcls_tf.plan.planner import make_plan
from instcls_tf.plan.step_model import share_of
from instcls_tf.report.answer import Answer


class Asked(NamedTuple):
    """What is examined."""

    config: PretrainConfig  # the recipe
    num_instances: int  # N
    source: Source | None  # its images, whose decoding is measured
    workdir: str | None  # a folder to write into for a moment
    step: bool  # measure one of the recipe


def examine(asked: Asked | None, as_json: bool) -> Answer:
    """Examines the set-up of a run; all workers together.

    Args:
      asked: what for; None looks at this machine alone, without TensorFlow.
      as_json: without the text.

    Returns:
      `level` (the worst), `workers`, and `findings`, each with `topic`, `level`, `says`, `todo` and `figures`.
    """
    findings = judgement.of_machines([machine.describe(1)]) if asked is None else _of_all_workers(asked)
    level = max((finding.level for finding in findings), key=LEVELS.index)
    _, size = launched_rank_and_size() or (0, 1)
    told = [{**finding._asdict(), "figures": dict(finding.figures)} for finding in findings]
    answer = {"level": level, "workers": size, "findings": told}
    return Answer(answer, "" if as_json else "\n".join(map(str, findings)))


def refuse_problems(answer: Answer) -> None:
    """Ends the command with another status than 0 if a run would fail.

    Raises:
      UserError: names the topics.
    """
    topics = [finding["topic"] for finding in answer.result["findings"] if finding["level"] == PROBLEM]
    if topics:
        raise UserError(f"a run would not do here, because of: {', '.join(topics)}")


def _of_all_workers(asked: Asked) -> list[Finding]:
    import tensorflow as tf

    from instcls_tf.distributed import collectives, gpus, workers
    from instcls_tf.doctor import measure

    workers.start(asked.config.seed)
    own: dict[str, Any] = {
        **machine.describe(collectives.local_size()),
        "transport": collectives.transport(),
        "nccl": collectives.has_nccl(),
        "workers_in_all": collectives.size(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "has_gpus": gpus.are_there(),
    }
    found = workers.everybodys(own)
    findings = [*judgement.of_machines(found), *judgement.of_transport(found)]
    if collectives.size() > 1:
        findings.append(judgement.of_clocks(measure.clock_skew()))
        findings.append(judgement.of_collectives(measure.collectives_between()))
    if asked.workdir:
        findings.append(judgement.of_workdir(asked.workdir, measure.workdir(asked.workdir)))
    needed = None
    fit, wanted = measure.fit_of(asked.config, asked.num_instances) if asked.step else (None, "")
    if fit is not None and not fit.holds:
        figures = {"needed_bytes": fit.needed_bytes, "free_bytes": fit.free_bytes}
        findings.append(judgement.of_misfit(str(fit), wanted, figures))
    elif fit is not None:
        measured = measure.step_of(asked.config, asked.num_instances)
        sizes = (asked.config, asked.num_instances, collectives.size())
        wire = sum(make_plan(*sizes).wire_step.values())
        share = share_of(*sizes)
        findings.append(judgement.of_step(measured, wire, share))
        needed = judgement.needed_rate(measured, share)
    if asked.source is not None:
        is_kept, is_folder = bool(asked.config.cache), isinstance(asked.source, FolderSource)
        findings.append(judgement.of_decoding(measure.decoding(asked.source), needed, is_kept, is_folder))
    return findings
