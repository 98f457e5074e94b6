"""Compare the policy after each round with the original model, and say what the rounds were worth.

The held-out samples of the policies, with their log-probs, give for each policy the numbers and the
checks of an evaluation's report, and for all rounds one verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.config.job import Config, StoppingConfig
from raydpo.evaluation.flags import examine, size_interval
from raydpo.evaluation.measure import measure
from raydpo.evaluation.report import number
from raydpo.evaluation.training_rewards import training_reward
from raydpo.evaluation.verdict_words import BEYOND_CHANCE, against, judged
from raydpo.online.measure import PolicyMeasures, reward_difference
from raydpo.online.record import RoundRecord

Json = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One line for people, what speaks against the best policy, and what limits the numbers."""

    line: str
    objections: list[str]
    notes: list[str]


def against_original(config: Config, measures: Sequence[PolicyMeasures]) -> list[Json | None]:
    """Compare each policy with the original model, on whose samples its checks are based.

    Returns:
        One entry for each policy: the numbers of `evaluation/measure.py`, `training_reward`, and
        what `evaluation/flags.py` finds; None for the original model.
    """
    evaluation = config.evaluation
    if not measures or evaluation is None:
        return []
    original = measures[0]
    found: list[Json | None] = [None]
    for policy in measures[1:]:
        values: Json = {
            **measure(config, evaluation, original.samples, policy.samples, policy.logps, None),
            "training_reward": training_reward(config, original.rewarded, policy.rewarded),
        }
        found.append({**values, **examine(values, original.samples, policy.samples, {})})
    return found


def rounds_verdict(
    records: Sequence[RoundRecord],
    measures: Sequence[PolicyMeasures],
    compared: Sequence[Json | None],
    stopped: str | None,
    best: RoundRecord,
    stopping: StoppingConfig,
) -> Verdict:
    """Judge the rounds by their best policy; without an evaluation there is nothing to judge by.

    Args:
        records: one for the original model and one for each round.
        measures: the held-out samples of each, or none at all.
        compared: the result of `against_original`.
        stopped: why the rounds ended early, or None.
        best: the record of the best policy.
        stopping: the limits of the rounds.
    """
    rounds = len(records) - 1
    early = [f"the rounds ended early: {stopped}"] if stopped else []
    if not compared:
        line = f"{_rounds(rounds)} done; nothing was measured, as the job has no evaluation section"
        return Verdict(f"{line}.{against(early)}", early, [])
    newest = compared[-1]
    if newest is None:
        return Verdict("No round was done.", early, [])
    chosen = compared[best.rounds_done]
    if chosen is None:
        return _no_better(newest, rounds, early, best, stopping)
    objections = [*chosen["speaks_against_it"], *_against_the_choice(best, stopping), *early]
    objections += _fell_after(measures, best.rounds_done)
    score = chosen["difference"]["score"]
    line = (
        f"{judged(score['z'] or 0.0, objections)}: of {_rounds(rounds)} the best policy is that of "
        f"round {best.rounds_done - 1}; its held-out reward on {score['prompts']} prompts is "
        f"{_gap(score)} the original model's{_in_errors(score)}."
    )
    line += against(objections)
    return Verdict(line, objections, [*chosen["notes"], *_chosen_by(rounds)])


def _no_better(
    newest: Json, rounds: int, early: list[str], best: RoundRecord, stopping: StoppingConfig
) -> Verdict:
    """Say that no round beat the original model, with the change of the newest policy."""
    score = newest["difference"]["score"]
    z = min(0.0, score["z"] or 0.0)
    line = (
        f"{judged(z, ())}: after {_rounds(rounds)} no policy beats the original model; the newest "
        f"policy's held-out reward on {score['prompts']} prompts is {_gap(score)} the original's"
        f"{_in_errors(score)}."
    )
    objections = [*_against_the_choice(best, stopping), *early]
    return Verdict(line + against(objections), objections, newest["notes"])


def _against_the_choice(best: RoundRecord, stopping: StoppingConfig) -> list[str]:
    """Return that even the nearest policy is beyond the KL budget, if it is."""
    limit, kl = stopping.max_kl_nats, best.mean("kl_nats_per_completion")
    if limit is None or kl <= limit:
        return []
    return [f"no policy is within the KL budget: {number(kl)} nats (max_kl_nats {limit:g})"]


def _fell_after(measures: Sequence[PolicyMeasures], best: int) -> list[str]:
    """Return that rounds after the best one made the policy worse, if that is beyond chance."""
    if best == len(measures) - 1:
        return []
    change = reward_difference(measures[-1], measures[best])
    if (change["z"] or 0.0) >= -BEYOND_CHANCE:
        return []
    return [
        f"rounds after round {best - 1} made it worse: the newest policy's held-out reward is "
        f"{_gap(change)} that of the best{_in_errors(change)}"
    ]


def _chosen_by(rounds: int) -> list[str]:
    if rounds < 2:
        return []
    return [
        f"The best of {rounds} policies was chosen by the same held-out prompts that measure it, so "
        "its gain is a little too large on average."
    ]


def _gap(difference: Json) -> str:
    """Return how far above or below another policy's reward this one is, with its interval."""
    mean = difference["mean"]
    if not mean:
        return "equal to"
    where = "above" if mean > 0 else "below"
    return f"{number(abs(mean))}{size_interval(difference)} {where}"


def _in_errors(difference: Json) -> str:
    z = difference["z"]
    return "" if z is None else f" ({abs(z):.1f} standard errors)"


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"
