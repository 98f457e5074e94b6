"""The files of a training's measurements on held-out data: before it, and of what is exported.

Rank 0 writes them into the stage's folder; the driver and the report read them. They have the
values of each held-out group, so that differences can be estimated with their errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from raydpo.core.storage import Folder

if TYPE_CHECKING:
    from raydpo.training.heldout import Evaluation

BEFORE_FILE: Final = "heldout/before.json"
EXPORTED_FILE: Final = "heldout/exported.json"


@dataclass(frozen=True)
class Measured:
    """A measurement as it was written.

    Attributes:
        step: number of steps done before it.
        means: the mean over the held-out data of each metric.
        sums: name -> [G], weighted sums over each group's units.
        weights: [G], the groups' shares of the normalizer.
        prompts: [G], hash of each group's prompt.
        steps: of what is exported: steps `done` and `planned`.
    """

    step: int
    means: dict[str, float]
    sums: dict[str, list[float]]
    weights: list[float]
    prompts: list[str]
    steps: dict[str, int] = field(default_factory=dict[str, int])


def write_evaluation(
    folder: Folder, name: str, evaluation: Evaluation, steps: dict[str, int] | None = None
) -> None:
    """Write a measurement under one of the names above."""
    value: dict[str, Any] = {
        "step": evaluation.step,
        "means": evaluation.means,
        "sums": evaluation.sums,
        "weights": evaluation.weights,
        "prompts": evaluation.prompts,
        "steps": steps or {},
    }
    folder.write_json(name, value)


def read_evaluation(folder: Folder, name: str) -> Measured | None:
    """Read a measurement; None if the training made none."""
    return Measured(**folder.read_json(name)) if folder.exists(name) else None
