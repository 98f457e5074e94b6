"""`raydpo check CONFIG`: what would go wrong, said without a cluster.

What comes in: a configuration. What goes out: lines to read, among them one rendered
example with its mask, and every problem that was found. Nothing is written.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from raydpo.config import Config
from raydpo.errors import ConfigError, RaydpoError
from raydpo.fit import check_config_fits
from raydpo.lease import locked_by
from raydpo.run import run_folder
from raydpo.storage import Folder

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a check found: facts to read, an example to look at, problems to mend."""

    facts: tuple[str, ...]
    example: tuple[str, ...]
    problems: tuple[RaydpoError, ...]

    @property
    def lines(self) -> list[str]:
        """Everything but the problems, in the order in which it is read."""
        count = len(self.problems)
        verdict = f"{count} problem(s) found" if count else "no problems found"
        return [*self.facts, *self.example, verdict]


@dataclass
class Findings:
    """What has been found so far. A problem that several checks meet stands once."""

    facts: list[str] = field(default_factory=list[str])
    example: list[str] = field(default_factory=list[str])
    problems: list[RaydpoError] = field(default_factory=list[RaydpoError])

    def attempt(self, check: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """The check's result, or None where it raised: then its problem is noted."""
        try:
            return check(*arguments, **named)
        except RaydpoError as error:
            self.note(error)
            return None

    def note(self, problem: RaydpoError) -> None:
        """Add a problem, unless it stands there already."""
        if str(problem) not in map(str, self.problems):
            self.problems.append(problem)


def run_check(config: Config, rows: int | None = None) -> tuple[list[str], list[RaydpoError]]:
    """Lines to print, and the problems; for the command line.

    Args:
        config: the job.
        rows: read only so many rows of each source.
    """
    report = check(config, rows)
    return report.lines, list(report.problems)


def check(config: Config, rows: int | None = None) -> Report:
    """Look at everything that a run of this job would need; raises nothing on purpose.

    Args:
        config: the job.
        rows: read only so many rows of each source; without it all of them.
    """
    from raydpo import (
        check_data,
        check_exports,
        check_models,
        check_online,
        check_resources,
        check_rewards,
    )

    findings = Findings()
    findings.attempt(_check_run_directory, config, findings)
    check_models.check_models(config, findings)
    check_models.check_sections(config, findings)
    check_resources.check_resources(config, findings)
    findings.attempt(check_config_fits, config)
    check_exports.check_exports(config, findings)
    check_online.check_online(config, findings)
    check_data.check_data(config, rows, findings)
    check_rewards.check_rewards(config, findings)
    return Report(tuple(findings.facts), tuple(findings.example), tuple(findings.problems))


def _check_run_directory(config: Config, findings: Findings) -> None:
    """The run directory can be written, and nobody else holds it."""
    run = run_folder(config.output, config.name)
    findings.facts.append(f"run directory: {run.uri}")
    if not run.is_local:
        return
    path = run.local_path()
    parent = nearest_folder(path)
    try:
        with tempfile.TemporaryFile(dir=parent):  # it has no name, and leaves nothing
            pass
    except OSError as error:
        raise ConfigError(
            f"output {config.output!r}: {parent} cannot be written ({error.strerror})",
            "the run directory is `<output>/<name>`, and this user may create it",
            "set `output` to a folder of your own",
        ) from error
    if (path / "lock").is_file():
        _check_lock(path)


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest above it that is there; it may be a file."""
    return next(p for p in (path, *path.parents) if p.exists())


def _check_lock(path: Path) -> None:
    with open(path / "lock", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "another process"
            raise locked_by(Folder(str(path)), holder) from error
