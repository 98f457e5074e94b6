"""Modules of jobs, which are in jobs/ and not in the package; and a scenario of the benchmark."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

JOBS = Path(__file__).parents[3] / "jobs"


@contextmanager
def modules_of(package: str, names: Sequence[str], folder: Path = JOBS) -> Iterator[Any]:
    """Modules of a package in `folder` by name; inside the block, others there can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(**{n: importlib.import_module(f"{package}.{n}") for n in names})
    finally:
        sys.path.remove(str(folder))


def tiny_scenario(spec: Any, steps: int) -> Any:
    """Two groups of three completions a step, a model of two layers."""
    return spec.Scenario(
        "tiny",
        spec.ModelShape("tiny", 2, 64, 2, 1, 96, 128),
        spec.DataShape(12, 6, 0.5, completions=3, groups_per_step=2, steps=steps),
        "float32",
        "cpu",
    )
