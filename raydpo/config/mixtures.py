"""Several sources of prompts or preferences in one table: weights, limits, layouts and filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator

from raydpo.config.base import PathOrName, PositiveFloat, PositiveInt, Section, SourceFormat
from raydpo.config.content import Resolved
from raydpo.core.expressions import parsed


def _condition(text: str) -> str:
    parsed(text)
    return text


#: A condition on the columns of a row (`core/expressions.py`).
RowFilter = Annotated[str, AfterValidator(_condition)]
Layout = Literal["auto", "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired"]


class DataSource(Section):
    """One of several sources. A plain string stands for `path`."""

    path: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    name: str | None = None
    """Name in counts and the quarantine; without it the last part of the path, without its ending."""
    weight: PositiveFloat | None = None
    """Rows of the sources are in proportion to these, as many as the scarcest source allows; without weights all rows are read."""
    limit: PositiveInt | None = None
    """Maximum number of rows that raydpo reads from the source."""
    filter: RowFilter | None = None
    """A condition on columns, such as `score > 0.5`; rows for which it does not hold are dropped and counted."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split of a `datasets` dataset, or of files whose names contain it, such as train-* and test-*."""
    id_column: str | None = None
    """The column with unique ids; without it raydpo makes ids as hashes of the content."""

    @property
    def label(self) -> str:
        """The source's name in counts."""
        return self.name or PurePosixPath(self.path.rstrip("/")).name.split(".")[0] or self.path

    @property
    def of_its_own(self) -> dict[str, Any]:
        """The settings that this source has in place of its section."""
        return {
            "path": self.path,
            "limit": self.limit,
            "filter": self.filter,
            "format": self.format,
            "split": self.split,
            "id_column": self.id_column,
        }


class PromptsSource(DataSource):
    """One of several sources of prompts. A plain string stands for `path`."""

    column: str | None = None
    """The column with text or messages; without it the first of `prompt`, `messages` and `text` that exists."""


class PreferencesSource(DataSource):
    """One of several sources of preference data. A plain string stands for `path`."""

    layout: Layout = "auto"
    """How the rows are laid out; see `preferences.layout`."""


#: Fields of a section that each source of a mixture has itself.
_OF_SOURCES: Final = ("path", "format", "split", "column", "layout", "id_column", "limit", "filter")


def as_sources(value: Any) -> Any:
    """Turn a string into `{path: ...}`, and a list into `{sources: [...]}`."""
    if isinstance(value, str):
        return {"path": value}
    return {"sources": value} if isinstance(value, list | tuple) else value


def check_sources(section: Section, sources: Sequence[DataSource]) -> None:
    """Refuse a section with neither a path nor sources, or with both.

    Raises:
        ValueError: what is wrong, for pydantic.
    """
    given = [name for name in _OF_SOURCES if name in section.model_fields_set]
    given = [
        name for name in given if getattr(section, name) != type(section).model_fields[name].default
    ]
    if not sources:
        if "path" not in given:
            raise ValueError("give the `path` of the data, or several `sources`")
        return
    if given:
        raise ValueError(
            f"`{given[0]}` belongs to one source, and there are `sources`: give it to each of them"
        )
    labels = [source.label for source in sources]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"several sources are called {twice[0]!r}: give each a `name`")
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        raise ValueError("some sources have a `weight` and others none: give it to all, or to none")
