"""Values and gradients of every objective against mpmath, at random and at extreme inputs."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo.training import losses
from tests.conformance.cases import CASES, Case
from tests.conformance.golden import TOLERANCE, errors
from tests.conformance.small_checks import SMALL_CHECKS

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_and_gradient_equal_the_formula(case: Case, dtype: torch.dtype) -> None:
    found = errors(case, case.function(), dtype)
    assert found.value < TOLERANCE[dtype]
    assert found.gradient < TOLERANCE[dtype]


def test_every_public_loss_is_held() -> None:
    folder = Path(losses.__file__).parent
    public = {
        f"{path.stem}.{node.name}"
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    held_elsewhere = {
        "cringe.sampled_alternatives",
        "kto.kto_reference_point",
        "policy_gradient.clipped_tokens",
        "reference_free.log_odds",
    }
    assert public - held_elsewhere == {case.where for case in CASES}


@pytest.mark.parametrize(
    ("module", "check"),
    [(module, check) for module, checks in SMALL_CHECKS.items() for check in checks],
)
def test_parts_of_losses(module: str, check: Callable[[dict[str, Any]], None]) -> None:
    check(vars(importlib.import_module(f"raydpo.training.losses.{module}")))
