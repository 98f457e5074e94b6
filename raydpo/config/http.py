"""The configuration of a reward service: its address, its protocol and its time limits.

The section takes the mapping `http` of a reward, or its URL alone. It contains no secrets: it
names the headers that hold one, and their values stay in the environment.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raydpo.config.base import PositiveFloat, PositiveInt, Section
from raydpo.config.content import Placement, Resolved

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A field name of RFC 9110, section 5.1.
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that every request already has.
_OWN_HEADERS: Final = ("accept", "content-length", "content-type", "host", "idempotency-key")


def _service_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"an address is `http://host:port/path`: {error}") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii():
        raise ValueError("an address begins with `http://` or `https://` and a host, in ASCII")
    if not url.isprintable() or " " in url:
        raise ValueError("an address holds no spaces: write %20")
    if "@" in parts.netloc:
        raise ValueError(
            "an address holds no user: give a header by `headers_from_environment`, such as "
            "{Authorization: REWARD_AUTHORIZATION}"
        )
    if parts.fragment:
        raise ValueError("what follows a # is not sent to a service: take it out")
    return url


#: Address of a service, without secrets.
ServiceUrl = Annotated[str, AfterValidator(_service_url)]


def _names_of_variables(value: Any) -> Any:
    """Refuse an invalid variable name without repeating it, because it may be the secret itself."""
    if not isinstance(value, dict):
        return value
    for header, variable in cast("dict[object, object]", value).items():
        if not isinstance(header, str) or not _HEADER.fullmatch(header):
            raise ValueError("a header's name is letters, digits and hyphens")
        if header.lower() in _OWN_HEADERS:
            raise ValueError(f"raydpo itself sends the header {header}: take it out")
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            raise ValueError(
                f"{header} takes the name of an environment variable, such as "
                "REWARD_AUTHORIZATION, whose value is the whole header (`Bearer ...`)"
            )
    return cast("Any", value)


class ServiceConfig(Section):
    """Where a service is, how long it is waited for, and its secrets."""

    url: ServiceUrl
    """Address that raydpo posts requests to; it is saved and printed, so it must contain no secret."""
    version: Annotated[str, Field(max_length=200)] = ""
    """Your name for the model version behind the service; if it changes, raydpo makes the scores again."""
    timeout_seconds: Placement[PositiveFloat] = 60.0
    """Maximum time for one request, from its start to the last byte of its answer."""
    max_attempts: Placement[PositiveInt] = 8
    """How many times raydpo sends a request; the waits in between grow, are partly random, and add up to about a minute unless the service asks for others."""
    max_concurrent_requests: Placement[PositiveInt] = 4
    """Maximum number of concurrent requests of one worker."""
    headers_from_environment: Placement[
        Annotated[dict[str, str], BeforeValidator(_names_of_variables)]
    ] = Field(default_factory=dict[str, str])
    """Headers with secrets; each names the environment variable, set on all nodes, that holds its value."""


class HttpConfig(ServiceConfig):
    """A service that returns rewards over HTTP. A plain string stands for `url`."""

    shape: Literal["raydpo", "openrlhf"] = "raydpo"
    """The shape of a request: `prompts` and `completions`; or, as OpenRLHF's remote reward models expect, `query`, `prompts` and `labels`."""
    columns: Resolved[tuple[str, ...]] = ()
    """Columns of the prompts that each request holds beside the texts, as lists under `columns`; for `openrlhf` at most one, sent as `labels`."""

    @model_validator(mode="after")
    def _one_column_of_labels(self) -> HttpConfig:
        if self.shape == "openrlhf" and len(self.columns) > 1:
            raise ValueError(
                "a request in OpenRLHF's shape holds one column, its `labels`: name one of "
                f"{', '.join(self.columns)}, or choose `shape: raydpo`"
            )
        return self


def _url_shorthand(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Http = Annotated[
    HttpConfig, BeforeValidator(_url_shorthand, json_schema_input_type=str | HttpConfig)
]
