"""AdamW with its state present from the start, against torch's own, made by the first step."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from raydpo.config.job import TrainingConfig
from raydpo.training.optimizer import make_optimizer

SETTINGS = TrainingConfig(learning_rate=0.01, weight_decay=0.1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def train(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        (module(torch.randn(4, 5, generator=generator)) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(("fused", "bits"), [(True, True), (False, False)])
def test_updates_are_those_of_torch(fused: bool, bits: bool) -> None:
    ours, theirs = model(), model()
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    options = {"betas": SETTINGS.adam_betas, "eps": SETTINGS.adam_epsilon, "fused": fused}
    train(ours, make_optimizer(ours, SETTINGS))
    train(theirs, AdamW(groups, lr=0.01, **options))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) if bits else torch.allclose(a, b, rtol=1e-5)


def test_moments_are_there_before_the_first_step_for_what_is_trained() -> None:
    module = model()
    module[0].requires_grad_(False)
    optimizer = make_optimizer(module, SETTINGS)
    trained = [*module[1].parameters(), *module[2].parameters()]
    assert set(optimizer.state) == set(trained)
    for parameter in trained:
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
