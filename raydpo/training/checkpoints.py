"""Save and load checkpoints of a running training with torch.distributed.checkpoint.

Module, optimizer and step become a folder with each rank's shard and a manifest with the hash of
every file. The forward pass draws no random numbers (dropout is off), and the step determines its
groups. So the trainable parameters, the optimizer and the step are the whole state, with what early
stopping has seen, if it is on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from raydpo.core.errors import DataError
from raydpo.core.progress import logger
from raydpo.training.checkpoint_files import (
    SafeLoadPlanner,
    SafeReader,
    check_files,
    file_entries,
    read_manifest,
    write_manifest,
)
from raydpo.training.sharding import frozen_names

#: Parameters that are not trained come from the model that training started from.
_TRAINABLE: Final = StateDictOptions(ignore_frozen_params=True, strict=False)


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: Optimizer,
    step: int,
    in_background: bool = False,
    record: Tensor | None = None,
) -> Callable[[], None]:
    """Begin to write this rank's share; every rank calls this, and then the function it returns.

    Args:
        folder: a folder of this rank's machine; ranks of one machine may share it.
        module: what `parallelize` returned.
        optimizer: the optimizer of its trainable parameters.
        step: the number of steps that are done.
        in_background: whether to return once the state is copied, and write it meanwhile.
        record: numbers that are equal on all ranks, to save beside them.

    Returns:
        A function that waits for the end and writes the manifest (on rank 0).
    """
    state = _state(module, optimizer, step, record)
    alone = not dist.is_initialized()
    writing: Future[Any] | None = None
    if in_background:
        group = None if alone else _background_group()
        writing = async_save(  # pyright: ignore[reportAssignmentType] (of this stager, a Future)
            state, checkpoint_id=str(folder), process_group=group, no_dist=alone
        )
    else:
        save(state, checkpoint_id=str(folder), no_dist=alone)
    return functools.partial(_finish, folder, step, writing)


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: Optimizer, record: Tensor | None = None
) -> int:
    """Restore module and optimizer from a checkpoint; return the number of steps done.

    The number of workers may differ from that of the run that saved the checkpoint. If a `record`
    was saved, a tensor of its shape and dtype takes its values.

    Raises:
        DataError: the checkpoint's metadata is damaged, or contains more than plain records.
    """
    reader = SafeReader(str(folder))
    reader.read_metadata()  # an error raised inside `load` would arrive as text only
    state = _state(module, optimizer, 0, record)
    load(
        state,
        storage_reader=reader,
        planner=SafeLoadPlanner(),
        no_dist=not dist.is_initialized(),
    )
    set_state_dict(
        module,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_TRAINABLE,
    )
    return int(state["step"])


def newest_whole(folders: Iterable[Path]) -> tuple[Path, int] | None:
    """Return the first checkpoint that is whole, and its step; None if none is whole.

    Every rank calls this with the same checkpoints, newest first. One rank reads each file, and all
    ranks agree on the result.
    """
    for folder in folders:
        problem, step = _check_share(folder)
        problems = [text for text in _gather(problem) if text is not None]
        if not problems:
            return folder, step
        if _rank() == 0:
            logger.warning("a checkpoint is skipped: %s", problems[0])
    return None


def _check_share(folder: Path) -> tuple[str | None, int]:
    """Check every n-th file of a checkpoint; return what is wrong, and the step."""
    try:
        manifest = read_manifest(folder)
        names = sorted(manifest["files"])[_rank() :: _size()]
        check_files(folder, {name: manifest["files"][name] for name in names})
    except (DataError, OSError) as error:
        return str(error).splitlines()[0], 0
    return None, manifest["step"]


def _finish(folder: Path, step: int, writing: Future[Any] | None) -> None:
    """Wait for this rank's files, hash them, and write the manifest once all files exist."""
    if writing is not None:
        writing.result()
    own = [path for path in folder.glob("*") if _is_mine(path)]
    entries: dict[str, dict[str, Any]] = {}
    for part in _gather(file_entries(own)):
        entries |= part
    if _rank() == 0:
        write_manifest(folder, step, entries)
    if dist.is_initialized():
        dist.barrier()


def _is_mine(path: Path) -> bool:
    """Return whether this rank wrote a file: shards are called `__RANK_n.distcp`."""
    if path.name.startswith("__"):
        return path.name.startswith(f"__{_rank()}_")
    return path.name == ".metadata" and _rank() == 0


def _state(
    module: nn.Module, optimizer: Optimizer, step: int, record: Tensor | None
) -> dict[str, Any]:
    model, optim = get_state_dict(module, optimizer, options=_TRAINABLE)
    for name in frozen_names(module) & model.keys():  # torch leaves out tied parameters
        del model[name]
    state = {"model": model, "optimizer": optim, "step": torch.tensor(step)}
    return state if record is None else {**state, "record": record}


@functools.cache
def _background_group() -> dist.ProcessGroup:
    """Return a group for background writes, whose messages must not mix with those of training."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank belongs to the group
    return group


def _gather(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * _size()
    dist.all_gather_object(values, value)
    return values


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
