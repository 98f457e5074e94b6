"""Every attention backend against the explicit mask; tests that need CUDA are skipped without it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.core.errors import ModelError
from raydpo.training.attention import cuda, mask, segments
from raydpo.training.attention.backends import BACKENDS, self_test
from raydpo.training.attention.interface import Backend, Scores
from raydpo.training.layout import PrefixLayout, prefix_layout, round_length

#: One-token prompts and completions, K = 1 to 4, prompts longer than a block of queries.
LAYOUT = prefix_layout([5, 1, 300, 17], [[3, 1, 9, 20], [4], [150, 2], [16, 17]])
HEADS = [(4, 4), (4, 2), (6, 1)]
SCORES = {
    "plain": Scores(0.25),
    "window": Scores(0.25, window=7),
    "softcap": Scores(0.25, softcap=2.0),
    "window and softcap": Scores(0.25, window=140, softcap=2.0),
}


def states(layout: PrefixLayout, heads: int, key_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values (of another width), and a gradient for the output."""
    torch.manual_seed(0)
    shapes = [(heads, 16), (key_heads, 16), (key_heads, 8), (heads, 8)]
    return [torch.randn(layout.tokens, *shape, dtype=torch.float64).to(dtype) for shape in shapes]


def outputs(backend: Backend, inputs: list[Tensor], scores: Scores) -> list[Tensor]:
    query, key, value, gradient = (x.detach().requires_grad_() for x in inputs)
    out = backend(query, key, value, LAYOUT, scores)
    gradients = torch.autograd.grad(out, (query, key, value), gradient.detach())
    return [x.detach().double() for x in (out, *gradients)]


def largest_error(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_segments_equal_the_explicit_mask(
    kind: str, heads: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = states(LAYOUT, *heads, dtype)
    expected = outputs(mask.attend, [x.double() for x in inputs], SCORES[kind])
    assert largest_error(outputs(segments.attend, inputs, SCORES[kind]), expected) < tolerance


def test_sinks_take_their_share() -> None:
    inputs = states(LAYOUT, 4, 2, torch.float64)
    scores = Scores(0.25, window=7, sinks=torch.randn(4, dtype=torch.float64))
    expected = outputs(mask.attend, inputs, scores)
    assert largest_error(outputs(segments.attend, inputs, scores), expected) < 1e-10
    without = outputs(mask.attend, inputs, Scores(0.25, window=7))
    assert largest_error(expected, without) > 0.05


def test_many_layouts_have_few_shapes_of_products() -> None:
    draw = np.random.default_rng(0)
    totals, shapes, batches = set[int](), set[tuple[int, ...]](), 0
    for _ in range(100):
        prompts, completions = draw.integers(20, 250, 8), draw.integers(10, 150, (8, 2))
        layout = prefix_layout(prompts.tolist(), completions.tolist())
        plan = segments.make_plan(layout, 4, 4)
        totals.add(layout.tokens)
        shapes |= {(*batch.query_shape, *batch.key_shape) for batch in plan.batches}
        batches += len(plan.batches)
    assert len(totals) < 15  # of 100 different sums of lengths
    assert len(shapes) < 40 < batches / 20


def test_filler_makes_the_length_round_and_nothing_sees_it() -> None:
    layout = prefix_layout([5, 3], [[4], [2, 3]])
    used = 5 + 3 + 4 + 2 + 3
    assert layout.tokens == 32
    assert layout.predictors().max() < used
    seen = layout.allowed()[:used]
    assert not seen[:, used:].any()
    assert round_length(1000) == 1024
    assert round_length(1025) == 1152
    assert round_length(4097) == 4224


def test_weights_computed_again_change_no_bit(monkeypatch) -> None:
    inputs = states(LAYOUT, 4, 2, torch.bfloat16)
    kept = outputs(segments.attend, inputs, SCORES["plain"])
    monkeypatch.setattr(segments, "KEPT_WEIGHTS", 0)
    again = outputs(segments.attend, inputs, SCORES["plain"])
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_explicit_mask_is_that_of_each_sequence_alone() -> None:
    allowed = LAYOUT.allowed(window=6)
    for sequence, group in enumerate(LAYOUT.groups):
        start, length = LAYOUT.prompt_starts[group], LAYOUT.prompt_lengths[group]
        prompt = torch.arange(start, start + length)
        own = torch.arange(LAYOUT.lengths[sequence]) + LAYOUT.starts[sequence]
        tokens = torch.cat([prompt, own])
        alone = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril().triu(-5)
        assert torch.equal(allowed[tokens][:, tokens], alone)
        assert torch.equal(allowed[own].sum(1), alone[len(prompt) :].sum(1))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", SCORES)
@torch.no_grad()
def test_flex_block_mask_gives_the_explicit_mask_s_output(kind: str) -> None:
    query, key, value, _ = states(LAYOUT, 4, 2, torch.float32)
    got = cuda.attend_flex(query, key, value, LAYOUT, SCORES[kind])
    expected = mask.attend(query, key, value, LAYOUT, SCORES[kind])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_sinks_equal_the_explicit_mask_s() -> None:
    query, key, value, _ = states(LAYOUT, 4, 2, torch.float32)
    scores = Scores(0.25, window=7, sinks=torch.randn(4))
    got = cuda.attend_flex(query, key, value, LAYOUT, scores)
    torch.testing.assert_close(
        got, mask.attend(query, key, value, LAYOUT, scores), atol=1e-5, rtol=1e-5
    )


def test_varlen_sequences_with_bottom_right_masks_are_the_layout() -> None:
    """The plan for flash attention, run sequence by sequence with SDPA."""
    query, key, value, _ = states(LAYOUT, 4, 4, torch.float64)
    plan = cuda.varlen_plan(LAYOUT)
    outs: list[Tensor] = []
    ends = zip(plan.query_ends.tolist(), plan.key_ends.tolist(), strict=True)
    for (q0, k0), (q1, k1) in itertools.pairwise(ends):
        tokens = plan.keys.index[k0:k1]
        bottom_right = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[tokens], value[tokens]))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bottom_right, scale=0.25)
        outs.append(out.transpose(0, 1))
    expected = mask.attend(query, key, value, LAYOUT, SCORES["plain"])
    torch.testing.assert_close(torch.cat(outs), expected)


def test_self_test_refuses_a_backend_that_masks_otherwise(monkeypatch) -> None:
    def top_left(
        query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, scores: Scores
    ) -> Tensor:
        return mask.attend(query, key, value, layout, Scores(scores.scale, window=2))

    monkeypatch.setitem(BACKENDS, "segments", top_left)
    with pytest.raises(ModelError, match="`segments` differs from the explicit mask"):
        self_test("segments", "float32", torch.device("cpu"))


@pytest.mark.parametrize("name", ["segments", "mask"])
def test_self_test_passes_where_the_backend_is_right(name: str) -> None:
    for precision in ("float32", "bfloat16"):
        self_test(name, precision, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("name", "precision"), [("varlen", "bfloat16"), ("flex", "bfloat16"), ("flex", "float32")]
)
def test_cuda_backend_equals_the_explicit_mask(name: str, precision: str) -> None:
    assert name in BACKENDS
    self_test(name, precision, torch.device("cuda"))
