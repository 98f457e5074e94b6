"""Languages and scripts: completions in another language than their prompt.

The script of most letters names the language of a text, but for Latin letters: there, the most frequent
function words of seven languages decide, and a text with fewer than three of them has no language. Code
and short texts have none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import (
    Finding,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.one_sided import COLUMNS, Properties, judged
from raydpo.labeling.inspection.shares import share_of
from raydpo.labeling.inspection.words import Tokens, Vocabulary

Ints = NDArray[np.int64]

#: First and last code point of the letters of each script.
_SCRIPTS: Final = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Hebrew": ((0x590, 0x5FF),),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F)),
    "Devanagari": ((0x900, 0x97F),),
    "other Indian": ((0x980, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
    "Han": ((0x3400, 0x9FFF), (0xF900, 0xFAFF)),
    "Kana": ((0x3040, 0x30FF),),
}
_WORDS: Final = {
    "English": "the and is you that with for are this of to it was have be",
    "German": "der die und das ist nicht ich sie mit ein eine auf zu den",
    "French": "le les des est et vous dans pour que une pas la du sur",
    "Spanish": "el los las es que para una con por como del y se en",
    "Italian": "il che di è per una sono con della non gli e un si",
    "Portuguese": "o os que não para uma com você do da em e um se",
    "Dutch": "de het een van en ik niet dat is je op te zijn voor",
}
_LEAST_WORDS: Final = 3
_LEAST_LETTERS: Final = 10
_UNKNOWN: Final = -1
_LABELS: Final = (*(f"{name} script" for name in _SCRIPTS), *_WORDS)
_TITLE: Final = "Languages and scripts"
_LOOK: Final = 0.02
_BAD: Final = 0.10
_RULE: Final = (
    f"look above {percent(_LOOK)}, bad above {percent(_BAD)}: the share of completions in another "
    "language than their prompt, by the lower end of its interval; and where one completion of a "
    "pair alone is in another language, the limits of formatting"
)
_OTHER: Final = "another language than the prompt"
_TABLED: Final = 8
_WORTH_SAYING: Final = 0.005


def _script_table() -> NDArray[np.uint8]:
    """Return the script of each code point; one past the last script for all that is no letter."""
    table = np.full(0x110000, len(_SCRIPTS), np.uint8)
    for number, ranges in enumerate(_SCRIPTS.values()):
        for first, last in ranges:
            table[first : last + 1] = number
    return table


@dataclass
class Languages:
    """Counts the languages of prompts and completions."""

    vocabulary: Vocabulary
    _table: NDArray[np.uint8] = field(default_factory=_script_table)
    _properties: Properties = field(default_factory=lambda: Properties([_OTHER]))
    _prompts: Counter[int] = field(default_factory=Counter[int])
    _completions: Counter[int] = field(default_factory=Counter[int])
    _differs: list[NDArray[np.bool_]] = field(default_factory=list[NDArray[np.bool_]])
    _keys: list[Keys] = field(default_factory=list[Keys])

    def __post_init__(self) -> None:
        self._of_words = [np.unique(self.vocabulary.tokens([w]).ids) for w in _WORDS.values()]

    def add(self, batch: Batch) -> None:
        """Take the prompts and texts of a batch."""
        asked = self._languages([group.prompt for group in batch.groups], batch.prompt_tokens)
        found = self._languages(batch.texts, batch.tokens)
        self._prompts.update(asked.tolist())
        self._completions.update(found.tolist())
        of_prompt = asked[batch.group_of_text]
        known = (of_prompt != _UNKNOWN) & (found != _UNKNOWN) & batch.of_prompt
        differs = known & (of_prompt != found)
        self._differs.append(differs[known])
        self._keys.append(batch.prompt_keys[batch.group_of_text][known])
        self._properties.add(batch, differs[:, None])

    def finding(self) -> Finding:
        """Judge the languages."""
        differs = np.concatenate(self._differs) if self._differs else np.empty(0, np.bool_)
        share = share_of(differs, np.concatenate(self._keys)) if len(differs) else None
        if share is None:
            return not_measured("language", _TITLE, "No text is long enough to tell its language.")
        sides = self._properties.results()
        most = self._completions.most_common(3)
        total = sum(self._completions.values())
        said = "Completions: " + ", ".join(
            f"{_label(n)} {percent(c / total)}" for n, c in most if c / total >= _WORTH_SAYING
        )
        return Finding(
            "language",
            _TITLE,
            worst([above(share.low, _LOOK, _BAD), judged(sides)]),
            f"{said}. {with_interval(share)} of them are in another language than their prompt.",
            _RULE,
            [number_of("completions in another language than their prompt", share)],
            [
                {
                    "title": "Languages",
                    "columns": ["", "prompts", "completions"],
                    "rows": self._rows(),
                },
                {
                    "title": "On one side alone",
                    "columns": COLUMNS,
                    "rows": [[one.name, *one.row()] for one in sides],
                },
            ],
            self._properties.examples.get(_OTHER, []),
        )

    def _rows(self) -> list[list[str]]:
        asked, found = sum(self._prompts.values()), sum(self._completions.values())
        return [
            [_label(name), percent(self._prompts[name] / asked), percent(count / found)]
            for name, count in self._completions.most_common(_TABLED)
        ]

    def _languages(self, texts: list[str], tokens: Tokens) -> Ints:
        """Return the index of each text's language in the labels, or -1, [T]."""
        letters = self._letters(texts)[:, : len(_SCRIPTS)]
        script = np.argmax(letters, axis=1)
        # Japanese mixes kana with Chinese characters.
        kana = list(_SCRIPTS).index("Kana")
        script = np.where((letters[:, kana] > 0) & (script == kana - 1), kana, script)
        script = np.where(letters.sum(1) >= _LEAST_LETTERS, script, _UNKNOWN)
        words = self._function_words(tokens)
        most, second = np.argmax(words, axis=1), np.sort(words, axis=1)[:, -2]
        counts = words.max(axis=1)
        clear = (counts >= _LEAST_WORDS) & (counts > second)
        language = np.where(clear, len(_SCRIPTS) + most, _UNKNOWN)
        return np.where(script == 0, language, script)

    def _letters(self, texts: list[str]) -> Ints:
        """Count the letters of each script in each text, [T, scripts + 1]."""
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        width = len(_SCRIPTS) + 1
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        rows = np.repeat(np.arange(len(texts)) * width, lengths)
        counts = np.bincount(rows + self._table[codes], minlength=len(texts) * width)
        return counts.reshape(len(texts), width)

    def _function_words(self, tokens: Tokens) -> Ints:
        """Count the function words of each language in each text, [T, languages]."""
        of_word, rows = tokens.ids, tokens.text_of_word
        columns: list[Ints] = []
        for numbers in self._of_words:
            # These words were numbered first, so that nearly all others are larger.
            inside = np.flatnonzero(of_word <= numbers[-1])
            inside = inside[np.isin(of_word[inside], numbers)]
            columns.append(np.bincount(rows[inside], minlength=len(tokens.counts)))
        return np.stack(columns, axis=1)


def _label(number: int) -> str:
    return "not told" if number == _UNKNOWN else _LABELS[number]
