"""`raydpo annotate`: blinded pairs out of a run, preferences from the votes back in.

What comes in: a run directory whose candidates are sampled, and later a file of votes.
What goes out: a JSONL file for people, and the round's preferences table.
"""

from __future__ import annotations

import yaml

from raydpo.config_file import config_from_values
from raydpo.errors import RunError
from raydpo.labeling.people import export_pairs, import_votes
from raydpo.lock import locked
from raydpo.parts import Table
from raydpo.run import read_manifest, round_folder
from raydpo.storage import Folder, folder_of

PAIRS_FILE = "annotation.jsonl"


def export_run(run: str, output: str | None, pairs_per_prompt: int, seed: int) -> tuple[int, str]:
    """Write blinded pairs of a run's candidates; returns how many, and the file.

    Raises:
        RunError: the run has no candidates yet.
    """
    folder = folder_of(run)
    path = output or f"{folder.uri}/{PAIRS_FILE}"
    return export_pairs(_candidates(folder), path, pairs_per_prompt, seed), path


def import_run(run: str, file: str) -> dict[str, int]:
    """Build the round's preferences from votes; returns the counts of their manifest.

    Raises:
        RunError: the run has no candidates yet.
    """
    folder = folder_of(run)
    with locked(folder):
        limit = _quarantine_limit(folder)
        table = import_votes(_candidates(folder), file, round_folder(folder, 0), limit)
    return table.manifest["counts"]


def _candidates(run: Folder) -> Table:
    folder = round_folder(run, 0).child("candidates")
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"{run.uri} has no candidates",
            "people judge candidates that were sampled",
            "run `raydpo sample CONFIG` to the end first",
        )
    return Table(folder, manifest)


def _quarantine_limit(run: Folder) -> float:

    values = yaml.safe_load(run.read_bytes("config.yaml"))
    return config_from_values(values, f"{run.uri}/config.yaml").max_quarantined_fraction
