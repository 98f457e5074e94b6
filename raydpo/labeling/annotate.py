"""`raydpo annotate`: export blinded pairs from a run, and import preferences from the votes.

The export needs a run directory with sampled candidates and writes a JSONL file for people. The
import reads a file of votes and writes the round's preferences table.
"""

from __future__ import annotations

from typing import Final

from raydpo.config.file import config_of
from raydpo.core.errors import RunError
from raydpo.core.lock import locked
from raydpo.core.parts import Table
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder, folder_of
from raydpo.labeling.kept_votes import note_export, refuse_votes_over_labels
from raydpo.labeling.people import export_pairs, import_votes

PAIRS_FILE = "annotation.jsonl"
_BY_REWARD: Final = (
    "the job labels by a reward, and will refuse to replace these votes: set "
    "`labeling: {people: {}}` in it to go on with them"
)


def export_run(run: str, output: str | None, pairs_per_prompt: int, seed: int) -> tuple[int, str]:
    """Write blinded pairs of a run's candidates; return their number and the file.

    Raises:
        RunError: the run has no candidates yet.
    """
    folder = folder_of(run)
    path = output or f"{folder.uri}/{PAIRS_FILE}"
    candidates = _candidates(folder)
    count = export_pairs(candidates, path, pairs_per_prompt, seed)
    note_export(round_folder(folder, 0), candidates.fingerprint, path)
    return count, path


def import_run(run: str, file: str, redo_labels: bool = False) -> tuple[dict[str, int], str | None]:
    """Build the round's preferences from people's votes.

    Args:
        run: the run directory.
        file: the file of votes.
        redo_labels: whether to replace finished preferences that came from rewards.

    Returns:
        The counts of the preferences' manifest, and the obstacle to using them, if any.

    Raises:
        RunError: the run has no candidates yet, or has preferences that people did not make.
    """
    folder = folder_of(run)
    with locked(folder):
        config, round_of_run = config_of(folder), round_folder(folder, 0)
        labeling = config.labeling
        people = labeling.people if labeling is not None else None
        if people is None and not redo_labels:
            refuse_votes_over_labels(round_of_run)
        limit = config.max_quarantined_fraction
        table = import_votes(_candidates(folder), file, round_of_run, limit, people)
    by_reward = labeling is not None and bool(labeling.reward)
    return table.manifest["counts"], _BY_REWARD if by_reward else None


def _candidates(run: Folder) -> Table:
    folder = round_folder(run, 0).child("candidates")
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"{run.uri} has no candidates",
            "people judge candidates that were sampled",
            "run `raydpo sampling CONFIG` to the end first",
        )
    return Table(folder, manifest)
