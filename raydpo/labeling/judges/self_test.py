"""Ask a judge about planted answers, of which one is obviously better, before it judges a run.

A judge passes if it never prefers the worse answer, and prefers the better one in at least half of
the cases. Pairwise judges are asked in both orders, as in a run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast

from raydpo.config.judges import SHIPPED_RUBRICS, JudgeConfig
from raydpo.core.errors import ConfigError, ServiceError
from raydpo.labeling.judges.pairwise import vote_of
from raydpo.labeling.judges.panel import Bench, Panel, open_panel
from raydpo.labeling.judges.replies import Reply
from raydpo.labeling.judges.rubric import SHIPPED, Rubric, text_of
from raydpo.labeling.rewards import Refusal

_NAMES: Final = ("prompt", "better", "worse")
_RULE: Final = (
    'a self-test is a JSONL file, each line with the texts "prompt", "better" and "worse", and '
    "the columns that the rubric names"
)


@dataclass(frozen=True)
class Case:
    """A prompt with a completion that is obviously better than another one."""

    prompt: str
    better: str
    worse: str
    columns: dict[str, Any]


def planted_cases(judge: JudgeConfig, rubric: Rubric) -> list[Case]:
    """Return the cases of a judge's self-test; none if it is turned off.

    Raises:
        ConfigError: its file cannot be read, or lacks what the rubric names.
    """
    if judge.self_test is False:
        return []
    if judge.self_test is True:
        name = judge.rubric if judge.rubric in SHIPPED_RUBRICS else "dialogue"
        where, text = f"raydpo's own for {name}", _shipped(name)
    else:
        where = judge.self_test
        text = text_of(where, "self_test", "a JSONL file, true or false")
    cases = [_case(line, where) for line in text.splitlines() if line.strip()]
    for case in cases:
        missing = [name for name in rubric.columns if name not in case.columns]
        if missing:
            raise ConfigError(
                f"self_test {where}: its cases have no {', '.join(map(repr, missing))}",
                f"the rubric {judge.rubric} names these columns",
                "let `self_test` name a JSONL file with them, or set it to false",
            )
    if not cases:
        raise ConfigError(f"self_test {where} is empty", _RULE, "add a case, or set it to false")
    return cases


def _shipped(name: str) -> str:
    return (SHIPPED / f"{name}.planted.jsonl").read_text(encoding="utf-8")


def _case(line: str, where: str) -> Case:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    found = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    texts = [found.get(name) for name in _NAMES]
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"self_test {where} has the line {line[:100]!r}", _RULE, "correct it")
    columns = {name: value for name, value in found.items() if name not in _NAMES}
    prompt, better, worse = cast("list[str]", texts)
    return Case(prompt, better, worse, columns)


async def pass_self_test(bench: Bench) -> str:
    """Ask a judge about its planted answers; return in words how it did.

    Raises:
        ConfigError: the cases cannot be used.
        ServiceError: a judge prefers a worse answer, or cannot tell them apart.
    """
    cases = planted_cases(bench.judge, bench.rubric)
    if not cases:
        return "its self-test is turned off"
    names = bench.names
    won: dict[str, int] = dict.fromkeys(names, 0)
    async with open_panel(bench) as panel:
        for case in cases:
            for name, outcome in zip(names, await _outcomes(panel, case), strict=True):
                if isinstance(outcome, Refusal):
                    raise _failed(name, f"gave no answer ({outcome.reason})", case)
                share, said = outcome
                if share < 0.5:
                    raise _failed(name, f"prefers the worse answer ({said})", case)
                won[name] += share > 0.5
    for name, count in won.items():
        if 2 * count < len(cases):
            how = f"tells apart only {count} of {len(cases)} planted pairs"
            raise _failed(name, how, cases[0])
    told = ", ".join(f"{name} {count} of {len(cases)}" for name, count in won.items())
    return f"prefers the better planted answer: {told}"


async def _outcomes(panel: Panel, case: Case) -> list[tuple[float, str] | Refusal]:
    """Return for each judge the better answer's share and the answers, or a refusal."""
    ask = panel.bench.rubric.question
    if panel.bench.judge.mode == "pointwise":
        texts = [{"completion": case.better}, {"completion": case.worse}]
    else:
        texts = [
            {"first": case.better, "second": case.worse},
            {"first": case.worse, "second": case.better},
        ]
    questions = [ask(case.prompt, None, text, case.columns) for text in texts]
    one, other = [await panel.replies(question) for question in questions]
    return [_outcome(panel.bench.judge.mode, a, b) for a, b in zip(one, other, strict=True)]


def _outcome(
    mode: str, one: Reply | Refusal, other: Reply | Refusal
) -> tuple[float, str] | Refusal:
    for reply in (one, other):
        if isinstance(reply, Refusal):
            return reply
    assert isinstance(one, Reply)
    assert isinstance(other, Reply)
    said = f"{one.value} and {other.value}"
    if mode == "pairwise":
        return vote_of("", one, other).share, said
    better, worse = int(one.value), int(other.value)
    return (better > worse) + 0.5 * (better == worse), said


def _failed(name: str, how: str, case: Case) -> ServiceError:
    return ServiceError(
        f"the judge {name} fails its self-test: it {how}, for the prompt {case.prompt[:80]!r}",
        "a judge never prefers the obviously worse of two planted answers, and prefers the better "
        "one in at least half of the cases",
        "take another model or rubric; `self_test` names cases of your own, and false turns it off",
    )
