"""Lexical short cuts: words and pairs of words whose presence tells chosen from rejected.

Only a term that one completion of a pair has and the other lacks can tell them apart. For each term
the counts are the prompts where chosen alone has it, y_c, and where rejected alone has it, y_r. Words
of the prompt that both completions repeat drop out, so that the two counts are independent. They
enter the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008,
"Fightin' Words", equations 15 to 22):

    delta = log((y_c + a) / (n_c + a_0 - y_c - a)) - log((y_r + a) / (n_r + a_0 - y_r - a))
    var   = 1 / (y_c + a) + 1 / (y_r + a),  z = delta / sqrt(var)

with n_c and n_r the sums over all terms, and the prior a of a term in proportion to y_c + y_r. The sums
take out the effect of longer completions, which have more of all words. sigmoid(delta) is how often the
completion with the term is the chosen one, at equal length. Its interval covers all terms together
(Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import (
    Finding,
    Json,
    Number,
    Verdict,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.shares import Share, share_of, z_of
from raydpo.labeling.inspection.words import Tokens, Vocabulary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: The size of the prior against all counts.
_PRIOR: Final = 0.1
#: Prompts that must have a term on one side alone before it is tested.
_LEAST_PROMPTS: Final = 20
#: The share of prompts in which a term decides, for a verdict.
_LEAST_COVERAGE: Final = 0.01
_LOOK_TERM: Final = 0.55
_BAD_TERM: Final = 0.75
_LOOK_RULE: Final = 0.65
_BAD_RULE: Final = 0.80
#: Terms in the table, of each side.
_SHOWN: Final = 15
#: Terms that share a word are one sign if their numbers of prompts differ by less than this part.
_ALIKE: Final = 0.1
#: The rule of words is learned without these prompts, a share of all and at most so many.
_HELDOUT: Final = 0.2
_MOST_HELDOUT: Final = 20_000
#: Terms with fewer prompts say nothing to the rule.
_LEAST_OF_RULE: Final = 3
#: If more terms are known, the rarest are forgotten; they could not have been tested.
_MOST_TERMS: Final = 2_000_000
_SHIFT: Final = 32
_TITLE: Final = "Words and pairs of words"
_RULE: Final = (
    f"a term that decides in {percent(_LEAST_COVERAGE)} of the prompts or more: look if its side is "
    f"chosen in more than {percent(_LOOK_TERM)}, bad above {percent(_BAD_TERM)}, by the lower end of an "
    f"interval that covers all terms together; the rule of words: look above {percent(_LOOK_RULE)} on "
    f"held-out pairs, bad above {percent(_BAD_RULE)}, by the lower end of its interval"
)


@dataclass(frozen=True)
class _Sides:
    """Which terms tell the two sides of each prompt apart.

    Attributes:
        prompts: the key of each prompt, [G].
        prompt: index of the prompt, [n].
        term: number of a term, [n].
        sign: 1 if chosen has it and rejected lacks it, and -1 the other way round, [n].
    """

    prompts: Keys
    prompt: NDArray[np.int32]
    term: Ints
    sign: NDArray[np.int8]

    @property
    def signed_terms(self) -> Ints:
        """Each term with its side in the last bit: numbers of words have 22 bits, [n]."""
        return self.term << 1 | (self.sign > 0)

    def where(self, kept: NDArray[np.bool_]) -> _Sides:
        """Return some of the prompts."""
        number = (np.cumsum(kept) - 1).astype(np.int32)
        inside = kept[self.prompt]
        return _Sides(
            self.prompts[kept], number[self.prompt[inside]], self.term[inside], self.sign[inside]
        )


@dataclass
class Shortcuts:
    """Counts the terms of each side, of one row of each prompt."""

    vocabulary: Vocabulary
    _terms: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    _counts: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    _forgotten: Ints = field(default_factory=lambda: np.zeros(2, np.int64))
    _new: list[Ints] = field(default_factory=list[Ints])
    _heldout: list[_Sides] = field(default_factory=list[_Sides])
    _heldout_share: float = _HELDOUT
    _seen: set[int] = field(default_factory=set[int])

    def add(self, batch: Batch) -> None:
        """Take the first row of each prompt."""
        keys = batch.prompt_keys.tolist()
        fresh = np.array([not self._knows(key) for key in keys], np.bool_)
        sides = _sides(batch).where(fresh)
        held = _fraction(sides.prompts) < self._heldout_share
        self._heldout.append(sides.where(held))
        self._new.append(sides.where(~held).signed_terms)
        self._limit_heldout()
        if sum(map(len, self._new)) > _MOST_TERMS:
            self._merge()

    def finding(self) -> Finding:
        """Judge the terms, and the rule that is made of them."""
        prompts = len(self._seen)
        rule = self._rule()
        self._new += [one.signed_terms for one in self._heldout]
        self._heldout = []
        self._merge()
        tested = self._counts.sum(1) >= _LEAST_PROMPTS
        if not tested.any():
            why = f"No term is in {_LEAST_PROMPTS} prompts on one side alone."
            return not_measured("words", _TITLE, why)
        found = self._tested(tested, prompts)
        return Finding(
            "words",
            _TITLE,
            _verdict(found, rule),
            _says(found, rule),
            _RULE,
            _numbers(found, rule, int(tested.sum()), prompts),
            [
                _table("of the chosen completions", found, 1),
                _table("of the rejected ones", found, -1),
            ],
            measured={"word_rule_accuracy": rule.value} if rule else {},
            plot={"terms": [one for side in (1, -1) for one in _top(found, side)]},
        )

    def _knows(self, key: int) -> bool:
        known = key in self._seen
        self._seen.add(key)
        return known

    def _limit_heldout(self) -> None:
        """Give held-out prompts to the others while there are too many of them."""
        while sum(len(one.prompts) for one in self._heldout) > _MOST_HELDOUT:
            self._heldout_share /= 2
            parts = [(one, _fraction(one.prompts) < self._heldout_share) for one in self._heldout]
            self._new += [one.where(~held).signed_terms for one, held in parts]
            self._heldout = [one.where(held) for one, held in parts]

    def _merge(self) -> None:
        """Add what is new to the counts; forget the rarest terms if there are too many."""
        if not self._new:
            return
        new = np.concatenate(self._new)
        self._new = []
        new.sort()
        firsts = np.flatnonzero(np.diff(new >> 1, prepend=-1))
        if not len(firsts):
            return
        both = np.diff(np.append(firsts, len(new)))
        chosen = np.add.reduceat(new & 1, firsts)
        terms = np.concatenate([self._terms, new[firsts] >> 1])
        counts = np.concatenate([self._counts, np.stack([chosen, both - chosen], axis=1)])
        # Both halves are in order, so that a stable sort only merges them.
        order = np.argsort(terms, kind="stable")
        terms, counts = terms[order], counts[order].astype(np.int32)
        firsts = np.flatnonzero(np.diff(terms, prepend=-1))
        self._terms = terms[firsts]
        self._counts = np.add.reduceat(counts, firsts, axis=0)
        least = 2
        while len(self._terms) > _MOST_TERMS:
            kept = self._counts.sum(1) >= least
            self._forgotten += self._counts[~kept].sum(0)
            self._terms, self._counts = self._terms[kept], self._counts[kept]
            least += 1

    def _rule(self) -> Share | None:
        """Learn the rule of words, and return how often it is right on held-out prompts."""
        self._merge()
        enough = self._counts.sum(1) >= _LEAST_OF_RULE
        held = [one for one in self._heldout if len(one.prompts)]
        if not enough.any() or not held:
            return None
        terms, (deltas, _) = self._terms[enough], self._log_odds(enough)
        outcomes = [_right(one, terms, deltas) for one in held]
        return share_of(np.concatenate(outcomes), np.concatenate([one.prompts for one in held]))

    def _tested(self, tested: NDArray[np.bool_], prompts: int) -> list[Json]:
        """Return the terms that are beyond chance, the most certain first."""
        deltas, errors = self._log_odds(tested)
        terms, counts = self._terms[tested], self._counts[tested]
        half = z_of(len(terms))
        scores = deltas / errors
        beyond = np.flatnonzero(np.abs(scores) > half)
        # Where a word and a pair of words are alike, the pair says more.
        is_word = terms[beyond] >> _SHIFT == 0
        order = beyond[np.lexsort((is_word, -np.round(np.abs(scores[beyond]), 6)))]
        found: list[Json] = []
        for index in order.tolist():
            side = 1 if deltas[index] > 0 else -1
            nearest = abs(float(deltas[index])) - half * float(errors[index])
            found.append(
                {
                    "term": self._name(int(terms[index])),
                    "side": "chosen" if side > 0 else "rejected",
                    "z": float(scores[index]),
                    "delta": float(deltas[index]),
                    "share": _sigmoid(abs(float(deltas[index]))),
                    "low": _sigmoid(nearest),
                    "high": _sigmoid(abs(float(deltas[index])) + half * float(errors[index])),
                    "chosen_alone": int(counts[index, 0]),
                    "rejected_alone": int(counts[index, 1]),
                    "coverage": float(counts[index].sum() / max(prompts, 1)),
                }
            )
        return found

    def _log_odds(self, kept: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Return delta and its standard error for some terms; the sums are over all terms."""
        totals = (self._counts.sum(0) + self._forgotten).astype(np.float64)
        sums = totals + _PRIOR * totals.sum()
        counts = self._counts[kept].astype(np.float64)
        sides = counts + _PRIOR * counts.sum(1)[:, None]
        logits = np.log(sides) - np.log(np.maximum(sums[None, :] - sides, 0.5))
        return logits[:, 0] - logits[:, 1], np.sqrt((1.0 / sides).sum(1))

    def _name(self, term: int) -> str:
        first, second = term >> _SHIFT, term & ((1 << _SHIFT) - 1)
        words = [self.vocabulary.word(number) for number in (first, second) if number]
        return " ".join(words)


def _sides(batch: Batch) -> _Sides:
    """Return which terms tell the sides of each prompt apart.

    A prompt with several pairs counts once for each term: with the side that has it more often.
    """
    names, texts, terms = _terms_of_texts(batch.tokens)
    starts = np.searchsorted(texts, np.arange(len(batch.texts) + 1))
    keys = [
        (_of_pairs(batch.group_of_pair, of_pairs, starts, terms, len(names)) << 1) | side
        for of_pairs, side in ((batch.chosen, 1), (batch.rejected, 0))
    ]
    # A single sort puts the same term of one prompt together, with its side in the last bit.
    found = np.sort(np.concatenate(keys))
    firsts = np.flatnonzero(np.diff(found >> 1, prepend=-1))
    if not len(firsts):
        empty = np.empty(0, np.int32), found, np.empty(0, np.int8)
        return _Sides(batch.prompt_keys, *empty)
    net = np.sign(np.add.reduceat(((found & 1) << 1) - 1, firsts))
    kept = found[firsts[net != 0]] >> 1
    prompt, sign = (kept // len(names)).astype(np.int32), net[net != 0].astype(np.int8)
    return _Sides(batch.prompt_keys, prompt, names[kept % len(names)], sign)


def _of_pairs(groups: Ints, of_pairs: Ints, starts: Ints, terms: Ints, names: int) -> Ints:
    """Return group * names + term for each term of one side of each pair."""
    counts = (starts[1:] - starts[:-1])[of_pairs]
    at = np.repeat(starts[of_pairs] - (np.cumsum(counts) - counts), counts)
    return np.repeat(groups * names, counts) + terms[at + np.arange(len(at))]


def _terms_of_texts(tokens: Tokens) -> tuple[Ints, Ints, Ints]:
    """Return the terms that occur, and those of each text once: its index and the term's index."""
    words, texts = tokens.ids, tokens.text_of_word
    neighbours = texts[1:] == texts[:-1]
    pairs = (words[:-1] << _SHIFT | words[1:])[neighbours]
    text = np.concatenate([texts, texts[1:][neighbours]])
    names, term = np.unique(np.concatenate([words, pairs]), return_inverse=True)
    size = max(len(names), 1)
    found = np.sort(text * size + term)
    found = found[np.diff(found, prepend=-1) != 0]
    return names, found // size, found % size


def _right(sides: _Sides, terms: Ints, deltas: Floats) -> Floats:
    """Return for each prompt 1 where the rule picks the chosen side, 0.5 where it cannot say."""
    at = np.minimum(np.searchsorted(terms, sides.term), len(terms) - 1)
    weights = np.where(terms[at] == sides.term, deltas[at], 0.0) * sides.sign
    scores = np.bincount(sides.prompt, weights=weights, minlength=len(sides.prompts))
    return (np.sign(np.round(scores, 12)) + 1) / 2


def _fraction(keys: Keys) -> Floats:
    """Return a number in [0, 1) for each prompt, from its hash."""
    return (keys >> np.uint64(11)).astype(np.float64) / 2**53


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _verdict(found: list[Json], rule: Share | None) -> Verdict:
    covering = [one["low"] for one in found if one["coverage"] >= _LEAST_COVERAGE]
    verdicts: list[Verdict] = [above(max(covering, default=0.0), _LOOK_TERM, _BAD_TERM)]
    if rule is not None:
        verdicts.append(above(rule.low, _LOOK_RULE, _BAD_RULE))
    return worst(verdicts)


def _says(found: list[Json], rule: Share | None) -> str:
    parts: list[str] = []
    covering = [one for one in found if one["coverage"] >= _LEAST_COVERAGE]
    strongest = max(covering, key=lambda one: one["low"], default=None)
    if strongest is None:
        parts.append("No word tells chosen from rejected beyond chance.")
    else:
        parts.append(
            f"The strongest sign is “{strongest['term']}”: where only one completion has it, that one "
            f"is {strongest['side']} in {percent(strongest['share'])} of the prompts at equal length "
            f"[{percent(strongest['low'])}, {percent(strongest['high'])}], and it decides in "
            f"{percent(strongest['coverage'])} of all prompts."
        )
    if rule is not None:
        parts.append(f"A rule of words alone is right in {with_interval(rule)} of held-out pairs.")
    return " ".join(parts)


def _numbers(found: list[Json], rule: Share | None, tested: int, prompts: int) -> list[Number]:
    return [
        *([number_of("accuracy of the rule of words on held-out pairs", rule)] if rule else []),
        Number("terms beyond chance", len(found), unit="terms"),
        Number("terms tested", tested, unit="terms"),
        Number("prompts, one row of each", prompts, unit="prompts"),
    ]


def _top(found: list[Json], side: int) -> list[Json]:
    """Return the most certain terms of a side, without those that one above them stands for."""
    shown: list[Json] = []
    for one in found:
        if (one["z"] > 0) is (side > 0) and not any(_stands_for(other, one) for other in shown):
            shown.append(one)
        if len(shown) == _SHOWN:
            break
    return shown


def _stands_for(one: Json, other: Json) -> bool:
    """Return whether two terms share a word and stand in nearly the same prompts."""
    if set(one["term"].split(" ")).isdisjoint(other["term"].split(" ")):
        return False
    larger = max(one["coverage"], other["coverage"])
    is_part = other["term"].count(" ") > one["term"].count(" ")
    return is_part or abs(one["coverage"] - other["coverage"]) <= _ALIKE * larger


def _table(what: str, found: list[Json], side: int) -> Json:
    columns = [
        "term",
        "chosen alone has it",
        "rejected alone has it",
        "at equal length, its side is right",
        "z",
    ]
    rows = [
        [
            one["term"],
            one["chosen_alone"],
            one["rejected_alone"],
            f"{percent(one['share'])} [{percent(one['low'])}, {percent(one['high'])}]",
            f"{one['z']:.1f}".replace("-", "−"),
        ]
        for one in _top(found, side)
    ]
    return {"title": f"Signs {what}", "columns": columns, "rows": rows}
