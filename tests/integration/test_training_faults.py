"""Trainings that are killed at any step, or inside a save, resume as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from raydpo.training.checkpoint_files import SafeReader
from raydpo.training.checkpoints import newest_whole
from tests.integration.training_runs import (
    STEPS,
    assert_same,
    make_data,
    run,
    run_ranks,
    run_until_killed,
    saves,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Path:
    return make_data()


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Any:
    return run(data)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_killed_after_any_step_it_goes_on_bitwise_equal(data, undisturbed, tmp_path, step) -> None:
    saved = tmp_path / "saved"
    case = {"data": data, "save_to": saved, "die_after_step": step}
    with pytest.raises(ProcessExitedException):
        run_ranks(tmp_path, 1, [case])
    losses, parameters = run(data, resume_from=saved)
    assert_same((losses, parameters), (undisturbed[0][step - 1 :], undisturbed[1]), 0)


@pytest.mark.parametrize("point", range(1, 6))
def test_killed_inside_a_save_it_goes_on_from_the_one_before(
    data, undisturbed, tmp_path, point: int
) -> None:
    """The points are the files' creation and renaming: shard, metadata, manifest."""
    saved = tmp_path / "saved"
    case = {"data": data, "save_to": saved, "rank": 0, "point": point}
    with pytest.raises(ProcessExitedException):
        run_ranks(tmp_path, 1, [case], run_until_killed)
    assert (saved / "2").is_dir()
    found = newest_whole(saves(saved))
    assert found is not None
    assert found[1] == 1
    losses, parameters = run(data, resume_from=saved)
    assert_same((losses, parameters), (undisturbed[0][1:], undisturbed[1]), 0)


def test_one_of_two_ranks_killed_inside_a_save_both_go_on_bitwise_equal(data, tmp_path) -> None:
    saved = tmp_path / "saved"
    case: dict[str, Any] = {"data": data, "strategy": "fsdp"}
    killed = {**case, "save_to": saved, "rank": 1, "point": 1}
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        run_ranks(tmp_path, 2, [killed], run_until_killed)
    whole, resumed = run_ranks(tmp_path, 2, [case, {**case, "resume_from": saved}])
    assert_same(resumed, (whole[0][1:], whole[1]), 0)


def test_resume_with_another_number_of_workers_and_another_strategy(
    data, undisturbed, tmp_path
) -> None:
    saved, sharded = tmp_path / "saved", tmp_path / "sharded"
    run(data, save_to=saved)
    for step in (3, 4):
        (saved / str(step)).rename(tmp_path / str(step))
    cases: list[dict[str, Any]] = [
        {"data": data, "strategy": "ddp", "resume_from": saved},
        {"data": data, "strategy": "fsdp", "resume_from": saved},
        {"data": data, "strategy": "fsdp", "save_to": sharded, "background_checkpoints": True},
    ]
    ddp, fsdp, written = run_ranks(tmp_path, 2, cases)
    for result in (ddp, fsdp):
        assert_same(result, (undisturbed[0][2:], undisturbed[1]), 1e-5)
    assert_same(written, undisturbed, 1e-5)
    for folder in (sharded / "4", sharded / "3"):  # written in the background but for the last
        folder.rename(tmp_path / f"later-{folder.name}")
    assert_same(run(data, resume_from=sharded), (undisturbed[0][2:], undisturbed[1]), 1e-5)


def test_an_adapter_s_checkpoint_holds_the_adapter_only_and_resumes(data, tmp_path) -> None:
    lora: dict[str, Any] = {"data": data, "lora": {"rank": 4, "alpha": 8.0}}
    saved = tmp_path / "saved"
    whole = run(**lora, save_to=saved)
    (saved / "4").rename(tmp_path / "later")
    assert_same(run(**lora, resume_from=saved), (whole[0][3:], whole[1]), 0)
    names = SafeReader(saved / "3").read_metadata().state_dict_metadata
    states = [n for n in names if n.startswith(("model.", "optimizer.state."))]
    assert states
    assert all(".lora_" in name for name in states)
