"""What of the configuration makes a finished stage stale: each field says it on itself.

What comes in: a section. What goes out: the mapping that stands in the keys of the stages that
read it. A field counts, unless its type is marked:

    max_prompt_tokens: PositiveInt         content, the default: another value, another result
    workers: Placement[PositiveInt]        where, how fast and how closely watched the work is done
    path: Resolved[str]                    what it comes to counts, and stages name that themselves

So an option that is added later counts until somebody says that it does not.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class _Mark(Enum):
    PLACEMENT = "placement"
    RESOLVED = "resolved"


#: Changes nothing of what comes out, but for rounding: workers, GPUs, batch sizes, trackers.
Placement = Annotated[T, _Mark.PLACEMENT]
#: Stands in the keys by what it comes to, which the stages that read it put there: the content of
#: the file that it names, the dtype that `auto` means, or a value that not all of them go by.
Resolved = Annotated[T, _Mark.RESOLVED]


def content_of(section: BaseModel, *, without: type[BaseModel] | None = None) -> dict[str, Any]:
    """What the content of a stage that reads this section depends on, for its key.

    Args:
        section: sections inside it are gone through likewise; one without content is left out.
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
