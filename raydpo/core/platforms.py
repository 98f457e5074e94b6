"""Versions of libraries and the machine that computed a stage, kept beside the result.

They are not part of a stage's key. If two results differ, they show what else differed.
"""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from raydpo import __version__

#: Distributions whose arithmetic, order of work or files a result may depend on.
_DISTRIBUTIONS: Final = (
    "torch",
    "vllm",
    "ray",
    "transformers",
    "tokenizers",
    "peft",
    "numpy",
    "pyarrow",
)
_CPU_FILE: Final = Path("/proc/cpuinfo")
_GPU_FOLDER: Final = Path("/proc/driver/nvidia/gpus")


@functools.cache
def platform_here() -> dict[str, str]:
    """Versions of what this process has installed, and the processors of its machine, by name."""
    found = {"raydpo": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "machine": platform.machine(), "cpu": _cpu(), "gpu": _gpu()}


def _cpu() -> str:
    return _value_of(_CPU_FILE, "model name") or platform.processor() or "unknown"


def _gpu() -> str:
    models = {_value_of(path, "Model") for path in _GPU_FOLDER.glob("*/information")}
    return ", ".join(sorted(models)) or "none"


def _value_of(path: Path, name: str) -> str:
    """The first value of that name in a file of `name : value` lines; empty where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    values = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in values if key.strip() == name), "")
