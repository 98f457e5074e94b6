"""Data parallelism: DDP or FSDP2 around the forward module, and the way back out.

What comes in: a `TokenLogps` and a strategy. What goes out: a module whose gradients are
averaged over the workers, and its full parameters for a Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from raydpo.training.logps import TokenLogps

_PREFIX = "model."
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."


@dataclass(frozen=True)
class World:
    """This process among the train workers."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: list[float]) -> list[float]:
        """Sum each value over all workers, in float64."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def max(self, value: float) -> float:
        """The largest of all workers' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()


def current_world(device: torch.device) -> World:
    """The world of the process group, or a world of one without any."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(0, 1, device)


def parallelize(
    module: TokenLogps, strategy: str, world: World, activation_checkpointing: bool
) -> nn.Module:
    """Wrap a module for `world`: DDP replicates, FSDP2 shards each block and the root.

    A world of one is left as it is.
    """
    module.to(world.device)
    if activation_checkpointing:
        blocks = set(_blocks(module))
        apply_activation_checkpointing(module, check_fn=lambda child: child in blocks)
    if world.size == 1:
        return module
    if strategy == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in _blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)  # in place: the module is now an FSDPModule too
    return module


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Generator[None]:
    """Average gradients in this backward pass, or leave them for a later one to average."""
    if isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(enabled)
    yield


def clip_gradients(module: nn.Module, max_norm: float | None) -> float:
    """Clip the global gradient norm; returns the norm before clipping."""
    limit = float("inf") if max_norm is None else max_norm
    norm: Any = nn.utils.clip_grad_norm_(module.parameters(), limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def full_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Names of the transformers model -> whole float32 tensors on the CPU of rank 0.

    Every rank calls this; the other ranks get an empty dictionary.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return {
        name.removeprefix(_PREFIX).replace(_CHECKPOINT_WRAPPER, ""): value
        for name, value in state.items()
    }


def _blocks(module: TokenLogps) -> list[nn.Module]:
    """The decoder blocks: what transformers says must not be split."""
    names: set[str] = set(getattr(module.model, "_no_split_modules", None) or ())
    return [child for child in module.modules() if type(child).__name__ in names]
