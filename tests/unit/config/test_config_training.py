"""Training settings that do not fit together are refused as the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raydpo.config.file import config_from_values, config_to_yaml
from raydpo.config.job import LoraSettings, SftConfig, TrainingConfig
from raydpo.core.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"replicas": 2, "num_workers": 4}, "needs `strategy: fsdp`"),
        ({"cpu_offload": True}, "needs `strategy: fsdp`"),
        ({"reshard_after_forward": False}, "needs `strategy: fsdp`"),
        ({"strategy": "fsdp", "replicas": 2, "num_workers": 3}, "must divide num_workers 3"),
        ({"strategy": "fsdp", "replicas": 2, "num_workers": (2, 4)}, "may not divide"),
        ({"num_workers": (4, 2)}, "the least number first"),
        ({"num_workers": 0}, "greater than 0"),
        ({"lora": {"dropout": 0.1}}, "must be 0"),
        (
            {
                "objective": {
                    "name": "reward_model",
                    "learns_from": "rankings",
                    "centering_weight": 0.01,
                }
            },
            "of the two rewards of a pair",
        ),
        ({"keep_best_by": "accuracy"}, "rewards/accuracies"),
        ({"heldout_fraction": 1.0}, "less than 1"),
        ({"early_stopping": {}}, "set evaluate_every_steps"),
        (
            {"evaluate_every_steps": 5, "early_stopping": {}, "keep_best_by": "loss"},
            "remove keep_best_by",
        ),
        ({"evaluate_every_steps": 5, "early_stopping": {"metric": "kl"}}, "rewards/margins"),
        (
            {
                "objective": "kto",
                "evaluate_every_steps": 5,
                "early_stopping": {"metric": "rewards/accuracies"},
            },
            "no pairs to measure it on",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TrainingConfig.model_validate(values)


def test_fine_tuning_has_a_loss_only_to_choose_checkpoints_by() -> None:
    assert SftConfig(data="x", keep_best_by="loss").keep_best_by == "loss"
    with pytest.raises(ValidationError, match="only a loss"):
        SftConfig(data="x", keep_best_by="rewards/margins")
    stopping = {"evaluate_every_steps": 5, "early_stopping": {"metric": "rewards/margins"}}
    with pytest.raises(ValidationError, match="only a loss"):
        SftConfig.model_validate({"data": "x", **stopping})


def test_a_number_of_workers_is_a_range_of_one() -> None:
    fixed, elastic = TrainingConfig(num_workers=3), TrainingConfig(num_workers=(1, 4))
    assert (fixed.fewest_workers, fixed.most_workers) == (3, 3)
    assert (elastic.fewest_workers, elastic.most_workers) == (1, 4)


def test_an_adapter_goes_into_all_linear_layers_or_into_named_ones() -> None:
    assert LoraSettings().target_modules == "all-linear"
    named = LoraSettings.model_validate({"target_modules": ["q_proj", "v_proj"]})
    assert named.target_modules == ("q_proj", "v_proj")


PAIRS = {"name": "job", "model": "m", "preferences": {"path": "pairs.jsonl"}}
EVALUATION = {"prompts": "prompts.jsonl", "judge": {"classifier": "judge", "label": "good"}}


def share(**sections: Any) -> float:
    return config_from_values({**PAIRS, **sections}, "a test").heldout_fraction


def test_one_share_is_held_out_whether_or_not_a_judge_evaluates() -> None:
    assert share(training={}) == 0
    assert share(training={"heldout_fraction": 0.2}) == 0.2
    assert share(training={}, evaluation=EVALUATION) == 0.1
    assert share(training={"evaluate_every_steps": 5}, evaluation=EVALUATION) == 0.1
    evaluation = {**EVALUATION, "heldout_fraction": 0.2}
    assert share(training={"heldout_fraction": 0.2}, evaluation=evaluation) == 0.2
    with pytest.raises(ConfigError, match=r"training\.heldout_fraction 0\.2, .* 0\.1"):
        share(training={"heldout_fraction": 0.2}, evaluation=EVALUATION)


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"evaluate_every_steps": 5}},
        {"training": {"evaluate_every_steps": 5, "heldout_fraction": 0.0}},
        {
            "training": {"evaluate_every_steps": 5},
            "evaluation": {**EVALUATION, "heldout_fraction": 0.0},
        },
        {"sft": {"data": "x", "evaluate_every_steps": 5}, "evaluation": EVALUATION},
    ],
)
def test_measurements_without_held_out_data_are_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"nothing is held out: set (training|sft)\.heldout"):
        share(**sections)


def test_a_training_is_measured_only_where_its_own_section_asks_for_it() -> None:
    assert not TrainingConfig().evaluates_heldout
    assert not TrainingConfig(heldout_fraction=0.0).evaluates_heldout
    assert TrainingConfig(heldout_fraction=0.1).evaluates_heldout
    assert TrainingConfig(evaluate_every_steps=5).evaluates_heldout


def test_the_resolved_job_is_read_back_with_its_split() -> None:
    values = {**PAIRS, "training": {"evaluate_every_steps": 5}, "evaluation": EVALUATION}
    config = config_from_values(values, "a test")
    again = config_from_values(yaml.safe_load(config_to_yaml(config)), "a test")
    assert again == config
