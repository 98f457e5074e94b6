"""`raydpo inspect`: examine a run's preferences, a file or a dataset before training on it.

The folder that it writes gets inspection.html and inspection.json. It is never inside a run directory.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from raydpo.config.file import config_of
from raydpo.config.job import PreferencesConfig
from raydpo.core.errors import ConfigError, RunError
from raydpo.core.parts import Table
from raydpo.core.run import read_manifest, round_folder
from raydpo.core.storage import Folder, folder_of
from raydpo.evaluation.inspection_page import JSON_FILE, PAGE_FILE, write_inspection
from raydpo.labeling.inspection.duplicates import OtherPrompts
from raydpo.labeling.inspection.groups import Group, paired_judgements
from raydpo.labeling.inspection.inspect import Inspected, inspect_preferences
from raydpo.pipeline.inspection import UNPAIRED, inspected_round
from raydpo.pipeline.results import open_run
from raydpo.prompts.sources import other_splits
from raydpo.prompts.texts import JudgedTexts, judged_texts, prompt_texts

Json = dict[str, Any]

_MOST_REASONS: Final = 5
_LONGEST_NAME: Final = 80


def inspect_data(
    path: str,
    output: str | None = None,
    *,
    split: str = "train",
    layout: str = "auto",
    format: str = "auto",
    against: Sequence[str] = (),
    limit: int | None = None,
    round_index: int | None = None,
) -> Json:
    """Inspect preferences, and write the page.

    Args:
        path: a run directory, or a source of preference data: a file, a folder, a URI, a dataset.
        output: folder for inspection.html and inspection.json; without it nothing is written.
        split: of the source; its other splits are compared with it.
        layout: of the source's rows, as `preferences.layout`.
        format: of the source's files, as `preferences.format`.
        against: further sources of prompts that must not be in the data.
        limit: maximum number of rows of the source.
        round_index: the round of a run; without it the last one with preferences.

    Returns:
        The content of inspection.json; docs/inspect.md describes it.

    Raises:
        ConfigError: an argument is for the other kind of data, or the output is not free.
        RunError: the run has no preferences.
        DataError: the source cannot be read.
    """
    run = folder_of(path)
    is_run = run.exists("config.yaml")
    folder = folder_of(output) if output is not None else None
    if folder is not None:
        _check_output(folder, run if is_run else None)
    others = [OtherPrompts(name, list(prompt_texts(name))) for name in against]
    if is_run:
        if limit is not None or (split, layout, format) != ("train", "auto", "auto"):
            raise ConfigError(
                f"{path} is a run directory",
                "--split, --layout, --format and --limit say how to read a source of data",
                "leave them out, or give the run's data instead",
            )
        inspected = _of_run(run, round_index, others)
        found = inspect_preferences(inspected)
    else:
        if round_index is not None:
            raise ConfigError(
                f"--round {round_index}, and {path} is no run directory",
                "rounds are those of a run",
                "leave --round out, or give a run directory",
            )
        given = {"path": path, "format": format, "split": split, "layout": layout, "limit": limit}
        found = _inspect_source(PreferencesConfig.model_validate(given), others)
    if folder is not None:
        write_inspection(folder, found)
    return found


def default_output(path: str) -> str:
    """Return `inspections/NAME` in the working directory, after the run or the data."""
    name = re.sub(r"[^\w.-]", "_", path.rstrip("/").rpartition("/")[2])
    return f"inspections/{name[:_LONGEST_NAME]}"


def _of_run(run: Folder, round_index: int | None, others: Sequence[OtherPrompts]) -> Inspected:
    config = config_of(run)
    folder, manifest = _preferences_of(run, round_index)
    prompts = None
    for place in (folder.child("evaluation-prompts"), run.child("heldout")):
        there = read_manifest(place)
        if there is not None and there.get("table") == "prompts":
            prompts = Table(place, there)
            break
    inspected = inspected_round(
        config, folder, Table(folder.child("preferences"), manifest), prompts
    )
    notes = list(inspected.notes)
    if config.evaluation is not None and prompts is None:
        notes.append(
            "The run has not read the evaluation's prompts yet, so the overlap with them is not known; "
            "`--against` with their path compares them as texts."
        )
    return replace(inspected, others=[*inspected.others, *others], notes=notes)


def _preferences_of(run: Folder, round_index: int | None) -> tuple[Folder, Json]:
    """Return the folder of the round, and the manifest of its preferences."""
    rounds = [round_index] if round_index is not None else list(reversed(open_run(run.uri).rounds))
    for index in rounds:
        folder = round_folder(run, index)
        manifest = read_manifest(folder.child("preferences"))
        if manifest is not None:
            return folder, manifest
    where = run.uri if round_index is None else round_folder(run, round_index).uri
    raise RunError(
        f"{where} has no finished preferences",
        "`raydpo inspect RUN` reads the table of preferences",
        "run `raydpo labeling` first, or inspect the data itself",
    )


def _inspect_source(preferences: PreferencesConfig, others: Sequence[OtherPrompts]) -> Json:
    path, format, split = preferences.path, preferences.format, preferences.split
    splits = [
        OtherPrompts(f"split {name}", list(prompt_texts(path, format, name)))
        for name in other_splits(path, format, split)
    ]
    refused: Counter[str] = Counter()
    rows = judged_texts(preferences, refused)
    first = next(rows, None)
    rows = itertools.chain([] if first is None else [first], rows)
    unpaired = first is not None and first.desirable is not None
    inspected = Inspected(
        name=f"{path}, split {split}" if splits else path,
        groups=paired_judgements(_judged(rows)) if unpaired else map(_group, rows),
        others=[*splits, *others],
        notes=[UNPAIRED] if unpaired else [],
    )
    found = inspect_preferences(inspected)
    if refused:
        found["notes"].append(_refusals(refused))
    if not found["pairs"]:
        raise _no_pairs(path, found)
    return found


def _group(row: JudgedTexts) -> Group:
    ratings = row.ratings
    if ratings is None:
        return Group(row.prompt, row.completions, ((0, 1),), position=_position(row))
    both = itertools.permutations(range(len(ratings)), 2)
    pairs = tuple((i, j) for i, j in both if ratings[i] > ratings[j])
    return Group(row.prompt, row.completions, pairs, ratings)


def _position(row: JudgedTexts) -> int | None:
    """Return the place of the chosen completion, where the row has both with the better one's number."""
    better: Any = row.row.get("better_response_id")
    if row.row.get("chosen") is not None or str(better) not in ("0", "1"):
        return None
    return int(better)


def _judged(rows: Iterable[JudgedTexts]) -> Iterator[tuple[Group, bool]]:
    for row in rows:
        yield Group(row.prompt, row.completions, ()), bool(row.desirable)


def _refusals(refused: Counter[str]) -> str:
    shown = ", ".join(
        f"{reason} ({count:,})" for reason, count in refused.most_common(_MOST_REASONS)
    )
    more = len(refused) - _MOST_REASONS
    further = f" and {more} further reasons" if more > 0 else ""
    return f"{refused.total():,} rows cannot be used and are not inspected: {shown}{further}."


def _no_pairs(path: str, found: Json) -> ConfigError:
    said = " ".join(found["notes"]) or "no rating differs within a prompt"
    return ConfigError(
        f"{path} has {found['rows']:,} usable rows and no pair: {said}",
        "an inspection compares chosen with rejected completions",
        "give preference data (docs/data.md lists its layouts), or set --layout",
    )


def _check_output(folder: Folder, run: Folder | None) -> None:
    """Raise if the folder is in a run directory, or has files of something else."""
    if run is not None and f"{folder.uri}/".startswith(f"{run.uri.rstrip('/')}/"):
        raise ConfigError(
            f"output {folder.uri} is in the run directory {run.uri}",
            "an inspection is written into no run: stages own all that is there",
            "give --output a folder outside the run",
        )
    others = sorted(folder.files().keys() - {JSON_FILE, PAGE_FILE}) if folder.exists() else []
    if others:
        raise ConfigError(
            f"output {folder.uri} has other files: {', '.join(others[:5])}",
            "the output is a new folder, or that of an earlier inspection",
            "give --output another folder",
        )
