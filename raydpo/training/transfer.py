"""From the CPU to the device of training, without waiting for what the device does.

What comes in: tensors that a micro-batch was laid out in. What goes out: the same on the
device. A copy from ordinary memory waits until the device has done all that was asked of it,
so a step would stop for each of its tensors; a copy from pinned memory is queued.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a copy to CUDA goes by pinned memory, and is queued.

    PyTorch keeps the pinned memory until the copy is done, so the caller may forget the tensor.
    """
    if device.type != "cuda" or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
