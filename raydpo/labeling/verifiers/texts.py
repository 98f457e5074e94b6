"""Verify completions as texts: an exact answer, or a regular expression."""

from __future__ import annotations

import re
from typing import Any

from raydpo.labeling.verifiers.answers import marked


def exact(
    completions: list[str], answer: list[Any], ignore_case: bool = False
) -> list[float | None]:
    r"""Return 1.0 where a completion's answer is the text of the column `answer`, else 0.0.

    The answer of a completion is its last `\boxed{...}`, else what follows its last `####`, else
    the whole completion. That of the column is found in the same way. Runs of white space count as
    one space, and those at both ends as none.

    Args:
        completions: texts.
        answer: texts or numbers; None gives None.
        ignore_case: whether upper and lower case are the same.
    """
    return [
        None if truth is None else float(_plain(text, ignore_case) == _plain(truth, ignore_case))
        for text, truth in zip(completions, answer, strict=True)
    ]


def regex(
    completions: list[str], pattern: str | list[str | None], whole: bool = False
) -> list[float | None]:
    """Return 1.0 where a completion has a match of a regular expression, else 0.0.

    Args:
        completions: texts.
        pattern: of Python's `re`: one for all, or one for each completion, where None gives None.
            Flags stand in the pattern, such as `(?i)`.
        whole: whether the whole completion has to match, but for white space at its ends.

    Raises:
        ValueError: a pattern is no regular expression.
    """
    patterns = pattern if isinstance(pattern, list) else [pattern] * len(completions)
    return [
        None if one is None else float(_matches(one, text, whole))
        for one, text in zip(patterns, completions, strict=True)
    ]


def _plain(text: Any, ignore_case: bool) -> str:
    found = marked(str(text))
    plain = " ".join((str(text) if found is None else found).split())
    return plain.casefold() if ignore_case else plain


def _matches(pattern: str, text: str, whole: bool) -> bool:
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    found = compiled.fullmatch(text.strip()) if whole else compiled.search(text)
    return found is not None
