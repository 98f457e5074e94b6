"""Report from a stage's counts how many texts were cut short.

The counts are those of a manifest. Each share that is large enough to look at becomes one line
for the log, for `raydpo check` and for the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The share of cut texts from which on it is said.
_WORTH_SAYING: Final = 0.05
#: The count of cut ones, the count of all, what they are, and what to do about it.
_SHARES: Final = (
    (
        "cut_prompts",
        "output",
        "prompts were cut to their longest length",
        "raise max_prompt_tokens, or let longer ones go to the quarantine",
    ),
    (
        "cut_completions",
        "completions",
        "completions were cut to their longest length, and have no end",
        "raise the limit of their tokens, or let longer ones go to the quarantine",
    ),
    (
        "cut_at_max_tokens",
        "output",
        "completions ran into the token limit, and have no end",
        "raise sampling.max_completion_tokens; a model that never ends needs its end token",
    ),
)


def cut_warnings(counts: Mapping[str, int]) -> list[str]:
    """A line for each kind of text of which more than 5 % was cut."""
    return [
        f"{counts[cut] / counts[every]:.0%} of the {what} ({counts[cut]} of {counts[every]}): {todo}"
        for cut, every, what, todo in _SHARES
        if counts.get(cut, 0) > _WORTH_SAYING * counts.get(every, 0)
    ]
