"""The output layer on completion tokens, and what objectives request of it.

From hidden states that predict completion tokens, and those tokens, the module computes their
log-probs and, on request, top logits or the reference's KL, in float32. If the request is for
log-probs only and the layer is one matrix product, `linear_head.py` computes them. Any other layer
or request runs in chunks of tokens. The backward pass recomputes large logits, so that those of a
whole batch never exist at once; small logits are kept.

Shapes: N completion tokens, H hidden, V vocabulary, k top logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raydpo.training.linear_head import KEPT_LOGIT_BYTES, linear_logps, rows_at_once

#: Number of positions whose logits exist at one time.
CHUNK_POSITIONS = 1024
#: A function from hidden states [n, H] to logits [n, V].
OutputLayer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadRequest:
    """What an objective needs for each completion token in addition to its log-prob.

    Attributes:
        top_k: how many of the largest logits among the tokens other than the target
            (Cringe loss); 0 for none.
        reference_kl: whether KL(pi_ref(.|s_t) || pi(.|s_t)) over the whole vocabulary is needed
            (TDPO); the module then needs a frozen reference beside the policy.
    """

    top_k: int = 0
    reference_kl: bool = False


@dataclass(frozen=True)
class TokenOutputs:
    """Outputs for each completion token: differentiable, float32, in nats if they are logs.

    Attributes:
        logps: [N] log pi(y_t | s_t).
        target_logits: [N], if `top_k` was requested.
        top_logits: [N, k], descending, if `top_k` was requested; the target is never among them.
        reference_kl: [N], if `reference_kl` was requested.
    """

    logps: Tensor
    target_logits: Tensor | None = None
    top_logits: Tensor | None = None
    reference_kl: Tensor | None = None


@dataclass(frozen=True)
class ReferenceHead:
    """The frozen reference's hidden states [N, H'] and its output layer."""

    hidden: Tensor
    layer: OutputLayer


def head_outputs(
    layer: OutputLayer,
    hidden: Tensor,
    targets: Tensor,
    request: HeadRequest,
    reference: ReferenceHead | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute the fields of `TokenOutputs`, without ever holding all logits at one time.

    Args:
        layer: the policy's output layer.
        hidden: [N, H], the states that predict the targets.
        targets: [N] int64.
        request: what to compute in addition to log-probs.
        reference: needed for `request.reference_kl`.
        weight: [V, H], if the layer is a product with this weight and nothing else.
    """
    if weight is not None and request == HeadRequest():
        return linear_logps(hidden, weight, targets), None, None, None
    kept = request == HeadRequest() and _logit_bytes(layer, hidden) <= KEPT_LOGIT_BYTES
    chunks: list[Any] = [
        _run_chunk(
            kept,
            layer,
            hidden[start : start + CHUNK_POSITIONS],
            targets[start : start + CHUNK_POSITIONS],
            request,
            _reference_chunk(reference, start) if request.reference_kl else None,
        )
        for start in range(0, len(targets), CHUNK_POSITIONS)
    ]
    logps, target_logits, top_logits, kl = (
        None if column[0] is None else torch.cat(column) for column in zip(*chunks, strict=True)
    )
    assert logps is not None
    return logps, target_logits, top_logits, kl


def at_least_float32(values: Tensor) -> Tensor:
    """Convert lower precision to float32; float64, which tests use, stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _logit_bytes(layer: OutputLayer, hidden: Tensor) -> int:
    """Return the size of all logits in bytes, in the dtype that the layer gives."""
    with torch.no_grad():
        one = layer(hidden[:1])
    return len(hidden) * one.numel() * one.element_size()


def _run_chunk(kept: bool, *arguments: Any) -> tuple[Tensor | None, ...]:
    if kept or not torch.is_grad_enabled():
        return _chunk(*arguments)
    outputs: Any = checkpoint(_chunk, *arguments, use_reentrant=False)
    return outputs


def _reference_chunk(reference: ReferenceHead | None, start: int) -> ReferenceHead:
    assert reference is not None, "KL to the reference needs a reference model in the module"
    return ReferenceHead(reference.hidden[start : start + CHUNK_POSITIONS], reference.layer)


def _chunk(
    layer: OutputLayer,
    hidden: Tensor,
    targets: Tensor,
    request: HeadRequest,
    reference: ReferenceHead | None,
) -> tuple[Tensor | None, ...]:
    logits = layer(hidden)
    if not request.top_k and reference is None:
        logps: Any = _Logps.apply(logits, targets)
        return logps, None, None, None
    logits = at_least_float32(logits)
    target_logits = logits.gather(-1, targets[:, None]).squeeze(-1)
    logps = target_logits - logits.logsumexp(-1)
    kl = None if reference is None else _kl(reference, logits)
    if not request.top_k:
        return logps, None, None, kl
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return logps, target_logits, others.topk(request.top_k, dim=-1).values, kl


def _kl(reference: ReferenceHead, logits: Tensor) -> Tensor:
    """Compute KL(pi_ref || pi) at each position, exactly over the vocabulary."""
    with torch.no_grad():
        reference_logps = at_least_float32(reference.layer(reference.hidden)).log_softmax(-1)
    logps = logits.log_softmax(-1)
    return F.kl_div(logps, reference_logps, reduction="none", log_target=True).sum(-1)


class _Logps(torch.autograd.Function):
    """Log-softmax at the targets, [n, V] -> [n], without a float32 copy of all logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        normalizers = [block.to(wide).logsumexp(-1) for block in logits.split(rows_at_once(logits))]
        normalizer = torch.cat(normalizers)
        ctx.save_for_backward(logits, targets, normalizer)
        return logits.gather(-1, targets[:, None]).squeeze(-1).to(wide) - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return d logp / d logit, which is [target] - softmax."""
        logits, targets, normalizer = ctx.saved_tensors
        rows, result = rows_at_once(logits), torch.empty_like(logits)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            gradient = gradients[0][part, None]
            block = logits[part].to(normalizer.dtype) - normalizer[part, None]
            block.exp_().mul_(-gradient).scatter_add_(-1, targets[part, None], gradient)
            result[part] = block
        return result, None
