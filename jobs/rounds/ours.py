"""Our side: one `raydpo online` with the setting, and where its time went."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from .setting import Setting

#: The name of the run below the folder of a measurement.
RUN = "rounds"


def command(setting: Setting, folder: Path, root: Path, workers: int) -> list[str]:
    """Write the job of the setting into a folder; the command that runs it."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job(setting, folder, root, workers)), encoding="utf-8")
    return [sys.executable, "-m", "raydpo.cli", "online", str(path)]


def job(setting: Setting, folder: Path, root: Path, workers: int) -> dict[str, Any]:
    """The job, which is `jobs/online_dpo.yaml` without its evaluation.

    Args:
        setting: the work.
        folder: of the run.
        root: of the repository, from which the setting's paths begin.
        workers: train workers.
    """
    classifier = {"classifier": str(root / setting.reward), "label": setting.label}
    return {
        "name": RUN,
        "output": str(folder),
        "seed": setting.seed,
        "rows_per_part": 32,
        "model": str(root / setting.model),
        "prompts": {
            "path": str(root / setting.prompts),
            "max_prompt_tokens": setting.max_prompt_tokens,
        },
        "sampling": {
            "candidates": setting.candidates,
            "max_completion_tokens": setting.max_completion_tokens,
            "engines": {"count": 1, "cpus": 0.2},
        },
        "labeling": {
            "reward": {**classifier, "output": "log_odds", "input": "completion"},
            "pairs": {"builder": "all_pairs", "min_margin": setting.min_margin},
        },
        "training": {
            "objective": {"name": "dpo", "beta": setting.beta},
            "num_workers": workers,
            "cpus_per_worker": 0.4,
            "global_batch_groups": setting.groups_per_step,
            "epochs": setting.epochs,
            "learning_rate": setting.learning_rate,
            "schedule": "cosine",
            "warmup_fraction": 0.0,
            "heldout_fraction": 0.0,
        },
        "online": {
            "rounds": setting.rounds,
            "prompts": "cycle",
            "prompts_per_round": setting.prompts_per_round,
            "reference": "original",
        },
    }


def policies(setting: Setting, folder: Path) -> list[str]:
    """The model after each round."""
    return [str(place / "policy" / "model") for place in _rounds(setting, folder)]


def ends(setting: Setting, folder: Path, started: float) -> list[float]:
    """Seconds from the command to the end of each round, when its result is written.

    Args:
        setting: the work.
        folder: of the run.
        started: when the command began, in seconds since the epoch.
    """
    files = [place / "round.json" for place in _rounds(setting, folder)]
    return [file.stat().st_mtime - started for file in files]


def _rounds(setting: Setting, folder: Path) -> list[Path]:
    return [folder / RUN / f"round-{index:03d}" for index in range(setting.rounds)]


def phases(setting: Setting, folder: Path, wall_seconds: float) -> dict[str, float]:
    """Seconds by what they were spent on, over all rounds; `outside rounds` is start and end."""
    found: dict[str, float] = {}
    for place in _rounds(setting, folder):
        text = (place / "round.json").read_text(encoding="utf-8")
        spent = json.loads(text)["seconds"]
        for name in spent.keys() - {"total"}:
            found[name] = found.get(name, 0.0) + spent[name]
    return {**found, "outside rounds": wall_seconds - sum(found.values())}


def counts(setting: Setting, folder: Path) -> dict[str, list[int]]:
    """Completions, pairs and optimizer steps of each round."""
    found: dict[str, list[int]] = {"completions": [], "pairs": [], "steps": []}
    for place in _rounds(setting, folder):
        for name, table, count in (
            ("completions", "candidates", "output"),
            ("pairs", "preferences", "pairs"),
        ):
            manifest = json.loads((place / table / "manifest.json").read_text(encoding="utf-8"))
            found[name].append(manifest["counts"][count])
        lines = (place / "policy" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        found["steps"].append(max(row["step"] for row in steps if "loss" in row))
    return found
