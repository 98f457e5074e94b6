"""What this machine has, and whether the job runs on it."""

from __future__ import annotations

import os
from pathlib import Path

from raydpo.config.job import Config


def is_remote(config: Config) -> bool:
    """Whether the job runs on a cluster that has an address."""
    return (config.ray_address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def uses_cuda_here(device: str) -> bool:
    """Whether a `device` setting means CUDA on this machine."""
    return device == "cuda" or (device == "auto" and gpu_count() > 0)


def gpu_count() -> int:
    """CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()


def memory_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def nearest_folder(path: Path) -> Path:
    """The path, or its nearest existing parent; it may be a file."""
    return next(p for p in (path, *path.parents) if p.exists())
