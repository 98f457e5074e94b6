"""Attention on CUDA: variable-length flash attention, and FlexAttention with a block mask.

Both compute attention over the layout from states of the flat sequence.

Varlen: the first completion of a group forms one sequence with its prompt, for queries and keys
alike. For each further completion, the keys are a copy of its prompt's keys followed by its own.
Varlen needs causal masks that are aligned at the bottom right; the self-test at start checks this.
Flex: one call on the flat sequence skips blocks in which no query may attend to any key.

Shapes: T tokens, Q query heads, K key heads, D head size, R completions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)
from torch.nn.attention.varlen import varlen_attn

from raydpo.core.errors import ModelError
from raydpo.training.attention.interface import Scores
from raydpo.training.attention.rows import RowGather, gather_rows, row_gather
from raydpo.training.layout import Integers, PrefixLayout, ranges
from raydpo.training.transfer import to_device

#: Maximum head size of PyTorch's flash attention.
_MOST_HEAD_SIZE: Final = 256


@dataclass(frozen=True)
class VarlenPlan:
    """Sequences of queries and of keys: one for each completion, and one for any filler.

    Attributes:
        keys: for each token of all key sequences, its place in the flat sequence.
        query_ends, key_ends: int32, cumulative lengths, from 0.
        most_queries, most_keys: the maximum in one sequence.
    """

    keys: RowGather
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scores: Scores
) -> Tensor:
    """Attend in half precision: [T, Q, D], [T, K, D], [T, K, D] -> [T, Q, D].

    Raises:
        ModelError: flash attention cannot do what the model needs.
    """
    _refuse_for_varlen(query, value, scores)
    plan = layout.cached("varlen", lambda: varlen_plan(layout))
    key, value = (gather_rows(x.flatten(1), plan.keys).view(-1, *x.shape[1:]) for x in (key, value))
    out = varlen_attn(
        query,
        key,
        value,
        plan.query_ends,
        plan.key_ends,
        plan.most_queries,
        plan.most_keys,
        scale=scores.scale,
        # (-1, 0) is causal: flash attention counts the keys before the query's own key.
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def varlen_plan(layout: PrefixLayout) -> VarlenPlan:
    """Leave query sequences in the flat sequence, and copy the keys of each sequence together."""
    prompts = layout.prompt_lengths[layout.groups]
    first = np.diff(layout.groups, prepend=-1) > 0
    queries, keys = layout.lengths + prompts * first, layout.lengths + prompts
    starts = np.stack([layout.prompt_starts[layout.groups], layout.starts], 1).ravel()
    tokens = ranges(starts, np.stack([prompts, layout.lengths], 1).ravel())
    # The filler stands behind the last completion and is a sequence of its own.
    filler = np.arange(int(queries.sum()), layout.tokens)
    if len(filler):
        queries, keys = np.append(queries, len(filler)), np.append(keys, len(filler))
        tokens = np.append(tokens, filler)
    device = layout.position_ids.device
    gather = row_gather(tokens, np.ones(len(tokens), np.bool_), layout.tokens)
    return VarlenPlan(
        gather.to(device),
        to_device(_ends(queries), device),
        to_device(_ends(keys), device),
        int(queries.max()),
        int(keys.max()),
    )


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scores: Scores
) -> Tensor:
    """Attend: [T, Q, D], [T, K, D], [T, K, D'] -> [T, Q, D']."""
    mask = layout.cached(("flex", scores.window), lambda: flex_mask(layout, scores.window))
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    attend = _compiled_flex() if query.is_cuda else flex_attention
    out, extra = attend(
        q,
        k,
        v,
        score_mod=_softcap(scores.softcap),
        block_mask=mask,
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if scores.sinks is not None:
        assert extra.lse is not None
        # A sink takes its share of the softmax; the rest is exp(lse) / (exp(lse) + exp(sink)).
        left = torch.sigmoid(extra.lse - scores.sinks.to(extra.lse.dtype)[None, :, None])
        out = out * left[..., None].to(out.dtype)
    return out[0].transpose(0, 1)


def flex_mask(layout: PrefixLayout, window: int | None) -> BlockMask:
    """Express the layout's rule as FlexAttention's block mask."""
    group, sequence = layout.owners()
    position = layout.position_ids[0]

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (sequence[key] == sequence[query]) | (sequence[key] < 0)
        seen = (group[key] == group[query]) & (key <= query) & own
        return seen if window is None else seen & (position[query] - position[key] < window)

    length = layout.tokens
    return create_block_mask(allowed, None, None, length, length, device=position.device)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    """Compile FlexAttention, which is a kernel only if compiled; lengths vary between batches."""
    return torch.compile(flex_attention, dynamic=True)


@functools.cache
def _softcap(cap: float | None) -> Callable[..., Tensor] | None:
    if cap is None:
        return None

    def capped(score: Tensor, *_place: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _ends(lengths: Integers) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def varlen_takes(head_size: int) -> bool:
    """Return whether PyTorch's flash attention has a kernel for heads of this size."""
    return head_size % 8 == 0 and head_size <= _MOST_HEAD_SIZE


def _refuse_for_varlen(query: Tensor, value: Tensor, scores: Scores) -> None:
    reasons = {
        "flash attention needs half precision (model.precision: bfloat16)": query.dtype
        not in (torch.bfloat16, torch.float16),
        "flash attention has no soft-capped scores": scores.softcap is not None,
        "flash attention has no attention sinks": scores.sinks is not None,
        f"flash attention takes heads of a multiple of 8 up to {_MOST_HEAD_SIZE}, "
        f"not of {query.shape[-1]}": not varlen_takes(query.shape[-1]),
        "its values have another width than its keys": query.shape[-1] != value.shape[-1],
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelError(
                f"model.attention `varlen` cannot run this model: {reason}",
                "`varlen` is PyTorch's variable-length flash attention",
                "set model.attention to `flex`",
            )
