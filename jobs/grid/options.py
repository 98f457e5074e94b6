"""The options that every study of a grid of runs takes on its command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def study_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with where the runs are, which seeds they have, and how they are changed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"), help="folder of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the jobs")
    parser.add_argument(
        "--tables", action="store_true", help="run nothing, and take the results that are there"
    )
    parser.add_argument("--quick", action="store_true", help="a few prompts, steps and tokens")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of every job",
    )
    return parser
