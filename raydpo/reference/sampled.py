"""The scorer's log-probs held against those that the sampler gave with its samples.

What comes in: candidates, groups made of them, and the groups' log-probs under a model. What
goes out: how far sampler and scorer lie apart on completions that this very model sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from raydpo.agreement import (
    Agreement,
    Tolerance,
    check_agreement,
    compare_logps,
    counts_of,
)
from raydpo.config import ModelConfig
from raydpo.models import weights_fingerprint
from raydpo.parts import Table, Witness
from raydpo.run import PartResult
from raydpo.tables import Row


def witness_of(samples: Table, model: ModelConfig, tolerance: Tolerance) -> Witness:
    """The samples as a witness of a table of their log-probs under `model`."""
    hold = functools.partial(hold_samples, weights_fingerprint(model), model.path, tolerance)
    return Witness(samples, hold)


def hold_samples(
    weights: str,
    name: str,
    tolerance: Tolerance,
    samples: list[Row],
    groups: list[Row],
    result: PartResult,
) -> PartResult:
    """A part of scored groups, with how far the sampler's log-probs are from them.

    Args:
        weights: fingerprint of the model that scored; what others sampled is left out.
        name: of the model, for the message.
        tolerance: what they may be apart.
        samples: candidates of the same part.
        groups: what was scored.
        result: rows of the reference table, in the groups' order.

    Raises:
        EngineError: they are further apart than that.
    """
    found = compare_samples(
        [row for row in samples if row["policy"] == weights], groups, result.rows
    )
    check_agreement(found, tolerance, f"the model {name!r}")
    counts, sums, maxima = counts_of(found)
    return replace(result, counts={**result.counts, **counts}, sums=sums, maxima=maxima)


def compare_samples(samples: list[Row], groups: list[Row], scored: list[Row]) -> Agreement:
    """The differences on all completions of the groups that are among the samples."""
    given = {
        _key(row["prompt_id"], row["completion_ids"]): row["sampler_token_logps"] for row in samples
    }
    pairs = [
        (given[key], logps) for key, logps in _scored_completions(groups, scored) if key in given
    ]
    return compare_logps([theirs for theirs, _ in pairs], [ours for _, ours in pairs])


def _key(prompt_id: str, completion_ids: list[int]) -> tuple[str, tuple[int, ...]]:
    return prompt_id, tuple(completion_ids)


def _scored_completions(
    groups: list[Row], scored: list[Row]
) -> Iterator[tuple[tuple[str, tuple[int, ...]], list[float]]]:
    """A completion's key, and its log-probs."""
    for group, row in zip(groups, scored, strict=True):
        for ids, logps in zip(group["completions"], row["reference_token_logps"], strict=True):
            yield _key(group["prompt_id"], ids), logps
