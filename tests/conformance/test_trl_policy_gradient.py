"""Policy gradient against TRL's RLOOTrainer and GRPOTrainer, run for real on completions of their own.

A trainer samples, asks for rewards, and computes advantages and its loss. Ours gets the same
completions, rewards and log-probs, through the section and the objective as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from raydpo.config.job import TrainingConfig
from raydpo.training.batch import MicroBatch, build_micro_batch, split_by_sequence
from raydpo.training.groups import Group, GroupDataset, write_groups
from raydpo.training.logps import TokenLogps, TokenOutputs, token_logps
from raydpo.training.losses.policy_gradient import (
    group_normalized_advantages,
    leave_one_out_advantages,
)
from raydpo.training.measures.values import GlobalBatch
from raydpo.training.objectives import make_objective
from tests.conformance import peers
from tests.conftest import make_tiny_model

pytest.importorskip("trl")
#: Importing the trainers of TRL takes longer than all fast checks of losses together.
pytestmark = pytest.mark.slow

BETA = 0.3
K = 4
CLIP = {"clip_low": 0.1, "clip_high": 0.25}


def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Something that differs between completions."""
    return [sum(ids) % 7 / 3 - len(ids) / 5 for ids in completion_ids]


def sampled_by(name: str, folder: Path, **settings: object) -> tuple[Any, dict[str, Any]]:
    """A trainer of TRL whose reference differs from its policy, and completions that it sampled."""
    import trl

    torch.manual_seed(5)
    policy, tokenizer = peers.load(make_tiny_model(folder / "policy", seed=0))
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=K * len(peers.PROMPTS),
        num_generations=K,
        max_completion_length=7,
        beta=BETA,
        epsilon=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=policy,
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"prompt": peers.PROMPTS}),
        processing_class=tokenizer,
    )
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, trainer._generate_and_score_completions(batch)


class Ours:
    """The same completions as micro-batch and groups."""

    def __init__(self, trainer: Any, inputs: dict[str, Any]) -> None:
        self.module = TokenLogps(trainer.model)
        prompts, completions = (
            [
                ids[mask.bool()].tolist()
                for ids, mask in zip(inputs[f"{kind}_ids"], inputs[f"{kind}_mask"], strict=True)
            ]
            for kind in ("prompt", "completion")
        )
        self.completions = completions
        self.rows = [
            {
                "group_id": str(first),
                "prompt_ids": prompts[first],
                "completions": completions[first : first + K],
                "rewards": reward(completions[first : first + K]),
                "pairs": [],
            }
            for first in range(0, len(prompts), K)
        ]
        assert all(row["prompt_ids"] == prompts[i * K + 3] for i, row in enumerate(self.rows))
        self.reference = self.logps_of(TokenLogps(trainer.ref_model))

    @torch.no_grad()
    def logps_of(self, module: TokenLogps) -> list[list[list[float]]]:
        """By group, completion and token."""
        groups = [
            Group(row["group_id"], row["prompt_ids"], row["completions"], [], None)
            for row in self.rows
        ]
        batch = build_micro_batch(groups)
        flat = iter(split_by_sequence(token_logps(module, batch).tolist(), batch))
        return [[next(flat) for _ in group.completions] for group in groups]

    def loss(self, section: dict[str, Any], sampler: list[list[list[float]]]) -> Tensor:
        """As a train step computes it, with the gradient."""
        rows = [
            {**row, "sampler_token_logps": mu, "reference_token_logps": reference}
            for row, mu, reference in zip(self.rows, sampler, self.reference, strict=True)
        ]
        data = GroupDataset(write_groups(rows, f"{hash(str(rows)):x}"))
        numbers = list(range(len(data)))
        batch: MicroBatch = build_micro_batch([data[number] for number in numbers])
        settings = TrainingConfig.model_validate(
            {"objective": {"name": "policy_gradient", "beta": BETA, **CLIP, **section}}
        )
        objective = make_objective(settings.objective).at_step(GlobalBatch(0, numbers, data.sizes))
        outputs = TokenOutputs(token_logps(self.module, batch), None, None, None)
        loss, _ = objective.sums(outputs, batch)
        return loss / objective.normalizer(numbers, data.sizes)


def gradient(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def compare(trainer: Any, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Gradients by all parameters."""
    wanted, found = gradient(trainer.model, theirs()), gradient(trainer.model, ours())
    assert wanted.abs().max() > 1e-3
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_rloo_is_that_of_trl_where_the_policy_sampled(tmp_path: Path) -> None:
    """TRL takes the ratio of whole completions, so the losses differ, and on-policy not their gradients."""
    trainer, inputs = sampled_by("RLOO", tmp_path)
    ours = Ours(trainer, inputs)
    sampler = ours.logps_of(ours.module)
    kl = [
        sum(a) - sum(b)
        for mu, reference in zip(sampler, ours.reference, strict=True)
        for a, b in zip(mu, reference, strict=True)
    ]
    assert max(map(abs, kl)) > 0.1
    rewards = torch.tensor(reward(ours.completions)) - BETA * torch.tensor(kl)
    groups = torch.arange(len(rewards)) // K
    peers.close(leave_one_out_advantages(rewards, groups), inputs["advantages"])
    compare(
        trainer,
        lambda: ours.loss({"kl": "reward"}, sampler),
        lambda: trainer._compute_loss(trainer.model, inputs),
    )


@pytest.mark.parametrize(
    ("loss_type", "loss_per", "corrected"),
    [
        ("grpo", "completion_mean", False),
        ("dapo", "token", False),
        ("grpo", "completion_mean", True),
    ],
)
def test_grpo_is_that_of_trl_away_from_the_sampler(
    tmp_path: Path, loss_type: str, loss_per: str, corrected: bool
) -> None:
    trainer, inputs = sampled_by(
        "GRPO", tmp_path, loss_type=loss_type, use_bias_correction_kl=corrected
    )
    ours = Ours(trainer, inputs)
    rewards = torch.tensor(reward(ours.completions))
    groups = torch.arange(len(rewards)) // K
    peers.close(group_normalized_advantages(rewards, groups), inputs["advantages"])
    generator = torch.Generator().manual_seed(3)
    sampler = [
        [[v + 0.3 * torch.randn((), generator=generator).item() for v in own] for own in group]
        for group in ours.logps_of(ours.module)
    ]
    padded = torch.zeros(inputs["completion_mask"].shape)
    flat = [own for group in sampler for own in group]
    for row, values in enumerate(flat):
        padded[row, : len(values)] = torch.tensor(values)
    given = {**inputs, "old_per_token_logps": padded}
    section = {
        "advantages": "group_normalized",
        "kl": "weighted_loss" if corrected else "loss",
        "loss_per": loss_per,
    }
    peers.close(
        ours.loss(section, sampler).detach(),
        trainer._compute_loss(trainer.model, given).detach(),
    )
    compare(
        trainer,
        lambda: ours.loss(section, sampler),
        lambda: trainer._compute_loss(trainer.model, given),
    )
