"""Trainings of a tiny model without Ray, in this process or in gloo processes, for tests."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.config.job import TrainingConfig
from raydpo.core.errors import NumericsError
from raydpo.training.batch import build_micro_batch
from raydpo.training.checkpoints import newest_whole
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, joined_rows, write_groups
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.loop import BeginSave, EndSave, Failure, Hooks, Metrics, train
from raydpo.training.objectives import Objective, make_objective
from raydpo.training.sharding import current_world, full_parameters

STEPS = 4
CPU = torch.device("cpu")


def fail(why: str) -> NoReturn:
    """An `assert False` that can stand in a lambda."""
    raise AssertionError(why)


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


def make_data(
    count: int = 10, poison: int | None = None, precision: str = "float32", reverse: bool = False
) -> Path:
    """Groups with the reference log-probs of the untrained model; one may be infinite.

    With `reverse`, all judgements are turned round.
    """
    rows = preference_rows(count)
    for pair in (pair for row in rows for pair in row["pairs"] if reverse):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    plain = GroupDataset(
        write_groups(
            ({**_arrow_columns(row), "reference_token_logps": None} for row in rows),
            uuid.uuid4().hex,
        )
    )
    scored = []
    for number, row in enumerate(rows):
        batch = build_micro_batch([plain[number]], shared=True)  # as `run` lays them out
        module = TokenLogps(make_model(), precision, "segments")
        with torch.no_grad():
            flat = iter(token_logps(module, batch).tolist())
        values = [[next(flat) for _ in completion] for completion in row["completions"]]
        if number == poison:
            values[0][0] = math.inf
        scored.append({"group_id": row["group_id"], "reference_token_logps": values})
    return write_groups(joined_rows(rows, scored, lambda _: True), uuid.uuid4().hex)


def _arrow_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("group_id", "prompt_ids", "completions", "pairs")}


def run(
    data: Path,
    max_tokens: int = 400,
    resume_from: Path | None = None,
    save_to: Path | None = None,
    precision: str = "float32",
    attention: str | None = "segments",
    die_after_step: int | None = None,
    **settings: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train for STEPS steps, or the rest of them; returns losses and final parameters.

    With `save_to`, the checkpoint of step n is written to the folder n in it; where they are
    to be resumed from, the newest whole one of `resume_from` is taken.
    """
    config = _config(max_tokens, **settings)
    losses: list[float] = []

    def log(step: int, metrics: Metrics) -> None:
        losses.append(metrics["loss"])
        if step == die_after_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def checkpoint(step: int, _metrics: Metrics, save: BeginSave) -> EndSave:
        return save(save_to / str(step)) if save_to else lambda: None

    hooks = Hooks(
        log=log,
        checkpoint=checkpoint,
        first_step=lambda largest: None if largest < 1e-5 else fail(f"logratio {largest}"),
        failed=lambda failure: fail(str(failure)),
    )
    start = newest_whole(saves(resume_from)) if resume_from else None
    wrapped = train(
        TokenLogps(_model_for(config), precision, attention),
        *_job(data, config),
        current_world(CPU),
        hooks,
        start and start[0],
    )
    return losses, full_parameters(wrapped)


def run_measured(
    data: Path, heldout: Path, save_to: Path, max_tokens: int = 400, **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """Train with early stopping; returns held-out losses, final parameters, exported and done steps."""
    config = _config(max_tokens, **settings)
    losses: list[float] = []
    steps: list[int] = []

    @contextmanager
    def checkpoint_of(step: int) -> Generator[Path]:
        yield save_to / str(step)

    hooks = Hooks(
        log=lambda _, metrics: losses.append(metrics["heldout/loss"]),
        checkpoint=lambda step, _, save: save(save_to / str(step)),
        first_step=lambda _: None,
        failed=lambda failure: fail(str(failure)),
        checkpoint_of=checkpoint_of,
        ended=lambda outcome: steps.extend((outcome.exported_step, outcome.done)),
    )
    module = TokenLogps(_model_for(config), "float32", "segments")
    wrapped = train(
        module,
        *_job(data, config),
        current_world(CPU),
        hooks,
        heldout=GroupDataset(heldout),
    )
    return losses, full_parameters(wrapped), steps


def saves(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("*"), reverse=True) if folder.exists() else []


def run_poisoned(data: Path, **settings: Any) -> dict[str, Any]:
    """Train on data that make a loss infinite; returns what `Hooks.failed` was told."""
    config = _config(400, **settings)
    seen: list[Failure] = []
    hooks = Hooks(
        log=lambda *_: fail("a step was finished"),
        checkpoint=lambda *_: fail("a checkpoint was written"),
        first_step=lambda _: None,
        failed=seen.append,
    )
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NumericsError, match="finite"):
        train(TokenLogps(model), *_job(data, config), current_world(CPU), hooks)
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert torch.equal(whole, before[name]), name
    return dataclasses.asdict(seen[0])


def run_until_killed(data: Path, save_to: Path, rank: int, point: int, **settings: Any) -> None:
    """Train with checkpoints; `rank` is killed at file event number `point` of the second one."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename") or current_world(CPU).rank != rank:
            return
        if event == "open" and "w" not in str(arguments[1]):
            return
        if str(arguments[0]).startswith(str(save_to / "2")):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(data, save_to=save_to, **settings)


def _config(max_tokens: int, **settings: Any) -> TrainingConfig:
    return TrainingConfig(
        max_tokens_per_micro_batch=max_tokens,
        learning_rate=1e-3,
        checkpoint_every_steps=1,
        **settings,
    )


def _job(
    data: Path, config: TrainingConfig
) -> tuple[GroupDataset, Objective, TrainingConfig, Plan]:
    groups = GroupDataset(data)
    plan = Plan(len(groups), 5, STEPS, STEPS, seed=3)
    return groups, make_objective(config.objective), config, plan


def _model_for(config: TrainingConfig) -> LlamaForCausalLM:
    """With sharding, ranks but the first start without weights."""
    if config.strategy == "fsdp" and current_world(CPU).rank > 0:
        with torch.device("meta"):
            return make_model()
    return make_model()


def _rank(
    rank: int,
    size: int,
    store: str,
    output: str,
    cases: list[dict[str, Any]],
    do: Callable[..., Any],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    results = [do(**case) for case in cases]
    if rank == 0:
        torch.save(results, output)
    dist.destroy_process_group()


def run_ranks(
    tmp_path: Path, size: int, cases: list[dict[str, Any]], do: Callable[..., Any] = run
) -> list[Any]:
    """Do cases one after another in `size` gloo processes; results of rank 0."""
    store, output = tmp_path / uuid.uuid4().hex, tmp_path / uuid.uuid4().hex
    # A server that has imported torch once starts each process in milliseconds.
    multiprocessing.set_forkserver_preload([__name__])
    arguments = (size, str(store), str(output), cases, do)
    mp.start_processes(_rank, arguments, nprocs=size, start_method="forkserver")
    return torch.load(output, weights_only=True)


def assert_same(a: Any, b: Any, tolerance: float) -> None:
    """Losses and parameters agree; within a tolerance of 0 they are equal."""
    np.testing.assert_allclose(a[0], b[0], rtol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name, value in a[1].items():
        torch.testing.assert_close(value, b[1][name], rtol=tolerance, atol=tolerance, msg=name)
