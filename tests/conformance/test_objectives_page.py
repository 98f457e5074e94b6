"""docs/objectives.md has a row for every objective, with a measured error in it."""

import re
import typing

import torch

from raydpo import config_objectives
from tests.conformance.cases import CASES
from tests.conformance.golden import TOLERANCE
from tests.conformance.measure_errors import PAGE, row_name, written


def rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {name: line for line in lines if (name := row_name(line)) is not None}


def test_every_objective_has_a_row_with_its_error() -> None:
    found = rows()
    assert set(found) == {case.row for case in CASES}
    for name, line in found.items():
        error = re.fullmatch(r" (\S+) / (\S+) ", line.split("|")[-2])
        assert error is not None, name
        double, single = map(float, error.groups())
        assert double < TOLERANCE[torch.float64]
        assert single < TOLERANCE[torch.float32]


def test_every_objective_that_can_be_configured_has_a_row() -> None:
    union, _ = typing.get_args(config_objectives.SingleObjective)
    names = {section.model_fields["name"].annotation for section in typing.get_args(union)}
    configured = {name for literal in names for name in typing.get_args(literal)}
    assert len(configured) > 20
    assert configured <= set(rows())


def test_rows_are_whole() -> None:
    assert {line.count("|") for line in rows().values()} == {9}


def test_writing_an_error_changes_the_last_column_only() -> None:
    page = "| name | error |\n| --- | --- |\n| `dpo` | -log | old |\n| `ipo` | x | y |\n"
    assert written(page, {"dpo": "new"}) == page.replace("old", "new")
