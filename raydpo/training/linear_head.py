"""Log-probs under an output layer that is one matrix product, in slices of the vocabulary.

From hidden states, the layer's weight and the actual tokens, the module computes their log-probs in
float32. The logits of all tokens exist for one slice of the vocabulary at a time. The backward pass
recomputes them, or uses small ones that were kept. So only the gradient is as large as the weight.
The values are the same whether logits are kept or not, in training and in scoring.

Shapes: N tokens, H hidden, V vocabulary, v size of a slice.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.training.layout import round_length

#: Logits of a micro-batch up to this size are kept for the backward pass.
KEPT_LOGIT_BYTES = 64 << 20
#: Columns of a slice, which is computed as a whole in the precision of the product.
_CPU_COLUMNS, _CUDA_COLUMNS = 1024, 8192
#: Number of logits that a CPU converts to float32 at one time; they fit its cache.
_CPU_BLOCK = 1 << 18


def linear_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute log softmax(hidden weight^T) at the targets: [N, H], [V, H], [N] -> [N].

    Under autocast the products are in its dtype, as those of `nn.Linear` would be.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    size = len(hidden) * len(weight) * dtype.itemsize
    kept = torch.is_grad_enabled() and size <= KEPT_LOGIT_BYTES
    # Products are compiled for their shapes, so only a few shapes may occur; see `round_length`.
    filler = round_length(len(targets)) - len(targets)
    hidden, filled = F.pad(hidden, (0, 0, 0, filler)), F.pad(targets, (0, filler))
    logps: Any = _LinearLogps.apply(hidden, weight, filled, dtype, kept)
    return logps[: len(targets)]


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, kept: bool
    ) -> Tensor:
        states, kept_logits = hidden.to(dtype), list[Tensor]()
        wide = torch.promote_types(dtype, torch.float32)
        normalizer = torch.full(targets.shape, float("-inf"), dtype=wide, device=hidden.device)
        chosen = torch.zeros_like(normalizer)
        for start, columns in _slices(weight, dtype):
            logits = states @ columns.t()
            parts = [block.to(wide).logsumexp(-1) for block in logits.split(rows_at_once(logits))]
            torch.logaddexp(normalizer, torch.cat(parts), out=normalizer)
            place, inside = _places(targets, start, len(columns))
            chosen += torch.where(inside, logits.gather(-1, place)[:, 0].to(wide), 0.0)
            if kept:
                kept_logits.append(logits)
        ctx.save_for_backward(states, weight, targets, normalizer, *kept_logits)
        ctx.hidden_dtype = hidden.dtype
        return chosen - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        """Return d logp / d logit, which is [target] - softmax."""
        states, weight, targets, normalizer, *kept_logits = ctx.saved_tensors
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        gradient = torch.zeros(states.shape, dtype=normalizer.dtype, device=states.device)
        for number, (start, columns) in enumerate(_slices(weight, states.dtype)):
            logits = kept_logits[number] if kept_logits else states @ columns.t()
            place, inside = _places(targets, start, len(columns))
            _to_gradient(logits, normalizer, place, inside, gradients[0])
            gradient += logits @ columns
            if weight_gradient is not None:
                weight_gradient[start : start + len(columns)] = logits.t() @ states
        return gradient.to(ctx.hidden_dtype), weight_gradient, None, None, None


def _to_gradient(
    logits: Tensor, normalizer: Tensor, place: Tensor, inside: Tensor, gradient: Tensor
) -> None:
    """Turn the logits of a slice into their gradient, in place."""
    at_target = (gradient * inside)[:, None]
    for first in range(0, len(logits), rows := rows_at_once(logits)):
        part = slice(first, first + rows)
        block = logits[part].to(normalizer.dtype).sub_(normalizer[part, None])
        block.exp_().mul_(-gradient[part, None])
        logits[part] = block.scatter_add_(-1, place[part], at_target[part])


def _slices(weight: Tensor, dtype: torch.dtype) -> Generator[tuple[int, Tensor]]:
    """Yield the start of each slice of the vocabulary, and its [v, H] weights."""
    width = _CPU_COLUMNS if weight.device.type == "cpu" else _CUDA_COLUMNS
    for start in range(0, len(weight), width):
        yield start, weight[start : start + width].to(dtype)


def _places(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Return columns of targets, [N, 1] (any if outside the slice), and whether inside, [N]."""
    inside = (targets >= start) & (targets < start + width)
    return (targets - start).clamp(0, width - 1)[:, None], inside


def rows_at_once(logits: Tensor) -> int:
    """Return the number of rows that are converted to float32 at one time."""
    rows, width = logits.shape
    return max(1, _CPU_BLOCK // width) if logits.device.type == "cpu" else rows
