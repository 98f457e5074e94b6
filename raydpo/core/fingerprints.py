"""Fingerprints of content: of rows in order and of parsed JSON, whatever the layout of the files.

Stages pass these hashes to each other. A fingerprint remembers what it was computed from, so that
a message can name what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from raydpo.core.storage import canonical_json, fingerprint, sha256
from raydpo.core.tables import Row

#: The prime 2^255 - 19: the hash of a row is a coefficient of a polynomial modulo this number.
_MODULUS: Final = 2**255 - 19
#: Where the polynomial is evaluated: an arbitrary number that no row was made from.
_POINT: Final = int(sha256(b"raydpo: rows in order"), 16) % _MODULUS
#: JSON of at most so many characters stands in a manifest as it is; longer JSON as its hash.
_SHORT: Final = 80
_HASH_CHARACTERS: Final = 16


class Fingerprint(str):
    """Hexadecimal SHA-256, equal to any string of the same characters.

    Attributes:
        made_of: what it was computed from by name: a short JSON value, or the beginning of a hash.
    """

    made_of: dict[str, Any]

    def __new__(cls, value: str, made_of: Mapping[str, Any] | None = None) -> Self:
        """The hash `value`, with what it was computed from."""
        made = super().__new__(cls, value)
        made.made_of = dict(made_of or {})
        return made


def made_of(value: str) -> dict[str, Any]:
    """What a fingerprint was computed from, if it remembers that."""
    return value.made_of if isinstance(value, Fingerprint) else {}


def rows_hash(rows: Iterable[Row]) -> str:
    """Hash of rows in order, which `joined_hash` can join with that of further rows.

    It is the polynomial of Karp and Rabin (1987), whose coefficients are the rows' SHA-256. Two
    tables that were not made to collide have equal hashes with a probability of about 2^-255 a row.
    """
    value = 0
    for row in rows:
        value = (value * _POINT + int(sha256(canonical_json(row)), 16)) % _MODULUS
    return f"{value:064x}"


def joined_rows(parts: Iterable[tuple[str, int]]) -> tuple[str, int]:
    """`rows_hash` of all rows of consecutive parts, by their hashes and numbers of rows."""
    value = total = 0
    for part, rows in parts:
        value = (value * pow(_POINT, rows, _MODULUS) + int(part, 16)) % _MODULUS
        total += rows
    return f"{value:064x}", total


def joined_hash(parts: Iterable[tuple[str, int]]) -> Fingerprint:
    """Fingerprint of a table by its parts' hashes and numbers of rows: the same for any parts."""
    value, rows = joined_rows(parts)
    return Fingerprint(fingerprint([rows, value]), {"rows": rows})


def shortened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a manifest keeps them: short ones as they are, others by the beginning of a hash."""
    return {name: _shortened(value) for name, value in values.items()}


def _shortened(value: Any) -> Any:
    text = canonical_json(value)
    return value if len(text) <= _SHORT else f"sha256:{sha256(text)[:_HASH_CHARACTERS]}"
