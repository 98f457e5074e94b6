"""Formatting that tells chosen from rejected, and traces of templates inside completions.

Both are patterns of RE2, which Arrow applies to all texts of a batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import (
    Finding,
    Json,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
)
from raydpo.labeling.inspection.groups import Batch, Keys, excerpt
from raydpo.labeling.inspection.one_sided import (
    BAD,
    COLUMNS,
    COVERAGE,
    LOOK,
    Flags,
    OneSided,
    Properties,
    judged,
)
from raydpo.labeling.inspection.shares import share_of

#: Formatting by name: a list item, bold, and so on.
_FORMATS: Final = {
    "list": r"(?m)^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+\S",
    "bold": r"\*\*[^*\n]+\*\*",
    "heading": r"(?m)^#{1,6} \S",
    "code": "```",
    "table": r"(?m)^\|.*\|[ \t]*$",
    "formula": r"\$\$|\\\(|\\\[|\\frac|\\boxed",
    "link": r"(?i)https?:/|\bwww\.",
    "emoji": r"[\x{1F300}-\x{1FAFF}\x{2600}-\x{27BF}]",
    "exclamation mark": r"!",
    "question at the end": r"\?\s*$",
    "refusal": (
        r"(?i)\bI(?:['’]m| am) (?:sorry|unable|not able|not comfortable)\b|\bI apologi[sz]e\b"
        r"|\bI (?:cannot|can['’]t|won['’]t|will not) (?:help|assist|provide|answer|do|fulfil|comply"
        r"|create|write|give|support)"
    ),
    "calls itself an AI": r"(?i)\b(?:as an?|I['’]m an?|I am an?|just an?) (?:AI|artificial|(?:large )?language model)\b",
    "begins with white space": r"^\s",
    "ends inside a sentence": r"[\pL\pN,;:]\s*$",
}
_SPECIAL: Final = (
    r"<\|[A-Za-z][A-Za-z0-9_ ]*\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_turn>"
)
#: Traces of templates by name; the counts of two others decide about the unbalanced ones.
_TRACES: Final = {
    "empty": r"^\s*$",
    "special token": _SPECIAL,
    "role marker": (
        r"(?m)^[ \t]*(?:#{2,3} )?(?:Human|User|Assistant|System|Instruction|Response|Input):(?:\s|$)"
    ),
    "HTML": r"(?i)<br ?/?>|</?(?:p|div|span)>|&(?:amp|lt|gt|quot|nbsp|#\d+);",
    "damaged letters": r"\x{FFFD}|Ã©|â€™|â€œ",
    "control character": r"[\x01-\x08\x0B\x0C\x0E-\x1F]",
}
_FENCE: Final = "unclosed code"
_THOUGHTS: Final = "unclosed thoughts"
_REPEATS: Final = "begins with its prompt"

_FORMAT_TITLE: Final = "Formatting"
_FORMAT_RULE: Final = (
    f"a property that one side alone has in {percent(COVERAGE[0])} of the pairs or more: look if "
    f"that side is the chosen (or the rejected) one in more than {percent(LOOK)}; bad above "
    f"{percent(BAD)} and in {percent(COVERAGE[1])} of the pairs; by the lower end of an interval that "
    "covers all properties together"
)
_TRACE_TITLE: Final = "Traces of templates and damage"
_LOOK_TRACES: Final = 0.001
_BAD_TRACES: Final = 0.01
_TRACE_RULE: Final = (
    f"look above {percent(_LOOK_TRACES)}, bad above {percent(_BAD_TRACES)}: the share of completions "
    "with a trace, by the lower end of its interval"
)
_EXAMPLES: Final = 4
#: Characters of a prompt that a completion may repeat by chance.
_LONG_PROMPT: Final = 20


@dataclass
class Formats:
    """Counts formatting that one side has alone."""

    _properties: Properties = field(default_factory=lambda: Properties(list(_FORMATS)))

    def add(self, batch: Batch) -> None:
        """Take the texts of a batch."""
        self._properties.add(batch, _matches(batch.arrow, _FORMATS))

    def finding(self) -> Finding:
        """Judge the formatting of all pairs."""
        found = self._properties.results()
        if not found:
            return not_measured("formatting", _FORMAT_TITLE, "There are no pairs.")
        beyond = [one for one in found if one.low > LOOK and one.coverage >= COVERAGE[0]]
        beyond.sort(key=lambda one: -one.coverage)
        said = "No formatting tells chosen from rejected beyond its limits."
        if beyond:
            said = (
                "Where one side alone has it, it tells the label: "
                + "; ".join(map(_of_side, beyond))
                + "."
            )
        rows = [[one.name, *one.row()] for one in found]
        return Finding(
            "formatting",
            _FORMAT_TITLE,
            judged(found),
            said,
            _FORMAT_RULE,
            tables=[{"title": "Properties of completions", "columns": COLUMNS, "rows": rows}],
            examples=[e for one in beyond[:2] for e in self._properties.examples[one.name]],
            plot={"properties": [_plotted(one) for one in found if one.chosen is not None]},
        )


@dataclass
class Traces:
    """Counts completions with traces of a template, or damage."""

    _names: tuple[str, ...] = (*_TRACES, _FENCE, _THOUGHTS, _REPEATS)
    _prompts: list[Keys] = field(default_factory=list[Keys])
    _any: list[Flags] = field(default_factory=list[Flags])
    _counts: NDArray[np.int64] | None = None
    _examples: dict[str, Json] = field(default_factory=dict[str, Json])

    def add(self, batch: Batch) -> None:
        """Take the texts of a batch."""
        flags = _traces(batch)
        self._prompts.append(batch.prompt_keys[batch.group_of_text])
        self._any.append(np.asarray(flags.any(1)))
        counts = flags.sum(0)
        self._counts = counts if self._counts is None else self._counts + counts
        for index in np.flatnonzero(counts).tolist():
            name = self._names[index]
            if name not in self._examples:
                text = int(np.argmax(flags[:, index]))
                group = batch.groups[int(batch.group_of_text[text])]
                self._examples[name] = {
                    "prompt": excerpt(group.prompt),
                    "completion": excerpt(batch.texts[text]),
                    "why": name,
                }

    def finding(self) -> Finding:
        """Judge the completions."""
        if self._counts is None:
            return not_measured("template", _TRACE_TITLE, "There are no completions.")
        flags = np.concatenate(self._any)
        share = share_of(flags, np.concatenate(self._prompts))
        assert share is not None
        counts = dict(zip(self._names, self._counts.tolist(), strict=True))
        said = "No completion has a trace of a template."
        if flags.any():
            kinds = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            said = f"{with_interval(share)} of the completions have a trace: {kinds}."
        rows = [[name, f"{count:,}", percent(count / len(flags))] for name, count in counts.items()]
        columns = ["", "completions", "of all"]
        return Finding(
            "template",
            _TRACE_TITLE,
            above(share.low if flags.any() else 0.0, _LOOK_TRACES, _BAD_TRACES),
            said,
            _TRACE_RULE,
            [number_of("completions with a trace of a template or damage", share)],
            [{"title": "Traces", "columns": columns, "rows": rows}],
            list(self._examples.values())[:_EXAMPLES],
            measured={"anomalies": share.value},
        )


def _matches(texts: pa.StringArray, patterns: dict[str, str]) -> Flags:
    """Return which texts match which pattern, [T, patterns]."""
    columns = [
        np.asarray(pc.match_substring_regex(texts, pattern)) for pattern in patterns.values()
    ]
    return np.stack(columns, axis=1).astype(np.bool_)


def _traces(batch: Batch) -> Flags:
    texts, words = batch.arrow, _without_code(batch.arrow)
    fences = np.asarray(pc.count_substring(texts, "```")) % 2 == 1
    opened = np.asarray(pc.count_substring(texts, "<think>"))
    closed = np.asarray(pc.count_substring(texts, "</think>"))
    prompts = [group.prompt for group in batch.groups]
    repeats = [
        len(prompts[of]) > _LONG_PROMPT and text.startswith(prompts[of])
        for text, of in zip(batch.texts, batch.group_of_text.tolist(), strict=True)
    ]
    others = np.stack([fences, opened != closed, np.array(repeats, np.bool_)], axis=1)
    # What is empty without its code is not empty.
    empty = np.asarray(pc.match_substring_regex(texts, _TRACES["empty"])).astype(np.bool_)
    traces = _matches(words, _TRACES)
    traces[:, list(_TRACES).index("empty")] = empty
    return np.concatenate([traces, others], axis=1)


def _without_code(texts: pa.StringArray) -> pa.StringArray:
    """Return the texts without blocks of code, in which HTML and roles are no traces."""
    if not pc.any(pc.match_substring(texts, "```")).as_py():
        return texts
    return pc.replace_substring_regex(texts, r"(?s)```.*?(?:```|\z)", "")


def _of_side(one: OneSided) -> str:
    assert one.chosen is not None
    value = one.chosen.value if one.side == "chosen" else 1 - one.chosen.value
    alone = f"{one.name} (in {percent(one.coverage)} of the pairs, and then in the {one.side} one"
    return f"{alone} in {percent(value)})"


def _plotted(one: OneSided) -> Json:
    assert one.chosen is not None
    return {"name": one.name, "coverage": one.coverage, **one.chosen.as_json()}
