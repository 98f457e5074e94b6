"""Data parallelism: wrap the forward module in DDP or FSDP2, and gather its parameters again.

A `TokenLogps` and settings give a module that averages its gradients over the workers, and later
its full parameters for a Hugging Face folder.

Precision: master parameters, gradients and reductions are float32. `bfloat16` is torch's autocast,
in training as in reference scoring, so that step 0 shows logratios of 0. FSDP2 gathers the weights
of matrix products in bfloat16, to which autocast would cast them anyway. The rounding is the same;
it only happens before the communication instead of after it. Norms and embeddings stay float32,
since autocast leaves them so.
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
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from raydpo.config.job import TrainerConfig
from raydpo.core.errors import ConfigError
from raydpo.training.logps import TokenLogps

_PREFIX = "model."
_DDP_PREFIX = "module."
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."


@dataclass(frozen=True)
class World:
    """The place of this process among the train workers."""

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
        """Return the largest of all workers' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def tell(self, value: str) -> str:
        """Return rank 0's value on every worker."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: list[str]) -> list[list[str]]:
        """Return every worker's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def current_world(device: torch.device) -> World:
    """Return the world of the process group, or a world of one without a group."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(0, 1, device)


def parallelize(module: TokenLogps, settings: TrainerConfig, world: World) -> nn.Module:
    """Wrap a module for `world`: DDP replicates it; FSDP2 shards each block and the root.

    A module in a world of one stays as it is, unless its parameters are to stay in CPU memory. With
    FSDP2 only rank 0's module needs its weights; those of the others may be on `meta`.

    Raises:
        ConfigError: the settings do not fit this world.
    """
    if world.size == 1 and not (settings.strategy == "fsdp" and settings.cpu_offload):
        module.to(world.device)
        _prepare_blocks(module, settings)
        return module
    return wrap(module, settings, world)


def wrap(module: TokenLogps, settings: TrainerConfig, world: World) -> nn.Module:
    """Wrap a module in DDP or FSDP2, even in a world of one; this needs a process group.

    Raises:
        ConfigError: the settings do not fit this world.
    """
    if settings.strategy == "fsdp":
        return _fsdp(module, settings, world)
    module.to(world.device)
    _prepare_blocks(module, settings)
    ids = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def compile_blocks(module: TokenLogps, backend: str = "inductor") -> None:
    """Compile each decoder block in place, once for all lengths."""
    for block in _blocks(module):
        block.compile(dynamic=True, backend=backend)


@contextmanager
def gradient_sync(module: nn.Module, settings: TrainerConfig, last: bool) -> Generator[None]:
    """Average gradients in this backward pass, or leave them for the `last` pass to average.

    If FSDP2 frees parameters early to save memory, it reduces in every pass, because gradients that
    wait for the last pass are as large as the whole model.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last or settings.reshard_after_forward)
    yield


def clip_gradients(module: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the global gradient norm, and return the norm before clipping without reading it."""
    limit = float("inf") if max_norm is None else max_norm
    norm: Any = nn.utils.clip_grad_norm_(module.parameters(), limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def full_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return names of the transformers model -> whole float32 tensors on the CPU of rank 0.

    Parameters that are not trained, such as the base weights under an adapter, are left out.
    Every rank calls this; the other ranks get an empty dictionary.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    frozen = frozen_names(module)
    return {n.removeprefix(_PREFIX): value for n, value in state.items() if n not in frozen}


def frozen_names(module: nn.Module) -> set[str]:
    """Return state names of the parameters that are not trained; tied ones by every name."""
    return {
        name.replace(_CHECKPOINT_WRAPPER, "").removeprefix(_DDP_PREFIX)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }


def _fsdp(module: TokenLogps, settings: TrainerConfig, world: World) -> TokenLogps:
    """Shard on `meta`, then send out rank 0's weights; only rank 0 holds them whole, once."""
    mesh = _mesh(settings, world)
    ties = _tied_names(module)
    whole = module.state_dict() if world.rank == 0 else {}
    buffers = dict(module.named_buffers()) if world.rank == 0 else {}
    module.to("meta")
    _tie(module, ties)
    _prepare_blocks(module, settings)
    _shard(module, settings, mesh)
    module.to_empty(device=torch.device("cpu") if settings.cpu_offload else world.device)
    _tie(module, ties)  # `to_empty` gave each name its own parameter
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, whole, options=options)
    _hand_out_buffers(module, buffers, world)
    return module


def _shard(module: TokenLogps, settings: TrainerConfig, mesh: DeviceMesh) -> None:
    """Shard in place: the module, its blocks and their norms become `FSDPModule`s too."""
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = exact if module.precision == "float32" else rounded
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if settings.cpu_offload else OffloadPolicy(),
    }
    freed: dict[str, Any] = {**options, "reshard_after_forward": settings.reshard_after_forward}
    for block in _outer_blocks(module):
        norms = [child for child in block.modules() if _is_norm(child)]
        if norms and policy is rounded:
            fully_shard(norms, mp_policy=exact, **freed)
        fully_shard(block, mp_policy=policy, **freed)
    fully_shard(module, mp_policy=exact, **options)


def _mesh(settings: TrainerConfig, world: World) -> DeviceMesh:
    """Arrange workers in one dimension, with a first one for copies of the sharded model (HSDP)."""
    if settings.cpu_offload and world.device.type != "cuda":
        raise ConfigError(
            f"cpu_offload on the device {world.device.type!r}",
            "it keeps the parameters of GPU workers in CPU memory; here they are there already",
            "remove cpu_offload, or set `device: cuda`",
        )
    if settings.replicas == 1:
        return init_device_mesh(world.device.type, (world.size,))
    if world.size % settings.replicas:
        raise ConfigError(
            f"replicas {settings.replicas} with {world.size} workers",
            "each copy of the model is sharded over equally many workers",
            "choose a divisor of num_workers",
        )
    shape = (settings.replicas, world.size // settings.replicas)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))


def _hand_out_buffers(module: nn.Module, buffers: dict[str, Tensor], world: World) -> None:
    """Send out buffers, even those outside the state, such as rotary frequencies."""
    for name, buffer in module.named_buffers():
        value = buffers[name] if world.rank == 0 else buffer
        value = value.to(world.device).contiguous()
        dist.broadcast(value, src=0)
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)


def _tied_names(module: nn.Module) -> list[list[str]]:
    """Return groups of names that stand for one parameter, such as those of tied embeddings."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(module: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, module.get_parameter(first))


def _prepare_blocks(module: TokenLogps, settings: TrainerConfig) -> None:
    if settings.compile:
        compile_blocks(module)
    if settings.activation_checkpointing:
        blocks = set(_blocks(module))
        apply_activation_checkpointing(module, check_fn=lambda child: child in blocks)


def _blocks(module: TokenLogps) -> list[nn.Module]:
    """Return the decoder blocks, which are the modules that transformers says must not be split."""
    names: set[str] = set(getattr(module.model, "_no_split_modules", None) or ())
    return [child for child in module.modules() if type(child).__name__ in names]


def _outer_blocks(module: TokenLogps) -> list[nn.Module]:
    """Return the blocks, or the wrappers that were put around them to save activations."""
    modules: list[nn.Module] = list(module.modules())
    return [m for m in modules if isinstance(m, CheckpointWrapper)] or _blocks(module)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module has only vectors, and so takes part in no matrix product."""
    own = list(module.parameters(recurse=False))
    return bool(own) and all(p.ndim < 2 for p in own) and not list(module.children())
