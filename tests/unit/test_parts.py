from __future__ import annotations

import functools

from raydpo.parts import Transform, kept_transform
from raydpo.run import PartResult


def test_a_process_keeps_the_transform_that_it_made_last_and_no_other() -> None:
    made: list[str] = []

    def make(name: str) -> Transform:
        made.append(name)
        return lambda rows: PartResult(rows)

    first = kept_transform("a", functools.partial(make, "a"))
    assert kept_transform("a", functools.partial(make, "a")) is first
    kept_transform("b", functools.partial(make, "b"))
    assert kept_transform("a", functools.partial(make, "a")) is not first
    assert made == ["a", "b", "a"]
