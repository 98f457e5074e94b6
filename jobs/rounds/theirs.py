"""The other side: the usual loop (`loop.py`) with the setting, and where its time went."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from raydpo.config.online import OnlineConfig
from raydpo.core.errors import RaydpoError
from raydpo.online.prompts import round_indices

from . import loop
from .setting import Setting, Tuning, prompts_file


class PeerError(RaydpoError):
    """The other side cannot run here."""


def refuse_without_trl() -> None:
    """Stop before anything is measured if TRL is not installed.

    Raises:
        PeerError: with the command that installs it.
    """
    if importlib.util.find_spec("trl") is None:
        raise PeerError(
            "TRL is not installed",
            "the usual loop trains with TRL's DPOTrainer",
            "pip install 'raydpo[peers]', or measure our side alone with --sides ours",
        )


def command(setting: Setting, tuning: Tuning, folder: Path, root: Path) -> list[str]:
    """Write the prompts of each round into a folder; the command that runs the loop."""
    write_prompts(setting, folder, root)
    return [
        *(sys.executable, "-m", "rounds.loop"),
        *(json.dumps(setting.as_json()), json.dumps(tuning.as_json())),
        *(str(root), str(folder)),
    ]


def write_prompts(setting: Setting, folder: Path, root: Path) -> None:
    """Write the prompts of each round, which are those of our side."""
    lines = (root / setting.prompts).read_text(encoding="utf-8").splitlines()
    online = OnlineConfig(rounds=setting.rounds, prompts_per_round=setting.prompts_per_round)
    for index in range(setting.rounds):
        chosen = [lines[i] for i in round_indices(online, len(lines), setting.seed, index)]
        prompts_file(folder, index).write_text("\n".join(chosen) + "\n", encoding="utf-8")


def policies(setting: Setting, folder: Path) -> list[str]:
    """The model after each round."""
    return [str(loop.policy(folder, index)) for index in range(setting.rounds)]


def ends(setting: Setting, folder: Path, started: float) -> list[float]:
    """Seconds from the command to the end of each round's last process.

    Args:
        setting: the work.
        folder: of the run.
        started: when the command began, in seconds since the epoch.
    """
    rows = [row for row in _lines(folder / "processes.jsonl") if row["name"] == loop.PROCESSES[-1]]
    return [row["ended"] - started for row in rows]


def phases(setting: Setting, folder: Path, wall_seconds: float) -> dict[str, float]:
    """Seconds over all rounds by what they were spent on.

    `start of ...` is a process without its work: imports, loading, saving, its end.
    `outside rounds` is start and end of the script.
    """
    found: dict[str, float] = {}
    for row in _lines(folder / "processes.jsonl"):
        start = row["seconds"] - sum(row["work"].values())
        for name, seconds in {f"start of {row['name']}": start, **row["work"]}.items():
            found[name] = found.get(name, 0.0) + seconds
    return {**found, "outside rounds": wall_seconds - sum(found.values())}


def counts(setting: Setting, folder: Path) -> dict[str, list[int]]:
    """Completions, pairs and optimizer steps of each round."""
    found: dict[str, list[int]] = {"completions": [], "pairs": [], "steps": []}
    for index in range(setting.rounds):
        samples = _lines(folder / f"samples-{index}.jsonl")
        found["completions"].append(sum(len(row["completions"]) for row in samples))
        training = (loop.policy(folder, index) / "training.json").read_text(encoding="utf-8")
        found["pairs"].append(json.loads(training)["pairs"])
        found["steps"].append(json.loads(training)["steps"])
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
