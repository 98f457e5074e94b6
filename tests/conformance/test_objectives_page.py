"""docs/objectives.md has a row for every objective, with a measured error in it."""

import math
import typing

import pytest
import torch

from raydpo.config import objectives as config_objectives
from tests.conformance import held
from tests.conformance.cases import CASES
from tests.conformance.golden import TOLERANCE
from tests.conformance.measure_errors import PAGE, measured, row_name, written


def rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {name: line for line in lines if (name := row_name(line)) is not None}


def errors_of(line: str) -> list[float]:
    """Of the function in float64 and float32, and of a train step."""
    return [float(error) for error in line.split("|")[-2].split("/")]


@pytest.mark.slow
def test_the_errors_of_the_page_are_those_that_are_measured() -> None:
    """To a digit or so: other processors round otherwise."""
    for name, error in measured().items():
        for written_down, found in zip(errors_of(rows()[name]), error.split("/"), strict=True):
            apart = math.log10(max(written_down, 1e-16) / max(float(found), 1e-16))
            assert abs(apart) <= 1, name


def test_every_objective_has_a_row_with_its_error() -> None:
    found = rows()
    assert set(found) == {case.row for case in CASES}
    for name, line in found.items():
        double, single, step = errors_of(line)
        assert double < TOLERANCE[torch.float64], name
        assert single < TOLERANCE[torch.float32], name
        assert step < held.TOLERANCE, name


def test_every_objective_that_can_be_configured_has_a_row() -> None:
    union, _ = typing.get_args(config_objectives.SingleObjective)
    sections = set(typing.get_args(union)) - {config_objectives.FunctionObjective}  # a user's own
    names = {section.model_fields["name"].annotation for section in sections}
    configured = {name for literal in names for name in typing.get_args(literal)}
    assert len(configured) > 20
    assert configured <= set(rows())


def test_rows_are_whole() -> None:
    assert {line.count("|") for line in rows().values()} == {9}


def test_writing_an_error_changes_the_last_column_only() -> None:
    page = "| name | error |\n| --- | --- |\n| `dpo` | -log | old |\n| `ipo` | x | y |\n"
    assert written(page, {"dpo": "new"}) == page.replace("old", "new")
