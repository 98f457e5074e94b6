"""The train loop without Ray: the same numbers whatever the layout, and after a resume."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.config import TrainingConfig
from raydpo.errors import NumericsError
from raydpo.training.batch import build_micro_batch
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, joined_rows, write_groups
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.loop import Hooks, train
from raydpo.training.objectives import PreferenceObjective
from raydpo.training.sharding import current_world, full_parameters

pytestmark = pytest.mark.slow
STEPS = 4


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def preference_rows(count: int) -> list[dict[str, Any]]:
    """Groups of 2 to 4 completions of very different lengths, all pairs, odd weights."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        k = int(rng.integers(2, 5))
        pairs = [
            {"chosen": i, "rejected": j, "weight": float(rng.choice([0.5, 1.0]))}
            for i in range(k)
            for j in range(i)
        ]
        rows.append(
            {
                "group_id": str(number),
                "prompt_id": str(number),
                "prompt_ids": rng.integers(3, 97, rng.integers(1, 20)).tolist(),
                "completions": [
                    rng.integers(3, 97, rng.integers(1, 30)).tolist() for _ in range(k)
                ],
                "pairs": pairs,
            }
        )
    return rows


def make_data(count: int = 10, poison: int | None = None) -> Path:
    """Groups with the reference log-probs of the untrained model; one may be infinite."""
    rows = preference_rows(count)
    plain = GroupDataset(
        write_groups(
            ({**_arrow_columns(row), "reference_token_logps": None} for row in rows),
            uuid.uuid4().hex,
        )
    )
    scored = []
    for number, row in enumerate(rows):
        batch = build_micro_batch([plain[number]])
        with torch.no_grad():
            flat = iter(token_logps(TokenLogps(make_model()), batch).tolist())
        values = [[next(flat) for _ in completion] for completion in row["completions"]]
        if number == poison:
            values[0][0] = math.inf
        scored.append({"group_id": row["group_id"], "reference_token_logps": values})
    return write_groups(joined_rows(rows, scored, lambda _: True), uuid.uuid4().hex)


def _arrow_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("group_id", "prompt_ids", "completions", "pairs")}


def run(
    data: Path,
    strategy: str = "ddp",
    max_tokens: int = 400,
    resume_from: Path | None = None,
    save_at: tuple[int, Path] | None = None,
    checkpointing: bool = False,
    attention: str | None = "segments",
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train for STEPS steps, or the rest of them; returns losses and final parameters."""
    settings = TrainingConfig(
        strategy=strategy,
        max_tokens_per_micro_batch=max_tokens,
        learning_rate=1e-3,
        checkpoint_every_steps=1,
        activation_checkpointing=checkpointing,
    )
    groups = GroupDataset(data)
    plan = Plan(len(groups), 5, STEPS, STEPS, seed=3)
    losses: list[float] = []

    def checkpoint(step: int, _metrics: Any, save: Callable[[Path], None]) -> None:
        if save_at and save_at[0] == step:
            save(save_at[1])

    hooks = Hooks(
        log=lambda _step, metrics: losses.append(metrics["loss"]),
        checkpoint=checkpoint,
        first_step=lambda largest: None if largest < 1e-5 else pytest.fail(f"logratio {largest}"),
        failed=lambda step, names: pytest.fail(f"step {step} failed"),
    )
    objective = PreferenceObjective(settings.objective)
    world = current_world(torch.device("cpu"))
    module = TokenLogps(make_model(), attention=attention)
    wrapped = train(module, groups, objective, settings, plan, world, hooks, resume_from)
    return losses, full_parameters(wrapped)


def _rank(rank: int, size: int, store: str, output: str, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    results = [run(**case) for case in cases]
    if rank == 0:
        torch.save(results, output)
    dist.destroy_process_group()


def run_ranks(tmp_path: Path, size: int, cases: list[dict[str, Any]]) -> list[Any]:
    """Run cases one after another in `size` gloo processes; results of rank 0."""
    store, output = tmp_path / uuid.uuid4().hex, tmp_path / uuid.uuid4().hex
    mp.spawn(_rank, (size, str(store), str(output), cases), nprocs=size)
    return torch.load(output, weights_only=True)


def assert_same(a: Any, b: Any, tolerance: float) -> None:
    np.testing.assert_allclose(a[0], b[0], rtol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name, value in a[1].items():
        torch.testing.assert_close(value, b[1][name], rtol=tolerance, atol=tolerance, msg=name)


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
    assert_same(run(data, checkpointing=True), one_worker, 1e-6)


def test_two_workers_with_ddp_and_fsdp_equal_one_worker(data, one_worker, tmp_path) -> None:
    cases = [
        {"data": data, "strategy": "ddp"},
        {"data": data, "strategy": "fsdp"},
        {"data": data, "strategy": "fsdp", "checkpointing": True, "max_tokens": 150},
    ]
    for result in run_ranks(tmp_path, 2, cases):
        assert_same(result, one_worker, 1e-5)


def test_resume_equals_uninterrupted_run_bitwise(data, one_worker, tmp_path) -> None:
    for step in range(1, STEPS):
        folder = tmp_path / f"checkpoint-{step}"
        run(data, save_at=(step, folder))
        losses, parameters = run(data, resume_from=folder)
        assert losses == one_worker[0][step:]
        for name, value in parameters.items():
            assert torch.equal(value, one_worker[1][name]), name


def test_resume_with_another_number_of_workers(data, one_worker, tmp_path) -> None:
    saved = tmp_path / "saved"
    run(data, save_at=(2, saved))
    cases = [
        {"data": data, "strategy": strategy, "resume_from": saved} for strategy in ("ddp", "fsdp")
    ]
    for losses, parameters in run_ranks(tmp_path, 2, cases):
        assert_same((losses, parameters), (one_worker[0][2:], one_worker[1]), 1e-5)


def test_infinite_loss_stops_before_the_update_and_names_the_groups() -> None:
    poisoned = make_data(count=5, poison=2)
    seen: list[tuple[int, list[str]]] = []
    with pytest.raises(NumericsError, match="finite"):
        run_poisoned(poisoned, seen)
    assert seen[0][0] == 1
    assert sorted(seen[0][1]) == ["0", "1", "2", "3", "4"]


def run_poisoned(data: Path, seen: list[tuple[int, list[str]]]) -> None:
    settings = TrainingConfig(learning_rate=1e-3)
    groups = GroupDataset(data)
    hooks = Hooks(
        log=lambda *_: pytest.fail("a step was finished"),
        checkpoint=lambda *_: pytest.fail("a checkpoint was written"),
        first_step=lambda _: None,
        failed=lambda step, names: seen.append((step, names)),
    )
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        train(
            TokenLogps(model),
            groups,
            PreferenceObjective(settings.objective),
            settings,
            Plan(len(groups), 5, 1, None, 0),
            current_world(torch.device("cpu")),
            hooks,
        )
    finally:
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
