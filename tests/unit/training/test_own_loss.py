"""A loss of pairs from a module outside of raydpo, through the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raydpo.check.findings import Findings
from raydpo.check.own_functions import check_own_functions, try_apart
from raydpo.config.job import Config, TrainingConfig
from raydpo.config.objectives import FunctionObjective
from raydpo.core.errors import ConfigError
from raydpo.core.own_code import function_hashes
from raydpo.core.storage import Folder
from raydpo.training.own_loss import load_loss, try_loss
from tests.unit.training.test_objectives import loss_and_gradient, step_of

SOURCE = """
import torch.nn.functional as F
import torch

def dpo(chosen_logratios, rejected_logratios, beta):
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))

def cdpo(rejected_logratios, chosen_logratios, label_smoothing, *, beta=9.0, unused=None):
    h = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)

def soft(chosen_logratios, rejected_logratios, probabilities, **others):
    h = others["beta"] * (chosen_logratios - rejected_logratios)
    return -probabilities * F.logsigmoid(h) - (1 - probabilities) * F.logsigmoid(-h)

def mean(chosen_logratios, rejected_logratios):
    return (rejected_logratios - chosen_logratios).mean()

def centred(chosen_logratios, rejected_logratios):
    h = chosen_logratios - rejected_logratios
    return -F.logsigmoid(h - h.mean().detach())

def detached(chosen_logratios, rejected_logratios):
    return (rejected_logratios - chosen_logratios).detach()

def infinite(chosen_logratios, rejected_logratios):
    return (rejected_logratios - chosen_logratios) / 0

def broken(chosen_logratios, rejected_logratios):
    return chosen_logratios @ "x"

async def awaited(chosen_logratios):
    return -chosen_logratios

def asks(chosen_logratios, temperature):
    return chosen_logratios * temperature

def ends(chosen_logratios):
    import os
    os._exit(3)

def hangs(chosen_logratios):
    while True:
        pass

NUMBER = 3
"""


def section(module: str, name: str, **values: Any) -> dict[str, Any]:
    return {"name": "function", "function": f"{module}:{name}", **values}


@pytest.mark.parametrize(
    ("own", "values", "shipped"),
    [
        ("dpo", {"beta": 0.3}, {"name": "dpo", "beta": 0.3}),
        ("dpo", {"length": "mean"}, {"name": "dpo", "length": "mean"}),
        ("dpo", {"sft_weight": 0.7}, {"name": "dpo", "sft_weight": 0.7}),
        (
            "cdpo",
            {"options": {"label_smoothing": 0.2}},
            {"name": "cdpo", "label_smoothing": 0.2},
        ),
        ("soft", {"beta": 0.4}, {"name": "soft_label", "beta": 0.4}),
    ],
)
def test_an_own_loss_trains_as_the_same_loss_of_the_package(
    module: str, own: str, values: dict[str, Any], shipped: dict[str, Any]
) -> None:
    metrics, gradient = loss_and_gradient(step_of(section(module, own, **values), 60, 1))
    expected, shipped_gradient = loss_and_gradient(step_of(shipped, 60, 1))
    assert metrics == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, shipped_gradient)
    assert gradient.abs().max() > 1e-3


def test_it_may_be_a_term_of_a_sum(module: str) -> None:
    terms = [{"objective": "ipo"}, {"objective": section(module, "dpo"), "weight": 0.5}]
    shipped = [{"objective": "ipo"}, {"objective": "dpo", "weight": 0.5}]
    one, other = (
        loss_and_gradient(step_of({"name": "sum", "terms": t}, 60, 1))[1] for t in (terms, shipped)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("absent", {}, "has no 'absent'"),
        ("NUMBER", {}, "is a int"),
        ("awaited", {}, "is a coroutine function"),
        ("asks", {}, "nothing is there for its parameter `temperature`"),
        ("dpo", {"options": {"gamma": 1}}, "takes no option `gamma`"),
        ("mean", {}, "without a mean or a sum"),
        ("centred", {}, "may not read other pairs"),
        ("detached", {}, "without a gradient"),
        ("infinite", {}, "not all finite"),
        ("broken", {}, "in broken: return chosen_logratios @"),
    ],
)
def test_a_function_that_cannot_be_an_objective_is_refused(
    module: str, name: str, values: dict[str, Any], said: str
) -> None:
    settings = FunctionObjective.model_validate(section(module, name, **values))
    with pytest.raises(ConfigError) as refused:
        try_loss(load_loss(settings))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"function": "no_colon"}, "pattern"),
        ({"function": "a:b", "options": {"beta": 1.0}}, "given anyway"),
    ],
)
def test_sections_that_name_no_function_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainingConfig.model_validate({"objective": {"name": "function", **values}})


@pytest.mark.thorough
def test_check_survives_functions_that_end_or_hang(module: str) -> None:
    ends, hangs, broken, good = (
        FunctionObjective.model_validate(section(module, name))
        for name in ("ends", "hangs", "broken", "dpo")
    )
    with pytest.raises(ConfigError, match=r"ended its process \(3\)"):
        try_apart(ends)
    with pytest.raises(ConfigError, match="did not come back in 20 s"):
        try_apart(hangs, trial_seconds=20)
    findings = Findings()
    job = {
        "name": "t",
        "model": "m",
        "preferences": "p",
        "training": {"objective": broken.model_dump()},
    }
    check_own_functions(Config.model_validate(job), findings)
    assert ["in broken" in str(problem) for problem in findings.problems] == [True]
    try_apart(good)


def test_another_code_is_another_stage(
    module: str, tmp_path: Path, policy_key: Callable[[dict[str, Any]], str]
) -> None:
    settings = FunctionObjective.model_validate(section(module, "dpo"))
    before, key = function_hashes(settings.function), policy_key(section(module, "dpo"))
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n# another\n")
    assert function_hashes(settings.function).keys() == before.keys() == {f"module {module}"}
    assert function_hashes(settings.function) != before
    assert policy_key(section(module, "dpo")) != key
    assert policy_key(section(module, "dpo", options={"x": 1})) != policy_key(
        section(module, "dpo")
    )


@pytest.fixture
def policy_key(tiny_model: Path, tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """The key of the training stage with an objective."""
    from raydpo.core.parts import Table
    from raydpo.core.place import Place
    from raydpo.training.stage import policy_stage

    def key(objective: dict[str, Any]) -> str:
        values = {
            "name": "t",
            "model": str(tiny_model),
            "preferences": "p",
            "training": {"objective": objective},
        }
        table = Table(Folder(str(tmp_path)), {"fingerprint": "groups"})
        return policy_stage(
            Config.model_validate(values),
            Place(Folder(str(tmp_path / "policy")), "test"),
            table,
            table,
        ).key

    return key
