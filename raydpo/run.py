"""The run directory: stages, parts, manifests, the lock.

What comes in: a folder, and for each stage its inputs' fingerprints and the settings
that matter. What goes out: committed tables. A stage writes part files; each part has
a small record that is written after it; the manifest is written last. So a stage is
done when its manifest is there, a part when its record is, and everything else is
discarded.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from raydpo import __version__
from raydpo.errors import DataError, ManifestError, RunLockedError
from raydpo.progress import logger
from raydpo.storage import (
    Folder,
    canonical_json,
    fingerprint,
    folder_of,
    parquet_bytes,
    sha256,
    table_from_parquet,
)
from raydpo.tables import QUARANTINE, SCHEMAS, Row, check_table, table_from_rows

FORMAT: Final = 2
_MANIFEST: Final = "manifest.json"
_PLAN: Final = "plan.json"
_RECORDS: Final = "_parts"


@dataclass(frozen=True)
class PartResult:
    """What a stage made of one part: rows, refused rows, and counts to add up."""

    rows: list[Row]
    quarantined: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage's folder together with what its content depends on."""

    folder: Folder
    name: str
    table: str | None
    inputs: dict[str, str]
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of everything that the content depends on."""
        return fingerprint(
            {"format": FORMAT, "stage": self.name, "inputs": self.inputs, "settings": self.settings}
        )

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of this stage's table."""
        assert self.table is not None
        return SCHEMAS[self.table]


def run_folder(output: str, name: str) -> Folder:
    """The directory of a run."""
    return folder_of(output).child(name)


def round_folder(run: Folder, round_index: int) -> Folder:
    """The directory of one round of a run."""
    return run.child(f"round-{round_index:03d}")


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.parquet"


def open_stage(stage: Stage, keep_folders: bool = False) -> dict[str, Any] | None:
    """The stage's manifest when it is done; else None, with the folder ready to go on.

    Parts of an interrupted run of the very same stage are kept; everything that
    depends on something else is deleted, and the log says why. With `keep_folders` the
    folders inside stay: they are stages of their own, which know what they depend on.

    Raises:
        ManifestError: the manifest or the plan is damaged.
    """
    manifest = read_manifest(stage.folder)
    if manifest is not None:
        if manifest["key"] == stage.key:
            _check_sizes(stage.folder, stage.folder.files(recursive=True), manifest["files"])
            return manifest
        _discard(stage, _difference(manifest, stage), keep_folders)
    elif stage.folder.exists(_PLAN):
        plan = _read_checked(stage.folder, _PLAN)
        if plan["key"] != stage.key:
            _discard(stage, "it was begun, and " + _difference(plan, stage), keep_folders)
    elif stage.folder.files():
        _discard(stage, "it holds files, but neither a manifest nor a plan", keep_folders)
    if not stage.folder.exists(_PLAN):
        _write_checked(stage.folder, _PLAN, _identity(stage))
    return None


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """A stage's manifest, or None where the stage is not done.

    Raises:
        ManifestError: it is there, but damaged.
    """
    return _read_checked(folder, _MANIFEST) if folder.exists(_MANIFEST) else None


def write_part(stage: Stage, index: int, result: PartResult) -> dict[str, Any]:
    """Write a part, its refused rows, and last its record; returns the record."""
    content = parquet_bytes(table_from_rows(result.rows, stage.schema))
    name = part_name(index)
    stage.folder.write_bytes(name, content)
    files = [{"name": name, "rows": len(result.rows), **_size_and_hash(content)}]
    if result.quarantined:
        refused = parquet_bytes(table_from_rows(result.quarantined, QUARANTINE))
        stage.folder.write_bytes(f"quarantine/{name}", refused)
        files.append(
            {
                "name": f"quarantine/{name}",
                "rows": len(result.quarantined),
                **_size_and_hash(refused),
            }
        )
    record = {
        "part": index,
        "files": files,
        "content": sha256(b"\n".join(canonical_json(row) for row in result.rows)),
        "counts": {
            **result.counts,
            "output": len(result.rows),
            "quarantined": len(result.quarantined),
        },
    }
    _write_checked(stage.folder.child(_RECORDS), f"{index:05d}.json", record)
    return record


def finished_parts(stage: Stage) -> dict[int, dict[str, Any]]:
    """The records of the parts that an interrupted run left whole, by part number.

    A part whose file no longer matches its record's hash is left out, so it is done again.
    """
    return _records(stage, lambda files: _check_hashes(stage.folder, files))


def _records(
    stage: Stage, check: Callable[[list[dict[str, Any]]], object]
) -> dict[int, dict[str, Any]]:
    """The parts' records whose files pass `check`, by part number."""
    records: dict[int, dict[str, Any]] = {}
    folder = stage.folder.child(_RECORDS)
    for name in folder.files():
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            record = _read_checked(folder, name)
            check(record["files"])
        except (DataError, ManifestError) as error:
            logger.warning("%s: done again, because %s", stage.name, str(error).splitlines()[0])
            continue
        records[record["part"]] = record
    return records


def commit(
    stage: Stage,
    counts: dict[str, int],
    extra: dict[str, Any] | None = None,
    *,
    parts: int | None = None,
    check: Callable[[dict[str, int]], None] | None = None,
) -> dict[str, Any]:
    """Write the manifest of a stage made of parts: from here on, it is done.

    `counts` stand beside those that the parts' records add up to; `extra` are further facts;
    `parts` is how many there must be; `check` sees the counts and may still refuse them.

    Its parts were written in this run, or `finished_parts` held them against their hashes:
    only sizes are looked at here. Whoever reads a part holds it against its hash again.

    Raises:
        DataError: a part is missing or was cut since it was written.
    """
    sizes = stage.folder.files(recursive=True)
    whole = _records(stage, lambda files: _check_sizes(stage.folder, sizes, files))
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
    manifest = {
        **_identity(stage),
        "fingerprint": fingerprint([record["content"] for record in records]),
        "parts": len(records),
        "counts": total,
        "files": [file for record in records for file in record["files"]],
        **(extra or {}),
    }
    return _commit_manifest(stage, manifest)


def commit_files(stage: Stage, content: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the manifest of a stage whose output is plain files, such as a model.

    `content` is the fingerprint of the output; `extra` are further facts.
    """
    files = [
        {"name": name, "bytes": size, "sha256": stage.folder.sha256(name)}
        for name, size in stage.folder.files(recursive=True).items()
        if name not in (_PLAN, _MANIFEST) and not name.startswith(("checkpoints/", "wandb/"))
    ]
    manifest = {**_identity(stage), "fingerprint": content, "files": files, **(extra or {})}
    return _commit_manifest(stage, manifest)


def read_part(folder: Folder, manifest: dict[str, Any], index: int) -> pa.Table:
    """One part of a finished stage, checked against the hash in its manifest.

    Raises:
        DataError: the file is missing or damaged; it is named.
    """
    name = part_name(index)
    entry = next(file for file in manifest["files"] if file["name"] == name)
    content = _check_hashes(folder, [entry])
    table = table_from_parquet(content, f"{folder.uri}/{name}")
    check_table(table, SCHEMAS[manifest["table"]], f"{folder.uri}/{name}")
    return table


def read_rows(folder: Folder, manifest: dict[str, Any]) -> Iterator[Row]:
    """All rows of a finished stage, in order, one part in memory at a time."""
    for index in range(manifest["parts"]):
        yield from read_part(folder, manifest, index).to_pylist()


def read_quarantine(folder: Folder, manifest: dict[str, Any]) -> Iterator[Row]:
    """All refused rows of a finished stage."""
    for file in manifest["files"]:
        if file["name"].startswith("quarantine/"):
            content = _check_hashes(folder, [file])
            yield from table_from_parquet(content, f"{folder.uri}/{file['name']}").to_pylist()


@contextmanager
def locked(run: Folder) -> Generator[None]:
    """Hold the run directory; the kernel lets go when the process ends, however it ends.

    Folders in object stores are not locked: they offer nothing to lock with.

    Raises:
        RunLockedError: another live process holds it; the message says which.
    """
    if not run.is_local:
        yield
        return
    path = run.local_path("lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RunLockedError(
                f"{run.uri} is in use by {file.read().strip() or 'another process'}",
                "one run at a time writes into a run directory",
                "wait for it or end it, or give this run another `name`",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}")
        file.flush()
        yield


def _identity(stage: Stage) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "raydpo": __version__,
        "stage": stage.name,
        "table": stage.table,
        "key": stage.key,
        "inputs": stage.inputs,
        "settings": stage.settings,
    }


def _commit_manifest(stage: Stage, manifest: dict[str, Any]) -> dict[str, Any]:
    written = _write_checked(stage.folder, _MANIFEST, {**manifest, "committed_at": _now()})
    stage.folder.child(_RECORDS).delete()
    stage.folder.delete(_PLAN)
    return written


def _write_checked(folder: Folder, name: str, value: dict[str, Any]) -> dict[str, Any]:
    checked = {**value, "checksum": fingerprint(value)}
    folder.write_json(name, checked)
    return checked


def _read_checked(folder: Folder, name: str) -> dict[str, Any]:
    where = f"{folder.uri}/{name}"
    way_out = f"restore {where}, or delete {folder.uri}: then it is done again from its inputs"
    rule = "it is JSON that raydpo wrote, with its own checksum"
    try:
        value = json.loads(folder.read_bytes(name))
    except ValueError as error:
        raise ManifestError(f"{where} is damaged: {error}", rule, way_out) from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is damaged: not a mapping", rule, way_out)
    checksum = value.get("checksum")
    if checksum != fingerprint({k: v for k, v in value.items() if k != "checksum"}):
        raise ManifestError(f"{where} is damaged: its checksum does not match", rule, way_out)
    return value


def _check_sizes(folder: Folder, sizes: dict[str, int], files: list[dict[str, Any]]) -> None:
    """Cheap look at what is there: every file, with the size that its record says."""
    for file in files:
        if sizes.get(file["name"]) != file["bytes"]:
            raise DataError(
                f"{folder.uri}/{file['name']} has {sizes.get(file['name'], 'no')} bytes",
                f"its record says {file['bytes']}",
                f"restore the file, or delete {folder.uri}: then the stage is done again",
            )


def _check_hashes(folder: Folder, files: list[dict[str, Any]]) -> bytes:
    """Read files and hold them against their hashes; returns the last one's content."""
    content = b""
    for file in files:
        where = f"{folder.uri}/{file['name']}"
        way_out = f"restore the file, or delete {folder.uri}: then the stage is done again"
        try:
            content = folder.read_bytes(file["name"])
        except OSError as error:
            raise DataError(
                f"{where} cannot be read: {error}", "its record names it", way_out
            ) from error
        if sha256(content) != file["sha256"]:
            raise DataError(f"{where} was changed", "its hash is that of its record", way_out)
    return content


def _size_and_hash(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": sha256(content)}


def _difference(found: dict[str, Any], stage: Stage) -> str:
    """Says which input or setting differs from what a manifest or plan names."""
    changed = [
        f"{kind} {name!r} changed"
        for kind, old, new in (
            ("input", found["inputs"], stage.inputs),
            ("setting", found["settings"], stage.settings),
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed) or "it was written by another version of raydpo"


def _discard(stage: Stage, why: str, keep_folders: bool) -> None:
    logger.info("[%s] stale, done again: %s", stage.name, why)
    for name in stage.folder.files() if keep_folders else [""]:
        stage.folder.delete(name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
