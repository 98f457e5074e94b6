"""The run directory: stages, parts, manifests.

A stage has a folder, its inputs' fingerprints and the settings that matter. It writes part files,
then a small record after each part, and last the manifest. So a stage is done when its manifest
exists, and a part when its record exists. Everything else is discarded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pyarrow as pa

from raydpo import __version__
from raydpo.core.callbacks import notify
from raydpo.core.checked import (
    Damage,
    check_hashes,
    check_sizes,
    damaged_files,
    read_checked,
    size_and_hash,
    write_checked,
)
from raydpo.core.differences import difference
from raydpo.core.errors import ConfigError, DataError, ManifestError, RunError
from raydpo.core.fingerprints import joined_hash, made_of, rows_hash
from raydpo.core.lease import check_lease
from raydpo.core.manifests import Manifest, Plan
from raydpo.core.place import Place
from raydpo.core.platforms import platform_here
from raydpo.core.progress import logger
from raydpo.core.set_aside import set_aside
from raydpo.core.storage import Folder, fingerprint, folder_of, parquet_bytes, table_from_parquet
from raydpo.core.tables import QUARANTINE, SCHEMAS, Row, declared, hashed_row, table_from_rows

FORMAT: Final = 3
_MANIFEST: Final = "manifest.json"
_PLAN: Final = "plan.json"
_RECORDS: Final = "_parts"
#: So many damaged files are named, with their hashes.
_MOST_NAMED: Final = 5
#: The manifest of a stage that was finished, while damaged files of it are made again.
_FORMER: Final = "manifest.former.json"
#: Beginnings of names of files that no stage reads, or that have manifests of their own.
_NOT_HELD: Final = ("checkpoints/", "tensorboard/", "wandb/", "stacks/", "_alive/")
#: A stage is finished, begun, made from something else than now, or not there.
State = Literal["done", "begun", "stale", "new"]
#: Stands in a plan for a table that is read part by part: the parts' records say from which ones.
_PART_BY_PART: Final = "part by part"
#: Where Ray lays the working directories of jobs, and how their folders begin.
_JOB_PACKAGES: Final = "working_dir_files"
_JOB_PACKAGE: Final = "_ray_pkg_"


@dataclass(frozen=True)
class PartResult:
    """What a stage made of one part.

    Attributes:
        rows: of the stage's table.
        quarantined: refused rows.
        counts: added up over all parts.
        sums: the same for what is no whole number.
        maxima: the manifest has the largest of all parts.
    """

    rows: list[Row]
    quarantined: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage: where it stands, and what its content depends on.

    Attributes:
        place: its folder and its label; no part of the key.
        name: of the stage.
        table: name of its schema; None where it makes files.
        inputs: fingerprints by name.
        settings: what else the content depends on.
        parts_of: inputs of which the stage reads only part i to make its part i. They may change
            while this stage is made. At the end, raydpo makes each part again whose input part
            has changed.
        layout: how a source cuts its table into parts. The key does not contain it: a stage that
            is begun or finished keeps its layout (`layout_of`).
    """

    place: Place
    name: str
    table: str | None
    inputs: dict[str, str]
    settings: dict[str, Any]
    parts_of: tuple[str, ...] = ()
    layout: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def folder(self) -> Folder:
        """Folder of the stage."""
        return self.place.folder

    @property
    def key(self) -> str:
        """Hash of everything that the content depends on."""
        return fingerprint(
            {"format": FORMAT, "stage": self.name, "inputs": self.inputs, "settings": self.settings}
        )

    @property
    def begun(self) -> Stage:
        """The stage's plan, as written while it is made."""
        return replace(self, inputs={**self.inputs, **dict.fromkeys(self.parts_of, _PART_BY_PART)})

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of this stage's table."""
        assert self.table is not None
        return SCHEMAS[self.table]


def run_folder(output: str, name: str) -> Folder:
    """The directory of a run.

    Raises:
        ConfigError: it would lie in the temporary folder of a Ray job.
    """
    run = folder_of(output).child(name)
    parts = run.local_path().parts if run.is_local else ()
    if _JOB_PACKAGES in parts or any(part.startswith(_JOB_PACKAGE) for part in parts):
        raise ConfigError(
            f"output {output!r} is in this Ray job's own copy of the working directory, {run.uri}",
            "a run directory outlives the job: Ray deletes that copy, and the next submission would "
            "start anew in another one",
            "set `output` to an absolute path that all nodes share, or a URI: add for example "
            "`--set output=/shared/runs` to the command",
        )
    return run


def no_run(folder: Folder) -> RunError:
    """The error for a folder that holds no run."""
    return RunError(
        f"{folder.uri} is not a run directory",
        "a run directory holds config.yaml and the folders of its rounds",
        "give the folder that the run's log names, such as runs/demo",
    )


def round_folder(run: Folder, round_index: int) -> Folder:
    """The directory of one round of a run."""
    return run.child(f"round-{round_index:03d}")


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.parquet"


def open_stage(
    stage: Stage,
    keep_folders: bool = False,
    refuse_to_mend: Callable[[list[str], dict[str, Any]], str | None] | None = None,
) -> dict[str, Any] | None:
    """Open a stage: return the manifest if it is finished, or else prepare its folder.

    If an interrupted run left parts of this very stage, they stay. Parts that were begun from other
    inputs or settings are deleted. Finished work is set aside, and the log says why and where.

    The files of a finished stage are compared with their hashes. If a file is damaged, the stage is
    opened again. The caller then makes only the damaged files, with the same content as before.

    Args:
        stage: what is made.
        keep_folders: whether folders inside stay. They are stages with manifests of their own.
        refuse_to_mend: given names of damaged files and the manifest, says why they cannot be made
            again; None where they can.

    Raises:
        ManifestError: the manifest or the plan is damaged.
        DataError: a file is damaged that cannot be made again.
    """
    check_lease(stage.folder)
    state, why = look_at(stage)
    if state == "done":
        manifest = read_checked(stage.folder, _MANIFEST)
        held = [file for file in manifest["files"] if not file["name"].startswith(_NOT_HELD)]
        damaged = damaged_files(stage.folder, held)
        if not damaged:
            return manifest
        _reopen(stage, manifest, damaged, refuse_to_mend)
        return None
    if state == "stale":
        _make_room(stage, why, keep_folders)
    if not stage.folder.exists(_PLAN):
        write_checked(stage.folder, _PLAN, _identity(stage.begun))
    return None


def _reopen(
    stage: Stage,
    manifest: dict[str, Any],
    damaged: list[Damage],
    refuse_to_mend: Callable[[list[str], dict[str, Any]], str | None] | None,
) -> None:
    """Make a finished stage one that lacks its damaged files.

    Its manifest is kept under another name until the stage is finished again.
    """
    names = [damage.name for damage in damaged]
    shown = ", ".join(map(str, damaged[:_MOST_NAMED]))
    more = len(damaged) - _MOST_NAMED
    where = f"{stage.folder.uri}/{shown}" + (f" and {more} more file(s)" if more > 0 else "")
    records: list[dict[str, Any]] | None = manifest.get("part_records")
    problem = refuse_to_mend and refuse_to_mend(names, manifest)
    if problem is None and stage.table is not None and records is None:
        problem = (
            "an older version of raydpo wrote its manifest, which does not say what each part is"
        )
    if problem is not None:
        raise DataError(
            f"{where}: changed after the stage was finished",
            f"a damaged file is made again where nothing else is lost, but here {problem}",
            f"restore the file from a copy; or delete {stage.folder.uri}, and it is all made again",
        )
    logger.warning("[%s] damaged, made again: %s", stage.name, where)
    whole = {file["name"]: file for file in manifest["files"] if file["name"] not in names}
    for record in records or []:
        own = [name for name in _file_names(record["part"]) if name in whole or name in names]
        if all(name in whole for name in own):
            value = {**record, "key": stage.begun.key, "files": [whole[name] for name in own]}
            write_checked(stage.folder.child(_RECORDS), _record_name(record["part"]), value)
    plan = {**_identity(stage.begun), "layout": manifest.get("layout", {})}
    write_checked(stage.folder, _PLAN, plan)
    unchecked = {name: value for name, value in manifest.items() if name != "checksum"}
    write_checked(stage.folder, _FORMER, unchecked)
    stage.folder.delete(_MANIFEST)


def _file_names(index: int) -> tuple[str, str]:
    """Names that a part's files have, if they exist."""
    return part_name(index), f"quarantine/{part_name(index)}"


def look_at(stage: Stage) -> tuple[State, str]:
    """The state of a stage, and why a stale one is stale, without changing anything.

    Raises:
        ManifestError: the manifest or the plan is damaged.
    """
    manifest = read_manifest(stage.folder)
    if manifest is not None:
        same = manifest["key"] == stage.key
        return ("done", "") if same else ("stale", stale_because(manifest, stage))
    if stage.folder.exists(_PLAN):
        plan = read_checked(stage.folder, _PLAN, Plan)
        same = plan["key"] == stage.begun.key
        why = "it was begun, and " + stale_because(plan, stage.begun)
        return ("begun", "") if same else ("stale", why)
    if stage.folder.files():
        return "stale", "it holds files, but neither a manifest nor a plan"
    return "new", ""


def layout_of(stage: Stage) -> dict[str, Any]:
    """Return how a stage's table is cut into parts: as begun or finished, or as it would be now.

    Raises:
        ManifestError: the manifest or the plan is damaged.
    """
    return (identity_there(stage.folder) or {}).get("layout", stage.layout)


def identity_there(folder: Folder) -> dict[str, Any] | None:
    """Read the manifest or the plan of the stage in a folder; None if there is neither.

    Raises:
        ManifestError: the manifest or the plan is damaged.
    """
    for name, fields in ((_MANIFEST, Manifest), (_PLAN, Plan)):
        if folder.exists(name):
            return read_checked(folder, name, fields)
    return None


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """A stage's manifest, or None where the stage is not done.

    Raises:
        ManifestError: it is there, but damaged.
    """
    return read_checked(folder, _MANIFEST, Manifest) if folder.exists(_MANIFEST) else None


def write_part(
    stage: Stage, index: int, result: PartResult, made_from: list[str] | None = None
) -> dict[str, Any]:
    """Write a part, its refused rows, and last its record; returns the record.

    `made_from` are the hashes of the rows of input parts that it was made from.
    """
    check_lease(stage.folder)
    table = table_from_rows(result.rows, stage.schema)
    content = parquet_bytes(table)
    name = part_name(index)
    stage.folder.write_bytes(name, content)
    files = [{"name": name, "rows": len(result.rows), **size_and_hash(content)}]
    if result.quarantined:
        refused = parquet_bytes(table_from_rows(result.quarantined, QUARANTINE))
        stage.folder.write_bytes(f"quarantine/{name}", refused)
        files.append(
            {
                "name": f"quarantine/{name}",
                "rows": len(result.quarantined),
                **size_and_hash(refused),
            }
        )
    record = {
        "part": index,
        "key": stage.begun.key,
        "made_from": made_from,
        "files": files,
        "content": rows_hash(map(hashed_row, table.to_pylist())),
        "counts": {
            **result.counts,
            "output": len(result.rows),
            "quarantined": len(result.quarantined),
        },
        **({"sums": result.sums, "maxima": result.maxima} if result.sums or result.maxima else {}),
    }
    write_checked(stage.folder.child(_RECORDS), _record_name(index), record)
    return record


def finished_parts(
    stage: Stage, made_from: dict[int, list[str]] | None = None
) -> dict[int, dict[str, Any]]:
    """The records of the intact parts that an interrupted run left, by part number.

    The result lacks parts whose file no longer matches the hash in its record: they are made again.
    `made_from` has the hashes of the input parts as they are now. With it, parts that were made
    from other input parts are deleted.
    """
    records = _records(stage, lambda record: check_hashes(stage.folder, record["files"]))
    if made_from is None:
        return records
    stale = [part for part in records if records[part]["made_from"] != made_from.get(part)]
    for part in stale:
        _forget_part(stage, records.pop(part))
    if stale:
        text = "[%s] stale, done again: %d part(s), made from other parts than those that are there"
        logger.info(text, stage.name, len(stale))
    return records


def part_record(stage: Stage, index: int) -> dict[str, Any]:
    """The record of a part of a stage that is not done yet.

    Raises:
        ManifestError: it is damaged.
    """
    return read_checked(stage.folder.child(_RECORDS), _record_name(index))


def part_entry(manifest: dict[str, Any], index: int) -> dict[str, Any]:
    """What a manifest says of a part's file: name, rows, bytes and hash."""
    name = part_name(index)
    return next(file for file in manifest["files"] if file["name"] == name)


def part_hashes(manifest: dict[str, Any]) -> dict[int, str]:
    """Hashes of the parts' rows, by part number."""
    return {record["part"]: record["content"] for record in manifest["part_records"]}


def _record_name(index: int) -> str:
    return f"{index:05d}.json"


def _forget_part(stage: Stage, record: dict[str, Any]) -> None:
    stage.folder.child(_RECORDS).delete(_record_name(record["part"]))
    for file in record["files"]:
        stage.folder.delete(file["name"])


def _records(stage: Stage, check: Callable[[dict[str, Any]], object]) -> dict[int, dict[str, Any]]:
    """The parts' records that pass `check`, by part number."""
    records: dict[int, dict[str, Any]] = {}
    folder = stage.folder.child(_RECORDS)
    for name in folder.files():
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            record = read_checked(folder, name)
            _check_key(stage, record)
            check(record)
        except (DataError, ManifestError) as error:
            logger.warning("%s: done again, because %s", stage.name, str(error).splitlines()[0])
            continue
        records[record["part"]] = record
    return records


def _check_key(stage: Stage, record: dict[str, Any]) -> None:
    if record.get("key") != stage.begun.key:
        raise DataError(
            f"the record of part {record['part']} is another stage's or an older version's",
            "a table has parts of one stage only, also where two runs write into one folder",
            "it is made again",
        )


def commit(
    stage: Stage,
    counts: dict[str, int],
    extra: dict[str, Any] | None = None,
    *,
    parts: int | None = None,
    check: Callable[[dict[str, int]], None] | None = None,
) -> dict[str, Any]:
    """Write the manifest of a stage made of parts: from here on, it is done.

    The function compares only the sizes of the parts' files. This run wrote the parts, or
    `finished_parts` compared them with their hashes. Every reader of a part does so again.

    Args:
        stage: what was made.
        counts: the manifest has them beside the sums of the parts' counts.
        extra: further facts for the manifest.
        parts: how many parts there must be; None for as many as there are.
        check: gets all counts, and may refuse them by an error.

    Raises:
        DataError: a part is missing or was cut since it was written.
    """
    sizes = stage.folder.files(recursive=True)
    whole = _records(stage, lambda record: check_sizes(stage.folder, sizes, record["files"]))
    for index in [index for index in whole if parts is not None and index >= parts]:
        _forget_part(stage, whole.pop(index))  # of inputs that were cut into more parts
    records = [record for _, record in sorted(whole.items())]
    found = [record["part"] for record in records]
    wanted = list(range(parts if parts is not None else len(records)))
    if found != wanted:
        raise DataError(
            f"{stage.folder.uri} has the parts {found[:3]}... ({len(found)} of them)",
            f"all of its {len(wanted)} parts are there before the stage is done",
            "run the same command again: the missing parts are done again",
        )
    total = dict(counts)
    for record in records:
        for name, count in record["counts"].items():
            total[name] = total.get(name, 0) + count
    if check is not None:
        check(total)
    measured = _measured(records)
    manifest = {
        **_identity(stage),
        "layout": layout_of(stage),
        "fingerprint": joined_hash(
            (record["content"], record["counts"]["output"]) for record in records
        ),
        "parts": len(records),
        "counts": total,
        "files": [file for record in records for file in record["files"]],
        "part_records": [_without_files(record) for record in records],
        **measured,
        **(extra or {}),
    }
    return _commit_manifest(stage, manifest)


def _without_files(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items() if name not in ("files", "checksum", "key")
    }


def _measured(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """`sums` and `maxima` over the parts that have any; nothing where none has."""
    found: dict[str, dict[str, float]] = {}
    for kind, join in (("sums", math.fsum), ("maxima", max)):
        values: dict[str, list[float]] = {}
        for record in records:
            for name, value in record.get(kind, {}).items():
                values.setdefault(name, []).append(value)
        if values:
            found[kind] = {name: join(of_parts) for name, of_parts in values.items()}
    return found


def commit_files(stage: Stage, content: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the manifest of a stage whose output is plain files, such as a model.

    `content` is the fingerprint of the output; `extra` are further facts.
    """
    files = [
        {"name": name, "bytes": size, "sha256": stage.folder.sha256(name)}
        for name, size in stage.folder.files(recursive=True).items()
        if name not in (_PLAN, _MANIFEST, _FORMER) and not name.startswith(_NOT_HELD)
    ]
    manifest = {**_identity(stage), "fingerprint": content, "files": files, **(extra or {})}
    return _commit_manifest(stage, manifest)


def read_part(folder: Folder, manifest: dict[str, Any], index: int) -> pa.Table:
    """One part of a finished stage, checked against the hash in its manifest.

    Raises:
        DataError: the file is missing or damaged; it is named.
    """
    name = part_name(index)
    content = check_hashes(folder, [part_entry(manifest, index)])
    table = table_from_parquet(content, f"{folder.uri}/{name}")
    return declared(table, SCHEMAS[manifest["table"]], f"{folder.uri}/{name}")


def read_rows(folder: Folder, manifest: dict[str, Any]) -> Iterator[Row]:
    """All rows of a finished stage, in order, one part in memory at a time."""
    for index in range(manifest["parts"]):
        yield from read_part(folder, manifest, index).to_pylist()


def read_quarantine(folder: Folder, manifest: dict[str, Any]) -> Iterator[Row]:
    """All refused rows of a finished stage."""
    for file in manifest["files"]:
        if file["name"].startswith("quarantine/"):
            content = check_hashes(folder, [file])
            yield from table_from_parquet(content, f"{folder.uri}/{file['name']}").to_pylist()


def _identity(stage: Stage) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "raydpo": __version__,
        "stage": stage.name,
        "table": stage.table,
        "key": stage.key,
        "inputs": stage.inputs,
        "settings": stage.settings,
        "made_of": {name: made for name, value in stage.inputs.items() if (made := made_of(value))},
        "layout": stage.layout,
    }


def _commit_manifest(stage: Stage, manifest: dict[str, Any]) -> dict[str, Any]:
    _refuse_other_content(stage, manifest)
    check_lease(stage.folder)
    facts = {"platform": platform_here(), "committed_at": _now()}
    written = write_checked(stage.folder, _MANIFEST, {**manifest, **facts})
    stage.folder.child(_RECORDS).delete()
    stage.folder.delete(_PLAN)
    stage.folder.delete(_FORMER)
    notify("stage", stage.folder, manifest.get("last_metrics", manifest.get("counts", {})))
    return written


def _refuse_other_content(stage: Stage, manifest: dict[str, Any]) -> None:
    """Raise if a repaired stage differs from its former content, from which others were made."""
    if not stage.folder.exists(_FORMER):
        return
    former = read_checked(stage.folder, _FORMER)
    if former["key"] == manifest["key"] and former["fingerprint"] != manifest["fingerprint"]:
        where = stage.folder.uri
        raise DataError(
            f"{where}: what was made again for damaged files has the fingerprint "
            f"{manifest['fingerprint'][:12]}, and it was {former['fingerprint'][:12]}",
            "later stages were made from the former content, and are not discarded unasked",
            f"restore the files of {where} from a copy, {_FORMER} as {_MANIFEST} among them; or "
            f"delete {where}: then it and what was made from it are made again",
        )


def stale_because(found: dict[str, Any], stage: Stage) -> str:
    """Which inputs and settings differ from those that a manifest or plan names."""
    return difference(found, FORMAT, stage.inputs, stage.settings)


def _make_room(stage: Stage, why: str, keep_folders: bool) -> None:
    """Delete what was only begun; set everything else aside, since it may be finished work."""
    logger.info("[%s] stale, done again: %s", stage.name, why)
    begun = stage.folder.exists(_PLAN) and not stage.folder.exists(_MANIFEST)
    if not begun:
        set_aside(stage.folder, stage.folder.files() if keep_folders else None)
        return
    for name in stage.folder.files() if keep_folders else [""]:
        stage.folder.delete(name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
