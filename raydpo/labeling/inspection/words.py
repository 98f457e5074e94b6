"""Cut texts into words, numbered in the order in which they first occur.

A word is a run of letters and digits in lower case, with apostrophes inside it. Chinese and Japanese
write no spaces, so each of their characters is a word. Every other sign but white space is one, too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

_WORD: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
    r"(?:['\u2019][^\W_]+)*|[^\w\s]|_+"
)
#: Further words all have the number 0, so that memory is bounded.
_MOST_WORDS: Final = 4_000_000


@dataclass(frozen=True)
class Tokens:
    """The words of several texts.

    Attributes:
        ids: numbers of all words, one text after the other, int64, [N].
        starts: where each text begins in `ids`, [T].
        counts: the number of words of each text, [T].
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def text_of_word(self) -> NDArray[np.int64]:
        """The index of each word's text, [N]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


@dataclass
class Vocabulary:
    """Numbers words from 1 on; the same word has the same number in all batches."""

    _numbers: dict[str, int] = field(default_factory=dict[str, int])
    _words: list[str] = field(default_factory=lambda: [""])

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Cut texts into words."""
        found = [_WORD.findall(text.lower()) for text in texts]
        counts = np.fromiter(map(len, found), np.int64, len(found))
        number = self._number
        numbers = self._numbers
        ids = [numbers.get(word) or number(word) for word in itertools.chain.from_iterable(found)]
        return Tokens(np.array(ids, np.int64), np.cumsum(counts) - counts, counts)

    def word(self, number: int) -> str:
        """Return the word with this number."""
        return self._words[number]

    def _number(self, word: str) -> int:
        if len(self._words) > _MOST_WORDS:
            return 0
        self._numbers[word] = len(self._words)
        self._words.append(word)
        return self._numbers[word]
