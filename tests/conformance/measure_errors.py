"""Measures the largest relative error of every objective and writes it into docs/objectives.md.

    python -m tests.conformance.measure_errors          prints them
    python -m tests.conformance.measure_errors --write  puts them into the table's last column

What comes in: the cases and their formulas in mpmath. What goes out: for each row of the
table the largest error of values and gradients, in float64 and in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.conformance.cases import CASES
from tests.conformance.golden import errors

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def measured() -> dict[str, str]:
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
