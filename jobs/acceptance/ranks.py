"""Run one task in several processes, each with its own device.

The caller gives a context and a function, and gets what the function returns on rank 0. The
processes form a group as Ray Train makes it: NCCL on CUDA, gloo on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import set_forkserver_preload
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from .task import Context, LeftOut, Values
from .train import process_group

#: Takes the context; it finds rank and size in the process group.
OnRank = Callable[[Context], Values]
_ANSWER = "rank-0.json"


def ranks_here(context: Context, least: int = 2) -> int:
    """As many ranks as there are GPUs; on the CPU as few as will do.

    Raises:
        LeftOut: there are too few GPUs.
    """
    if context.device == "cpu":
        return least
    count = torch.cuda.device_count()
    if count < least:
        raise LeftOut(f"{count} GPU here, and it needs {least}")
    return count - count % 2  # so that two copies of a model are of one size


def on_ranks(context: Context, size: int, run: OnRank) -> Values:
    """Run a module's function on `size` ranks; an exception on one of them ends all.

    Args:
        context: its folder is shared by the ranks.
        size: of the process group.
        run: picklable; what it returns on rank 0 comes back.
    """
    folder = context.folder / f"ranks-{size}-{len(list(context.folder.iterdir()))}"
    folder.mkdir()
    shared = replace(context, folder=folder)
    # Forks of a process that has imported all this; CUDA may not be forked.
    set_forkserver_preload([__name__])
    method = "spawn" if context.device == "cuda" else "forkserver"
    start_processes(_rank, (shared, size, run), nprocs=size, start_method=method)
    return json.loads((folder / _ANSWER).read_text())


def _rank(rank: int, context: Context, size: int, run: OnRank) -> None:
    with process_group(context, rank, size):
        values = run(context)
        torch.distributed.barrier()
    if rank == 0:
        Path(context.folder, _ANSWER).write_text(json.dumps(values))
