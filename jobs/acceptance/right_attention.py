"""Compare each attention backend with the explicit mask, on states of many shapes.

A task returns the largest relative error of the output and of each gradient, and the shape where
it occurred. The oracle computes in float32 what the backend computes in its own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from raydpo.core.errors import ModelError
from raydpo.training.attention import mask
from raydpo.training.attention.backends import BACKENDS
from raydpo.training.attention.cuda import flex_mask
from raydpo.training.attention.interface import Scores
from raydpo.training.layout import PrefixLayout, prefix_layout

from .task import Context, LeftOut, Task, Values

#: Relative error of a tensor, by the dtype of the states.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_NAMES = ("output", "query gradient", "key gradient", "value gradient")


@dataclass(frozen=True)
class Shape:
    """Heads and score rule of one comparison.

    Attributes:
        heads, key_heads: of queries, and of keys and values.
        size: of a head.
        completions: K of each group.
        window: keys that a query sees at most.
        softcap: of the scores.
    """

    heads: int
    key_heads: int
    size: int
    completions: int
    window: int | None = None
    softcap: float | None = None


#: Head sizes 64 to 256, grouped queries from 1 to 8, K = 1 to 8, windows and caps.
SHAPES = (
    Shape(8, 8, 64, 2),
    Shape(8, 2, 128, 4),
    Shape(8, 1, 64, 8),
    Shape(4, 4, 80, 1),
    Shape(6, 2, 96, 3),
    Shape(4, 2, 192, 2),
    Shape(4, 2, 256, 5),
    Shape(8, 4, 128, 4, window=37),
    Shape(8, 4, 256, 2, window=200),
    Shape(8, 4, 256, 3, softcap=50.0),
    Shape(8, 4, 128, 6, window=64, softcap=30.0),
)


def compare(context: Context, backend: str, dtype: torch.dtype) -> Values:
    """One backend in one dtype over all shapes that it takes."""
    errors: dict[str, float] = {}
    worst, largest, refused = "", 0.0, 0
    shapes = SHAPES[1::4] if context.small else SHAPES
    for shape in shapes:
        torch.compiler.reset()  # past its limit of graphs, torch runs another kernel
        for layout in _layouts(shape, context):
            try:
                found = _errors(context, backend, dtype, shape, layout)
            except ModelError:
                refused += 1  # it says what it cannot do, and `auto` takes another
                continue
            for name, error in found.items():
                # Not a number is no small error.
                known = errors.get(name, 0.0)
                errors[name] = max(known, error if error == error else float("inf"))
            if max(found.values()) > largest:
                largest, worst = max(found.values()), _text(shape)
    passed = max(errors.values(), default=float("inf")) < TOLERANCES[dtype] and refused < len(
        shapes
    )
    facts = {"shapes": len(shapes), "refused": refused, "worst at": worst}
    return {**errors, **facts, "passed": passed, "tolerance": TOLERANCES[dtype]}


def block_mask_memory(context: Context) -> Values:
    """Peak memory of FlexAttention's block mask for a long flat sequence."""
    cuda = context.device == "cuda"
    tokens = 2048 if context.small else 16384
    layout = prefix_layout([tokens // 2], [[tokens // 8] * 4]).to(torch.device(context.device))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    values: Values = {"tokens": tokens, "sparsity percent": flex_mask(layout, None).sparsity()}
    if cuda:
        grown = torch.cuda.max_memory_allocated() - before
        # All pairs of tokens as bool take the square of the length, as int64 eight times that.
        most = 5 * tokens**2
        values |= {"peak MB": grown / 1e6, "passed": grown < most, "tolerance": most / 1e6}
    return values


def _layouts(shape: Shape, context: Context) -> Iterator[PrefixLayout]:
    """Odd lengths; short ones, prompts above one block, and a prompt of one token."""
    prompts = [[3, 131, 1]] if context.small else [[3, 1, 61], [131, 385, 17], [1025]]
    draw = torch.Generator().manual_seed(context.seed)
    for lengths in prompts:
        completions = [
            torch.randint(1, 150, (shape.completions,), generator=draw).tolist() for _ in lengths
        ]
        yield prefix_layout(lengths, completions).to(torch.device(context.device))


def _errors(
    context: Context, backend: str, dtype: torch.dtype, shape: Shape, layout: PrefixLayout
) -> dict[str, float]:
    draw = torch.Generator().manual_seed(context.seed)
    heads = (shape.heads, shape.key_heads, shape.key_heads, shape.heads)
    states = [torch.randn(layout.tokens, n, shape.size, generator=draw) for n in heads]
    states = [x.to(context.device, dtype) for x in states]
    scores = Scores(shape.size**-0.5, shape.window, shape.softcap)
    forward_only = backend == "flex" and context.device == "cpu"  # it has no backward pass there
    found = _computed(backend, states, layout, scores, forward_only)
    wide = [x.float() for x in states]
    expected = _computed("mask", wide, layout, scores, forward_only)
    return {
        name: ((a.float() - b).norm() / b.norm().clamp_min(1e-12)).item()
        for name, a, b in zip(_NAMES, found, expected, strict=False)
    }


def _computed(
    backend: str, states: list[Tensor], layout: PrefixLayout, scores: Scores, forward_only: bool
) -> list[Tensor]:
    attend = mask.attend if backend == "mask" else BACKENDS[backend]
    if forward_only:
        with torch.no_grad():
            return [attend(states[0], states[1], states[2], layout, scores)]
    query, key, value = (x.detach().clone().requires_grad_() for x in states[:3])
    out = attend(query, key, value, layout, scores)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), states[3])]


def _text(shape: Shape) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(shape).items() if value)


def _task(backend: str, dtype: torch.dtype, device: str, seconds: float) -> Task:
    def run(context: Context) -> Values:
        if context.device != device:
            raise LeftOut(f"`{backend}` runs on {device} only")
        return compare(context, backend, dtype)

    name = f"attention {backend} {str(dtype).removeprefix('torch.')}"
    return Task(name if device == "cuda" else f"{name} on CPU", "right", seconds, run)


ATTENTION_TASKS: list[Task] = [
    _task("varlen", torch.bfloat16, "cuda", 15),
    _task("flex", torch.bfloat16, "cuda", 90),
    _task("flex", torch.float32, "cuda", 90),
    _task("segments", torch.float32, "cpu", 15),
    _task("segments", torch.bfloat16, "cpu", 15),
    _task("flex", torch.float32, "cpu", 15),
    Task("attention flex block mask", "right", 10, block_mask_memory),
]
