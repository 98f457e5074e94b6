"""The reference's scorer without Ray: the log-probs of transformers, in the groups' order."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.reference.scoring import score_groups
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps

CPU = torch.device("cpu")


@pytest.mark.parametrize("attention", ["segments", None])
@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
def test_every_group_has_its_own_log_probs_however_they_are_batched(
    attention: str | None, max_tokens: int
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()
    shapes = ((3, (2, 5)), (9, (1, 4, 7)), (1, (6,)), (5, (3, 3)))
    groups = [
        Group(
            str(number),
            torch.randint(3, 64, (prompt,)).tolist(),
            [torch.randint(3, 64, (length,)).tolist() for length in lengths],
            [],
            None,
        )
        for number, (prompt, lengths) in enumerate(shapes)
    ]
    # before `TokenLogps` gives the model an attention that takes the shared layout only
    expected = [[_logps(model, g.prompt_ids, c) for c in g.completions] for g in groups]
    found = score_groups(TokenLogps(model, attention=attention), groups, max_tokens, CPU)
    for ours, theirs in zip(found, expected, strict=True):
        for logps, values in zip(ours, theirs, strict=True):
            torch.testing.assert_close(torch.tensor(logps), values)


@torch.no_grad()
def _logps(model: LlamaForCausalLM, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probs of one completion by transformers alone."""
    logits = model(torch.tensor([prompt + completion])).logits
    predicted = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return predicted[torch.arange(len(completion)), torch.tensor(completion)]
