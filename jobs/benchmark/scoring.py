"""Scoring a reference: our scorer, padded batches of transformers, vLLM.

A contender makes steps on a scenario, as its gate asks. Each step scores the groups of
`STEPS_A_PART` train steps: per-token log-probs of all completions. Their sum replaces the loss
that trainers report, so that the benchmark can compare contenders.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from raydpo.reference.scoring import score_groups
from raydpo.training.groups import Group
from raydpo.training.sharing import token_module

from .data import STEPS_A_PART, Row, group_rows, part_rows
from .gate import Gate
from .ours import model_settings, random_model
from .spec import Contender, Scenario

#: Scores a part: groups in, the sum of all completion tokens' log-probs out.
PartScorer = Callable[[list[Row]], float]

_MAX_TOKENS = 8192
#: One process, threads where the machine puts them, and no more memory than the parts need.
_VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def run(scenario: Scenario, contender: Contender, gate: Gate) -> None:
    """Score until the gate ends it."""
    rows = group_rows(scenario)
    score = _SCORERS[contender.kind](scenario, contender)
    gate.ready(parameters=0)
    for number in range(scenario.data.steps // STEPS_A_PART):
        total = score(part_rows(scenario, rows, number))
        gate.step_done(lambda total=total: total)


def _ours(scenario: Scenario, contender: Contender) -> PartScorer:
    """What the reference stage's workers run, on a model that is here already."""
    device = torch.device(scenario.device)
    settings = model_settings(scenario, contender, "random weights")
    module = token_module(random_model(scenario), settings, device)
    module = module.to(device).eval()
    limit = contender.max_tokens or _MAX_TOKENS

    def score(part: list[Row]) -> float:
        groups = [
            Group(row["group_id"], row["prompt_ids"], row["completions"], [], None) for row in part
        ]
        scored = score_groups(module, groups, limit, device)
        return math.fsum(v for group in scored for values in group for v in values)

    return score


def _padded(scenario: Scenario, contender: Contender) -> PartScorer:
    model = random_model(scenario)
    torch.nn.Module.to(model, scenario.device)

    @torch.inference_mode()
    def score(part: list[Row]) -> float:
        sequences = _sequences(part)
        if contender.sort_by_length:
            sequences.sort(key=lambda s: -len(s[0]) - len(s[1]))
        return math.fsum(
            value
            for batch in _batches(sequences, contender.batch_sequences)
            for value in _padded_batch(model, batch, scenario)
        )

    return score


def _padded_batch(
    model: torch.nn.Module, batch: list[tuple[list[int], list[int]]], scenario: Scenario
) -> list[float]:
    """Log-probs of a batch's completion tokens, by the model's own forward pass."""
    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    real, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, (prompt, completion) in enumerate(batch):
        length = len(prompt) + len(completion)
        ids[number, :length] = torch.tensor(prompt + completion)
        real[number, :length] = 1
        wanted[number, len(prompt) : length] = True
    ids, real, wanted = (tensor.to(scenario.device) for tensor in (ids, real, wanted))
    with torch.autocast(scenario.device, torch.bfloat16, enabled=scenario.precision == "bfloat16"):
        logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]
    logps = torch.nn.functional.log_softmax(logits.float(), -1)
    return logps.gather(-1, ids[:, 1:, None])[..., 0][wanted[:, 1:]].tolist()


def _vllm(scenario: Scenario, contender: Contender) -> PartScorer:
    os.environ.update(_VLLM_ENVIRONMENT)  # read when it is imported
    vllm: Any = importlib.import_module("vllm")
    folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
    random_model(scenario).save_pretrained(folder)
    engine = vllm.LLM(
        model=str(folder),
        dtype=scenario.precision,
        skip_tokenizer_init=True,
        enforce_eager=scenario.device == "cpu",
        max_num_batched_tokens=_MAX_TOKENS,
        max_model_len=_MAX_TOKENS // 2,
        enable_prefix_caching=False,
    )
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)

    def score(part: list[Row]) -> float:
        sequences = _sequences(part)
        prompts = [vllm.TokensPrompt(prompt_token_ids=p + c) for p, c in sequences]
        outputs = engine.generate(prompts, asked, use_tqdm=False)
        return math.fsum(
            entry[token].logprob
            for (prompt, completion), output in zip(sequences, outputs, strict=True)
            for token, entry in zip(
                completion, (output.prompt_logprobs or [])[len(prompt) :], strict=True
            )
            if entry is not None
        )

    return score


def _sequences(part: list[Row]) -> list[tuple[list[int], list[int]]]:
    return [(row["prompt_ids"], completion) for row in part for completion in row["completions"]]


def _batches(
    sequences: list[tuple[list[int], list[int]]], size: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    for first in range(0, len(sequences), size):
        yield sequences[first : first + size]


_SCORERS: dict[str, Callable[[Scenario, Contender], PartScorer]] = {
    "score_raydpo": _ours,
    "score_padded": _padded,
    "score_vllm": _vllm,
}
