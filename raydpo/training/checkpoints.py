"""Checkpoints of a training in progress, by torch.distributed.checkpoint.

What comes in: module, optimizer, step. What goes out: a folder with each rank's shard.
The forward pass draws no random numbers (dropout is off) and the groups of a step are a
function of the step, so parameters, optimizer and step are the whole state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Write this rank's share; `step` is the number of steps that are done."""
    state = _state(module, optimizer, step)
    save(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer) -> int:
    """Bring module and optimizer to a saved state; returns the number of steps done.

    The number of workers may differ from that of the run that saved it.
    """
    state = _state(module, optimizer, 0)
    load(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return int(state["step"])


def _state(module: nn.Module, optimizer: Optimizer, step: int) -> dict[str, Any]:
    model, optim = get_state_dict(module, optimizer)
    return {"model": model, "optimizer": optim, "step": torch.tensor(step)}
