"""Which reward does each method reach at which KL from the reference?

    python jobs/frontier_study.py --output runs/frontier --plot docs/frontier.png

The study repeats Figure 2 (left) of the DPO paper with the models in assets/: methods at several
strengths, three seeds, fresh samples of each policy on held-out prompts, judged by a classifier
that made no label. Each point is a run directory in the output folder. The study appends each
result to results.jsonl, and writes tables and a plot. It skips what results.jsonl already holds,
and goes on inside a run that was killed. So you can run it in pieces.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from frontier.plot import draw_frontier, draw_rewards
from frontier.points import points
from frontier.tables import tables
from grid.options import study_parser
from grid.points import Point, Settings
from grid.runs import in_order, rows_of, run_all
from grid.settings import settings_of
from raydpo.core.progress import start_logging


def main() -> None:
    """Read the options, run what is missing, print the tables, draw."""
    options = _parse()
    start_logging()
    chosen = _chosen(options.methods, options.points, options.level)
    settings = Settings(options.output.resolve(), tuple(options.overrides), options.quick)
    work = in_order(chosen, options.seeds)
    rows = rows_of(settings, work) if options.tables else run_all(settings, work)
    found = settings_of(rows)
    text = "\n\n".join("\n".join(lines) for lines in tables(found))
    print(text)
    (settings.output / "tables.md").write_text(text + "\n", encoding="utf-8")
    if options.plot is not None:
        draw_frontier(found, options.plot)
        rewards = options.plot.with_name(f"{options.plot.stem}-rewards{options.plot.suffix}")
        draw_rewards(found, rewards)
        print(f"\nwrote {options.plot} and {rewards}")


def _chosen(
    methods: list[str] | None, names: list[str] | None, level: int | None = None
) -> list[Point]:
    """Return the points that the options ask for; pi_ref always."""
    every = points()
    known = {"--methods": {p.method for p in every}, "--points": {p.name for p in every}}
    for option, given in (("--methods", methods), ("--points", names)):
        if unknown := sorted(set(given or []) - known[option]):
            sys.exit(
                f"{option} {', '.join(unknown)}: choose from {', '.join(sorted(known[option]))}"
            )
    return [
        point
        for point in every
        if point.method == "pi_ref"
        or (
            (not methods or point.method in methods)
            and (not names or point.name in names)
            and (level is None or point.level <= level)
        )
    ]


def _parse() -> argparse.Namespace:
    parser = study_parser(description="Reward against KL, of many methods.")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--methods", nargs="+", help="only these; without it all")
    parser.add_argument("--points", nargs="+", help="only these, such as dpo-beta-0.1")
    parser.add_argument("--level", type=int, choices=(1, 2), help="1: fewer strengths; 2: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
