"""Find people's votes in a round's folder, and never replace them unless asked to.

If a command would replace them, an error says how to choose. raydpo never deletes files of votes:
`votes-files` keeps them, sorted by the candidates that people saw.
"""

from __future__ import annotations

from typing import Any, Final

from raydpo.core.errors import RunError
from raydpo.core.run import Stage, look_at, read_manifest, stale_because
from raydpo.core.storage import Folder

_RULE: Final = "what people made is never replaced without being asked"
#: One file for each candidates table whose pairs were written for people.
_EXPORTS: Final = "exports"


def votes_files(folder: Folder, candidates_fingerprint: str) -> Folder:
    """Return the folder where a round keeps the files of votes on these candidates."""
    return folder.child("votes-files", candidates_fingerprint[:16])


def note_export(folder: Folder, candidates_fingerprint: str, path: str) -> None:
    """Record that pairs of a round's candidates were written to a file for people."""
    folder.child(_EXPORTS).write_json(f"{candidates_fingerprint[:16]}.json", {"file": path})


def is_of_people(manifest: dict[str, Any]) -> bool:
    """Return whether a table of preferences was made from votes."""
    return "votes" in manifest["inputs"]


def refuse_other_labels(folder: Folder) -> None:
    """Refuse to replace the preferences of people with others.

    Args:
        folder: the round's folder.

    Raises:
        RunError: the folder's preferences come from people.
    """
    manifest = read_manifest(folder.child("preferences"))
    if manifest is not None and is_of_people(manifest):
        raise RunError(
            f"{folder.uri}/preferences was made from people's votes, and this job labels otherwise",
            _RULE,
            "to go on with the votes set `labeling: {people: {}}`; to label otherwise add "
            f"`--redo labeling` once: the votes stay in {folder.uri}/votes-files",
        )


def refuse_votes_over_labels(folder: Folder) -> None:
    """Refuse to replace finished preferences that people did not make with votes.

    Args:
        folder: the round's folder.

    Raises:
        RunError: such preferences exist; nothing was imported.
    """
    manifest = read_manifest(folder.child("preferences"))
    if manifest is not None and not is_of_people(manifest):
        raise RunError(
            f"{folder.uri}/preferences is finished, and was not made from people's votes",
            "labels are not replaced without being asked; nothing was imported",
            "add `--redo labeling` to replace them by the votes, and set "
            "`labeling: {people: {}}` in the job",
        )


def refuse_other_candidates(stage: Stage, folder: Folder) -> None:
    """Refuse to sample candidates again if people judge them.

    Args:
        stage: the sampling as it would be done now.
        folder: the round's folder.

    Raises:
        RunError: people have voted on the existing candidates, or were given pairs of them.
    """
    manifest = read_manifest(stage.folder)
    if manifest is None or look_at(stage)[0] == "done":
        return
    people = _people_at_work(folder, manifest["fingerprint"])
    if people is not None:
        raise RunError(
            f"{stage.folder.uri} would be sampled again ({stale_because(manifest, stage)}), "
            f"and {people}",
            f"{_RULE}: votes belong to the very completions that people saw",
            "take the change back; or add `--redo sampling` once: votes on the completions of "
            "before no longer count, and their files stay",
        )


def _people_at_work(folder: Folder, fingerprint: str) -> str | None:
    """Describe what people did or were asked to do with these candidates; None for nothing."""
    if files := votes_files(folder, fingerprint).files():
        return f"people's votes on it are there ({len(files)} file(s))"
    name = f"{fingerprint[:16]}.json"
    if folder.child(_EXPORTS).exists(name):
        file = folder.child(_EXPORTS).read_json(name)["file"]
        return f"pairs of it were exported for people to {file}"
    return None
