"""Which fields of the configuration make a finished stage stale; each field declares it.

From a section the module makes the mapping that the keys of its stages contain. A field counts
unless its type is marked:

    max_prompt_tokens: PositiveInt         content, the default: another value, another result
    workers: Placement[PositiveInt]        where the work runs, how fast, and who watches it
    path: Resolved[str]                    the stages put its resolved content in the key themselves

So a new option counts unless somebody marks it.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T")


class _Mark(Enum):
    PLACEMENT = "placement"
    RESOLVED = "resolved"


#: Affects the output by rounding at most: workers, GPUs, batch sizes, trackers.
Placement = Annotated[T, _Mark.PLACEMENT]
#: Stages that read the field put its resolved value in their keys: the content of the file that it
#: names, the dtype that `auto` means, or a value that only some of them use.
Resolved = Annotated[T, _Mark.RESOLVED]


def is_placement(field: FieldInfo) -> bool:
    """Return whether a field says only where the work runs, how fast, and who watches it."""
    return _Mark.PLACEMENT in field.metadata


def content_of(section: BaseModel, *, without: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the part of this section that determines a stage's content, for its key.

    Args:
        section: nested sections are treated alike; a section without content is left out.
        without: a base class of the section whose fields this stage does not read.

    Returns:
        A JSON value.
    """
    unread = set(without.model_fields) if without is not None else set[str]()
    content = {
        name: _plain(getattr(section, name))
        for name, field in type(section).model_fields.items()
        if name not in unread and not any(isinstance(mark, _Mark) for mark in field.metadata)
    }
    return {name: value for name, value in content.items() if value != {}}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return content_of(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
