"""`raydpo compare`: put finished runs side by side, in a folder of its own.

The folder gets comparison.html and comparison.json. It is never inside a run directory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from raydpo.core.errors import ConfigError
from raydpo.core.storage import Folder, folder_of
from raydpo.evaluation.comparable import EvaluatedRun
from raydpo.evaluation.comparison import compare
from raydpo.evaluation.comparison_page import draw_comparison, render_comparison
from raydpo.show.evaluated import read_evaluated

Json = dict[str, Any]

JSON_FILE: Final = "comparison.json"
PAGE_FILE: Final = "comparison.html"
#: Bootstrap resamples, and exchanges of the swap test.
RESAMPLES: Final = 10_000
_FEWEST_RESAMPLES: Final = 100
_LONGEST_NAME: Final = 80


def compare_runs(
    paths: Sequence[str], output: str | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Json:
    """Compare finished runs over the prompts that all of them have.

    Args:
        paths: two or more run directories, as paths or URIs.
        output: folder for comparison.html and comparison.json; without it nothing is written.
        seed: of the resamples.
        resamples: number of bootstrap resamples, and of exchanges of the swap test.

    Returns:
        The content of comparison.json; docs/compare.md describes it.

    Raises:
        ConfigError: fewer than two runs, too few resamples, or an output that is not free.
        RunError: a run does not exist or is not evaluated, or the runs have different judges.
        DataError: a file is damaged, or a prompt id stands for different texts.
    """
    _check_numbers(paths, resamples)
    runs = read_evaluated(paths)
    folder = folder_of(output) if output is not None else None
    if folder is not None:
        _check_output(folder, runs)
    comparison = compare(runs, seed, resamples)
    if folder is not None:
        page = render_comparison(comparison, draw_comparison(comparison, runs))
        folder.write_json(JSON_FILE, comparison)
        folder.write_bytes(PAGE_FILE, page.encode("utf-8", "replace"))
    return comparison


def default_output(paths: Sequence[str]) -> str:
    """Return `comparisons/A-and-B` in the working directory, after the runs' folders."""
    names = [re.sub(r"[^\w.-]", "_", path.rstrip("/").rpartition("/")[2]) for path in paths]
    return f"comparisons/{'-and-'.join(names)[:_LONGEST_NAME]}"


def _check_numbers(paths: Sequence[str], resamples: int) -> None:
    if len(paths) < 2:
        raise ConfigError(
            f"{len(paths)} run is given",
            "a comparison takes two or more runs",
            "give further run directories; `raydpo show RUN` describes a single one",
        )
    if resamples < _FEWEST_RESAMPLES:
        raise ConfigError(
            f"resamples {resamples}",
            f"percentiles of an interval take {_FEWEST_RESAMPLES} resamples or more",
            f"leave --resamples out, which means {RESAMPLES}",
        )


def _check_output(folder: Folder, runs: Sequence[EvaluatedRun]) -> None:
    """Raise if the folder is in a run directory, or has files of something else."""
    inside = [run.run for run in runs if f"{folder.uri}/".startswith(f"{run.run.rstrip('/')}/")]
    if folder.is_local:
        parents = [folder.local_path(), *folder.local_path().parents]
        inside += [
            str(p) for p in parents if (p / "config.yaml").is_file() and any(p.glob("round-*"))
        ]
    if inside:
        raise ConfigError(
            f"output {folder.uri} is in the run directory {inside[0]}",
            "a comparison is written into no run: stages own all that is there",
            "give --output a folder outside the runs",
        )
    others = sorted(folder.files().keys() - {JSON_FILE, PAGE_FILE}) if folder.exists() else []
    if others:
        raise ConfigError(
            f"output {folder.uri} has other files: {', '.join(others[:5])}",
            "the output is a new folder, or that of an earlier comparison",
            "give --output another folder",
        )
