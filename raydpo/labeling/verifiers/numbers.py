"""Verify completions as numbers, exactly: texts become fractions, not floats."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final, Literal

from raydpo.labeling.verifiers.answers import marked

Percent = Literal["hundredth", "unit"]

#: Digits in one written number; more are no number, since exact powers of ten would grow large.
_MOST_DIGITS: Final = 400
_LARGEST_EXPONENT: Final = 400
#: What a reader sees, for what LaTeX and Unicode write.
_AS_READ: Final = (
    (re.compile(r"\\(?:left|right|,|;|!|:|quad|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<=\d)\s*(?=\\[dtc]?frac)"), " "),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2 "),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}]"), "-"),
    (re.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))"), ","),
    (re.compile("[\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]"), " "),
    (re.compile("\N{MULTIPLICATION SIGN}"), "*"),
    (re.compile(r"(?<=\d) *\* *10\^\{?([-+]?\d+)\}?"), r"e\1"),
    (re.compile(r"(?<![\w.*^])10\^\{?([-+]?\d+)\}?"), r"1e\1"),
    (re.compile(r"^\s*([-+])\s+"), r"\1"),
)
# Quantifiers with a second + give nothing back, so that long runs of digits take linear time.
_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d++(?!,\d))"
_DECIMAL: Final = rf"(?:{_DIGITS}(?:\.\d++)?|\.\d++)"
#: A sign that follows a letter, a digit or a closing bracket subtracts; it is no sign.
_NUMBER: Final = re.compile(
    rf"(?<![\w.,/^])(?:(?<![\w)\]}}])(?P<sign>[-+]))?[$\u20ac\u00a3]?"
    rf"(?:(?P<whole>\d++)[ ]++(?=\d+/\d))?"
    rf"(?P<first>{_DECIMAL})"
    rf"(?:[ ]?/[ ]?(?P<under>{_DECIMAL}))?"
    rf"(?:[eE](?P<power>[-+]?\d++))?"
    rf"(?![\w^]|[.,/]\d)[ ]?(?P<percent>%|percent\b)?"
)


def number(
    completions: list[str],
    answer: list[Any],
    absolute_tolerance: float = 0.0,
    relative_tolerance: float = 0.0,
    percent: Percent = "hundredth",
) -> list[float | None]:
    r"""Return 1.0 where a completion's number is that of the column `answer`, else 0.0.

    The number of a completion is the last one in its last `\boxed{...}`, else the last one after
    its last `####`, else the last one in the completion; without a number it is wrong. Numbers have
    signs, thousands separators (1,234), decimals, powers of ten (1e-3, 2 * 10^5), fractions (3/4,
    \frac{3}{4}, 1 3/4) and currency signs; a word behind them is ignored. They are compared as
    exact fractions.

    Args:
        completions: texts.
        answer: numbers, or texts with one, found in the same way; None gives None.
        absolute_tolerance: how far the number may be from the answer.
        relative_tolerance: the same, as a share of the answer.
        percent: whether 50 % is the number 0.5, or % is a unit, so that it is 50.

    Raises:
        ValueError: an answer has no number, or an option is out of its range.
    """
    if percent not in ("hundredth", "unit"):
        raise ValueError(f"percent is {percent!r}: it is 'hundredth' or 'unit'")
    if not (absolute_tolerance >= 0 and relative_tolerance >= 0):
        raise ValueError("a tolerance is 0 or more")
    return [
        None
        if truth is None
        else float(_is_right(text, truth, absolute_tolerance, relative_tolerance, percent))
        for text, truth in zip(completions, answer, strict=True)
    ]


def last_number(text: str, percent: Percent = "hundredth") -> Fraction | None:
    """Return the last number that is written in a text, or None; see `number`."""
    for pattern, plain in _AS_READ:
        text = pattern.sub(plain, text)
    values = [_value(match, percent) for match in _NUMBER.finditer(text)]
    return values[-1] if values else None


def _is_right(text: str, truth: Any, absolute: float, relative: float, percent: Percent) -> bool:
    wanted = _number_of(str(truth), percent)
    if wanted is None:
        raise ValueError(f"the answer {str(truth)[:100]!r} has no number")
    found = _number_of(text, percent)
    if found is None:
        return False
    return abs(found - wanted) <= max(Fraction(absolute), Fraction(relative) * abs(wanted))


def _number_of(text: str, percent: Percent) -> Fraction | None:
    answer = marked(text)
    return last_number(text if answer is None else answer, percent)


def _value(match: re.Match[str], percent: Percent) -> Fraction | None:
    """Return the value of a written number; None if it is too long, or divides by 0."""
    power = int(match["power"] or 0)
    parts = [match[name].replace(",", "") for name in ("first", "under") if match[name]]
    if abs(power) > _LARGEST_EXPONENT or max(map(len, parts)) > _MOST_DIGITS:
        return None
    first, *under = map(Fraction, parts)
    if under and not under[0]:
        return None
    value = first / under[0] if under else first
    value = (value + int(match["whole"] or 0)) * Fraction(10) ** power
    if match["percent"] and percent == "hundredth":
        value /= 100
    return -value if match["sign"] == "-" else value
