"""The answer that a judge owes: its JSON schema, and how it is read.

The schema goes to the service, which enforces it (`response_format` of OpenAI's chat completions,
also in vLLM). raydpo reads the answer strictly all the same: a service may ignore the schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from raydpo.config.judges import JudgeConfig

#: A pairwise verdict: which of the two completions is better, by its place in the question.
VERDICTS: Final = ("first", "second")
TIE: Final = "tie"


@dataclass(frozen=True)
class Reply:
    """A judge's answer: a score or a verdict, its rationale, and what it cost.

    Attributes:
        value: a whole number, or `first`, `second` or `tie`.
        rationale: the judge's own words.
        prompt_tokens: tokens of the question, as the service counts them; 0 if it does not.
        completion_tokens: tokens of the answer.
    """

    value: int | str
    rationale: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Form:
    """The form of a judge's answer: the name of the value, and the values that are allowed.

    `max_rationale_characters` limits the rationale; None sets no limit.
    """

    name: str
    values: tuple[int | str, ...]
    max_rationale_characters: int | None = None

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of an answer: first the rationale, then the value."""
        kind = "integer" if isinstance(self.values[0], int) else "string"
        rationale: dict[str, Any] = {"type": "string"}
        if self.max_rationale_characters is not None:
            rationale["maxLength"] = self.max_rationale_characters
        return {
            "type": "object",
            "properties": {
                "rationale": rationale,
                self.name: {"type": kind, "enum": list(self.values)},
            },
            "required": ["rationale", self.name],
            "additionalProperties": False,
        }

    def read(self, content: str) -> tuple[int | str, str]:
        """Return the value and the rationale of an answer.

        Raises:
            ValueError: it is not the JSON that the schema demands; the message says what it is.
        """
        try:
            # vLLM's grammars let control characters through, which JSON would have escaped.
            answer = json.loads(content, strict=False)
        except (ValueError, RecursionError):
            raise ValueError("what is no JSON") from None
        if not isinstance(answer, dict):
            raise ValueError("JSON that is no object")
        found = cast("dict[str, Any]", answer)
        if found.keys() != {"rationale", self.name}:
            raise ValueError(f"an object that has not just `rationale` and `{self.name}`")
        value, rationale = found[self.name], found["rationale"]
        if not isinstance(rationale, str):
            raise ValueError("a `rationale` that is no text")
        if len(rationale) > (self.max_rationale_characters or len(rationale)):
            raise ValueError(f"a `rationale` of {len(rationale)} characters")
        if type(value) is not type(self.values[0]) or value not in self.values:
            allowed = f"{self.values[0]!r} to {self.values[-1]!r}"
            raise ValueError(f"a `{self.name}` that is none of {allowed}")
        # A lone surrogate, which JSON can escape, cannot be stored.
        return value, rationale.encode("utf-8", "replace").decode()


def form_of(judge: JudgeConfig) -> Form:
    """Return the form of this judge's answers."""
    if judge.mode == "pointwise":
        scores = tuple(range(judge.lowest_score, judge.highest_score + 1))
        return Form("score", scores, judge.max_rationale_characters)
    verdicts = (*VERDICTS, TIE) if judge.ties else VERDICTS
    return Form("verdict", verdicts, judge.max_rationale_characters)
