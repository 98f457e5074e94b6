"""The process that runs a sampler function: `python -m raydpo.sampling.sampler_child FD FD`.

It gets prompts and settings, and answers with completions and reasons; see `core/own_child.py`.
"""

from __future__ import annotations

from typing import Any

from raydpo.core.own_child import serve
from raydpo.sampling.own_sampler import load_sampler


def _looked_at(place: dict[str, Any]) -> dict[str, Any]:
    sampler = load_sampler(place["path"], tuple(place["options"]))
    return {"call": str(sampler), "names": sampler.names}


def _sampled(question: dict[str, Any]) -> dict[str, Any]:
    sampler = load_sampler(question["path"], tuple(question["options"]))
    return {"answers": sampler.sample(question["given"], question["some_of_many"])}


if __name__ == "__main__":
    serve(_looked_at, _sampled)
