"""The faults of a soak: a seed draws what happens in one attempt, and when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

Kind = Literal["kill", "stop", "flip", "full disk", "throttle"]

#: Processes by name -> what stands in their command line.
VICTIMS: Final[dict[str, str]] = {
    "driver": "",
    "raylet": "/raylet/raylet",
    "GCS": "gcs_server",
    "engine": "ray::Engine",
    "train controller": "ray::TrainController",
    "train worker": "RayTrainWorker",
    "task": "ray::MapWorker",
}
#: Those without whom an attempt ends.
_NEEDED: Final = ("driver", "raylet", "GCS", "train controller")
#: Counts up where the same seed draws other faults than before.
DRAWS: Final = 2
#: So many saves a fault may wait for.
_SAVES: Final = 4
#: Faults are drawn with these weights; trainings and saves are what costs most to lose.
_KILLED: Final = {
    "driver": 3,
    "raylet": 1,
    "GCS": 1,
    "engine": 2,
    "train controller": 1,
    "train worker": 5,
    "task": 2,
}
#: The driver, a raylet and a GCS that stop for a moment stop all; workers stop alone.
_STOPPED: Final = {"driver": 1, "engine": 2, "train worker": 2, "task": 1}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what happens: SIGKILL, SIGSTOP and later SIGCONT, a byte of a file flipped between two
            attempts, a file system without room, an object store that answers SlowDown.
        victim: a name of `VICTIMS`; empty where a file or a store suffers.
        moment: when, as a share of the time that its victim lives in the undisturbed run. A busy
            machine changes that time, and so the seconds.
        save: instead, the number of the attempt's save of a checkpoint that it comes at; 0 for none.
        seconds: how long it lasts; 0 for what does not pass.
    """

    kind: Kind
    victim: str
    moment: float
    save: int = 0
    seconds: float = 0.0

    @property
    def ends(self) -> bool:
        """Whether an attempt cannot go on after it."""
        return self.kind == "full disk" or (self.kind == "kill" and self.victim in _NEEDED)

    @property
    def name(self) -> str:
        """What a table calls it."""
        at = " at a save" if self.save else ""
        return f"{self.kind} {self.victim}{at}".strip()


def draw_faults(
    rng: random.Random, others: Sequence[Kind], absent: Sequence[str] = (), most: int = 8
) -> list[Fault]:
    """Faults for an attempt.

    One of them at most ends it, such as a kill of the driver or a full disk, and seldom comes
    early: the start of an attempt costs more than all that is shown to it.

    Args:
        rng: the run's generator.
        others: of `full disk` and `throttle`, those that the run's storage can have.
        absent: victims that the job does not have.
        most: so many, or up to three fewer.
    """
    faults: list[Fault] = []
    ends = False
    for _ in range(rng.randint(most - 3, most)):
        fault = _drawn(rng, others, (*absent, *(_NEEDED if ends else ())))
        if fault.kind == "full disk" and ends:
            fault = _stopped(rng, absent)
        elif fault.ends:
            ends = True
            fault = replace(fault, moment=max(fault.moment, rng.random(), rng.random()))
        faults.append(fault)
    return faults


def _drawn(rng: random.Random, others: Sequence[Kind], absent: Sequence[str]) -> Fault:
    kind = rng.choices(("kill", "stop", *others), (4, 5, *[2] * len(others)))[0]
    if kind == "kill":
        return _killed(rng, absent)
    if kind == "stop":
        return _stopped(rng, absent)
    return Fault(kind, "", rng.random(), seconds=rng.uniform(3, 10))


def _stopped(rng: random.Random, absent: Sequence[str]) -> Fault:
    victim = _victim(rng, _STOPPED, [name for name in absent if name != "driver"])
    return Fault("stop", victim, rng.random(), seconds=rng.uniform(1, 6))


def _killed(rng: random.Random, absent: Sequence[str]) -> Fault:
    victim = _victim(rng, _KILLED, absent)
    saves = victim in ("driver", "train worker") and rng.random() < 0.4
    return Fault("kill", victim, rng.random(), rng.randint(1, _SAVES) if saves else 0)


def _victim(rng: random.Random, weights: dict[str, int], absent: Sequence[str]) -> str:
    there = {name: weight for name, weight in weights.items() if name not in absent}
    return rng.choices(list(there), list(there.values()))[0]
