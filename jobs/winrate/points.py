"""The points of the win-rate study, and the row of each in results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from raydpo.evaluation.best_of import Pool, best_of_kl, best_of_weights

#: Methods that train, and the names of the frontier study's runs that have their policies.
TRAINED: Final = {
    "DPO": "dpo-beta-0.1",
    "policy gradient": "policy_gradient-beta-0.3",
    "Preferred-FT": "preferred_sft-lr-2e-4",
}
#: The model that all start from, which Best-of-N samples.
REFERENCE: Final = "pi_ref"
TEMPERATURES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
#: N of Best-of-N beside the temperatures, and samples a prompt from which it is estimated.
BEST_OF: Final = (4, 16)
BEST_OF_SAMPLES: Final = 32
#: N of the curve at temperature 1, as in appendix D.1 of the paper, with more values between.
CURVE: Final = (1, 2, 4, 8, 16, 32, 64, 128)
Figure = Literal["temperature", "curve"]


@dataclass(frozen=True)
class WinRow:
    """A method at one temperature for one seed; lists have a value for each prompt.

    Attributes:
        figure: which figure it belongs to.
        method: its name; `pi_ref` and Best-of-N sample the reference.
        n: N of Best-of-N; 1 for single samples.
        temperature: of its samples; the reference's completions that it meets have 1.
        seed: of the policy and of the samples.
        prompts: ids of the held-out prompts.
        wins: share of the comparisons with the reference that it wins, a tie counting half.
        ties: share of the comparisons that tie.
        scores: mean judge score.
        tokens: mean length.
        kl: KL of Best-of-N from the reference, in nats; None for others and at other temperatures.
        completions: number of judged completions.
    """

    figure: Figure
    method: str
    n: int
    temperature: float
    seed: int
    prompts: list[str]
    wins: list[float]
    ties: list[float]
    scores: list[float]
    tokens: list[float]
    kl: list[float] | None
    completions: int

    @property
    def label(self) -> str:
        """The method, with its N."""
        return f"best of {self.n}" if self.method == "best of N" else self.method


def row_of(
    figure: Figure, method: str, n: int, temperature: float, seed: int, pools: Sequence[Pool]
) -> WinRow:
    """Return the row of a method from its judged samples.

    Greedy decoding has one completion a prompt, and the best of N equal completions is that one.

    Args:
        figure: of the row.
        method: of the row.
        n: N; 1 takes the mean over all samples.
        temperature: of the samples.
        seed: of the row.
        pools: the samples of each prompt.
    """
    taken = 1 if temperature == 0 else n
    weights = [best_of_weights(pool.rewards, taken) for pool in pools]
    columns = {
        name: [float(w @ getattr(pool, name)) for w, pool in zip(weights, pools, strict=True)]
        for name in ("wins", "ties", "scores", "lengths")
    }
    measured = method == "best of N" and temperature == 1
    return WinRow(
        figure=figure,
        method=method,
        n=n,
        temperature=temperature,
        seed=seed,
        prompts=[pool.prompt_id for pool in pools],
        wins=columns["wins"],
        ties=columns["ties"],
        scores=columns["scores"],
        tokens=columns["lengths"],
        kl=[best_of_kl(pool.rewards, n) for pool in pools] if measured else None,
        completions=sum(len(pool.rewards) for pool in pools),
    )


def append(file: Path, rows: Sequence[WinRow]) -> None:
    """Add rows to results.jsonl, in one write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(text)


def read_rows(file: Path) -> list[WinRow]:
    """Return all whole rows of results.jsonl; a line that a kill cut short does not count."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [WinRow(**json.loads(line)) for line in lines]
