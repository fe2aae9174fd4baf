"""What a soak does to a run in each of its cycles, and the table of what it has done."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1")
VICTIMS = ("worker 0", "worker 1", "launcher")
# Of each phase: the stamps at which it is, how many of them a run of the soak makes in it at least, and the seconds
# after one of them within which it goes on.
_STAMPS = {
    "start-up": (("starting", "joining the other workers", "making the network", "restoring"), 1, 0.5),
    "prior": (("contrastive prior",), 3, 0.1),
    "search": (("hard negatives",), 2, 0.1),
    "step": (("training", "waiting for images"), 2, 0.2),
    "save": (("saving step",), 1, 0.3),
    "evaluation": (("features of",), 3, 0.1),
}
PHASES = tuple(_STAMPS)


class Hurt(NamedTuple):
    """What is done in one cycle."""

    signal: str
    victim: str
    phase: str
    place: str  # of `tests.faults.hurt.pretrain`

    @property
    def variable(self) -> str:
        """HURT in the workers' environment."""
        return f"{self.signal}@{self.victim.removeprefix('worker ')}:{self.place}"


def hurt_of(seed: int, cycle: int) -> Hurt:
    """What is done in a cycle: every signal to every victim in every phase, in an order of chance, again and again."""
    everything = list(itertools.product(SIGNALS, VICTIMS, PHASES))
    turn, index = divmod(cycle, len(everything))
    random.Random(f"{seed} {turn}").shuffle(everything)
    signal, victim, phase = everything[index]
    chance = random.Random(f"{seed} {turn} {index}")
    stamps, times, seconds = _STAMPS[phase]
    place = f"{chance.choice(stamps)}:#{chance.randint(1, times)}:{chance.uniform(0, seconds):.3f}"
    return Hurt(signal, victim, phase, place)


def phase_of(stamp: str) -> str:
    """The phase in which a signal was sent, by the worker's last stamp; it may be later than what was planned."""
    for phase, (stamps, _, _) in _STAMPS.items():
        if stamp.startswith(stamps):
            return phase
    return "step"  # what is said between two steps


def table(done: Iterable[tuple[str, str, str]]) -> str:
    """How many cycles had which signal, victim and phase, in Markdown."""
    counts = Counter(done)
    lines = [f"| signal to | {' | '.join(PHASES)} | all |", "|---|" + "---|" * (len(PHASES) + 1)]
    for signal, victim in itertools.product(SIGNALS, VICTIMS):
        row = [counts[signal, victim, phase] for phase in PHASES]
        lines.append(f"| {signal} {victim} | {' | '.join(map(str, row))} | {sum(row)} |")
    sums = [sum(number for key, number in counts.items() if key[2] == phase) for phase in PHASES]
    return "\n".join([*lines, f"| all | {' | '.join(map(str, sums))} | {sum(sums)} |"])
