"""One step on one rank, without a process group."""

from __future__ import annotations

import uuid

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.config.job import TrainingConfig
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, write_groups
from raydpo.training.logps import TokenLogps
from raydpo.training.loop import Hooks, Step
from raydpo.training.objectives import make_objective
from raydpo.training.sharding import World

GROUP = {
    "group_id": "a",
    "prompt_ids": [5, 6],
    "completions": [[7, 8], [9]],
    "reference_token_logps": [[-1.0, -1.0], [-1.0]],
    "pairs": [{"chosen": 0, "rejected": 1, "weight": 1.0}],
}


def step_of(world: World) -> Step:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    settings = TrainingConfig()
    module = TokenLogps(LlamaForCausalLM(config).eval(), attention="segments")
    return Step(
        module=module,
        shared=module.shared,
        data=GroupDataset(write_groups([GROUP], uuid.uuid4().hex)),
        objective=make_objective(settings.objective),
        settings=settings,
        plan=Plan(1, 1, 2, 2, seed=0),
        world=world,
        optimizer=torch.optim.AdamW(module.parameters()),
        hooks=Hooks(
            log=lambda _step, _metrics: None,
            checkpoint=lambda _step, _metrics, _save: lambda: None,
            first_step=lambda _largest: None,
            failed=lambda _failure: None,
        ),
    )


def test_a_rank_without_groups_sums_the_same_metrics_as_the_others() -> None:
    ranks = [step_of(World(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    busy, idle = (rank._accumulate(1, rank.objective, [0], 1.0) for rank in ranks)
    # Else their all-reduce does not fit together.
    assert sorted(busy[0].sums) == sorted(idle[0].sums)
    assert {"loss", "rewards/margins"} <= set(idle[0].sums)
    assert [done.counts for done in (*busy, *idle)] == [True, False]
    alone = step_of(World(0, 1, torch.device("cpu")))
    assert alone._reduced(busy, 1.0)["loss"] == pytest.approx(0.69, abs=0.2)
    assert set(alone._reduced(idle, 1.0).values()) == {0.0}


def test_a_rank_without_groups_adds_no_gradient() -> None:
    idle = step_of(World(1, 2, torch.device("cpu")))
    idle._accumulate(1, idle.objective, [0], 1.0)
    assert all(not p.grad.any() for p in idle.module.parameters() if p.grad is not None)
