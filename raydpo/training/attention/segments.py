"""Attention on CPUs: blocks of queries against their keys, batched by round shape.

It computes attention over the layout from states of the flat sequence. The queries of a prompt, and
those of each completion, form segments. Each segment has its own keys: those of the prompt, then
those of the completion. The only scores it computes in excess are the other half of the causal
square and the filling of a segment up to a round shape. Segments of one shape form batches of 1, 2,
4, 8, ..., so only a few shapes of products occur, again and again (see `round_length`).

In bfloat16 the batch is matmul, softmax and matmul with a backward pass of our own, because
PyTorch's SDPA on CPUs is several times slower at such lengths. In float32 it is SDPA.

Shapes: T tokens, Q query heads, K key heads, D head size; S segments of a batch with at most n
queries and m keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.training.attention.interface import Scores
from raydpo.training.attention.mask import plain_attention
from raydpo.training.attention.rows import RowGather, gather_rows, row_gather
from raydpo.training.layout import Integers, PrefixLayout, ranges, round_length

#: Boolean array that marks real entries; padding is false.
Flags = npt.NDArray[np.bool_]
#: Maximum queries of one segment; longer ones are cut, to skip more of the causal upper half.
QUERY_BLOCK = 128
#: Queries and keys of a segment are filled up to multiples of at least this number.
LEAST_ROUND = 64
#: Maximum number of scores in one batch, over all heads.
BATCH_SCORES = 1 << 22
#: Attention weights up to this size are kept for the backward pass; larger ones are recomputed.
KEPT_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Segments:
    """Query blocks and their keys: first the prompt's keys, then those of the block's completion.

    Attributes, all [S]:
        query_starts, queries: start and number of queries in the flat sequence.
        prompt_starts, prompt_keys: start and number of the prompt's keys in the flat sequence.
        own_starts, own_keys: the same for the completion's keys, up to the block's last query.
    """

    query_starts: Integers
    queries: Integers
    prompt_starts: Integers
    prompt_keys: Integers
    own_starts: Integers
    own_keys: Integers

    @property
    def keys(self) -> Integers:
        """Number of keys of each segment; its last query is at the last of them."""
        return self.prompt_keys + self.own_keys

    def __getitem__(self, chosen: Integers) -> Segments:
        return Segments(*(values[chosen] for values in self.__dict__.values()))


@dataclass(frozen=True)
class Batch:
    """Segments of one round shape.

    Attributes:
        segments: the S segments.
        last_keys: [S, n] the number of the last key that each query sees.
        query_shape, key_shape: [S, K, Q/K * n] and [S, K, m].
    """

    segments: Segments
    last_keys: Tensor
    query_shape: tuple[int, int, int]
    key_shape: tuple[int, int, int]

    def allowed(self, window: int | None) -> Tensor:
        """Return the mask, [S, 1, n, m] bool; padded queries see what the last real one sees."""
        key = torch.arange(self.key_shape[2])
        last = self.last_keys[:, None, :, None]
        mask = key <= last
        return mask if window is None else mask & (key > last - window)


@dataclass(frozen=True)
class Plan:
    """How attention over one layout is computed, for one number of heads.

    Attributes:
        batches: the batches of all segments.
        queries, keys: from rows (token, head) of the flat sequence to rows of the batches.
        outputs: from rows of the batches to rows of the flat sequence.
    """

    batches: list[Batch]
    queries: RowGather
    keys: RowGather
    outputs: RowGather


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scores: Scores
) -> Tensor:
    """Attend: [T, Q, D], [T, K, D], [T, K, D'] -> [T, Q, D']."""
    heads, key_heads = query.shape[1], key.shape[1]
    plan = layout.cached(
        ("segments", heads, key_heads), lambda: make_plan(layout, heads, key_heads)
    )
    queries = gather_rows(query.reshape(-1, query.shape[-1]), plan.queries)
    keys = gather_rows(key.reshape(-1, key.shape[-1]), plan.keys)
    values = gather_rows(value.reshape(-1, value.shape[-1]), plan.keys)
    query_rows = [math.prod(batch.query_shape) for batch in plan.batches]
    key_rows = [math.prod(batch.key_shape) for batch in plan.batches]
    # the backward pass of split is one copy; that of a slice would fill all of the rows
    parts = zip(
        queries.split(query_rows), keys.split(key_rows), values.split(key_rows), strict=True
    )
    outputs = [
        _attend_batch(
            q.view(*batch.query_shape, -1),
            k.view(*batch.key_shape, -1),
            v.view(*batch.key_shape, -1),
            batch,
            layout,
            number,
            scores,
        ).flatten(0, 2)
        for number, (batch, (q, k, v)) in enumerate(zip(plan.batches, parts, strict=True))
    ]
    return gather_rows(torch.cat(outputs), plan.outputs).view(-1, heads, value.shape[-1])


def _attend_batch(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, layout: PrefixLayout, number: int, scores: Scores
) -> Tensor:
    """Attend: [S, K, Q/K * n, D], [S, K, m, D], [S, K, m, D'] -> [S, K, Q/K * n, D']."""
    shape, window = q.shape, scores.window
    repeats = shape[2] // batch.last_keys.shape[1]
    key = ("segments allowed", number, window, repeats)
    allowed = layout.cached(key, lambda: batch.allowed(window))
    if scores.softcap is not None or scores.sinks is not None:
        per_head = q.view(shape[0], -1, shape[2] // repeats, shape[3])
        return plain_attention(per_head, k, v, allowed, scores).reshape(*shape[:3], -1)
    if q.dtype == torch.bfloat16:
        penalty = layout.cached((*key, "penalty"), lambda: _penalty(allowed))
        out: Any = _MatmulAttention.apply(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), penalty, scores.scale
        )
        return out.view(*shape[:3], -1)
    mask = layout.cached((*key, "mask"), lambda: allowed.repeat(1, 1, repeats, 1))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale)


class _MatmulAttention(torch.autograd.Function):
    """Attention of [B, n, D] over [B, m, D], with a mask that is added to the scores.

    The softmax is in the operands' dtype with float32 sums. Small weights are kept; larger ones are
    recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, penalty: Tensor, scale: float
    ) -> Tensor:
        scaled = query * scale
        weights = _weights(scaled, key, penalty)
        kept = weights if weights.numel() <= KEPT_WEIGHTS else None
        ctx.save_for_backward(scaled, key, value, penalty, kept)
        ctx.scale = scale
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        scaled, key, value, penalty, kept = ctx.saved_tensors
        output_gradient = gradients[0]
        weights = _weights(scaled, key, penalty) if kept is None else kept
        value_gradient = torch.bmm(weights.transpose(1, 2), output_gradient)
        weight_gradient = torch.bmm(output_gradient, value.transpose(1, 2))
        score_gradient = torch.ops.aten._softmax_backward_data(
            weight_gradient, weights, -1, weights.dtype
        )
        query_gradient = torch.bmm(score_gradient, key).mul_(ctx.scale)
        key_gradient = torch.bmm(score_gradient.transpose(1, 2), scaled)
        return query_gradient, key_gradient, value_gradient, None, None


def _weights(scaled: Tensor, key: Tensor, penalty: Tensor) -> Tensor:
    scores = torch.bmm(scaled, key.transpose(1, 2))
    segments, _, n, m = penalty.shape
    scores.view(segments, -1, n, m).add_(penalty)
    return torch.softmax(scores, -1)


def _penalty(allowed: Tensor) -> Tensor:
    """Build the mask to add, [S, 1, n, m] bfloat16: 0 where allowed, else -inf."""
    zeros = torch.zeros(allowed.shape, dtype=torch.bfloat16)
    return zeros.masked_fill(~allowed, float("-inf"))


def make_plan(layout: PrefixLayout, heads: int, key_heads: int) -> Plan:
    """Cut the layout into segments, and those into batches."""
    segments = cut_segments(layout)
    batches: list[Batch] = []
    queries: list[tuple[Integers, Flags]] = []
    keys: list[tuple[Integers, Flags]] = []
    for chosen in batch_segments(segments, heads):
        part = segments[chosen]
        batch_queries, batch_keys = query_tokens(part), key_tokens(part)
        queries.append(_rows(*batch_queries, heads))
        keys.append(_rows(*batch_keys, key_heads))
        batches.append(_batch(part, batch_queries[0].shape, batch_keys[0].shape, heads, key_heads))
    query_rows = _gather(queries, layout.tokens * heads)
    return Plan(batches, query_rows, _gather(keys, layout.tokens * key_heads), query_rows.inverse())


def cut_segments(layout: PrefixLayout) -> Segments:
    """Cut a layout into query blocks: those of prompts, then those of completions."""
    prompts = layout.prompt_lengths
    block_of, first, count = _blocks(prompts)
    own_of, own_first, own_count = _blocks(layout.lengths)
    group = layout.groups[own_of]
    none = np.zeros_like(block_of)
    return Segments(
        np.concatenate([layout.prompt_starts[block_of] + first, layout.starts[own_of] + own_first]),
        np.concatenate([count, own_count]),
        np.concatenate([layout.prompt_starts[block_of], layout.prompt_starts[group]]),
        np.concatenate([first + count, prompts[group]]),
        np.concatenate([none, layout.starts[own_of]]),
        np.concatenate([none, own_first + own_count]),
    )


def batch_segments(segments: Segments, heads: int) -> list[Integers]:
    """Group segments of one round shape into batches; return [S] numbers for each batch."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    sizes = zip(segments.queries.tolist(), segments.keys.tolist(), strict=True)
    for number, (queries, keys) in enumerate(sizes):
        shape = round_length(queries, LEAST_ROUND), round_length(keys, LEAST_ROUND)
        by_shape.setdefault(shape, []).append(number)
    batches: list[Integers] = []
    for (n, m), numbers in sorted(by_shape.items()):
        most = max(1, BATCH_SCORES // (n * m * heads))
        left = np.array(numbers, np.int64)
        while len(left):
            count = 1 << min(len(left), most).bit_length() - 1
            batches.append(left[:count])
            left = left[count:]
    return batches


def query_tokens(part: Segments) -> tuple[Integers, Flags]:
    """Return the tokens of the queries, [S, n], and which of them are real."""
    column = np.arange(round_length(int(part.queries.max()), LEAST_ROUND))
    real = column < part.queries[:, None]
    return (part.query_starts[:, None] + column) * real, real


def key_tokens(part: Segments) -> tuple[Integers, Flags]:
    """Return the tokens of the keys, [S, m], and which of them are real."""
    column = np.arange(round_length(int(part.keys.max()), LEAST_ROUND))
    real = column < part.keys[:, None]
    in_prompt = column < part.prompt_keys[:, None]
    own = part.own_starts[:, None] + column - part.prompt_keys[:, None]
    return np.where(in_prompt, part.prompt_starts[:, None] + column, own) * real, real


def _batch(
    part: Segments,
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    heads: int,
    key_heads: int,
) -> Batch:
    count, n = query_shape
    first = (part.keys - part.queries)[:, None]
    last = np.minimum(first + np.arange(n), part.keys[:, None] - 1)
    return Batch(
        part,
        torch.from_numpy(last),
        (count, key_heads, heads // key_heads * n),
        (count, key_heads, key_shape[1]),
    )


def _blocks(lengths: Integers) -> tuple[Integers, Integers, Integers]:
    """Cut ranges into blocks; return each block's range, its start in the range, and its length."""
    counts = -(-lengths // QUERY_BLOCK)
    of = np.repeat(np.arange(len(lengths)), counts)
    first = ranges(np.zeros_like(counts), counts) * QUERY_BLOCK
    return of, first, np.minimum(QUERY_BLOCK, lengths[of] - first)


def _rows(tokens: Integers, real: Flags, heads: int) -> tuple[Integers, Flags]:
    """Convert tokens [S, n] to [S * heads * n] rows (token, head) of the flat sequence."""
    rows = tokens[:, None, :] * heads + np.arange(heads)[:, None]
    return rows.ravel(), np.broadcast_to(real[:, None, :], rows.shape).ravel()


def _gather(parts: list[tuple[Integers, Flags]], sources: int) -> RowGather:
    rows, real = zip(*parts, strict=True)
    return row_gather(np.concatenate(rows), np.concatenate(real), sources)
