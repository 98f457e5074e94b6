"""Made-up preferences with known faults: sentences of words that are drawn alike for both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from raydpo.labeling.inspection.groups import Group

_WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("n", "r", "st", "le", "ndo")]
_STARTS = ("The {0} is {1} and {2}.", "A {0} of {1}, {2}!", "It was {0}: {1} {2}?", "{0} {1} {2}.")


def text(draws: np.random.Generator, sentences: int) -> str:
    """Some sentences of three drawn words each; frequent words are much more frequent."""
    shares = 1 / np.arange(1, len(_WORDS) + 1)
    words = draws.choice(_WORDS, (sentences, 3), p=shares / shares.sum())
    starts = draws.choice(_STARTS, sentences)
    return " ".join(str(s).format(*w) for s, w in zip(starts, words, strict=True))


def clean_groups(rows: int, seed: int = 0) -> list[Group]:
    """Pairs in which nothing tells chosen from rejected."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(1, 7, (rows, 3))
    made = (tuple(text(draws, int(n)) for n in row) for row in lengths)
    return [
        Group(f"{prompt} Number {index} of {seed}.", (one, other), ((0, 1),))
        for index, (prompt, one, other) in enumerate(made)
    ]


def planted(
    groups: list[Group], share: float, change: Callable[[str, str], tuple[str, str]], seed: int = 1
) -> list[Group]:
    """Change chosen and rejected in a share of the groups."""
    draws = np.random.default_rng(seed).random(len(groups))
    return [
        replace(group, completions=change(*group.completions)) if draw < share else group
        for group, draw in zip(groups, draws, strict=True)
    ]
