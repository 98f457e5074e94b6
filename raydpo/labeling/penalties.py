"""Penalties as reward functions: terms of a sum of rewards that are 0 or less.

`reward: [..., {function: raydpo.labeling.penalties:missing_eos, weight: 0.5}]` adds one; its
weight is its size. They read what raydpo knows of a completion, and not its text.
"""

from __future__ import annotations

from typing import Any


def missing_eos(completions: list[Any], finish_reasons: list[str]) -> list[float]:
    """Return -1.0 for a completion that the token limit cut, and 0.0 for one that ended by itself.

    Args:
        completions: not read.
        finish_reasons: `stop` where EOS or a stop string ended the completion.
    """
    return [0.0 if reason == "stop" else -1.0 for reason in finish_reasons]


def soft_overlong(
    completions: list[Any], completion_ids: list[list[int]], max_tokens: int, cache_tokens: int
) -> list[float]:
    """Return DAPO's soft overlong punishment, between -1.0 and 0.0 (arXiv:2503.14476, equation 13).

        0                                             if n <= max_tokens - cache_tokens
        ((max_tokens - cache_tokens) - n) / cache_tokens      up to n = max_tokens
        -1                                            beyond

    Args:
        completions: not read.
        completion_ids: tokens of each completion, EOS included; n is their number.
        max_tokens: the length from which on the punishment is whole.
        cache_tokens: over how many tokens before that it grows.

    Raises:
        ValueError: not 0 < cache_tokens <= max_tokens.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens {cache_tokens}, max_tokens {max_tokens}: cache_tokens is positive, and at "
            "most max_tokens"
        )
    free = max_tokens - cache_tokens
    return [max(-1.0, min(0.0, (free - len(ids)) / cache_tokens)) for ids in completion_ids]


def tokens_beyond(
    completions: list[Any], completion_ids: list[list[int]], limit_tokens: int
) -> list[float]:
    """Return minus the number of tokens beyond a limit; the weight is the price of one.

    Args:
        completions: not read.
        completion_ids: tokens of each completion, EOS included.
        limit_tokens: so many tokens cost nothing.

    Raises:
        ValueError: the limit is negative.
    """
    if limit_tokens < 0:
        raise ValueError(f"limit_tokens {limit_tokens}: a limit is 0 or more")
    return [-float(max(0, len(ids) - limit_tokens)) for ids in completion_ids]
