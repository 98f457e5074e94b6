"""Every objective through its section, `make_objective` and the train step, against the papers'
formulas.

The tests compare loss, metrics and the gradient by every token, away from the reference. They use
pairs of different weights, every option at two values, several micro-batches and workers.
"""

from __future__ import annotations

import typing

import pytest
from pydantic import ValidationError

from raydpo.config import objectives as config_objectives
from raydpo.config.job import TrainingConfig
from raydpo.training.composition import rank_micro_batches
from raydpo.training.objectives import make_objective
from tests.conformance.held import TOLERANCE, expected, largest_error, shipped
from tests.conformance.preference_data import DATA
from tests.conformance.sections import OPTIONS, SECTIONS, STEPS, SUMS, USUAL_STEP, base
from tests.conformance.training_path import (
    MICRO_BATCH_TOKENS,
    PLAN,
    dataset,
    trained,
)

pytestmark = pytest.mark.thorough

WITHOUT_ANCHOR = ("reward_model", "policy_gradient")


@pytest.mark.parametrize("name", SECTIONS)
def test_training_computes_the_formula(name: str) -> None:
    error = largest_error(shipped(name).result, expected(name))
    assert error < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 10**9], ids=["groups alone", "one micro-batch"])
@pytest.mark.parametrize("name", [*OPTIONS, *SUMS])
def test_cuts_into_micro_batches_change_nothing(name: str, tokens: int) -> None:
    error = largest_error(trained(SECTIONS[name], tokens, shared=tokens == 1), expected(name))
    assert error < TOLERANCE


@pytest.mark.parametrize("name", [*OPTIONS, *SUMS])
def test_two_workers_compute_the_formula(name: str) -> None:
    """One of them has a micro-batch less, and fills up with one that does not count."""
    error = largest_error(trained(SECTIONS[name], workers=2), expected(name))
    assert error < TOLERANCE


def test_one_of_two_workers_has_a_micro_batch_less() -> None:
    for kind in DATA:
        sizes, groups = dataset(kind).sizes, PLAN.step_groups(USUAL_STEP)
        shares = [
            rank_micro_batches(groups, sizes, 2, rank, MICRO_BATCH_TOKENS, shared=False)
            for rank in (0, 1)
        ]
        counted = [[counts for _, counts in share] for share in shares]
        assert sorted(counted) == [[True, False], [True, True]]


def section_classes() -> dict[str, type[config_objectives.ObjectiveSection]]:
    """By the name that a configuration chooses it by."""
    union, _ = typing.get_args(config_objectives.SingleObjective)
    # A user's own loss has no formula here: tests/unit/training/test_own_loss.py.
    sections = set(typing.get_args(union)) - {config_objectives.FunctionObjective}
    return {typing.get_args(s.model_fields["name"].annotation)[0]: s for s in sections}


def test_every_option_of_every_objective_stands_at_two_values() -> None:
    found = {name: set(s.model_fields) - {"name"} for name, s in section_classes().items()}
    assert found == {name: set(options) for name, options in OPTIONS.items()}
    tried = {
        (section["name"], option, repr(value))
        for section in SECTIONS.values()
        if section["name"] in OPTIONS
        for option, value in section.items()
    }
    for name, options in found.items():
        for option in options - {"name"}:
            values = {value for n, o, value in tried if (n, o) == (name, option)}
            assert len(values) >= 2 or (name in WITHOUT_ANCHOR and option == "sft_weight")


@pytest.mark.parametrize("name", WITHOUT_ANCHOR)
def test_what_prefers_no_completion_has_no_anchor(name: str) -> None:
    section = base(name) | {"sft_weight": 0.5}
    with pytest.raises(ValidationError, match="remove `sft_weight`"):
        TrainingConfig.model_validate({"objective": section})


@pytest.mark.parametrize(
    "name", [name for name in SECTIONS if "," in name and name not in {**SUMS, **STEPS}]
)
def test_every_option_changes_the_loss_or_its_gradient(name: str) -> None:
    """Else a check of its formula would not notice that it is ignored."""
    one, other = (expected(key) for key in (name, SECTIONS[name]["name"]))
    differences = [one.metrics["loss"] - other.metrics["loss"]]
    for place in one.gradient.keys() | other.gradient.keys():
        differences.append(one.gradient.get(place, 0) - other.gradient.get(place, 0))
    assert max(map(abs, differences)) > 10 * TOLERANCE


def test_the_step_that_is_looked_at_leaves_groups_out() -> None:
    groups = PLAN.step_groups(USUAL_STEP)
    assert 0 < len(groups) < PLAN.groups
    objective = make_objective(TrainingConfig().objective)
    data = dataset("paired")
    assert objective.normalizer(groups, data.sizes) < data.sizes.pair_weight.sum()
