"""Place preference groups end to end in one flat sequence: `[prompt | y1 | ... | yK]`.

From the lengths of prompts and completions, the layout gives the place of each, the position of
each token, and which tokens may attend to which. A completion sees only its prompt and itself,
causally. So a prompt is computed once for its K completions.

The sequence is filled up to a round length, because each new shape compiles matrix products, and so
only a few shapes occur. The filling is a prompt without completions.

Shapes: G groups, R sequences (completions), T tokens of the flat sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydpo.training.transfer import to_device

Integers = npt.NDArray[np.int64]
Value = TypeVar("Value")


@dataclass(frozen=True)
class PrefixLayout:
    """Places of groups in the flat sequence.

    Attributes:
        prompt_starts, prompt_lengths: [G]; the last may be a filler without completions.
        starts, lengths: [R], those of the completions.
        groups: [R], the group of each completion.
        position_ids: [1, T] int64; those of a completion continue from its prompt.
    """

    prompt_starts: Integers
    prompt_lengths: Integers
    starts: Integers
    lengths: Integers
    groups: Integers
    position_ids: Tensor
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """T, the length of the flat sequence."""
        return self.position_ids.shape[1]

    @property
    def longest(self) -> int:
        """Number of tokens in the longest sequence (prompt with one completion) or the filler."""
        ends = self.prompt_lengths[self.groups] + self.lengths
        return int(max(self.prompt_lengths.max(initial=0), ends.max(initial=0)))

    def to(self, device: torch.device) -> PrefixLayout:
        """Move the layout to another device."""
        return PrefixLayout(
            self.prompt_starts,
            self.prompt_lengths,
            self.starts,
            self.lengths,
            self.groups,
            to_device(self.position_ids, device),
        )

    def cached(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what `make` returned at the first request for the key; all layers share it."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def tensor(self, values: Integers) -> Tensor:
        """Return integers as an int64 tensor on the layout's device."""
        return to_device(torch.from_numpy(values), self.position_ids.device)

    def predictors(self) -> Integers:
        """Return the hidden state that predicts each completion token: [N].

        The prompt's last token predicts the first token of every completion of its group.
        """
        tokens = ranges(self.starts, self.lengths)
        first = np.cumsum(self.lengths) - self.lengths
        predictors = tokens - 1
        predictors[first] = (self.prompt_starts + self.prompt_lengths - 1)[self.groups]
        return predictors

    def allowed(self, window: int | None = None) -> Tensor:
        """Return the mask, [T, T] bool: whether the query (row) may attend to the key (column).

        Args:
            window: maximum number of keys that a query sees, including its own, counted within its
                prompt and completion.
        """
        group, sequence = self.owners()
        position = self.position_ids[0]
        flat = torch.arange(self.tokens, device=position.device)
        own = (sequence[None] == sequence[:, None]) | (sequence[None] < 0)
        mask = (group[None] == group[:, None]) & (flat[None] <= flat[:, None]) & own
        if window is not None:
            mask &= position[:, None] - position[None] < window
        return mask

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return the group of each token, [T], and its sequence, [T], which is -1 in a prompt."""
        group = np.empty(self.tokens, np.int64)
        sequence = np.full(self.tokens, -1, np.int64)
        prompts = np.arange(len(self.prompt_lengths))
        group[ranges(self.prompt_starts, self.prompt_lengths)] = np.repeat(
            prompts, self.prompt_lengths
        )
        tokens = ranges(self.starts, self.lengths)
        group[tokens] = np.repeat(self.groups, self.lengths)
        sequence[tokens] = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return self.tensor(group), self.tensor(sequence)


def prefix_layout(prompt_lengths: list[int], completion_lengths: list[list[int]]) -> PrefixLayout:
    """Lay groups end to end, and fill the sequence up to a round length."""
    used = sum(prompt_lengths) + sum(map(sum, completion_lengths))
    if filler := round_length(used) - used:
        prompt_lengths, completion_lengths = [*prompt_lengths, filler], [*completion_lengths, []]
    prompt_starts: list[int] = []
    starts: list[int] = []
    groups: list[int] = []
    end = 0
    for group, lengths in enumerate(completion_lengths):
        prompt_starts.append(end)
        end += prompt_lengths[group]
        for length in lengths:
            starts.append(end)
            groups.append(group)
            end += length
    prompts, lengths = (
        _array(prompt_lengths),
        _array([n for lengths in completion_lengths for n in lengths]),
    )
    positions = np.empty(end, np.int64)
    positions[ranges(_array(prompt_starts), prompts)] = ranges(0 * prompts, prompts)
    positions[ranges(_array(starts), lengths)] = ranges(prompts[_array(groups)], lengths)
    return PrefixLayout(
        _array(prompt_starts),
        prompts,
        _array(starts),
        lengths,
        _array(groups),
        torch.from_numpy(positions)[None],
    )


def round_length(length: int, least: int = 16) -> int:
    """Round up to a multiple of `least`, or of a larger power of two.

    The larger power is at most an eighth of the length, and at most 128. oneDNN compiles every
    matrix product for its shape, which takes as long as some of the products.
    """
    unit = max(least, 1 << min(7, max(0, length.bit_length() - 4)))
    return -(-length // unit) * unit


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """Return the integers of all ranges [start, start + length), one range after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def _array(values: list[int]) -> Integers:
    return np.array(values, np.int64)
