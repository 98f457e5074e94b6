"""Define the event that callbacks are called with.

Programs that import only `raydpo` can use the type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["step", "heldout", "stage", "round"]


@dataclass(frozen=True)
class Event:
    """A step, a measurement on held-out data, a stage or a round that has ended.

    Attributes:
        kind: `step` of a training, `heldout` for a measurement of a training on held-out data,
            `stage`, or `round`.
        run: path or URI of the run directory.
        folder: the folder of what ended, relative to the run directory, such as `round-000/policy`.
            A step and a measurement have the folder of their training, and a round has `round-000`.
        step: the step of the training, counted from 1, or the number of steps done before a
            measurement, 0 at the first; None for a stage and a round.
        metrics: for a step, its row of metrics.jsonl. For a measurement, its values by name, such
            as `loss`. For a stage, the counts in its manifest, or
            the last step's metrics if it trains; empty if it has neither. For a round, the content
            of the evaluation's metrics.json and `report`, the path of report.html; for an online
            round, the content of round.json.
    """

    kind: Kind
    run: str
    folder: str
    step: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
