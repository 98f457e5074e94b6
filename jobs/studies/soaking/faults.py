"""The faults that a soak shows to a run, drawn by a seed.

What comes in: a random generator. What goes out: what is to happen in one attempt, and when.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["kill", "stop", "flip", "full disk", "throttle"]
#: A fault's moment: seconds after its victim is there, or the next save of a checkpoint.
Moment = float | Literal["save"]

#: Processes by name -> what stands in their command line, and about how many seconds they live.
VICTIMS: Final[dict[str, tuple[str, float]]] = {
    "driver": ("", 45.0),
    "raylet": ("/raylet/raylet", 40.0),
    "GCS": ("gcs_server", 40.0),
    "engine": ("ray::Engine", 30.0),
    "train controller": ("ray::TrainController", 15.0),
    "train worker": ("RayTrainWorker", 10.0),
    "task": ("ray::MapWorker", 15.0),
}
#: Faults are drawn with these weights; trainings and saves are what costs most to lose.
_KILLED: Final = {
    "driver": 3,
    "raylet": 1,
    "GCS": 1,
    "engine": 3,
    "train controller": 1,
    "train worker": 4,
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
        moment: when.
        seconds: how long it lasts; 0 for what does not pass.
    """

    kind: Kind
    victim: str
    moment: Moment
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What a table calls it."""
        at = " at a save" if self.moment == "save" else ""
        return f"{self.kind} {self.victim}{at}".strip()


def draw_faults(rng: random.Random, others: Sequence[Kind]) -> list[Fault]:
    """Two to four faults for an attempt.

    Args:
        rng: the run's generator.
        others: of `full disk` and `throttle`, those that the run's storage can have.
    """
    faults: list[Fault] = []
    for _ in range(rng.choice((2, 2, 3, 4))):
        kind = rng.choices(("kill", "stop", *others), (6, 2, *[1.5] * len(others)))[0]
        if kind == "kill":
            faults.append(_killed(rng))
        elif kind == "stop":
            victim = rng.choices(list(_STOPPED), list(_STOPPED.values()))[0]
            faults.append(Fault(kind, victim, _after(rng, victim), rng.uniform(1, 6)))
        else:
            faults.append(Fault(kind, "", _after(rng, "driver"), rng.uniform(3, 10)))
    return faults


def _killed(rng: random.Random) -> Fault:
    victim = rng.choices(list(_KILLED), list(_KILLED.values()))[0]
    saves = victim in ("driver", "train worker") and rng.random() < 0.4
    return Fault("kill", victim, "save" if saves else _after(rng, victim))


def _after(rng: random.Random, victim: str) -> float:
    return rng.uniform(0, VICTIMS[victim][1])
