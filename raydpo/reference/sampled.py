"""Compare the scorer's log-probs with those that the sampler gave with its samples.

From candidates, their groups, and the groups' log-probs under a model, the module measures how far
sampler and scorer differ on completions that this same model sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from raydpo.config.job import ModelConfig
from raydpo.core.parts import Table, Witness
from raydpo.core.run import PartResult
from raydpo.core.tables import Row
from raydpo.models.loading import weights_fingerprint
from raydpo.reference.agreement import (
    Agreement,
    Tolerance,
    check_agreement,
    compare_logps,
    counts_of,
)


def witness_of(samples: Table, model: ModelConfig, tolerance: Tolerance) -> Witness:
    """Use the samples as a witness of a table of their log-probs under `model`."""
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
    """Add to a part of scored groups the differences from the sampler's log-probs.

    Args:
        weights: fingerprint of the model that scored; completions of other models are left out,
            and those whose sampler gave no log-probs.
        name: name of the model, for the message.
        tolerance: the differences that are allowed.
        samples: candidates of the same part.
        groups: the groups that were scored.
        result: rows of the reference table, in the groups' order.

    Raises:
        EngineError: the differences exceed the tolerance.
    """
    found = compare_samples(comparable(samples, weights), groups, result.rows)
    check_agreement(found, tolerance, f"the model {name!r}")
    counts, sums, maxima = counts_of(found)
    return replace(result, counts={**result.counts, **counts}, sums=sums, maxima=maxima)


def comparable(samples: list[Row], weights: str) -> list[Row]:
    """Return the samples that the model of these weights made, if they have log-probs."""
    return [
        row
        for row in samples
        if row["policy"] == weights and row["sampler_token_logps"] is not None
    ]


def compare_samples(samples: list[Row], groups: list[Row], scored: list[Row]) -> Agreement:
    """Return the differences on all completions of the groups that are among the samples."""
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
    """Yield each completion's key, and its log-probs."""
    for group, row in zip(groups, scored, strict=True):
        for ids, logps in zip(group["completions"], row["reference_token_logps"], strict=True):
            yield _key(group["prompt_id"], ids), logps
