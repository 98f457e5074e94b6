"""How often does each method win against the reference, at which sampling temperature?

    python jobs/win_rate.py --output runs/win-rate --plot docs/win-rate.png

The study repeats Figures 2 (right) and 3 and appendix D.1 of the DPO paper with the models in
assets/: DPO, policy gradient, Preferred-FT, Best-of-N and the reference itself, at temperatures
from 0 to 1.25, and Best-of-N for N from 1 to 128. All meet the same completions of the reference
at temperature 1. A classifier that made no label judges each completion alone, so the order of a
comparison cannot matter; a tie counts one half.

Policies are those of the frontier study (`--policies runs/frontier`); without them the study trains
its own. It appends each result to results.jsonl, and skips what is there. A killed study goes on
with the same command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from winrate.plot import draw
from winrate.points import (
    BEST_OF,
    BEST_OF_SAMPLES,
    REFERENCE,
    TEMPERATURES,
    TRAINED,
    WinRow,
    append,
    read_rows,
    row_of,
)
from winrate.policies import policy_of, train_policies
from winrate.sampling import Bench, bench_of, study_config
from winrate.tables import tables

from raydpo.core.cluster import connected
from raydpo.core.progress import logger, start_logging
from raydpo.sampling.pool import Engines


@dataclass(frozen=True)
class Work:
    """What is sampled and judged in one go: a trained method, the reference, or the curve."""

    what: str
    seed: int


def main() -> None:
    """Read the options, do what is missing, print the tables, draw."""
    options = _parse()
    start_logging()
    output: Path = options.output.resolve()
    policies = options.policies
    if policies is None:
        policies = output / "policies"
        train_policies(policies, options.methods, options.seeds, options.quick)
    run_missing(output, policies.resolve(), options)
    rows = read_rows(output / "results.jsonl")
    text = "\n\n".join("\n".join(lines) for lines in tables(rows))
    print(text)
    (output / "tables.md").write_text(text + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(rows, options.plot)
        print(f"\nwrote {options.plot}")


def run_missing(output: Path, policies: Path, options: argparse.Namespace) -> None:
    """Sample and judge what results.jsonl does not have; a policy that is not there is skipped."""
    file = output / "results.jsonl"
    done = {_work_of(row) for row in read_rows(file)}
    left = [work for work in _all_work(options) if work not in done]
    logger.info("[study] %d of %d are left", len(left), len(list(_all_work(options))))
    if not left:
        return
    with _engines(output, options.quick) as engines:
        started = time.monotonic()
        for number, work in enumerate(left, 1):
            bench = bench_of(output, work.seed, engines, options.quick)
            rows = list(_rows(work, bench, policies, options))
            append(file, rows)
            seconds = time.monotonic() - started
            rest = seconds / number * (len(left) - number) / 60
            text = "[study] %d/%d, %s of seed %d: %s, after %.1f min, about %.0f min left"
            found = f"{len(rows)} rows" if rows else "no finished policy, skipped"
            logger.info(text, number, len(left), work.what, work.seed, found, seconds / 60, rest)


def _all_work(options: argparse.Namespace) -> Iterator[Work]:
    """Yield all work, seed by seed, and the curves last."""
    for seed in options.seeds:
        for what in (REFERENCE, *options.methods):
            yield Work(what, seed)
    for seed in options.seeds:
        yield Work("curve", seed)


def _work_of(row: WinRow) -> Work:
    what = "curve" if row.figure == "curve" else row.method
    return Work(REFERENCE if what == "best of N" else what, row.seed)


def _rows(
    work: Work, bench: Bench, policies: Path, options: argparse.Namespace
) -> Iterator[WinRow]:
    if work.what == "curve":
        pools = bench.curve()
        assert bench.config.evaluation is not None
        assert bench.config.evaluation.best_of is not None
        for n in bench.config.evaluation.best_of.n:
            yield row_of("curve", "best of N", n, 1.0, work.seed, pools)
    elif work.what == REFERENCE:
        yield from _rows_of_reference(work.seed, bench, options)
    elif (policy := policy_of(policies, work.what, work.seed)) is not None:
        found = bench.pools(work.what, policy, options.temperatures, bench.opponents())
        for temperature, pools in found.items():
            yield row_of("temperature", work.what, 1, temperature, work.seed, pools)


def _rows_of_reference(seed: int, bench: Bench, options: argparse.Namespace) -> Iterator[WinRow]:
    """Yield the rows of pi_ref itself and of Best-of-N, from the same samples."""
    samples = 16 if options.quick else BEST_OF_SAMPLES
    opponents = bench.opponents()
    found = bench.pools(REFERENCE, bench.config.model, options.temperatures, opponents, samples)
    for temperature, pools in found.items():
        yield row_of("temperature", REFERENCE, 1, temperature, seed, pools)
        for n in BEST_OF:
            yield row_of("temperature", "best of N", n, temperature, seed, pools)


@contextmanager
def _engines(output: Path, quick: bool) -> Generator[Engines]:
    config = study_config(output, 0, quick)
    assert config.evaluation is not None
    with connected(config.ray_address):
        longest = config.evaluation.prompts.max_prompt_tokens
        with Engines(config.model, config.sampling, longest, "study") as engines:
            yield engines


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Win rates of methods, by temperature.")
    parser.add_argument("--output", type=Path, default=Path("runs/win-rate"), help="folder")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--policies", type=Path, help="output folder of the frontier study")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the jobs")
    parser.add_argument(
        "--methods", nargs="*", choices=list(TRAINED), default=list(TRAINED), help="that train"
    )
    parser.add_argument(
        "--temperatures", nargs="+", type=float, default=list(TEMPERATURES), help="to sample at"
    )
    parser.add_argument("--quick", action="store_true", help="a few prompts, samples and tokens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
