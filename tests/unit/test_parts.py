from __future__ import annotations

import functools

from raydpo.parts import Transform, kept_transform
from raydpo.run import PartResult


def test_a_process_keeps_the_transform_that_it_made_last_for_each_kind_of_stage() -> None:
    made: list[str] = []

    def make(name: str) -> Transform:
        made.append(name)
        return lambda rows: PartResult(rows)

    def kept(kind: str, identity: str) -> Transform:
        return kept_transform(kind, identity, functools.partial(make, kind + identity))

    first = kept("scores", "a")
    other = kept("reference", "a")
    assert kept("scores", "a") is first
    kept("scores", "b")
    assert kept("scores", "a") is not first
    assert kept("reference", "a") is other
    assert made == ["scoresa", "referencea", "scoresb", "scoresa"]
