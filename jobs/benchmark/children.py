"""What the child processes of a job share with their parent.

The module makes an environment in which a checkout is enough, sends commands to a process's
standard input, and reads versions of packages. It needs no torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_JOBS = Path(__file__).parents[1]


def offline_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables, with both source roots on the path and no network."""
    paths = [str(_JOBS), str(_JOBS.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def send(process: subprocess.Popen[str], command: dict[str, Any]) -> None:
    """Write a command to a process; whoever waits for the answer sees why there is none."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
