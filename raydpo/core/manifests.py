"""Check that a manifest or a plan has the fields that the rest of the code relies on.

An error names the wrong field. Stages may add fields of their own.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from raydpo.core.errors import ManifestError
from raydpo.core.tables import SCHEMAS

Count = Annotated[int, Field(ge=0)]


def _below(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("a file's name leads into the stage's folder")
    return name


def _known(table: str) -> str:
    if table not in SCHEMAS:
        raise ValueError(f"the tables are {', '.join(sorted(SCHEMAS))}")
    return table


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class FileEntry(_Fields):
    """A file of a stage, with what it was when it was written."""

    name: Annotated[str, AfterValidator(_below)]
    bytes: Count
    sha256: str


class Plan(_Fields):
    """What an unfinished stage is made from."""

    key: str
    inputs: dict[str, Any]
    settings: dict[str, Any]


class Manifest(Plan):
    """What a finished stage was made from, and what it is."""

    stage: str
    fingerprint: str
    committed_at: str
    files: list[FileEntry]
    table: Annotated[str, AfterValidator(_known)] | None = None
    parts: Count = 0
    counts: dict[str, Count] = {}


def hold_fields(kind: type[BaseModel], value: dict[str, Any], where: str, way_out: str) -> None:
    """Compare a mapping with the fields that it must have.

    Raises:
        ManifestError: one is missing, or of another type.
    """
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ManifestError(
            f"{where} is damaged: {field}: {first['msg']}",
            "it holds what every version of raydpo writes there",
            way_out,
        ) from error
