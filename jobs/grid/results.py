"""Rows of results.jsonl: what was measured on the fresh samples of one policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raydpo.evaluation.paired import Clusters

Quantity = Literal["score", "kl", "reward", "reward_share", "tokens"]


@dataclass(frozen=True)
class Row:
    """One policy of a study.

    Attributes:
        method: what trained it; `pi_ref` for the model that all start from.
        strength: which point of the method it is.
        seed: of the job.
        run: its run directory.
        overrides: all settings by which its job differs from the YAML file.
        prompts: held-out prompts, sorted.
        completions: [prompts], fresh samples of each prompt.
        sums: by quantity, [prompts] sums over a prompt's completions. `score` is the judge's, `kl`
            log policy - log reference in nats, `reward` the log-odds that made the labels,
            `reward_share` the same as a probability, `tokens` the length.
        repetition: share of bigrams that repeat within a completion; None of Best-of-N, as of the
            next two.
        distinct_2: share of distinct bigrams in all completions.
        token_limit_share: share of completions that ran into the token limit.
        rounds: how many rounds it took; None if it was trained offline.
        last: whether it is the last policy of its run.
        data: means of log-ratios in nats on held-out preferences: `chosen`, `rejected`, `all`;
            and `accuracy`. None for rounds, which hold nothing out.
        curve: held-out `logps/chosen` and `logps/rejected` in nats, by `step`.
        train_seconds: time of its optimizer steps.
        seconds: time of its whole run.
    """

    method: str
    strength: str
    seed: int
    run: str
    overrides: list[str]
    prompts: list[str]
    completions: list[int]
    sums: dict[str, list[float]]
    repetition: float | None = None
    distinct_2: float | None = None
    token_limit_share: float | None = None
    rounds: int | None = None
    last: bool = True
    data: dict[str, float] | None = None
    curve: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    train_seconds: float = 0.0
    seconds: float = 0.0

    def clusters(self, quantity: Quantity) -> Clusters:
        """Return the sums and the number of completions of each prompt."""
        return Clusters(np.array(self.sums[quantity]), np.array(self.completions, dtype=np.float64))

    def mean(self, quantity: Quantity) -> float:
        """Return the mean over all completions."""
        return self.clusters(quantity).mean


def pooled(rows: Sequence[Row], quantity: Quantity) -> Clusters:
    """Sum rows of one setting with other seeds: the completions of a prompt count together."""
    if any(row.prompts != rows[0].prompts for row in rows):
        raise ValueError("rows of a setting were evaluated on other prompts: use a new --output")
    columns = [row.clusters(quantity) for row in rows]
    return Clusters(
        np.sum([column.sums for column in columns], axis=0),
        np.sum([column.sizes for column in columns], axis=0),
    )


def append(file: Path, rows: Sequence[Row]) -> None:
    """Add the rows of a run, behind a line that a kill cut off if there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b") as lines:
        lines.seek(0)
        cut = lines.read()[-1:] not in (b"", b"\n")
        text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        lines.write(f"{chr(10) if cut else ''}{text}".encode())


def read_rows(file: Path) -> list[Row]:
    """Return all rows; none if there is no file. A line that a kill cut off does not count."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [Row(**found) for line in lines if (found := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
