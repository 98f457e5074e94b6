"""The explicit boolean mask on PyTorch's SDPA: correct by inspection, and O(T^2).

It computes attention over the layout from states of the flat sequence. Tests compare the fast
backends with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.training.attention.interface import Scores
from raydpo.training.head import at_least_float32
from raydpo.training.layout import PrefixLayout


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scores: Scores
) -> Tensor:
    """Attend: [T, Q, D], [T, K, D], [T, K, D'] -> [T, Q, D']."""
    allowed = layout.cached(("mask", scores.window), lambda: layout.allowed(scores.window))
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    if scores.softcap is None and scores.sinks is None:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, scale=scores.scale, enable_gqa=True
        )
    else:
        out = plain_attention(q, k, v, allowed, scores)
    return out[0].transpose(0, 1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scores: Scores) -> Tensor:
    """Compute attention step by step, with soft-capped scores and sinks; the softmax is in float32.

    Args:
        q: [S, Q, n, D].
        k: [S, K, m, D]; a key head serves Q/K consecutive query heads.
        v: [S, K, m, D'].
        allowed: bool, broadcast to [S, 1, n, m].
        scores: how products become scores.

    Returns:
        [S, Q, n, D'].
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    products = at_least_float32(q @ k.transpose(-1, -2)) * scores.scale
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    products = products.masked_fill(~allowed, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.to(products.dtype).view(1, -1, 1, 1).expand(*products.shape[:-1], 1)
        products = torch.cat([products, sinks], -1)
    weights = products.softmax(-1)[..., : k.shape[-2]].to(v.dtype)
    return weights @ v
