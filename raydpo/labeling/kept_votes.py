"""What people made is found in a round's folder, and never replaced without being asked.

What comes in: a round's folder, and what a command is about to make in it. What goes out:
nothing, or an error that says how to choose. Files of votes are never deleted: they stand in
`votes-files`, by the candidates that people saw.
"""

from __future__ import annotations

from typing import Any, Final

from raydpo.errors import RunError
from raydpo.run import Stage, difference, look_at, read_manifest
from raydpo.storage import Folder

_RULE: Final = "what people made is never replaced without being asked"
#: A file for each table of candidates of which pairs were written for people.
_EXPORTS: Final = "exports"


def votes_files(folder: Folder, candidates_fingerprint: str) -> Folder:
    """Where a round keeps the files of votes on these candidates."""
    return folder.child("votes-files", candidates_fingerprint[:16])


def note_export(folder: Folder, candidates_fingerprint: str, path: str) -> None:
    """Remember that pairs of a round's candidates were written to a file for people."""
    folder.child(_EXPORTS).write_json(f"{candidates_fingerprint[:16]}.json", {"file": path})


def is_of_people(manifest: dict[str, Any]) -> bool:
    """Whether a table of preferences was made from votes."""
    return "votes" in manifest["inputs"]


def refuse_other_labels(folder: Folder) -> None:
    """Stop before the preferences of people are replaced by others.

    Args:
        folder: the round's folder.

    Raises:
        RunError: its preferences are those of people.
    """
    manifest = read_manifest(folder.child("preferences"))
    if manifest is not None and is_of_people(manifest):
        raise RunError(
            f"{folder.uri}/preferences was made from people's votes, and this job labels otherwise",
            _RULE,
            "to go on with the votes set `labeling: {people: {}}`; to label otherwise add "
            f"`--redo label` once: the votes stay in {folder.uri}/votes-files",
        )


def refuse_votes_over_labels(folder: Folder) -> None:
    """Stop before finished preferences that people did not make are replaced by votes.

    Args:
        folder: the round's folder.

    Raises:
        RunError: there are such preferences; nothing was imported.
    """
    manifest = read_manifest(folder.child("preferences"))
    if manifest is not None and not is_of_people(manifest):
        raise RunError(
            f"{folder.uri}/preferences is finished, and was not made from people's votes",
            "labels are not replaced without being asked; nothing was imported",
            "add `--redo label` to replace them by the votes, and set "
            "`labeling: {people: {}}` in the job",
        )


def refuse_other_candidates(stage: Stage, folder: Folder) -> None:
    """Stop before candidates that people judge are sampled anew.

    Args:
        stage: the sampling as it would be done now.
        folder: the round's folder.

    Raises:
        RunError: people have voted on those that are there, or were given pairs of them.
    """
    manifest = read_manifest(stage.folder)
    if manifest is None or look_at(stage)[0] == "done":
        return
    people = _people_at_work(folder, manifest["fingerprint"])
    if people is not None:
        raise RunError(
            f"{stage.folder.uri} would be sampled anew ({difference(manifest, stage)}), and {people}",
            f"{_RULE}: votes belong to the very completions that people saw",
            "take the change back; or add `--redo sample` once: votes on the completions of "
            "before no longer count, and their files stay",
        )


def _people_at_work(folder: Folder, fingerprint: str) -> str | None:
    """What people did with these candidates or were asked to do, in words; None for nothing."""
    if files := votes_files(folder, fingerprint).files():
        return f"people's votes on it are there ({len(files)} file(s))"
    name = f"{fingerprint[:16]}.json"
    if folder.child(_EXPORTS).exists(name):
        file = folder.child(_EXPORTS).read_json(name)["file"]
        return f"pairs of it were exported for people to {file}"
    return None
