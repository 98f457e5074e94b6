"""The peak memory of a process, from a moment on.

After `reset`, the module returns bytes of resident memory (CPU) or of allocated device memory
(CUDA), at that moment and at the peak since.
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryGrowth:
    """Growth of this process's memory since `reset`."""

    device: str
    baseline_bytes: int

    def bytes(self) -> int:
        """Peak since `reset`, less what was held then."""
        return self.peak_bytes() - self.baseline_bytes

    def peak_bytes(self) -> int:
        """Peak since `reset`."""
        return _peak(self.device)


def reset(device: str) -> MemoryGrowth:
    """Start to watch; what is held now is the baseline."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return MemoryGrowth(device, torch.cuda.memory_allocated())
    with contextlib.suppress(OSError):  # else the peak is that of the process's whole life
        _CLEAR.write_text("5")  # the kernel's way to set the peak back to what is held now
    return MemoryGrowth(device, _status_bytes("VmRSS"))


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
