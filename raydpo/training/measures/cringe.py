"""Cringe: cross-entropy on chosen completions, contrast on each token of rejected ones.

The section of a Cringe objective, the run's seed and the step give its `Measure`. Hashes of seed,
step, group, completion and position choose the contrasting tokens, so they do not depend on the
division into micro-batches.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.training.batch import MicroBatch
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.cringe import (
    binary_cringe_loss,
    cringe_token_losses,
    pairwise_cringe_loss,
    sampled_alternatives,
)
from raydpo.training.measures.values import Measure, Values, pair_logps

CringeSection = sections.BinaryCringeObjective | sections.PairwiseCringeObjective

#: Signed multipliers and shifts of SplitMix64's finalizer (Steele, Lea and Flood 2014).
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHIFTS = (30, 27, 31)
_WEYL = 0x9E3779B97F4A7C15 - 2**64


def cringe_measure(settings: CringeSection, seed: int, step: int) -> Measure:
    """Build the measure of a Cringe objective in one step."""
    return partial(_measure, settings, seed, step)


def token_uniforms(batch: MicroBatch, seed: int, step: int) -> Tensor:
    """Return a number for each token by group, completion and position: [N] float32 in [0, 1)."""
    groups = batch.group_numbers[batch.sequence_groups]
    starts = torch.searchsorted(batch.sequence_groups, batch.sequence_groups)
    within = torch.arange(len(starts), device=starts.device) - starts
    key = torch.zeros_like(groups)
    for part in (
        torch.full_like(groups, seed % 2**63),
        torch.full_like(groups, step),
        groups,
        within,
    ):
        key = _mixed(key, part)
    bits = _mixed(key[batch.sequences], batch.token_positions)
    return ((bits >> 40) & (2**24 - 1)).float() * 2.0**-24


def _mixed(key: Tensor, part: Tensor) -> Tensor:
    """Hash both into int64; products wrap around."""
    bits = (key ^ part) + _WEYL
    for shift, factor in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * factor
    return bits


def _measure(
    settings: CringeSection, seed: int, step: int, outputs: TokenOutputs, batch: MicroBatch
) -> Values:
    assert outputs.top_logits is not None
    assert outputs.target_logits is not None
    # In a sum of objectives another term may have requested more logits.
    top_logits = outputs.top_logits[:, : settings.top_k]
    alternatives = sampled_alternatives(top_logits, token_uniforms(batch, seed, step))
    contrast = batch.sequence_sums(cringe_token_losses(outputs.target_logits, alternatives))
    logps = batch.sequence_sums(outputs.logps)
    chosen, rejected = batch.pairs.unbind(1)
    if isinstance(settings, sections.BinaryCringeObjective):
        losses = binary_cringe_loss(logps[chosen], contrast[rejected], alpha=settings.alpha)
    else:
        losses = pairwise_cringe_loss(
            logps[chosen],
            logps[rejected],
            contrast[rejected],
            alpha=settings.alpha,
            gate_bias=settings.gate_bias,
            gate_temperature=settings.gate_temperature,
            gate_passes_gradient=settings.gate_gradient,
        )
    margins = (logps[chosen] - logps[rejected]).detach()
    metrics = {
        **pair_logps(outputs, batch),
        "logps/margins": margins,
        "logps/accuracies": (margins > 0).float(),
    }
    return Values(losses, batch.pair_weights, chosen, metrics)
