"""Useful floating-point operations, and how many the hardware can do.

From a model's shape and groups, the module counts the operations that a step cannot avoid. These
are every prompt once, every completion once, and the output layer on the positions that predict
completion tokens, forward and backward (arXiv:2001.08361, section 2.1: twice the parameters per
token forward, twice that backward). Padding, copies of a prompt or of a completion, and
recomputed activations do not count.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from .spec import ModelShape

#: Forward and backward against forward alone.
TRAIN_OVER_FORWARD = 3


def block_parameters(model: ModelShape) -> int:
    """Parameters of one decoder block that multiply activations."""
    head = model.hidden // model.heads
    attention = model.hidden * head * (2 * model.heads + 2 * model.key_value_heads)
    return attention + 3 * model.hidden * model.intermediate


def adapter_parameters(model: ModelShape, rank: int) -> int:
    """Parameters of one block's adapter: two matrices beside each linear layer."""
    head = model.hidden // model.heads
    query, key = head * model.heads, head * model.key_value_heads
    attention = 2 * (model.hidden + query) + 2 * (model.hidden + key)
    return rank * (attention + 3 * (model.hidden + model.intermediate))


def forward_flops(model: ModelShape, rows: list[dict[str, Any]]) -> int:
    """Operations of one forward pass over groups, a multiply-add counted as two.

    The last token of a completion predicts nothing that counts, so it is no input.
    """
    return sum(_forward_parts(model, rows))


def train_flops(model: ModelShape, rows: list[dict[str, Any]], lora_rank: int | None = None) -> int:
    """Operations of forward and backward over groups.

    Args:
        model: shapes.
        rows: groups.
        lora_rank: of the adapter that is trained alone: nothing then needs the gradients of
            the frozen weights, which are a third of what their products cost otherwise.
    """
    products, scores = _forward_parts(model, rows)
    if lora_rank is None:
        return TRAIN_OVER_FORWARD * (products + scores)
    inputs = _inputs(rows)
    adapter = 2 * model.layers * adapter_parameters(model, lora_rank) * inputs
    return (TRAIN_OVER_FORWARD - 1) * products + TRAIN_OVER_FORWARD * (scores + adapter)


def _inputs(rows: list[dict[str, Any]]) -> int:
    """Tokens that the decoder has to see."""
    return sum(len(r["prompt_ids"]) + sum(len(c) - 1 for c in r["completions"]) for r in rows)


def _forward_parts(model: ModelShape, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Operations of products with parameters, and those of attention scores and values."""
    targets = attended = 0
    for row in rows:
        prompt = len(row["prompt_ids"])
        lengths = [len(completion) for completion in row["completions"]]
        targets += sum(lengths)
        attended += _causal(prompt)
        attended += sum((n - 1) * prompt + _causal(n - 1) for n in lengths)
    blocks = 2 * model.layers * block_parameters(model) * _inputs(rows)
    scores = 4 * model.layers * model.hidden * attended  # scores, and values summed by them
    head = 2 * model.hidden * model.vocabulary * targets
    return blocks + head, scores


def peak_flops(precision: str, device: str, size: int, seconds: float = 0.4) -> float:
    """Operations a second of a large matrix product here: the best of `seconds`' worth.

    Args:
        precision: `bfloat16` or `float32`.
        device: `cpu` or `cuda`.
        size: rows and columns of the matrices.
        seconds: how long to measure.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    result = left @ right
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        torch.matmul(left, right, out=result)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def synchronize(device: str) -> None:
    """Wait for what was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def _causal(length: int) -> int:
    """Pairs of positions in which one attends to the other or itself."""
    return length * (length + 1) // 2
