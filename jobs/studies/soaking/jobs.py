"""The small jobs that a soak runs, as commands.

For a folder of prompts and preferences and a place for runs, the module gives the command of each
job and its processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from raydpo.core.storage import Folder

JobName = Literal["preferences", "round"]

_ROOT: Final = Path(__file__).parents[3]
_TRAINING: Final[dict[str, Any]] = {
    "objective": {"name": "dpo", "beta": 0.1},
    "num_workers": 2,
    "cpus_per_worker": 0.4,
    "global_batch_groups": 4,
    "learning_rate": 2.0e-4,
    "max_failures": 4,
}
_PROMPTS: Final = 40
_HELD_OUT: Final = 6


@dataclass(frozen=True)
class Job:
    """A job: its configuration, and the victims that it does not have."""

    config: Path
    absent: tuple[str, ...]

    def command(self, output: Folder, name: str) -> list[str]:
        """The command that runs it under a name."""
        settings = (f"--set=output={output.uri}", f"--set=name={name}")
        return [sys.executable, "-m", "raydpo.cli", "run", str(self.config), *settings]


def write_jobs(folder: Path) -> dict[JobName, Job]:
    """Write the configurations and the data of all jobs.

    `preferences` trains on pairs that exist, and starts no engine: its attempts are short. `round`
    is the whole pipeline of the demo, from prompts to an evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = _lines("prompts.jsonl", _PROMPTS)
    held_out = _lines("heldout-prompts.jsonl", _HELD_OUT)
    pairs = [
        {**json.loads(line), "chosen": f" was great {n}.", "rejected": f" was bad {n}."}
        for n, line in enumerate(prompts)
    ]
    _write(folder / "prompts.jsonl", prompts)
    _write(folder / "heldout.jsonl", held_out)
    _write(folder / "pairs.jsonl", [json.dumps(pair) for pair in pairs])
    configs = {"preferences": _preferences(folder), "round": _round(folder)}
    absent = {"preferences": ("engine",), "round": ()}
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return {
        name: Job(folder.absolute() / f"{name}.yaml", absent[name]) for name in get_args(JobName)
    }


def _preferences(folder: Path) -> dict[str, Any]:
    return {
        "rows_per_part": 4,
        "model": str(_ROOT / "assets" / "review-lm"),
        "preferences": {
            "path": str(folder.absolute() / "pairs.jsonl"),
            "max_prompt_tokens": 32,
            "max_completion_tokens": 32,
        },
        "training": {**_TRAINING, "epochs": 8, "checkpoint_every_steps": 4},
    }


def _round(folder: Path) -> dict[str, Any]:
    demo = yaml.safe_load((_ROOT / "jobs" / "demo.yaml").read_text(encoding="utf-8"))
    labeling, judge = demo["labeling"], demo["evaluation"]["judge"]
    for scorer in (labeling["reward"], judge):
        scorer["classifier"] = str(_ROOT / scorer["classifier"])
    return {
        "rows_per_part": 4,
        "model": str(_ROOT / "assets" / "review-lm"),
        "prompts": {"path": str(folder.absolute() / "prompts.jsonl"), "max_prompt_tokens": 16},
        "sampling": {**demo["sampling"], "candidates": 2, "max_completion_tokens": 24},
        "labeling": {**labeling, "pairs": {"builder": "all_pairs", "min_margin": 0.0}},
        "training": {**_TRAINING, "epochs": 3, "checkpoint_every_steps": 3},
        "evaluation": {
            "prompts": str(folder.absolute() / "heldout.jsonl"),
            "judge": judge,
            "samples_per_prompt": 2,
        },
    }


def _lines(name: str, count: int) -> list[str]:
    return (_ROOT / "assets" / name).read_text(encoding="utf-8").splitlines()[:count]


def _write(file: Path, lines: list[str]) -> None:
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
