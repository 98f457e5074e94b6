"""Several GPUs: the collectives, the same training on all of them, and weight transfers.

A task returns how far several ranks differ from one, and bytes per second. On the CPU two
processes with gloo replace the GPUs.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from raydpo.config.job import ModelConfig
from raydpo.sampling.transfer import (
    Meeting,
    arriving,
    joined,
    listening,
    send,
    specs_of,
    tensors_of,
)
from raydpo.training.probe import LOGPS
from raydpo.training.sharding import World, current_world

from .ranks import on_ranks, ranks_here
from .task import Context, Task, Values
from .train import Run, make_data, model_settings, own_device, train_run

#: Of a loss in nats, of a gradient's norm by its size, and of a trained model's log-probs in nats.
_TOLERANCES: Final = {"float32": (1e-5, 1e-4, 1e-3), "bfloat16": (2e-2, 2e-1, 0.25)}
_ROUNDS: Final = 5


def all_reduce(context: Context) -> Values:
    """Sums of whole numbers, which are exact in bfloat16 too, and how fast they are made."""
    return on_ranks(context, ranks_here(context), _all_reduce)


def trains_alike(context: Context, precision: str, settings: dict[str, Any]) -> Values:
    """Several ranks against one: losses, gradient norms, and log-probs after the last step."""
    size = ranks_here(context)
    model = model_settings(context, precision)
    alone = train_run(context, make_data(context, model), model)
    own = {"num_workers": size, **settings}
    found = on_ranks(context, size, functools.partial(_train, model=model, settings=own))
    losses = _largest(found["losses"], alone.losses)
    norms = _largest([a / b for a, b in zip(found["norms"], alone.norms, strict=True)], 1.0)
    logps = _largest(found["log-probs"], _logps(alone))
    limits = _TOLERANCES[precision]
    return {
        "ranks": size,
        "losses": losses,
        "gradient norms": norms,
        "log-probs after it": logps,
        "passed": losses < limits[0] and norms < limits[1] and logps < limits[2],
        "tolerance": list(limits),
    }


def weight_transfer(context: Context) -> Values:
    """A folder of weights from the first rank into the others, bit for bit."""
    folder = context.folder / "weights"
    folder.mkdir()
    wide, count = (64, 3) if context.small else (8192, 8)
    draw = torch.Generator().manual_seed(context.seed)
    for number in range(count):
        tensor = torch.randn(wide, wide, generator=draw).bfloat16()
        save_file({f"layer.{number}.weight": tensor}, folder / f"{number}.safetensors")
    return on_ranks(context, ranks_here(context), functools.partial(_transfer, folder=folder))


def _all_reduce(context: Context) -> Values:
    world = current_world(own_device(context))
    count = 2**14 if context.small else 2**27
    times = world.size * (world.size + 1) // 2
    values: Values = {"ranks": world.size}
    passed = True
    for dtype in (torch.float32, torch.bfloat16):
        pattern = (torch.arange(count, device=world.device) % 5).to(dtype)
        summed = pattern * (world.rank + 1)
        dist.all_reduce(summed)
        right = torch.equal(summed, pattern * times)
        seconds = _seconds(summed, world)
        carried = 2 * (world.size - 1) / world.size * summed.nbytes
        name = str(dtype).removeprefix("torch.")
        values[f"{name} bus GB/s"] = carried / seconds / 1e9
        passed = passed and world.max(float(not right)) == 0.0
    return {**values, "passed": passed}


def _seconds(tensor: Tensor, world: World) -> float:
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(tensor)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / _ROUNDS


def _train(context: Context, model: ModelConfig, settings: dict[str, Any]) -> Values:
    run = train_run(context, make_data(context, model), model, **settings)
    return {"losses": run.losses, "norms": run.norms, "log-probs": _logps(run)}


def _transfer(context: Context, folder: Path) -> Values:
    world = current_world(own_device(context))
    cuda = context.device == "cuda"
    with listening("127.0.0.1") as listener:
        port = int(world.tell(str(listener.getsockname()[1])))  # the first rank's
        meeting = Meeting("127.0.0.1", port, world.size, min(world.rank, 1), cuda)
        specs = specs_of(folder)
        started = time.perf_counter()
        wrong = 0
        if world.rank == 0:
            send(folder, meeting, listener, lambda: None, world.device)
        else:
            with joined(meeting, world.rank - 1, world.device) as group:
                come = [tensor for _, tensor in arriving(group, specs, world.device)]
            sent = tensors_of(folder, world.device)
            wrong = sum(not torch.equal(a, b) for a, b in zip(come, sent, strict=True))
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "ranks": world.size,
        "tensors": len(specs),
        "seconds": seconds,
        "GB/s": size / seconds / 1e9,
        "passed": world.max(float(wrong)) == 0.0,
    }


def _logps(run: Run) -> list[float]:
    return [value for row in run.probed for completion in row[LOGPS] for value in completion]


def _largest(ours: list[float], theirs: list[float] | float) -> float:
    others = theirs if isinstance(theirs, list) else [theirs] * len(ours)
    return max(abs(a - b) for a, b in zip(ours, others, strict=True))


#: Name, precision, settings.
_TRAININGS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("FSDP2", "bfloat16", {"strategy": "fsdp"}),
    ("FSDP2", "float32", {"strategy": "fsdp"}),
    ("HSDP", "float32", {"strategy": "fsdp", "replicas": 2}),
    ("DDP", "float32", {"strategy": "ddp"}),
)

RANK_TASKS: list[Task] = [
    Task("all-reduce over all GPUs", "right", 40, all_reduce),
    *(
        Task(
            f"{name} over all GPUs {precision}",
            "right",
            60,
            functools.partial(trains_alike, precision=precision, settings=settings),
        )
        for name, precision, settings in _TRAININGS
    ),
    Task("weight transfer between GPUs", "right", 60, weight_transfer),
]
