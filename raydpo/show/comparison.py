"""What differs between a stage of a run and the same stage made again.

Nothing is said of stages whose content is equal. Otherwise lines of text name the inputs, the
settings, the first row, the weights or the numbers that differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

from raydpo.core.checked import damaged_files
from raydpo.core.differences import changes, difference
from raydpo.core.errors import RaydpoError
from raydpo.core.fingerprints import made_of
from raydpo.core.platforms import platform_here
from raydpo.core.run import read_manifest, read_part, read_rows
from raydpo.core.storage import Folder
from raydpo.core.tables import Row
from raydpo.models.content import files_fingerprint
from raydpo.training.export import MODEL
from raydpo.training.metrics_log import read_metrics

Json = dict[str, Any]

#: So many differences of a kind are named.
_MOST_NAMED: Final = 5
_METRICS: Final = "metrics.json"


def differences(then: Folder, now: Folder) -> list[str]:
    """What differs between two finished stages.

    Args:
        then: the stage in the run.
        now: the same stage, made again.
    """
    manifest, again = _manifest(then), _manifest(now)
    found = changed_files(then, manifest)
    if manifest["key"] != again["key"]:
        why = difference(manifest, again["format"], again["inputs"], again["settings"])
        found.append(f"made from something else: {why}")
    if manifest["fingerprint"] != again["fingerprint"]:
        found.append(f"fingerprint {manifest['fingerprint']} -> {again['fingerprint']}")
    try:
        found += _content(then, manifest, now, again)
    except (RaydpoError, OSError) as error:  # a damaged file has been named already
        found.append(f"the content cannot be compared: {str(error).splitlines()[0]}")
    return found + other_platform(manifest) if found else []


def changed_files(folder: Folder, manifest: Json) -> list[str]:
    """Files of a stage that are not what its manifest says, with both hashes; a few of them."""
    damaged = damaged_files(folder, manifest["files"])
    return [f"changed since it was finished: {damage}" for damage in damaged[:_MOST_NAMED]]


def other_platform(manifest: Json) -> list[str]:
    """What differs between the platform that made a stage and this one, in words."""
    then = manifest.get("platform")
    if then is None:
        return ["its manifest does not say on which platform it was made"]
    found = changes(then, platform_here())
    if not found:
        return ["the driver's libraries and processors are those that made it"]
    return [f"made on another platform: {change}" for change in found]


def first_difference(then: Iterator[Row], now: Iterator[Row]) -> list[str]:
    """The first row in which two tables differ, in words; nothing where they are equal."""
    for number, (one, other) in enumerate(zip_longest(then, now)):
        if one is None or other is None:
            return [f"row {number}: {'more' if one is None else 'fewer'} rows than in the run"]
        if found := changes(one, other):
            column, value = next(iter(one.items()))
            return [f"first row that differs: {number} ({column} {value}), {found[0]}"]
    return []


def _content(then: Folder, manifest: Json, now: Folder, again: Json) -> list[str]:
    """What differs in the content itself, whatever the manifests say of it."""
    if manifest.get("table") is not None:
        return _rows(then, manifest, now, again)
    if then.is_file(_METRICS):
        before, after = then.read_json(_METRICS), now.read_json(_METRICS)
        # A newer version may write more keys; the run cannot differ in what it does not say.
        return changes(before, {k: v for k, v in after.items() if k in before})[:_MOST_NAMED]
    unequal = manifest["fingerprint"] != again["fingerprint"]
    return _model(then, now, "*" if unequal else "*.safetensors") + _steps(then, now)


def _rows(then: Folder, manifest: Json, now: Folder, again: Json) -> list[str]:
    """The first row that differs; Arrow compares whole parts first, since that is fast."""
    parts = range(manifest["parts"]) if _same_parts(manifest, again) else ()
    if parts and all(read_part(then, manifest, n).equals(read_part(now, again, n)) for n in parts):
        return []
    return first_difference(read_rows(then, manifest), read_rows(now, again))


def _same_parts(manifest: Json, again: Json) -> bool:
    """Whether two tables are cut at the same rows."""
    rows = ([file.get("rows") for file in m["files"]] for m in (manifest, again))
    return manifest["parts"] == again["parts"] and next(rows) == next(rows)


def _model(then: Folder, now: Folder, files: str) -> list[str]:
    """The layers and files of two models that differ, where both are on this machine."""
    if not (then.is_local and now.is_local and then.exists(MODEL)):
        return []
    values = [
        made_of(files_fingerprint(p for p in f.local_path(MODEL).glob(files) if p.is_file()))
        for f in (then, now)
    ]
    found = changes(values[0], values[1])
    more = [f"{len(found) - _MOST_NAMED} more layers and files"] if len(found) > _MOST_NAMED else []
    return found[:_MOST_NAMED] + more


def _steps(then: Folder, now: Folder) -> list[str]:
    """The first training step whose loss differs."""
    for one, other in zip(read_metrics(then), read_metrics(now), strict=False):
        if one["loss"] != other["loss"]:
            return [
                f"first step that differs: {one['step']}, loss {one['loss']} -> {other['loss']}"
            ]
    return []


def _manifest(folder: Folder) -> Json:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest
