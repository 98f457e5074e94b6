"""Compare a loss function with its formula: values and gradients of all rows.

From a case and a function (the shipped one, or a mutant of it), it returns the largest relative
errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from mpmath import mp
from torch import Tensor

from tests.conformance.cases import CASES, CONSTANT_KINDS, Case, make_inputs

#: Relative errors that are rounding: a few hundred times the unit of the type at the worst.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
#: In float32, values smaller than this are held absolutely: exp(x) has |x| roundings.
FLOAT32_FLOOR = 1e-3


@dataclass(frozen=True)
class Errors:
    """Largest relative error of the values and of the gradients."""

    value: float
    gradient: float

    def worst(self) -> float:
        return max(self.value, self.gradient)


@dataclass(frozen=True)
class Expected:
    """What the formula says: values [ROWS], and a gradient for each differentiable input."""

    inputs: list[Tensor]
    values: Tensor
    gradients: list[Tensor]


BY_NAME = {case.name: case for case in CASES}


def errors(case: Case, function: Callable[..., Tensor], dtype: torch.dtype) -> Errors:
    """Compare function and formula on the case's inputs; NaN counts as infinite."""
    expected = expectation(case.name)
    floor = case.floor if dtype == torch.float64 else max(case.floor, FLOAT32_FLOOR)
    inputs = [
        value.to(dtype, copy=True).requires_grad_(kind not in CONSTANT_KINDS)
        for value, kind in zip(expected.inputs, case.inputs, strict=True)
    ]
    values = case.evaluate(function, inputs)
    leaves = [value for value in inputs if value.requires_grad]
    gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    worst = [
        relative(torch.zeros_like(leaf) if gradient is None else gradient, wanted, floor)
        for leaf, gradient, wanted in zip(leaves, gradients, expected.gradients, strict=True)
    ]
    return Errors(relative(values.detach(), expected.values, floor), max(worst))


def relative(got: Tensor, wanted: Tensor, floor: float) -> float:
    """Largest |got - wanted| / max(|wanted|, floor); infinite where something is not finite."""
    error = (got.double() - wanted).abs() / wanted.abs().clamp(min=floor)
    return error.nan_to_num(nan=float("inf")).max().item()


@cache
def expectation(name: str) -> Expected:
    """The formula and its derivatives by mpmath."""
    case = BY_NAME[name]
    inputs = make_inputs(case.inputs)
    knobs = {key: exact(value) for key, value in case.knobs.items()}
    lists = [value.tolist() for value in inputs]
    rows = [[exact(value) for value in row] for row in zip(*lists, strict=True)]
    values = [float(case.formula(*row, **knobs)) for row in rows]
    by_row = [row_gradients(case, row, knobs) for row in rows]
    gradients = [torch.tensor(g, dtype=torch.float64) for g in zip(*by_row, strict=True)]
    return Expected(inputs, torch.tensor(values, dtype=torch.float64), gradients)


def exact(value: Any) -> Any:
    """The very binary number (a list of them, a flag) for mpmath."""
    if isinstance(value, list):
        return [exact(item) for item in value]
    return value if value is None or isinstance(value, bool) else mp.mpf(value)


def row_gradients(case: Case, row: list[Any], knobs: dict[str, Any]) -> list[Any]:
    """One gradient (a number, or a list for a group) for each differentiable input."""
    places = [i for i, kind in enumerate(case.inputs) if kind not in CONSTANT_KINDS]
    if case.gradient is not None:
        return [float(value) for value in case.gradient(*row, **knobs)]
    return [0.0 if i in case.stopped else derivative(case, row, i, knobs) for i in places]


def derivative(case: Case, row: list[Any], place: int, knobs: dict[str, Any]) -> Any:
    """d formula / d row[place]."""

    def at(value: Any) -> Any:
        return case.formula(*row[:place], value, *row[place + 1 :], **knobs)

    if not isinstance(row[place], list):
        return slope(at, row[place])
    many: list[Any] = row[place]
    return [
        slope(lambda v, k=k: at([*many[:k], v, *many[k + 1 :]]), value)
        for k, value in enumerate(many)
    ]


def slope(function: Callable[[Any], Any], at: Any) -> float:
    """Central difference with a step of 1e-25: its error is 1e-50 of the third derivative."""
    step = mp.mpf(10) ** -25
    return float((function(at + step) - function(at - step)) / (2 * step))
