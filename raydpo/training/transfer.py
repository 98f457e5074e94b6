"""Copy tensors from the CPU to the training device without waiting for the device.

A copy from ordinary memory waits until the device has finished all submitted work, so a step would
stop for each tensor of its micro-batch. A copy from pinned memory is queued instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy the tensor to a device; a copy to CUDA goes through pinned memory and is queued.

    PyTorch keeps the pinned memory until the copy is done, so the caller may drop the tensor.
    """
    if device.type != "cuda" or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
