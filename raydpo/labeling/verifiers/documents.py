"""Verify completions as JSON documents, by a JSON Schema."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_NO_JSON: Final = object()


def json_schema(
    completions: list[str], schema: dict[str, Any] | list[Any], fenced: bool = True
) -> list[float | None]:
    """Return 1.0 where a completion is JSON that a JSON Schema allows, else 0.0.

    A schema without `$schema` is read as of the draft 2020-12. References to other documents are
    not followed, and `format` is not checked. NaN and infinities are no JSON.

    Args:
        completions: texts.
        schema: one for all, or one for each completion (a mapping, or JSON in a text), where None
            gives None.
        fenced: whether the last block of code (```), if there is one, is read instead of the whole
            completion.

    Raises:
        ValueError: a schema is not valid, or refers to another document.
    """
    schemas: list[Any] = schema if isinstance(schema, list) else [schema] * len(completions)
    return [
        None if one is None else float(_allowed(_parsed(text, fenced), one))
        for text, one in zip(completions, schemas, strict=True)
    ]


def _parsed(text: str, fenced: bool) -> Any:
    blocks = _FENCED.findall(text) if fenced else []
    try:
        return json.loads(blocks[-1] if blocks else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _NO_JSON


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _allowed(document: Any, schema: Any) -> bool:
    # Here, because the other verifiers do not need it, and it takes a while to import.
    from jsonschema import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    rules = json.loads(schema) if isinstance(schema, str) else schema
    kind = validator_for(rules, default=Draft202012Validator)
    try:
        kind.check_schema(rules)
    except SchemaError as error:
        raise ValueError(f"the schema is not valid: {error.message}") from error
    if document is _NO_JSON:
        return False
    try:
        return kind(rules, registry=Registry()).is_valid(document)
    except Unresolvable as error:
        raise ValueError(f"the schema refers to another document: {error}") from error
    except RecursionError:
        return False
