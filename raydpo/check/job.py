"""`raydpo check CONFIG`: report, without a cluster, what would go wrong.

The report has lines to read, among them one rendered example with its mask, and every problem.
The check writes nothing.
"""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path
from typing import Final

from raydpo.check.data import check_data
from raydpo.check.exports import check_exports
from raydpo.check.findings import Findings, Report
from raydpo.check.machine import nearest_folder
from raydpo.check.models import check_models, check_sections
from raydpo.check.online import check_online
from raydpo.check.own_functions import check_own_functions
from raydpo.check.resources import check_resources
from raydpo.check.rewards import check_rewards
from raydpo.config.fit import check_config_fits
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError, QuarantineBudgetError, RaydpoError
from raydpo.core.lease import locked_by
from raydpo.core.run import run_folder
from raydpo.core.storage import Folder

#: Rows of each source that a run looks at before it starts.
_ROWS_LOOKED_AT: Final = 1000


def run_check(config: Config, rows: int | None = None) -> tuple[list[str], list[RaydpoError]]:
    """Lines to print, and the problems; for the command line.

    Args:
        config: the job.
        rows: read only so many rows of each source.
    """
    report = check(config, rows)
    return report.lines, list(report.problems)


def problems_before_a_run(config: Config) -> list[RaydpoError]:
    """What stops a run before a cluster is asked for anything.

    Only the first rows are read here; the stages count their refused rows exactly.
    """
    problems = check(config, _ROWS_LOOKED_AT).problems
    return [p for p in problems if not isinstance(p, QuarantineBudgetError)]


def check(config: Config, rows: int | None = None) -> Report:
    """Look at everything that a run of this job would need; raises nothing on purpose.

    Args:
        config: the job.
        rows: read only so many rows of each source; without it all of them.
    """
    findings = Findings()
    findings.attempt(_check_run_directory, config, findings)
    check_models(config, findings)
    check_sections(config, findings)
    check_resources(config, findings)
    findings.attempt(check_config_fits, config)
    check_exports(config, findings)
    check_online(config, findings)
    check_data(config, rows, findings)
    check_rewards(config, findings)
    check_own_functions(config, findings)
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


def _check_lock(path: Path) -> None:
    with open(path / "lock", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "another process"
            raise locked_by(Folder(str(path)), holder) from error
