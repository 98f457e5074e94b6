"""The probe after a push: check that engines compute what the trainer's forward pass computes.

For a few completions the trainer's forward pass gave log-probs of their tokens. The module
returns the largest difference from those of the engines, or raises an error. It finds weights
that were loaded wrongly, or into the wrong place, before they sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.job import EnginesConfig
from raydpo.core.errors import EngineError
from raydpo.core.progress import logger
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.weights import Weights


@dataclass(frozen=True)
class Probe:
    """A completion, and the log-probs (nats) of its tokens by the trainer's forward pass."""

    prompt_ids: list[int]
    completion_ids: list[int]
    token_logps: list[float]


def probes_of(rows: list[dict[str, Any]]) -> list[Probe]:
    """Probes from what training wrote into its model's folder (`training/probe.py`)."""
    return [
        Probe(row["prompt_ids"], completion, logps)
        for row in rows
        for completion, logps in zip(row["completions"], row["token_logps"], strict=True)
    ]


def probe_engines(pool: EnginePool, weights: Weights, probes: Sequence[Probe], what: str) -> float:
    """Compare every engine's log-probs of the probes with the trainer's, and log the drift.

    Returns the largest difference of a token's log-prob, in nats.

    Raises:
        EngineError: it is above `sampling.engines.probe_tolerance`.
    """
    room = pool.max_sequence_tokens - 1  # an engine that is full gives its last token no log-prob
    probes = [cut for probe in probes if (cut := _cut(probe, room)).completion_ids]
    sequences = [(probe.prompt_ids, probe.completion_ids) for probe in probes]
    expected = [probe.token_logps for probe in probes]
    differences = [largest_difference(found, expected) for found in pool.score(sequences, weights)]
    largest = max(differences)
    check_drift(largest, pool.settings, pool.dtype, weights)
    tokens = sum(len(probe.completion_ids) for probe in probes)
    text = "[%s] probe of weights %s: %d tokens, largest difference %.2g nats (tolerance %g)"
    tolerance = drift_tolerance(pool.settings, pool.dtype)
    logger.info(text, what, weights.fingerprint[:12], tokens, largest, tolerance)
    return largest


def _cut(probe: Probe, room: int) -> Probe:
    """What of a probe fits into so many tokens."""
    left = max(0, room - len(probe.prompt_ids))
    return Probe(probe.prompt_ids, probe.completion_ids[:left], probe.token_logps[:left])


def largest_difference(found: list[list[float]], expected: list[list[float]]) -> float:
    """Largest difference of two sets of log-probs; infinite if one of them is not finite."""
    largest = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            difference = abs(a - b)
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


def drift_tolerance(settings: EnginesConfig, dtype: str) -> float:
    """`sampling.engines.probe_tolerance`, or what the engines' dtype allows; in nats."""
    return settings.probe_tolerance or ROUNDING_NATS[dtype]


def check_drift(drift: float, settings: EnginesConfig, dtype: str, weights: Weights) -> None:
    """Refuse engines that compute something other than the trainer.

    Raises:
        EngineError: the drift, in nats, is above the tolerance.
    """
    tolerance = drift_tolerance(settings, dtype)
    if drift > tolerance:
        raise EngineError(
            f"with the weights {weights.fingerprint[:12]} an engine's log-prob of a token differs "
            f"by {drift:.3g} nats from the trainer's",
            f"they agree within {tolerance:g} nats in {dtype} (sampling.engines.probe_tolerance)",
            "if the engines' dtype is coarser than model.precision, set sampling.engines.dtype "
            "or a larger tolerance; else the weights in the engine are not the policy's: run the "
            "same command again, which starts new engines",
        )
