"""Write the page of a card, in Markdown, from results.

The page has a table of all tasks, what went wrong, and the environment of the results.
"""

from __future__ import annotations

import json
from typing import Any

from benchmark.machine import Noise, said_of

from .record import Record
from .speed_page import DRY_RUN, speed_section, summary

_LONGEST_CELL = 90


def table(record: Record) -> str:
    """One line for each task; those of another source or other versions say so."""
    lines = ["| task | status | numbers | tolerance | seconds |", "| --- | --- | --- | --- | --- |"]
    for name, result in record.results.items():
        earlier = " (of another source or other versions)" * (not record.current(name))
        seconds = result.get("seconds")
        tolerance = result.get("tolerance")
        cells = (
            f"`{name}`",
            result["status"] + earlier,
            _numbers(result),
            "" if tolerance is None else _short(tolerance),
            "" if seconds is None else f"{seconds:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(record: Record, facts: dict[str, Any], plot: str | None = None) -> str:
    """The whole page, with the name of the plot beside it where there is one."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join(
        [
            f"# Acceptance run: {facts['card']}",
            "",
            *([DRY_RUN, ""] if record.small else []),
            "Made by `jobs/gpu_acceptance.py`; each result says in the JSON beside this page what "
            "it was made with.",
            "",
            f"- Python {facts['python']}, CUDA {facts['cuda']}; {versions}.",
            *(f"- `{command}`" for command in record.commands),
            *_machine(record),
            "",
            *speed_section(record.current_results, record.small),
            *([f"![Tokens a second, and where a step's time goes]({plot})", ""] if plot else []),
            "## All tasks",
            "",
            table(record),
            "",
            *_troubles(record.results),
        ]
    )


def _machine(record: Record) -> list[str]:
    """A line on other work beside the tasks, where it was looked at."""
    found = [result["noise"] for result in record.current_results.values() if "noise" in result]
    return [f"- {said_of([Noise(**one) for one in found])}." for _ in found[:1]]


def _troubles(results: dict[str, dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for name, result in results.items():
        if output := result.get("frames") or result.get("last_lines"):
            lines += [f"## {name}: {result['status']}", "", "```", *output, "```", ""]
    return lines


def _numbers(result: dict[str, Any]) -> str:
    if reason := result.get("reason"):
        return reason.replace("|", "/").replace("\n", " ")[:_LONGEST_CELL]
    if "scenario" in result.get("values", {}):
        return summary(result["values"])
    cells = (f"{name} {_short(value)}" for name, value in result.get("values", {}).items())
    return "; ".join(cells)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_short(one) for one in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
