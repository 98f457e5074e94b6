"""Record each round, and decide from the records when to stop and which policy is best.

The numbers of the rounds so far give JSON for `online.json` and each round's `round.json`, and the
reason to stop, if any.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from time import monotonic
from typing import Any, Final

from raydpo.config.job import StoppingConfig
from raydpo.core.errors import ConfigError

Json = dict[str, Any]

#: The name of three activities at once, and all that a round is for; the rest is overhead.
STREAMED: Final = "sampling, labelling and scoring"
WORK: Final = ("sampling", "labelling", "scoring", STREAMED, "training", "evaluation")


@dataclass(frozen=True)
class RoundRecord:
    """One row of `online.json`: a policy, its origin, and its quality.

    Attributes:
        rounds_done: 0 for the original model, r for the policy after r rounds.
        policy: path of the model.
        policy_weights: fingerprint of the policy.
        sampler_weights: fingerprint of the model that sampled; None in row 0, as all fields below.
        reference_weights: fingerprint of pi_ref in this round's loss; None if the loss has none.
        samples: number of completions sampled for it.
        groups: number of preference groups in its training table.
        replayed: how many of those come from earlier rounds.
        displacement_nats: fall of `logps/chosen` during the training, see `displacement`.
        evaluation: held-out numbers (`online/measure.py`), with `gain` over the row before; None if
            the job has no `evaluation` section.
    """

    rounds_done: int
    policy: str
    policy_weights: str
    sampler_weights: str | None = None
    reference_weights: str | None = None
    samples: int = 0
    groups: int = 0
    replayed: int = 0
    displacement_nats: float | None = None
    evaluation: Json | None = None

    def mean(self, name: str) -> float:
        """Return the mean of one of the evaluation's estimates."""
        assert self.evaluation is not None
        return self.evaluation[name]["mean"]

    def as_json(self) -> Json:
        """Return the row of `online.json`."""
        return asdict(self)


def stop_reason(records: Sequence[RoundRecord], stopping: StoppingConfig) -> str | None:
    """Return in words why no further round runs after these; None to continue.

    Args:
        records: those from the original model to the newest policy.
        stopping: the limits.
    """
    original, newest = records[0], records[-1]
    fall, limit = newest.displacement_nats, stopping.max_displacement_nats
    if limit is not None and fall is not None and fall > limit:
        return (
            f"likelihood displacement: logps/chosen fell by {fall:.2f} nats "
            f"(max_displacement_nats {limit:g})"
        )
    if newest.evaluation is None:
        return None
    kl, growth = stopping.max_kl_nats, stopping.max_length_growth
    found = newest.mean("kl_nats_per_completion")
    if kl is not None and found > kl:
        return f"KL budget: {found:.2f} nats per completion (max_kl_nats {kl:g})"
    length, before = newest.mean("completion_tokens"), original.mean("completion_tokens")
    if growth is not None and length > growth * before:
        return (
            f"length: completions of {length:.1f} tokens, {before:.1f} of the original model "
            f"(max_length_growth {growth:g})"
        )
    patience = stopping.patience_rounds
    if patience is not None and len(records) - 1 - _highest(records) >= patience:
        return (
            f"no new best held-out reward in {patience} round(s) (patience_rounds); the best is "
            f"{records[_highest(records)].mean('reward'):.4f}"
        )
    return None


def refuse_spent_budget(original: RoundRecord, stopping: StoppingConfig) -> None:
    """Compare the model that the rounds start from with the KL budget.

    Raises:
        ConfigError: its KL already exceeds what any policy may have.
    """
    limit = stopping.max_kl_nats
    if limit is None or original.evaluation is None:
        return
    kl = original.mean("kl_nats_per_completion")
    if kl > limit:
        raise ConfigError(
            f"`model` is {kl:.2f} nats per completion away from reference.model, and "
            f"online.stopping.max_kl_nats is {limit:g}",
            "KL is measured from reference.model; the rounds would end after the first",
            "raise online.stopping.max_kl_nats by what the model starts with",
        )


def best_record(records: Sequence[RoundRecord], stopping: StoppingConfig) -> RoundRecord:
    """Return the policy with the best reward within the KL budget; the newest if unmeasured.

    If no policy is within the budget, return the one that is nearest to it.
    """
    if records[-1].evaluation is None:
        return records[-1]
    limit = stopping.max_kl_nats
    allowed = [r for r in records if limit is None or r.mean("kl_nats_per_completion") <= limit]
    if not allowed:
        return min(records, key=lambda record: record.mean("kl_nats_per_completion"))
    return allowed[_highest(allowed)]


def displacement(metrics: Sequence[Json]) -> float | None:
    """Return how far `logps/chosen` fell in a training, in nats: from first to last tenth of steps.

    Batches differ from step to step, so it is an estimate; None if the objective has no such
    metric.
    """
    values = [row["logps/chosen"] for row in metrics if "logps/chosen" in row]
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return fmean(values[:tenth]) - fmean(values[-tenth:])


def _highest(records: Sequence[RoundRecord]) -> int:
    return max(range(len(records)), key=lambda index: records[index].mean("reward"))


def describe_record(record: RoundRecord) -> str:
    """Describe the held-out numbers of a policy in one line."""
    evaluation = record.evaluation
    if evaluation is None:
        return f"{record.groups} groups trained on"
    gain = evaluation["gain"]
    z = f", {gain['z']:+.1f} standard errors" if gain and gain["z"] is not None else ""
    change = f" ({gain['mean']:+.4f}{z})" if gain else ""
    return (
        f"held-out reward {with_error(evaluation['reward'], 4)}{change}, "
        f"KL {with_error(evaluation['kl_nats_per_completion'], 2)} nats per completion, "
        f"{with_error(evaluation['completion_tokens'], 1)} tokens"
    )


def with_error(estimate: Json, digits: int) -> str:
    """Format an estimate and its standard error as text."""
    error = estimate["standard_error"]
    text = f"{estimate['mean']:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


@dataclass
class Ledger:
    """The seconds of a round by activity; seconds outside all blocks count as `other`."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    _started: float = field(default_factory=monotonic)
    _inner: list[float] = field(default_factory=list[float])

    @contextmanager
    def of(self, name: str) -> Generator[None]:
        """Count the block's time under a name, except for time that nested blocks count."""
        started = monotonic()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent

    def move(self, seconds: float, source: str, target: str) -> None:
        """Move seconds from one name to another, at most as many as were counted there."""
        moved = min(seconds, self.seconds.get(source, 0.0))
        self.seconds[source] = self.seconds.get(source, 0.0) - moved
        self.seconds[target] = self.seconds.get(target, 0.0) + moved

    def close(self) -> dict[str, float]:
        """Return all seconds so far, including `other` and `total`."""
        total = monotonic() - self._started
        other = total - sum(self.seconds.values())
        return {**self.seconds, "other": other, "total": total}


def overhead_share(seconds: dict[str, float]) -> float:
    """Return the share of time outside sampling, labelling, scoring, training and evaluation."""
    work = sum(seconds.get(name, 0.0) for name in WORK)
    return 1 - work / seconds["total"] if seconds["total"] else 0.0


def describe_seconds(seconds: dict[str, float]) -> str:
    """Describe a round's ledger in one line, the largest entry first, with shares in percent."""
    total = seconds["total"]
    parts = sorted((n for n in seconds if n != "total"), key=lambda n: -seconds[n])
    spent = ", ".join(
        f"{name} {seconds[name]:.1f} s ({100 * seconds[name] / total:.0f} %)"
        for name in parts
        if seconds[name] >= 0.05
    )
    push = 100 * seconds.get("weight push", 0.0) / total
    return (
        f"{total:.1f} s: {spent}; outside work {100 * overhead_share(seconds):.0f} %, "
        f"weight push {push:.2f} %"
    )
