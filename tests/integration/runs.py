"""Runs of the command line in tests: their prompts, a process of their own, and the tables they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from raydpo.core.run import read_manifest, read_rows
from raydpo.core.storage import folder_of
from tests.conftest import ROOT

_STARTS = ["the film was", "I loved the", "the plot is", "a bad", "it was very", "the scene"]


def write_prompts(folder: Path, heldout: int = 24) -> None:
    """Write 24 prompts with a column for rewards to prompts.jsonl, and some others to heldout.jsonl."""
    prompts = [
        {"prompt": f"{start} {number}", "letter": "e"} for number in range(4) for start in _STARTS
    ]
    lines = [json.dumps(prompt) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "heldout.jsonl").write_text("".join(lines[:heldout]).replace("the", "a"))


def write_pairs(folder: Path, count: int) -> dict[str, Any]:
    """Write `pairs.jsonl` with so many easy pairs; the section `preferences` that reads it."""
    rows = [
        {"prompt": f"the film {n} was", "chosen": " very good", "rejected": " bad and slow"}
        for n in range(count)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path), "max_prompt_tokens": 64, "max_completion_tokens": 32}


def drive(
    point: str, run: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in which drive.py kills at `point`."""
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.drive", point, str(run), *arguments],
        capture_output=True,
        text=True,
        timeout=1000,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


def manifest(run: Path, stage: str, round_index: int = 0) -> dict[str, Any]:
    """The manifest of a finished stage."""
    found = read_manifest(folder_of(str(run / f"round-{round_index:03d}" / stage)))
    assert found is not None
    return found


def rows(run: Path, stage: str, round_index: int = 0) -> list[dict[str, Any]]:
    """All rows of a finished stage's table."""
    folder = folder_of(str(run / f"round-{round_index:03d}" / stage))
    return list(read_rows(folder, manifest(run, stage, round_index)))
