"""Compare log-probs of the same tokens, to tell whether two forward passes are those of one
model.

An engine gave log-probs (nats) with its own samples, and another forward pass gives the others. The
module returns their difference, or raises an error. vLLM may load other files of a folder than
transformers, or interpret a config differently, without reporting it.

raydpo asks vLLM for `raw_logprobs`: those of the model itself, before temperature, top_p, top_k or
a minimum length change the distribution. So they can be compared under any sampling settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.job import EnginesConfig, ModelConfig
from raydpo.core.errors import EngineError, NumericsError
from raydpo.core.parts import Table, Witness
from raydpo.core.run import PartResult
from raydpo.core.tables import Row
from raydpo.models.loading import weights_fingerprint

#: The mean over very many tokens may differ by this share of one token's tolerance.
_MEAN_SHARE: Final = 0.2
#: Among millions of tokens, the largest difference exceeds that of the few tokens of a probe.
_RAREST: Final = 10
_COUNT: Final = "compared_tokens"
_NAME: Final = "sampler_difference_nats"


@dataclass(frozen=True)
class Agreement:
    """Differences of log-probs: token count, sum and maximum of absolute values, in nats."""

    tokens: int
    total_nats: float
    largest_nats: float

    @property
    def mean_nats(self) -> float:
        """Mean absolute difference of a token."""
        return self.total_nats / self.tokens if self.tokens else 0.0

    def as_json(self) -> dict[str, float]:
        """Return the values that a manifest or a report contains."""
        return {
            "tokens": self.tokens,
            "mean_nats": self.mean_nats,
            "largest_nats": self.largest_nats,
        }

    def __str__(self) -> str:
        """Describe the differences in words, for the log."""
        return (
            f"mean difference {self.mean_nats:.2g} nats a token, largest {self.largest_nats:.2g}, "
            f"over {self.tokens} tokens"
        )


@dataclass(frozen=True)
class Tolerance:
    """The differences that rounding explains.

    Attributes:
        token_nats: the difference of an ordinary token.
        largest_nats: the difference of the rarest token; infinite in half precision.
        dtype: the coarser dtype of both sides.
    """

    token_nats: float
    largest_nats: float
    dtype: str

    def mean_nats(self, tokens: int) -> float:
        """Return the allowed mean over this many tokens; few tokens may happen to differ more."""
        return self.token_nats * (_MEAN_SHARE + 1 / math.sqrt(max(1, tokens)))


def sampler_tolerance(model: ModelConfig, engines: EnginesConfig) -> Tolerance:
    """Return `sampling.engines.probe_tolerance`, or a tolerance for the coarser of both dtypes.

    In half precision, single tokens of low probability differ much although the model is the same.
    The mean then decides.

    Args:
        model: the model that scores, with its precision.
        engines: the engines of the sampler.
    """
    sampled_in = model.precision if engines.dtype == "auto" else engines.dtype
    dtype = max(model.precision, sampled_in, key=lambda name: ROUNDING_NATS[name])
    token = engines.probe_tolerance or ROUNDING_NATS[dtype]
    return Tolerance(token, token * _RAREST if dtype == "float32" else math.inf, dtype)


def compare_logps(
    found: Iterable[Sequence[float]], expected: Iterable[Sequence[float]]
) -> Agreement:
    """Compare two sets of log-probs of the same tokens; not finite if any of them is not."""
    differences = [
        abs(a - b)
        for ours, theirs in zip(found, expected, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    if not all(map(math.isfinite, differences)):
        return Agreement(len(differences), math.inf, math.inf)
    return Agreement(len(differences), math.fsum(differences), max(differences, default=0.0))


def check_agreement(found: Agreement, tolerance: Tolerance, what: str) -> None:
    """Refuse samples from a model that differs from the one that scores them.

    Args:
        found: the differences.
        tolerance: the differences that are allowed.
        what: the model, for the message.

    Raises:
        EngineError: the mean or the largest difference is above the tolerance.
    """
    mean_limit = tolerance.mean_nats(found.tokens)
    if found.mean_nats <= mean_limit and found.largest_nats <= tolerance.largest_nats:
        return
    single = f", a token's within {tolerance.largest_nats:g}"
    raise EngineError(
        f"sampler and scorer give different log-probs to the same tokens: {found}",
        f"both are {what}, so in {tolerance.dtype} the mean is within {mean_limit:.2g} nats"
        f"{single if math.isfinite(tolerance.largest_nats) else ''}",
        "keep one set of *.safetensors files in the model's folder (vLLM loads all of them, "
        "transformers those of its index); where both load the same, vLLM computes this "
        "architecture otherwise: set sampling.engines.dtype, or a larger "
        "sampling.engines.probe_tolerance",
    )


def check_ratios(
    tolerance: Tolerance, what: str, tokens: int, total_nats: float, largest_nats: float
) -> None:
    """Refuse to train on log-probs of the sampler that are not those of the policy at step 0.

    Args:
        tolerance: the differences that are allowed.
        what: the model, for the message.
        tokens: how many were compared.
        total_nats: sum of the absolute differences.
        largest_nats: the largest of them.

    Raises:
        NumericsError: the mean or the largest difference is above the tolerance.
    """
    found = Agreement(tokens, total_nats, largest_nats)
    mean_limit = tolerance.mean_nats(tokens)
    if found.mean_nats <= mean_limit and largest_nats <= tolerance.largest_nats:
        return
    raise NumericsError(
        f"before the first update the policy's log-probs differ from its sampler's: {found}",
        f"the model {what!r} sampled these completions, so the ratio of policy and sampler is 1: in "
        f"{tolerance.dtype} the mean difference is within {mean_limit:.2g} nats",
        "sampler and trainer compute this model otherwise: set sampling.engines.dtype or "
        "model.precision alike, or a larger sampling.engines.probe_tolerance",
    )


def counts_of(found: Agreement) -> tuple[dict[str, int], dict[str, float], dict[str, float]]:
    """Return counts, sums and maxima of a part (`run.PartResult`)."""
    return {_COUNT: found.tokens}, {_NAME: found.total_nats}, {_NAME: found.largest_nats}


def agreement_in(manifest: dict[str, Any]) -> Agreement | None:
    """Combine the results of a finished stage's parts; None if nothing was compared."""
    tokens = manifest["counts"].get(_COUNT, 0)
    if not tokens:
        return None
    return Agreement(tokens, manifest["sums"][_NAME], manifest["maxima"][_NAME])


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
