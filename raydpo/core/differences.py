"""Describe how the origin of a stage differs from what it would be made from now.

A manifest or a plan is compared with today's inputs and settings. One line names each setting,
file, key or table that differs, with its values if they are short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from raydpo.core.fingerprints import made_of

#: Beside another number of rows, nothing else that is known of a table needs to be said.
_ROWS: Final = "rows"
#: What a source's files were, by which rows need not be read again; they say nothing of content.
_BYTES: Final = "bytes"
_ABSENT: Final = object()
#: A value of at most so many characters is shown.
_SHOWN: Final = 60
#: So many differences inside one input are named.
_MOST_NAMED: Final = 4


def difference(
    found: dict[str, Any], format: int, inputs: Mapping[str, str], settings: Mapping[str, Any]
) -> str:
    """Which inputs and settings differ from those that a manifest or plan names.

    Args:
        found: the manifest or plan.
        format: of the run directories that this version writes.
        inputs: fingerprints of today by name.
        settings: of today.
    """
    if found.get("format") != format:
        return (
            f"raydpo {found.get('raydpo')} wrote it in the format {found.get('format')}, whose "
            f"fingerprints are others than those of the format {format}"
        )
    inside: dict[str, dict[str, Any]] = found.get("made_of", {})
    then, now = found["inputs"], inputs
    said = [
        f"input {name!r} changed" + _within(inside.get(name, {}), made_of(now.get(name, "")))
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    said += [f"setting {change}" for change in changes(found["settings"], settings)]
    return ", ".join(said) or "it was written by another version of raydpo"


def changes(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the values that differ, with dots for mappings inside, and what they were and are."""
    found: list[str] = []
    for name in sorted(then.keys() | now.keys()):
        one, other = then.get(name, _ABSENT), now.get(name, _ABSENT)
        if one is not _ABSENT and other is not _ABSENT and _json(one) == _json(other):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            inner = cast("tuple[dict[str, Any], dict[str, Any]]", (one, other))
            found += changes(*inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix + name!r} changed" + _values(one, other))
    return found


def _within(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs inside an input, in brackets; empty if one of the two gives no details."""
    if not then or not now:
        return ""
    if _ROWS in then and _ROWS in now and then[_ROWS] != now[_ROWS]:
        then, now = {_ROWS: then[_ROWS]}, {_ROWS: now[_ROWS]}
    told = (then.keys() | now.keys()) - {_BYTES}
    named = [
        f"{name}{_values(then.get(name, _ABSENT), now.get(name, _ABSENT))}"
        for name in sorted(told)
        if _json(then.get(name, _ABSENT)) != _json(now.get(name, _ABSENT))
    ]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f" ({'; '.join(named[:_MOST_NAMED])}{more})" if named else ""


def _values(then: Any, now: Any) -> str:
    """`: 1 -> 2`; nothing where both are hashes or long."""
    one, other = _shown(then), _shown(now)
    return f": {one} -> {other}" if one != other else ""


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = _json(value)
    hashed = isinstance(value, str) and value.startswith("sha256:")
    return "another" if hashed or len(text) > _SHOWN else text


def _json(value: Any) -> str:
    if value is _ABSENT:
        return ""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
