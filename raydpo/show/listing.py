"""`raydpo show`: print what a run has done, from its manifests alone.

The lines give each stage's state, counts and fingerprint, and the first rows of its table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raydpo.core.errors import RaydpoError, said_by
from raydpo.core.judge_costs import cost_lines
from raydpo.core.position_bias import position_lines
from raydpo.core.run import no_run, read_manifest, read_part
from raydpo.core.set_aside import all_set_aside, is_set_aside
from raydpo.core.storage import Folder, folder_of
from raydpo.evaluation.suites import results_in
from raydpo.evaluation.summary import verdict_lines
from raydpo.labeling.kept_votes import is_of_people

_LONGEST_VALUE = 100


def show_run(path: str, rows: int) -> Iterator[str]:
    """Describe a run directory, stage by stage.

    Raises:
        RunError: there is no run under that path.
    """
    run = folder_of(path)
    stages = sorted(_stage_folders(run))
    if not run.exists("config.yaml") and not stages:
        raise no_run(run)
    yield f"run {run.uri}"
    yield from _rounds(run)
    for name in stages:
        if not is_set_aside(name):
            yield from _describe(run.child(name), name, rows)
    for one in all_set_aside(run):
        yield f"\nset aside, `raydpo clean {run.uri}` deletes it: {one}"


def _rounds(run: Folder) -> Iterator[str]:
    """Say what online rounds were worth, and where their page is."""
    if not run.exists("online.json"):
        return
    try:
        found = run.read_json("online.json")
    except (RaydpoError, OSError) as error:
        yield f"online.json: DAMAGED: {error}"
        return
    if "verdict" in found:  # rounds of an earlier version have none
        yield from verdict_lines(found["verdict"])
        yield f"report:      {run.uri}/online.html"


def _stage_folders(run: Folder) -> set[str]:
    names = {"manifest.json", "plan.json"}
    files = [file.rpartition("/") for file in run.files(recursive=True)]
    return {folder for folder, _, name in files if name in names and folder}


def _describe(folder: Folder, name: str, rows: int) -> Iterator[str]:
    """Describe a stage, naming damage without stopping."""
    try:
        yield from _described(folder, name, rows)
    except (RaydpoError, OSError) as error:
        said = str(error) if isinstance(error, RaydpoError) else said_by(error)
        yield f"\n{name}: DAMAGED: {said}"


def _described(folder: Folder, name: str, rows: int) -> Iterator[str]:
    manifest = read_manifest(folder)
    if manifest is None:
        yield f"\n{name}: begun, not finished"
        return
    yield f"\n{name}: done {manifest['committed_at']}, fingerprint {manifest['fingerprint'][:16]}"
    if "counts" in manifest:
        yield "  " + ", ".join(f"{key} {value}" for key, value in manifest["counts"].items())
        yield from (f"  {line}" for line in position_lines(manifest["counts"]))
        yield from (f"  {line}" for line in cost_lines(manifest))
    if manifest.get("table") == "preferences" and is_of_people(manifest):
        yield "  made from people's votes"
    if "exported_step" in manifest:
        yield (
            f"  exported step {manifest['exported_step']}; {manifest['steps']} of "
            f"{manifest['planned_steps']} steps done, held-out loss {manifest['heldout']['loss']:.4f}"
        )
    for result in results_in(manifest):
        yield f"  {result.program}: {result}"
    for kind, value in manifest["inputs"].items():
        yield f"  from {kind} {str(value)[:16]}"
    if manifest.get("table") and manifest.get("parts"):
        yield from _head(folder, manifest, rows)


def _head(folder: Folder, manifest: dict[str, Any], rows: int) -> Iterator[str]:
    for row in read_part(folder, manifest, 0).slice(0, rows).to_pylist():
        yield "  row"
        for column, value in row.items():
            text = repr(value)
            short = text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " ..."
            yield f"    {column}: {short}"
