"""Copy rows by number, with a backward pass that sums gradients into the source rows.

In the backward pass each source row gets the sum of its copies' gradients. PyTorch's own backward
pass of indexing adds one row after another; here the copies of each row are known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.training.layout import Integers
from raydpo.training.transfer import to_device


@dataclass(frozen=True)
class RowGather:
    """A copy of n source rows to M rows.

    Attributes:
        index: [M] int64, the source of each row.
        copies: [C] int64, the rows that count, sorted by their source. Padding rows do not count:
            they may name any source, and give it no gradient.
        offsets: [n] int64, where the copies of each source begin in `copies`.
    """

    index: Tensor
    copies: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> RowGather:
        """Move the gather to another device."""
        index, copies = to_device(self.index, device), to_device(self.copies, device)
        return RowGather(index, copies, to_device(self.offsets, device))

    def inverse(self) -> RowGather:
        """Build the gather from the M rows back to the n sources, which have one copy each."""
        assert len(self.copies) == len(self.offsets)
        counts = torch.zeros(len(self.index), dtype=torch.int64)
        counts[self.copies] = 1
        return RowGather(self.copies, self.index[counts.bool()], counts.cumsum(0) - counts)


def row_gather(index: Integers, counts: npt.NDArray[np.bool_], sources: int) -> RowGather:
    """Prepare a gather.

    Args:
        index: [M] the source of each row.
        counts: [M] whether the row counts; false for padding.
        sources: n, the number of source rows.
    """
    rows = np.flatnonzero(counts)
    order = rows[np.argsort(index[rows], kind="stable")]
    ends = np.cumsum(np.bincount(index[rows], minlength=sources))
    offsets = np.concatenate([[0], ends[:-1]])
    return RowGather(torch.from_numpy(index), torch.from_numpy(order), torch.from_numpy(offsets))


def gather_rows(source: Tensor, gather: RowGather) -> Tensor:
    """Gather rows: [n, D] -> [M, D]."""
    rows: Any = _GatherRows.apply(source, gather)
    return rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, gather: RowGather) -> Tensor:
        ctx.gather = gather
        return source.index_select(0, gather.index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gather: RowGather = ctx.gather
        rows = gradients[0].contiguous()
        return F.embedding_bag(gather.copies, rows, gather.offsets, mode="sum"), None
