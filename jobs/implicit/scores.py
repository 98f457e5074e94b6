"""What each judge gives the held-out pairs of a training: margins, in the judge's own unit.

A positive margin prefers the chosen completion. The judges are log-probs of the model before
training, the policy's implicit reward, a reward model, length, and chance.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from implicit.runs import BETA, HELDOUT_FRACTION, Trained
from raydpo.config.job import ModelConfig
from raydpo.core.errors import NumericsError
from raydpo.core.tables import Row
from raydpo.models.loading import load_causal_lm, load_scalar_head, load_tokenizer
from raydpo.pipeline.results import Run
from raydpo.reference.scoring import score_groups
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps
from raydpo.training.reward import ended_by_eos, reward_module
from raydpo.training.sharing import token_module
from raydpo.training.split import is_heldout

POLICY: Final = "DPO's implicit reward"
REWARD: Final = "reward model"
BASE_SUM: Final = "pi_ref's log-prob, sum"
BASE_MEAN: Final = "pi_ref's log-prob, mean per token"
ORIGINAL_SUM: Final = "log-prob before fine-tuning, sum"
ORIGINAL_MEAN: Final = "log-prob before fine-tuning, mean per token"
LONGER: Final = "length: longer wins"
LENGTH: Final = "length: sign of the training pairs"
RANDOM: Final = "random"
_CPU: Final = torch.device("cpu")
_TOKENS_PER_BATCH: Final = 4096
#: Share of pairs by which accuracy here may differ from that of the train workers: rounding.
_TOLERANCE: Final = 0.005


@dataclass(frozen=True)
class Scores:
    """Margins on the held-out pairs of one data set and seed.

    Attributes:
        data: name of the data set.
        seed: of samples, split and order.
        prompts: [P], the prompt of each pair.
        margins: judge -> [P].
        training_pairs: number of pairs that were trained on.
        longer_wins: share of the training pairs whose longer completion was chosen; ties are half.
        accuracies: the held-out accuracy that the train workers measured, by judge.
    """

    data: str
    seed: int
    prompts: list[str]
    margins: dict[str, list[float]]
    training_pairs: int
    longer_wins: float
    accuracies: dict[str, float]


def scores_of(data: str, seed: int, trained: Trained) -> Scores:
    """Score the held-out pairs with all judges.

    Raises:
        NumericsError: the policy or the reward model orders pairs in another way than in training.
    """
    rows = trained.policy.arrow("preferences").to_pylist()
    logps = [row["reference_token_logps"] for row in trained.policy.arrow("reference").to_pylist()]
    held = [n for n, row in enumerate(rows) if _is_heldout(row, seed)]
    kept, reference = [rows[n] for n in held], [logps[n] for n in held]
    policy = _logps(trained.policy.policy(), kept)
    values: dict[str, list[list[float]]] = {
        POLICY: _each(policy, reference, lambda ours, theirs: BETA * (_sum(ours) - _sum(theirs))),
        REWARD: _rewards(trained.reward.policy(), kept),
        BASE_SUM: [[_sum(one) for one in own] for own in reference],
        BASE_MEAN: [[_sum(one) / len(one) for one in own] for own in reference],
        LONGER: [[float(len(ids)) for ids in row["completions"]] for row in kept],
    }
    if trained.original is not None:
        original = _logps(trained.original, kept)
        values[ORIGINAL_SUM] = [[_sum(one) for one in own] for own in original]
        values[ORIGINAL_MEAN] = [[_sum(one) / len(one) for one in own] for own in original]
    margins = {judge: _margins(kept, own) for judge, own in values.items()}
    training = [row for row in rows if not _is_heldout(row, seed)]
    longer = _longer_wins(training)
    margins[LENGTH] = [(1 if longer >= 0.5 else -1) * margin for margin in margins[LONGER]]
    margins[RANDOM] = [_draw(seed, n) for n in range(len(margins[LONGER]))]
    measured = {POLICY: trained.policy, REWARD: trained.reward}
    accuracies = {judge: _checked(judge, run, margins[judge]) for judge, run in measured.items()}
    prompts = [row["prompt_id"] for row in kept for _ in row["pairs"]]
    pairs = sum(len(row["pairs"]) for row in training)
    return Scores(data, seed, prompts, margins, pairs, longer, accuracies)


def _is_heldout(row: Row, seed: int) -> bool:
    return is_heldout(row["prompt_id"], HELDOUT_FRACTION, seed)


def _logps(model: ModelConfig, rows: list[Row]) -> list[list[list[float]]]:
    """Log-probs, nats, by group, completion and token."""
    return _values(token_module(load_causal_lm(model).eval(), model, _CPU), rows)


def _rewards(model: ModelConfig, rows: list[Row]) -> list[list[float]]:
    """Rewards by group and completion."""
    eos_id = load_tokenizer(model).eos_token_id
    assert isinstance(eos_id, int)
    ended = [ended_by_eos(row, eos_id) for row in rows]
    module = reward_module(load_scalar_head(model).eval(), model)
    return [[_sum(one) for one in own] for own in _values(module, ended)]


def _values(module: TokenLogps, rows: list[Row]) -> list[list[list[float]]]:
    groups = [Group("", row["prompt_ids"], row["completions"], [], None) for row in rows]
    return score_groups(module, groups, _TOKENS_PER_BATCH, _CPU)


def _margins(rows: list[Row], values: list[list[float]]) -> list[float]:
    return [
        own[pair["chosen"]] - own[pair["rejected"]]
        for row, own in zip(rows, values, strict=True)
        for pair in row["pairs"]
    ]


def _longer_wins(rows: list[Row]) -> float:
    lengths = [[float(len(ids)) for ids in row["completions"]] for row in rows]
    margins = _margins(rows, lengths)
    return sum(0.5 if margin == 0 else float(margin > 0) for margin in margins) / len(margins)


def _checked(judge: str, run: Run, margins: list[float]) -> float:
    """The accuracy that the train workers measured, which is that of the margins."""
    theirs = float(run.heldout_metrics()[-1]["rewards/accuracies"])
    ours = sum(margin > 0 for margin in margins) / len(margins)
    if abs(ours - theirs) > _TOLERANCE:
        raise NumericsError(
            f"{judge}: {ours:.4f} of the held-out pairs in the right order, {theirs:.4f} in training",
            "the exported model orders pairs as the trained one did",
            "this is a bug of the study, or of the export: please report it",
        )
    return theirs


def _each(
    ours: list[list[list[float]]],
    theirs: list[list[list[float]]],
    function: Callable[[list[float], list[float]], float],
) -> list[list[float]]:
    return [
        [function(one, other) for one, other in zip(own, others, strict=True)]
        for own, others in zip(ours, theirs, strict=True)
    ]


def _sum(values: list[float]) -> float:
    return math.fsum(values)


def _draw(seed: int, number: int) -> float:
    digest = hashlib.sha256(f"random/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 - 0.5
