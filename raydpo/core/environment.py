"""The environment variables of processes that train or score.

They depend on what such a process holds and must be set before it starts. docs/training.md
explains them.
"""

from __future__ import annotations

from typing import Final

#: glibc gives large blocks back to the kernel after each step otherwise, and the page
#: faults cost more than the arithmetic. And oneDNN, and PyTorch around it, keep compiled
#: products for the last 1024 shapes, hundreds of megabytes. Those of a round layout (see
#: `round_length`) are few: 256 keep what the last ones asked for.
CPU_ENVIRONMENT: Final = (
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "68719476736"),
    ("MALLOC_TOP_PAD_", "134217728"),
    ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"),
    ("LRU_CACHE_CAPACITY", "256"),
)
#: Micro-batches have all lengths: without it, cached blocks of CUDA memory fit the next badly.
_CUDA_ENVIRONMENT: Final = (("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),)


def worker_environment(cuda: bool, cpus: float) -> tuple[tuple[str, str], ...]:
    """Environment variables of a Ray worker.

    Args:
        cuda: whether it computes on a GPU.
        cpus: Ray CPUs that it holds; on the CPU it gets as many threads.
    """
    if cuda:
        return _CUDA_ENVIRONMENT
    return (*CPU_ENVIRONMENT, ("OMP_NUM_THREADS", str(max(1, int(cpus)))))
