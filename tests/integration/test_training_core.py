"""The train loop without Ray gives the same numbers in every layout, and after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training_runs import (
    assert_same,
    make_data,
    run,
    run_measured,
    run_poisoned,
    run_ranks,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Path:
    return make_data()


@pytest.fixture(scope="module")
def one_worker(data: Path) -> Any:
    return run(data)


def test_first_loss_is_log_two_and_training_lowers_it(one_worker) -> None:
    losses, _ = one_worker
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("max_tokens", [1, 10**9])
@pytest.mark.parametrize("attention", ["segments", "mask", None])
def test_layout_and_micro_batches_change_nothing(
    data, one_worker, max_tokens: int, attention: str | None
) -> None:
    assert_same(run(data, max_tokens=max_tokens, attention=attention), one_worker, 1e-5)


def test_activation_checkpointing_changes_nothing(data, one_worker) -> None:
    assert_same(run(data, activation_checkpointing=True), one_worker, 1e-6)


LORA = {"rank": 4, "alpha": 8.0}
SMALL: dict[str, Any] = {"max_tokens": 150}  # more micro-batches, not equally many on each rank
#: Each is compared with one worker's training of the same kind.
LAYOUTS: list[dict[str, Any]] = [
    {"strategy": "ddp"},
    {"strategy": "ddp", **SMALL},
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "activation_checkpointing": True, **SMALL},
    {"strategy": "fsdp", "reshard_after_forward": False, **SMALL},
]
ADAPTED: list[dict[str, Any]] = [
    {"strategy": "ddp", "lora": LORA},
    {"strategy": "fsdp", "lora": LORA, "activation_checkpointing": True, **SMALL},
]


def test_every_layout_of_two_workers_equals_one_worker(data, one_worker, tmp_path) -> None:
    cases = [{"data": data, **layout} for layout in LAYOUTS + ADAPTED]
    results = run_ranks(tmp_path, 2, cases)
    for result in results[: len(LAYOUTS)]:
        assert_same(result, one_worker, 1e-5)
    adapted = run(data, lora=LORA)
    assert all(".lora_" in name for name in adapted[1])
    assert adapted[0][-1] < adapted[0][0] - 0.002
    for result in results[len(LAYOUTS) :]:
        assert_same(result, adapted, 1e-5)


def test_four_workers_with_two_sharded_copies_equal_one_worker(data, one_worker, tmp_path) -> None:
    hybrid: dict[str, Any] = {"data": data, "strategy": "fsdp", "num_workers": 4, "replicas": 2}
    saved = tmp_path / "saved"
    cases = [
        {**hybrid, "save_to": saved},
        {**hybrid, "resume_from": saved, **SMALL},
        {**hybrid, "lora": LORA, **SMALL},
    ]
    whole, resumed, adapted = run_ranks(tmp_path, 4, cases)
    assert_same(whole, one_worker, 1e-5)
    assert resumed[0] == []  # all steps were done
    assert_same((whole[0], resumed[1]), whole, 0)
    assert_same(adapted, run(data, lora=LORA), 1e-5)


def test_rounded_training_starts_at_the_rounded_reference_exactly(tmp_path) -> None:
    """FSDP2's bfloat16 parameters are what autocast makes of the reference's."""
    rounded: dict[str, Any] = {
        "data": make_data(precision="bfloat16"),
        "precision": "bfloat16",
        "max_tokens": 1,  # the reference was scored a group at a time
    }
    alone = run(**rounded)
    cases: list[dict[str, Any]] = [
        {**rounded, "strategy": "ddp"},
        {**rounded, "strategy": "fsdp"},
        {**rounded, "strategy": "fsdp", "activation_checkpointing": True},
    ]
    for losses, parameters in run_ranks(tmp_path, 2, cases):
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # `run` refuses logratios there
        assert_same((losses, parameters), alone, 2e-3)


def test_infinite_loss_on_one_rank_stops_all_before_the_update(tmp_path) -> None:
    poisoned = make_data(count=5, poison=2)
    cases: list[dict[str, Any]] = [
        {"data": poisoned, "strategy": "ddp"},
        {"data": poisoned, "strategy": "fsdp"},
    ]
    for found in [run_poisoned(poisoned), *run_ranks(tmp_path, 2, cases, run_poisoned)]:
        assert found["step"] == 1
        assert sorted(found["groups"]) == ["0", "1", "2", "3", "4"]
        assert len(found["culprits"]) == 1  # the other rank's losses were finite
        assert "2" in next(iter(found["culprits"].values()))


def test_two_workers_measure_stop_and_leave_the_same_step_as_one(data, tmp_path) -> None:
    measured: dict[str, Any] = {
        "data": data,
        "heldout": make_data(7, reverse=True),  # so that training makes its loss rise
        "evaluate_every_steps": 1,
        "early_stopping": {"patience": 2},
    }
    alone = run_measured(**measured, save_to=tmp_path / "alone")
    assert alone[0][0] == pytest.approx(math.log(2), abs=1e-6)
    exported, done = alone[2]
    assert exported < done, "else nothing is restored"
    names = ("ddp", "fsdp", "small")
    layouts: list[dict[str, Any]] = [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "reshard_after_forward": False, **SMALL},
    ]
    cases = [
        {**measured, **layout, "save_to": tmp_path / name}
        for name, layout in zip(names, layouts, strict=True)
    ]
    for result in run_ranks(tmp_path, 2, cases, run_measured):
        assert_same(result, alone, 1e-5)
        assert result[2] == alone[2]
