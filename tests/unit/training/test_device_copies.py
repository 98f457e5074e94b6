"""Copies to CUDA use pinned memory and are queued; on a CPU nothing is copied.

No GPU is needed: the test records PyTorch's calls before they reach a device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raydpo.training.attention.cuda import varlen_plan
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group

CUDA = torch.device("cuda")
GROUPS = [
    Group("a", [5, 6, 7], [[8, 9], [4]], [(0, 1, 1.0)], [[-1.0, -2.0], [-3.0]]),
    Group("b", [3], [[7, 7, 7], [5], [6, 2]], [(0, 2, 1.0)], [[-1.0] * 3, [-2.0], [-1.0] * 2]),
]


class Copies(TorchFunctionMode):
    """Keeps tensors where they are, and notes which copies would have waited for the device."""

    def __init__(self) -> None:
        self.pinned: set[int] = set()
        self.queued: list[Tensor] = []
        self.waiting: list[Tensor] = []

    def __torch_function__(
        self, function: Any, _types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        if function is Tensor.pin_memory:
            copy = arguments[0].clone()
            self.pinned.add(id(copy))
            self.queued.append(copy)  # alive, so that its id is no other tensor's
            return copy
        if function is Tensor.to and CUDA in (*arguments, *named.values()):
            by_pinned = id(arguments[0]) in self.pinned and named.get("non_blocking")
            if arguments[0].numel() and not by_pinned:
                self.waiting.append(arguments[0])
            return arguments[0]
        return function(*arguments, **named)


@pytest.mark.parametrize("shared", [True, False])
def test_no_copy_of_a_micro_batch_waits_for_the_device(shared: bool) -> None:
    batch = build_micro_batch(GROUPS, shared)
    with Copies() as copies:
        moved = batch.to(CUDA)
    filled = [v for v in batch.__dict__.values() if isinstance(v, Tensor) and v.numel()]
    assert len(copies.queued) == len(filled) + shared  # and positions
    assert not copies.waiting
    for name, value in batch.__dict__.items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(moved, name), value)


def test_no_copy_of_an_attention_plan_waits_for_the_device() -> None:
    layout = build_micro_batch(GROUPS, shared=True).layout
    assert layout is not None
    with Copies() as copies:
        object.__setattr__(layout, "position_ids", _OnCuda(layout.position_ids))
        varlen_plan(layout)
        layout.owners()
    assert len(copies.queued) == 5 + 2
    assert not copies.waiting


def test_on_a_cpu_tensors_are_what_they_were() -> None:
    batch = build_micro_batch(GROUPS, shared=True)
    moved = batch.to(torch.device("cpu"))
    assert all(
        getattr(moved, name) is value
        for name, value in batch.__dict__.items()
        if isinstance(value, Tensor)
    )


class _OnCuda:
    """Says that it is there, as the layout of a batch on CUDA does."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tensor.shape
        self.device = CUDA
