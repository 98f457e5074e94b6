"""Distributed preference optimization on Ray.

This is the Python API, for notebooks and other programs; docs/python.md shows it. `load_job`
reads a configuration, `check_job` reports what would go wrong, `run_job` and `run_rounds` run it,
`open_run` reads the results, `inspect_preferences` examines preferences, `compare_runs` puts runs
side by side, and `publish_run` writes a model with its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.core.events import Event

if TYPE_CHECKING:
    from raydpo.config.job import Config
    from raydpo.core.errors import RaydpoError
    from raydpo.online.rounds import OnlineResult
    from raydpo.pipeline.job import RoundResult
    from raydpo.pipeline.results import Run
    from raydpo.show.publish import Published

__version__ = "0.2.0"

__all__ = [
    "Event",
    "__version__",
    "check_job",
    "compare_runs",
    "inspect_preferences",
    "load_job",
    "open_run",
    "publish_run",
    "run_job",
    "run_rounds",
]


def load_job(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a job and check every key and value.

    Args:
        source: the path of a YAML file, or the values themselves.
        overrides: `section.key=value`, the value in YAML, as for `--set`; of files only.

    Raises:
        ConfigError: with one line for each wrong key or value.
    """
    from raydpo.config.file import config_from_values, load_config

    if not isinstance(source, Mapping):
        return load_config(source, list(overrides))
    if overrides:
        raise TypeError("overrides are for files: change the values themselves")
    return config_from_values(dict(source), "the values given")


def check_job(config: Config, rows: int | None = None) -> list[RaydpoError]:
    """Everything that would go wrong, found without a cluster, as by `raydpo check`.

    Args:
        config: the job.
        rows: look at so many rows of each source; without it at all of them.
    """
    from raydpo.check.job import check

    return list(check(config, rows).problems)


def run_job(
    config: Config, until: str = "evaluation", redo: Sequence[str] = (), log: bool = True
) -> RoundResult:
    """Run a round up to a stage, as the commands do; what is finished costs nothing.

    Args:
        config: the job.
        until: `sampling`, `labeling`, `reference`, `training` or `evaluation`.
        redo: stages that are done again though they are finished.
        log: whether progress is written to stderr; without it, it goes to the logger `raydpo`.

    Raises:
        RaydpoError: with the value, the rule and what to do.
    """
    from raydpo.core.progress import start_logging
    from raydpo.pipeline.job import run_round

    if log:
        start_logging()
    _refuse_problems(config)
    return run_round(config, until, redo=redo)


def run_rounds(config: Config, log: bool = True) -> OnlineResult:
    """Run online rounds, as `raydpo online` does; arguments and errors as of `run_job`."""
    from raydpo.check.online import check_sections_of_rounds
    from raydpo.core.progress import start_logging
    from raydpo.online.rounds import run_online

    if log:
        start_logging()
    check_sections_of_rounds(config)
    _refuse_problems(config)
    return run_online(config)


def open_run(path: str) -> Run:
    """A run directory, by its path or URI, to be read.

    Raises:
        RunError: there is none.
    """
    from raydpo.pipeline import results

    return results.open_run(path)


def compare_runs(
    paths: Sequence[str], output: str | None = None, seed: int = 0, resamples: int = 10_000
) -> dict[str, Any]:
    """Compare evaluated runs, as `raydpo compare` does; docs/compare.md describes the result.

    Args:
        paths: two or more run directories, as paths or URIs.
        output: folder for comparison.html and comparison.json; without it nothing is written.
        seed: of the resamples.
        resamples: number of bootstrap resamples of the prompts.

    Raises:
        RaydpoError: with the value, the rule and what to do.
    """
    from raydpo.show import compare

    return compare.compare_runs(paths, output, seed, resamples)


def inspect_preferences(
    path: str,
    output: str | None = None,
    *,
    split: str = "train",
    layout: str = "auto",
    format: str = "auto",
    against: Sequence[str] = (),
    limit: int | None = None,
    round_index: int | None = None,
) -> dict[str, Any]:
    """Examine preferences, as `raydpo inspect` does; docs/inspect.md describes the result.

    Args:
        path: a run directory, or a file, folder, URI or dataset with preference data.
        output: folder for inspection.html and inspection.json; without it nothing is written.
        split: of the data; its other splits are compared with it.
        layout: of the data's rows, as `preferences.layout`.
        format: of the data's files, as `preferences.format`.
        against: sources of prompts that must not be in the data.
        limit: maximum number of rows.
        round_index: the round of a run; without it the last one with preferences.

    Raises:
        RaydpoError: with the value, the rule and what to do.
    """
    from raydpo.show import inspect

    return inspect.inspect_data(
        path,
        output,
        split=split,
        layout=layout,
        format=format,
        against=against,
        limit=limit,
        round_index=round_index,
    )


def publish_run(
    path: str,
    output: str | None = None,
    *,
    hub: str | None = None,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    round_index: int | None = None,
    merged: bool = False,
) -> Published:
    """Write a trained model with its card into a folder, as `raydpo publish` does (docs/publish.md).

    Args:
        path: the run directory, as a path or URI.
        output: the folder; without it `published/NAME` in the working directory.
        hub: upload it to this repository, `owner/name`.
        private: whether a new repository is private.
        license: an id of the hub's list of licences.
        base_model: the base model's name on the hub, if the job names a folder.
        round_index: the round; without it the best one of online rounds, otherwise the last one.
        merged: publish the merged model where an adapter was trained.

    Raises:
        RaydpoError: with the value, the rule and what to do.
    """
    from raydpo.show import publish

    return publish.publish_run(
        path,
        output,
        hub=hub,
        private=private,
        license=license,
        base_model=base_model,
        round_index=round_index,
        merged=merged,
    )


def _refuse_problems(config: Config) -> None:
    """Raise the first problem that stops a run."""
    from raydpo.check.job import problems_before_a_run

    for problem in problems_before_a_run(config):
        raise problem
