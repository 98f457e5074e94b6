"""The gradient of DPO as the paper writes it, by autograd on a real (tiny) model.

arXiv:2305.18290 sec. 4: grad L = -beta E[sigmoid(r(y_l) - r(y_w)) (grad log pi(y_w) - grad log pi(y_l))].
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from raydpo.config.job import DpoObjective
from raydpo.training.batch import MicroBatch, build_micro_batch
from raydpo.training.groups import Group, Pair
from raydpo.training.head import TokenOutputs
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.objectives import PreferenceObjective
from tests.conftest import make_tiny_model

BETA = 0.3
#: Two prompts; one has three completions and all its pairs, so that completions are shared.
GROUPS = [
    Group("a", [1, 40], [[50, 51, 2], [60, 2]], [Pair(0, 1)], None),
    Group(
        "b",
        [1, 41, 42, 43],
        [[70, 2], [71, 72, 73, 74, 2], [75, 2]],
        [Pair(0, 1), Pair(0, 2), Pair(1, 2)],
        None,
    ),
]


def test_gradient_of_dpo_on_a_real_model_is_the_papers(tmp_path: Path) -> None:
    policy, reference = (
        TokenLogps(AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / name, seed)))
        for seed, name in enumerate(("policy", "reference"))
    )
    batch = build_micro_batch(GROUPS)
    with torch.no_grad():
        reference_logps = token_logps(reference, batch)
    batch = MicroBatch(**{**vars(batch), "reference_token_logps": reference_logps})
    objective = PreferenceObjective(DpoObjective(beta=BETA))
    loss, _ = objective.sums(TokenOutputs(token_logps(policy, batch)), batch)
    weights = list(policy.parameters())
    got = torch.autograd.grad(loss / len(batch.pairs), weights)

    for one, other in zip(got, papers_gradient(policy, batch, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def papers_gradient(policy: TokenLogps, batch: MicroBatch, weights: list[Tensor]) -> list[Tensor]:
    """The right-hand side: gradients of log-likelihoods alone, weighted pair by pair."""
    assert batch.reference_token_logps is not None
    with torch.no_grad():
        logps = batch.sequence_sums(token_logps(policy, batch))
    rewards = BETA * (logps - batch.sequence_sums(batch.reference_token_logps))
    # A forward pass for each: a backward pass works in the logits that its forward pass kept.
    of_each = [
        torch.autograd.grad(batch.sequence_sums(token_logps(policy, batch))[number], weights)
        for number in range(len(logps))
    ]
    total = [torch.zeros_like(weight) for weight in weights]
    for chosen, rejected in batch.pairs.tolist():
        how_wrong = torch.sigmoid(rewards[rejected] - rewards[chosen])
        for sum_, up, down in zip(total, of_each[chosen], of_each[rejected], strict=True):
            sum_ -= BETA * how_wrong * (up - down) / len(batch.pairs)
    return total
