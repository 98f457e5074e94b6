"""Training settings that do not fit together are refused as the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.config.job import LoraSettings, SftConfig, TrainingConfig


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
        ({"lora": {}, "objective": "reward_model"}, "its head is new"),
        ({"keep_best_by": "accuracy"}, "rewards/accuracies"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TrainingConfig.model_validate(values)


def test_fine_tuning_has_a_loss_only_to_choose_checkpoints_by() -> None:
    assert SftConfig(data="x", keep_best_by="loss").keep_best_by == "loss"
    with pytest.raises(ValidationError, match="only a loss"):
        SftConfig(data="x", keep_best_by="rewards/margins")


def test_a_number_of_workers_is_a_range_of_one() -> None:
    fixed, elastic = TrainingConfig(num_workers=3), TrainingConfig(num_workers=(1, 4))
    assert (fixed.fewest_workers, fixed.most_workers) == (3, 3)
    assert (elastic.fewest_workers, elastic.most_workers) == (1, 4)


def test_an_adapter_goes_into_all_linear_layers_or_into_named_ones() -> None:
    assert LoraSettings().target_modules == "all-linear"
    named = LoraSettings.model_validate({"target_modules": ["q_proj", "v_proj"]})
    assert named.target_modules == ("q_proj", "v_proj")
