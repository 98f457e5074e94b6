"""The process that runs a reward function: `python -m raydpo.labeling.reward_child FD FD`.

It gets prompts and completions, and answers with rewards and reasons; see `core/own_child.py`.
"""

from __future__ import annotations

from typing import Any

from raydpo.core.own_child import serve
from raydpo.labeling.rewards import Refusal, judge_with_function, resolve_function


def _looked_at(place: dict[str, Any]) -> dict[str, Any]:
    return {"call": str(resolve_function(place["path"]))}


def _judged(question: dict[str, Any]) -> dict[str, Any]:
    judged = judge_with_function(
        resolve_function(question["path"]),
        question["path"],
        question["prompts"],
        question["completions"],
        question["some_of_many"],
    )
    values = judged.values
    return {
        "values": [None if isinstance(value, Refusal) else value for value in values],
        "reasons": [value.reason if isinstance(value, Refusal) else None for value in values],
    }


if __name__ == "__main__":
    serve(_looked_at, _judged)
