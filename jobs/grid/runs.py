"""Run the points of a study on one Ray cluster and one set of engines.

Each point is a run directory of the product, made as `raydpo run` or `raydpo online` make it. What
the points of a seed share is sampled and labelled once, in the seed's first run. The others get
copies of its finished stages, and the product recognizes them by their fingerprints.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from grid.best_of import best_of_row
from grid.points import BASE, REFERENCE, REWARD_MODEL, Point, Settings
from grid.results import Row, append, read_rows
from grid.rows import RowMaker
from raydpo.core.cluster import connected
from raydpo.core.progress import logger
from raydpo.online.rounds import run_online
from raydpo.pipeline.job import run_round
from raydpo.sampling.pool import Engines

_ROUND: Final = "round-000"
#: Stages that do not depend on the objective, in the folder of a round.
_SHARED: Final = (
    "prompts",
    "candidates",
    "scores",
    "preferences",
    "reference",
    "sampler",
    "heldout",
    "evaluation-prompts",
    "evaluation/reference_samples",
    "evaluation/reference_scores",
    "evaluation/reference_rewards",
)
#: Where `raydpo online` has what the evaluation of the offline run has.
_SHARED_ONLINE: Final = {
    f"{_ROUND}/evaluation-prompts": "heldout",
    f"{_ROUND}/evaluation/reference_samples": "original/samples",
    f"{_ROUND}/evaluation/reference_scores": "original/scores",
}
#: File of a study's folder with its results.
RESULTS_FILE: Final = "results.jsonl"


@dataclass(frozen=True)
class Work:
    """A point to run for a seed."""

    point: Point
    seed: int


def in_order(points: Iterable[Point], seeds: Iterable[int]) -> list[Work]:
    """Return all work: by level, then by seed, so that an interruption leaves balanced results."""
    listed, numbers = list(points), list(seeds)
    levels = sorted({point.level for point in listed})
    return [
        Work(point, seed)
        for level in levels
        for seed in numbers
        for point in listed
        if point.level == level
    ]


def run_all(settings: Settings, work: Sequence[Work]) -> list[Row]:
    """Run what results.jsonl does not have yet, and return the rows of all work.

    Raises:
        RaydpoError: a run failed; what was done before is kept, and the same call goes on.
    """
    file = settings.output / RESULTS_FILE
    keys = {_key(settings, one): one for one in work}
    done = {_key_of(row) for row in read_rows(file) if row.last}
    left = [one for key, one in keys.items() if key not in done]
    logger.info("[study] %d of %d trainings are done", len(keys) - len(left), len(keys))
    if left:
        with _engines(settings, left[0]) as engines:
            _run_left(settings, left, engines, file)
    return rows_of(settings, work)


def rows_of(settings: Settings, work: Sequence[Work]) -> list[Row]:
    """Return the rows of all work that results.jsonl has; none of jobs with other settings."""
    keys = {_key(settings, one) for one in work}
    return [row for row in read_rows(settings.output / RESULTS_FILE) if _key_of(row) in keys]


def _run_left(settings: Settings, left: Sequence[Work], engines: Engines, file: Path) -> None:
    runner, started, spent = _Runner(settings, engines), time.monotonic(), 0.0
    total = sum(one.point.cost for one in left)
    for number, one in enumerate(left, 1):
        append(file, runner.rows(one))
        spent += one.point.cost
        seconds = time.monotonic() - started
        rest = (
            f"{seconds / spent * (total - spent) / 60:.0f} min left"
            if spent
            else "time left unknown"
        )
        text = "[study] %d/%d, %s of seed %d, after %.1f min, about %s"
        logger.info(text, number, len(left), one.point.name, one.seed, seconds / 60, rest)


@contextmanager
def _engines(settings: Settings, first: Work) -> Generator[Engines]:
    """Yield engines for all runs, which have one model, one `sampling` and one length of prompts."""
    config = settings.job(first.point, first.seed)
    assert config.evaluation is not None
    with connected(config.ray_address):
        longest = config.evaluation.prompts.max_prompt_tokens
        with Engines(config.model, config.sampling, longest, "study") as engines:
            yield engines


@dataclass
class _Runner:
    """Runs points; knows which seeds have their first run."""

    settings: Settings
    engines: Engines
    _bases: dict[int, Path] = field(default_factory=dict[int, Path], init=False)
    _base_seconds: dict[int, float] = field(default_factory=dict[int, float], init=False)
    _maker: RowMaker | None = field(default=None, init=False)

    def rows(self, work: Work) -> list[Row]:
        """Run a point, and return its rows."""
        point, seed = work.point, work.seed
        overrides = self.settings.of(point, seed)
        if not point.best_of:
            self._base(seed)
        started = time.monotonic()
        if point == REFERENCE:
            base = self._base(seed)
            return [self._make().of_reference(point, seed, base, overrides)]
        if point.learned_reward:
            self._fit_reward_model(seed)
        run = self._run(point, seed)
        seconds = time.monotonic() - started
        if point.best_of:
            return [best_of_row(point, seed, run, overrides, seconds)]
        if point == BASE:
            seconds += self._base_seconds[seed]
        return list(self._make().of_run(point, seed, run, overrides, seconds))

    def _run(self, point: Point, seed: int) -> Path:
        """Make the run directory of a point, or finish it."""
        config = self.settings.job(point, seed)
        run = Path(config.output, config.name)
        if point.online:
            copy_finished(self._base(seed), run, _SHARED_ONLINE)
            run_online(config, self.engines)
        else:
            if point != BASE and not point.best_of:
                shared = {f"{_ROUND}/{name}": f"{_ROUND}/{name}" for name in _SHARED}
                copy_finished(self._base(seed), run, shared)
            until = "evaluation" if point != REWARD_MODEL else "training"
            run_round(config, until, engines=self.engines)
        return run

    def _base(self, seed: int) -> Path:
        """Return the seed's first run, finished."""
        if seed not in self._bases:
            started = time.monotonic()
            self._bases[seed] = self._run(BASE, seed)
            self._base_seconds[seed] = time.monotonic() - started
        return self._bases[seed]

    def _fit_reward_model(self, seed: int) -> None:
        """Fit a reward model to the seed's preferences, without those that are held out."""
        self._run(REWARD_MODEL, seed)

    def _make(self) -> RowMaker:
        if self._maker is None:
            labeling = self.settings.job(BASE, 0).labeling
            assert labeling is not None
            self._maker = RowMaker(labeling.reward[0])
        return self._maker


def copy_finished(source: Path, target: Path, stages: Mapping[str, str]) -> None:
    """Copy folders of finished stages that the target lacks; each appears whole or not at all.

    Args:
        source: a run directory.
        target: another one, which need not exist.
        stages: folders in the source, and where they belong in the target.
    """
    for there, here in stages.items():
        found, wanted = source / there, target / here
        if not (found / "manifest.json").is_file() or wanted.exists():
            continue
        copying = target / ".copying"
        shutil.rmtree(copying, ignore_errors=True)
        shutil.copytree(found, copying)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        copying.rename(wanted)


def _key(settings: Settings, work: Work) -> tuple[str, ...]:
    point = work.point
    return point.method, point.strength, *settings.of(point, work.seed)


def _key_of(row: Row) -> tuple[str, ...]:
    return row.method, row.strength, *row.overrides
