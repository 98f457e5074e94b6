"""Record how readers use a row's columns: each reader asks for them by name.

`raydpo check` shows the record, one line per column and message key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from raydpo.core.tables import Row
from raydpo.prompts.chat import TEMPLATE_KEYS, decoded, is_conversation
from raydpo.prompts.rows import RefusedRow

_SPEAKER: Final = ("role", "from")
_WORDS: Final = ("content", "value")
_TRAINED_OR_NOT: Final = ("train", "weight")


@dataclass
class Columns:
    """The columns of one row; `uses` records what each requested column is used as."""

    row: Row
    uses: dict[str, str] = field(default_factory=dict[str, str])

    def get(self, use: str, *names: str) -> Any:
        """Return the first of these columns that has a value, or None."""
        for name in names:
            if self.row.get(name) is not None:
                self.uses.setdefault(name, use)
                return self.row[name]
        return None

    def value(self, use: str, *names: str) -> Any:
        """Return the first of these columns that has a value.

        Raises:
            RefusedRow: none of them has a value.
        """
        value = self.get(use, *names)
        if value is None:
            raise RefusedRow(f"no value in column {' or '.join(repr(name) for name in names)}")
        return value

    def text(self, use: str, *names: str) -> str | None:
        """Return the text of the first of these columns that has a value; None if it is blank.

        Raises:
            RefusedRow: the value is not text.
        """
        value = self.get(use, *names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise RefusedRow(f"column {' or '.join(repr(name) for name in names)} is not text")
        return value if value.strip() else None


@dataclass
class ColumnUses:
    """What readers did with the columns of many rows, and with the keys of their messages."""

    columns: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    keys: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, columns: Columns) -> None:
        """Record a row that was read."""
        for name, value in columns.row.items():
            counts = self.columns.setdefault(name, Counter())
            used = columns.uses.get(name)
            if used is not None or not _is_empty(value):
                counts[used or ""] += 1
            if used is not None:
                self._add_keys(decoded(value))

    def lines(self, chat_template: str | None) -> list[str]:
        """Return what each column and message key is used as.

        Args:
            chat_template: the model's template, which decides what becomes of some keys.
        """
        columns = [f"column {name!r}: {_of_column(c)}" for name, c in self.columns.items()]
        template = chat_template or ""
        keys = [f"message key {key!r}: {_of_key(key, template)}" for key in self.keys]
        return [*columns, *keys]

    def _add_keys(self, value: Any) -> None:
        messages: list[Any] = value if isinstance(value, list) else [value]
        for message in messages:
            if is_conversation([message]):
                for key, content in message.items():
                    if not _is_empty(content):
                        self.keys[str(key)] = self.keys.get(str(key), 0) + 1


def _of_column(counts: Mapping[str, int]) -> str:
    if not counts:
        return "empty"
    uses = [(use, rows) for use, rows in counts.items() if use]
    ignored = counts.get("", 0)
    if not uses:
        return "ignored"
    said = " and ".join(f"used as {use}" for use, _ in uses)
    return f"{said}, ignored in {ignored} rows" if ignored else said


def _of_key(key: str, template: str) -> str:
    if key in _SPEAKER:
        return "used as the speaker"
    if key in _WORDS:
        return "used as the words"
    if key in _TRAINED_OR_NOT:
        return "used where it says that a turn is not trained, else ignored"
    if key in TEMPLATE_KEYS:
        return (
            "given to the chat template"
            if key in template
            else "ignored: the chat template does not read it"
        )
    return "ignored"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)
