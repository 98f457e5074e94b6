"""Inspect the preferences of a round before anything is trained on them, and stop at the job's limits.

The page and its JSON file are a stage of the round: they are made once for a table of preferences. The
limits are no part of its key, and are compared each time that a command passes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raydpo.config.inspection import InspectConfig
from raydpo.config.job import Config
from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, commit_files, open_stage, read_manifest, read_rows
from raydpo.core.storage import Folder, fingerprint
from raydpo.core.tables import Row
from raydpo.evaluation.inspection_page import JSON_FILE, PAGE_FILE, write_inspection
from raydpo.labeling.inspection.duplicates import OtherPrompts
from raydpo.labeling.inspection.groups import Group, group_of_row, paired_judgements
from raydpo.labeling.inspection.inspect import FORMAT, Inspected, inspect_preferences, measured
from raydpo.labeling.kept_votes import is_of_people
from raydpo.training.split import is_heldout

Json = dict[str, Any]

UNPAIRED = (
    "The data judges single completions. Each desirable one is compared with the next undesirable one, "
    "of another prompt; those left over are not inspected. Duplicates, overlap and languages look at "
    "the prompts of desirable ones."
)


def inspection_stage(
    config: Config, place: Place, preferences: Table, prompts: Table | None
) -> Stage:
    """Describe what the inspection of these preferences is made from."""
    inputs = {"preferences": preferences.fingerprint}
    if prompts is not None:
        inputs["evaluation_prompts"] = prompts.fingerprint
    settings = {"inspection": FORMAT, "heldout_fraction": config.heldout_fraction}
    return Stage(place, "inspection", None, inputs, {**settings, "seed": config.seed})


def run_inspection(
    config: Config, folder: Folder, place: Place, preferences: Table, prompts: Table | None
) -> None:
    """Write the page and its JSON file unless they are there.

    Args:
        config: the job.
        folder: the folder of the round, which has scores and votes.
        place: where they go.
        preferences: what would be trained on.
        prompts: the prompts of the evaluation, if there are any.
    """
    stage = inspection_stage(config, place, preferences, prompts)
    if open_stage(stage) is not None:
        logger.info("[%s] nothing to do: %s/%s is there", place.label, place.folder.uri, PAGE_FILE)
        return
    found = inspect_preferences(inspected_round(config, folder, preferences, prompts))
    write_inspection(place.folder, found)
    commit_files(stage, fingerprint(found))
    logger.info("[%s] %s", place.label, found["headline"])
    logger.info("[%s] done: %s/%s", place.label, place.folder.uri, PAGE_FILE)


def refuse_beyond_limits(limits: InspectConfig, folder: Folder) -> None:
    """Compare an inspection with the limits of the job.

    Raises:
        DataError: a number exceeds its limit.
    """
    values = measured(folder.read_json(JSON_FILE))
    beyond = {
        f"max_{name}": (values[name], limit)
        for name, limit in limits.limits.items()
        if values.get(name, 0.0) > limit
    }
    if unknown := [f"inspect.max_{name}" for name in limits.limits if name not in values]:
        logger.warning("[inspection] not measured in this data: %s", ", ".join(unknown))
    if beyond:
        raise DataError(
            "the preferences exceed limits of `inspect`: "
            + "; ".join(f"{name[4:]} is {value:.4f}" for name, (value, _) in beyond.items()),
            "; ".join(f"inspect.{name} is {limit:g}" for name, (_, limit) in beyond.items()),
            f"look at {folder.uri}/{PAGE_FILE}; change the data, or raise the limits: the same "
            "command then goes on from here",
        )


def inspected_round(
    config: Config, folder: Folder, preferences: Table, prompts: Table | None
) -> Inspected:
    """Return what a round has to inspect.

    Args:
        config: the job.
        folder: the folder of the round.
        preferences: the table of preferences.
        prompts: the table of the evaluation's prompts, if there is one.
    """
    rows = read_rows(preferences.folder, preferences.manifest)
    first = next(iter(rows), None)
    unpaired = first is not None and first["desirable"] is not None
    source = config.preferences
    limit = source.max_completion_tokens if source else config.sampling.max_completion_tokens
    of_people = is_of_people(preferences.manifest)
    others = [] if prompts is None else [_others(prompts)]
    return Inspected(
        name=f"{config.name}, {folder.uri.rpartition('/')[2].replace('-', ' ')}",
        groups=_unpaired(config, preferences) if unpaired else _paired(config, preferences),
        others=others,
        max_completion_tokens=limit,
        scores=() if source or of_people else _rows(folder.child("scores")),
        votes=list(_rows(folder.child("votes"))) if of_people else [],
        score_counts=_counts(folder.child("scores")) if not source and not of_people else {},
        counts=preferences.manifest["counts"],
        notes=[UNPAIRED] if unpaired else [],
    )


def _paired(config: Config, preferences: Table) -> Iterator[Group]:
    for row in read_rows(preferences.folder, preferences.manifest):
        yield group_of_row(row, _is_heldout(config, row))


def _unpaired(config: Config, preferences: Table) -> Iterator[Group]:
    rows = read_rows(preferences.folder, preferences.manifest)
    yield from paired_judgements(
        (group_of_row(row, _is_heldout(config, row)), bool(row["desirable"][0])) for row in rows
    )


def _is_heldout(config: Config, row: Row) -> bool:
    return is_heldout(row["prompt_id"], config.heldout_fraction, config.seed)


def _others(prompts: Table) -> OtherPrompts:
    rows = read_rows(prompts.folder, prompts.manifest)
    return OtherPrompts("evaluation.prompts", [row["prompt"] for row in rows])


def _counts(folder: Folder) -> dict[str, int]:
    return (read_manifest(folder) or {}).get("counts", {})


def _rows(folder: Folder) -> Iterator[Row]:
    """Yield the rows of a table; none if it is not finished."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("table"):
        yield from read_rows(folder, manifest)
