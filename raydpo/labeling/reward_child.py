"""The process that runs a reward function: `python -m raydpo.labeling.reward_child FD FD`.

It gets prompts, completions and further lists, and answers with rewards and reasons; see `core/own_child.py`.
"""

from __future__ import annotations

from typing import Any

from raydpo.core.own_child import serve
from raydpo.labeling.rewards import Refusal, judge_with_function, resolve_function
from raydpo.labeling.signature import ANY_NAME


def _looked_at(place: dict[str, Any]) -> dict[str, Any]:
    call = resolve_function(place["path"], dict.fromkeys(place["options"]))
    names = (*call.by_position, *call.by_name, *([ANY_NAME] if call.takes_any else []))
    return {"call": str(call), "names": names, "required": call.columns}


def _judged(question: dict[str, Any]) -> dict[str, Any]:
    judged = judge_with_function(
        resolve_function(question["path"], question["given"]),
        question["path"],
        question["prompts"],
        question["completions"],
        question["some_of_many"],
        question["more"],
    )
    values = judged.values
    return {
        "values": [None if isinstance(value, Refusal) else value for value in values],
        "reasons": [value.reason if isinstance(value, Refusal) else None for value in values],
        "do_not_apply": [isinstance(v, Refusal) and v.does_not_apply for v in values],
    }


if __name__ == "__main__":
    serve(_looked_at, _judged)
