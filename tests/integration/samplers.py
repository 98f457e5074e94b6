"""Samplers that tests name by import path: transformers' `generate`, and one without a model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@lru_cache(maxsize=1)
def loaded(model: str) -> PreTrainedModel:
    """The policy of a folder; the process keeps the last one."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def generate(
    prompt_ids: list[list[int]],
    seeds: list[list[int]],
    model: str,
    temperature: float,
    max_completion_tokens: int,
    with_logprobs: bool = True,
) -> list[list[dict[str, Any]]]:
    """K completions for each prompt; each has a generator state of its own."""
    policy = loaded(model)
    return [
        [
            _one(policy, prompt, seed, temperature, max_completion_tokens, with_logprobs)
            for seed in k
        ]
        for prompt, k in zip(prompt_ids, seeds, strict=True)
    ]


def sums(
    prompts: list[str], candidates: int, max_completion_tokens: int
) -> list[list[dict[str, str]]]:
    """Answers to "2 + 3 =": right, wrong, and right but cut by the token limit, in turn."""
    assert max_completion_tokens >= 32
    kinds = [(0, "stop"), (1, "stop"), (0, "length")]
    return [
        [
            {"text": f" so \\boxed{{{_sum(prompt) + off}}}", "finish_reason": finish}
            for off, finish in (kinds * candidates)[:candidates]
        ]
        for prompt in prompts
    ]


def _sum(prompt: str) -> int:
    return sum(int(word) for word in prompt.split() if word.isdecimal())


def _one(
    policy: PreTrainedModel,
    prompt: list[int],
    seed: int,
    temperature: float,
    tokens: int,
    with_logprobs: bool,
) -> dict[str, Any]:
    torch.manual_seed(seed)
    found: Any = policy.generate(
        torch.tensor([prompt]),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = found.sequences[0, len(prompt) :]
    logps = torch.log_softmax(torch.cat(found.logits).float(), dim=-1)
    ended = int(ids[-1]) == policy.generation_config.eos_token_id
    return {
        "token_ids": ids,
        "logprobs": logps.gather(1, ids[:, None])[:, 0] if with_logprobs else None,
        "finish_reason": "stop" if ended else "length",
    }
