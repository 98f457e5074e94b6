"""The papers' formulas of policy gradient over a whole global batch; see `batch_formulas.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from mpmath import mp

from tests.conformance import formulas
from tests.conformance.batch_units import Batch, Input, Number, Section, Unit
from tests.conformance.preference_data import Row


def sampled_units(section: Section, batch: Batch) -> Iterator[Unit]:
    """Each completion; what the metrics average is completions or tokens, whatever the loss does."""
    sampled = list(_sampled(section, batch))
    completions = len(sampled)
    tokens = sum(len(row["completions"][number]) for row, number, _, _ in sampled)
    average = sum(reward for _, _, reward, _ in sampled) / completions
    for row, number, reward, advantage in sampled:
        ids = row["completions"][number]
        per_token = section["loss_per"] == "token"
        weight = mp.mpf(len(ids) if per_token else 1)
        divisor = mp.mpf(1 if section["loss_per"] == "completion" else len(ids))
        if section["advantages"] == "batch_mean":
            advantage = reward - average
        bound = partial(_completion_loss, section, batch, ids, advantage, divisor)
        inputs = [Input(mp.mpf(batch.tables.logps[i]), {("logps", i, 0): mp.mpf(1)}) for i in ids]
        # The mean over the units, in their weights, of what stands here.
        share = (tokens if per_token else completions) / weight
        found = _token_metrics(section, batch, ids, advantage)
        metrics = {name: share * sum(values) / tokens for name, values in found.items()}
        metrics["rewards/mean"] = share * mp.mpf(row["rewards"][number]) / completions
        kls = [formulas.kl_estimate(*_policy_and(batch, "reference", i)) for i in ids]
        metrics["kl"] = share * sum(kls) / completions
        yield Unit(weight, bound, inputs, None, metrics)


def _sampled(section: Section, batch: Batch) -> Iterator[tuple[Row, int, Number, Number]]:
    """A group's row, the completion's number, its reward with the KL in it, and its advantage."""
    for row in batch.rows.values():
        rewards = [mp.mpf(reward) for reward in row["rewards"]]
        if section["kl"] == "reward":
            for number, ids in enumerate(row["completions"]):
                sampler = sum(mp.mpf(batch.tables.sampler[i]) for i in ids)
                reference = sum(mp.mpf(batch.tables.reference[i]) for i in ids)
                rewards[number] -= mp.mpf(section["beta"]) * (sampler - reference)
        kind = formulas.leave_one_out
        if section["advantages"] == "group_normalized":
            kind = formulas.group_normalized
        for number, advantage in enumerate(kind(rewards)):
            yield row, number, rewards[number], advantage


def _limits(section: Section) -> dict[str, Any]:
    names = ("clip_low", "clip_high")
    return {n: None if section[n] is None else mp.mpf(section[n]) for n in names}


def _policy_and(batch: Batch, other: str, token: int) -> tuple[Number, Number]:
    return mp.mpf(batch.tables.logps[token]), mp.mpf(getattr(batch.tables, other)[token])


def _completion_loss(
    section: Section,
    batch: Batch,
    ids: list[int],
    advantage: Number,
    divisor: Number,
    *logps: Number,
) -> Number:
    total = mp.mpf(0)
    for token, logp in zip(ids, logps, strict=True):
        sampler, reference = (
            mp.mpf(getattr(batch.tables, name)[token]) for name in ("sampler", "reference")
        )
        total += formulas.clipped_ratio(logp, sampler, advantage, **_limits(section))
        kl = mp.mpf(section["beta"]) * formulas.kl_estimate(logp, reference)
        if section["kl"] == "weighted_loss":
            kl *= mp.exp(logp) / mp.exp(sampler)
        total += 0 if section["kl"] == "reward" else kl
    return total / divisor


def _token_metrics(
    section: Section, batch: Batch, ids: list[int], advantage: Number
) -> dict[str, list[Number]]:
    both = [_policy_and(batch, "sampler", token) for token in ids]
    ratios = [mp.exp(policy - sampler) for policy, sampler in both]
    low, high = _limits(section).values()
    beyond = [
        (advantage < 0 and low is not None and ratio < 1 - low)
        or (advantage > 0 and high is not None and ratio > 1 + high)
        for ratio in ratios
    ]
    return {
        "ratio/mean": ratios,
        "ratio/clipped": [mp.mpf(bool(one)) for one in beyond],
        "entropy": [-policy for policy, _ in both],
    }
