"""Measure the largest relative error of every objective and write it into docs/objectives.md.

    python -m tests.conformance.measure_errors          prints them
    python -m tests.conformance.measure_errors --write  puts them into the table's last column

For each row of the table it compares with formulas in mpmath, and takes the largest error of
values and gradients. It tests the function in float64 and in float32, and a train step made from
the objective's sections of the configuration, with all metrics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.conformance.cases import CASES
from tests.conformance.golden import errors
from tests.conformance.held import expected, largest_error, shipped
from tests.conformance.sections import OPTIONS, SECTIONS, Section

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def measured() -> dict[str, str]:
    """By row: `float64 / float32 / train step`."""
    steps = of_train_steps()
    functions = of_functions()
    assert set(steps) == set(functions)
    return {row: f"{error} / {steps[row]:.0e}" for row, error in functions.items()}


def of_train_steps() -> dict[str, float]:
    """By row the largest error of its sections."""
    worst: dict[str, float] = {}
    for name, section in SECTIONS.items():
        if section["name"] in OPTIONS:
            error = largest_error(shipped(name).result, expected(name))
            for row in rows_of(section):
                worst[row] = max(worst.get(row, 0.0), error)
    return worst


def rows_of(section: Section) -> list[str]:
    """The rows that a section is about: its objective's, and those of options that any may have."""
    rows = [section["name"]]
    if section.get("sft_weight"):
        rows.append("sft_weight")
    if section.get("length") == "mean":
        rows.append("length: mean")
    if isinstance(section.get("length"), dict):
        rows.append("length: ld_alpha")
    return rows


def of_functions() -> dict[str, str]:
    """By row: `float64 / float32`."""
    worst: dict[str, list[float]] = {}
    for case in CASES:
        row = worst.setdefault(case.row, [0.0, 0.0])
        for place, dtype in enumerate((torch.float64, torch.float32)):
            row[place] = max(row[place], errors(case, case.function(), dtype).worst())
    return {row: f"{double:.0e} / {single:.0e}" for row, (double, single) in worst.items()}


def row_name(line: str) -> str | None:
    """The objective that a line of the table is about."""
    parts = line.split("|")
    if len(parts) < 3 or not parts[1].strip().startswith("`"):
        return None
    return parts[1].strip().strip("`")


def written(page: str, found: dict[str, str]) -> str:
    """The page with the last column of its rows filled."""
    lines = page.splitlines()
    for index, line in enumerate(lines):
        name = row_name(line)
        if name in found:
            lines[index] = "|".join([*line.split("|")[:-2], f" {found[name]} ", ""])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the errors of all objectives.")
    parser.add_argument("--write", action="store_true", help="update docs/objectives.md")
    options = parser.parse_args()
    found = measured()
    for row, error in found.items():
        print(f"{row:20} {error}")
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
