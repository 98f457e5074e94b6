"""Post a request to a service over HTTP, and say why it brought no answer.

Rewards (`service.py`) and judges (`judges/chat.py`) share this: headers with secrets, the limit in
time, the limit of an answer's size, and which statuses may pass, concern the rows, or are final.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

import httpx

from raydpo.config.http import ServiceConfig
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import ConfigError, said_by

#: Characters of an answer that a reason may quote.
MOST_SHOWN: Final = 200
#: Characters of an answer that are searched for secrets before it is cut.
_MOST_LOOKED_AT: Final = 20_000
#: raydpo does not wait longer than this, even if a service asks for it.
LONGEST_WAIT_SECONDS: Final = 600.0
_TOO_MANY_REQUESTS: Final = 429
#: 408 and 425 are time-outs of the service itself.
_MAY_PASS: Final = (408, 425, _TOO_MANY_REQUESTS)
#: Statuses that may concern single rows: malformed, too long, or not scorable.
_OF_ROWS: Final = (400, 413, 422)
_FEWEST_CHARACTERS: Final = 4


@dataclass(frozen=True)
class Failure:
    """The reason why a request has brought no rewards.

    Attributes:
        kind: whether it may pass on a retry, may lie in the rows, or lies in the kind of request
            and will not pass.
        how: what the service did, as the rest of a sentence, without the answer's text.
        answer: the beginning of the answer, or an empty text.
        wait_seconds: how long the service asks to wait.
        throttled: whether the service reports too many requests, which is no row's fault.
    """

    kind: Literal["passing", "rows", "final"]
    how: str
    answer: str = ""
    wait_seconds: float = 0.0
    throttled: bool = False

    @property
    def reason(self) -> str:
        """What happened, with the answer."""
        return f"{self.how}: {self.answer}" if self.answer else self.how


@dataclass(frozen=True)
class Endpoint:
    """A service as one worker calls it.

    Attributes:
        section: its section of the configuration.
        headers: the headers of every request, including secrets; never shown.
    """

    section: ServiceConfig
    headers: dict[str, str]

    def __repr__(self) -> str:
        """Return the text form without the headers."""
        return f"Endpoint({self.section.url!r})"

    @property
    def address(self) -> str:
        """The service's address in messages."""
        return without_credentials(self.section.url)

    async def post(
        self, client: httpx.AsyncClient, body: bytes, most_bytes: int
    ) -> tuple[int, bytes] | Failure:
        """Send one request; return the status and body of an answer that is a success."""
        # The same rows form the same request, whenever they are sent again.
        own = {"Content-Type": "application/json", "Accept": "application/json"}
        own["Idempotency-Key"] = hashlib.sha256(body).hexdigest()
        seconds = self.section.timeout_seconds
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream(
                    "POST", self.section.url, content=body, headers={**self.headers, **own}
                ) as response,
            ):
                content = await _content(response, most_bytes)
        except (TimeoutError, httpx.TimeoutException):
            return Failure("passing", f"gave no answer in {seconds:g} s (timeout_seconds)")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            said = self.shown(f"{type(error).__name__}, {said_by(error)}")
            return Failure("passing", f"could not be reached, or broke off ({said})")
        if not response.is_success:
            return self._refused(response, content)
        if content is None:
            return Failure("passing", f"sent an answer of more than {most_bytes:,} bytes")
        return response.status_code, content

    def _refused(self, response: httpx.Response, content: bytes | None) -> Failure:
        status = response.status_code
        how = f"answered {status} {response.reason_phrase}".rstrip()
        answer = self.beginning(content or b"")
        if response.has_redirect_location:
            target = self.shown(str(response.headers["location"]))
            return Failure("final", f"{how}, a redirect to {target}, which is not followed")
        if status in _OF_ROWS:
            return Failure("rows", how, answer)
        if status not in _MAY_PASS and status < 500:
            return Failure("final", how, answer)
        wait = _seconds_to_wait(response.headers.get("retry-after", ""))
        if wait > LONGEST_WAIT_SECONDS:
            longest = f"more than the {LONGEST_WAIT_SECONDS:g} s that are waited at most"
            return Failure(
                "final", f"{how} and asks for a wait of {wait:,.0f} s, {longest}", answer
            )
        return Failure("passing", how, answer, wait, throttled=status == _TOO_MANY_REQUESTS)

    def beginning(self, content: bytes) -> str:
        """Return the beginning of an answer, without secrets, in quotes."""
        text = self.shown(content[:_MOST_LOOKED_AT].decode(errors="replace"))
        cut = f"{text[:MOST_SHOWN]}..." if len(text) > MOST_SHOWN else text
        return repr(cut) if cut else "an empty answer"

    def shown(self, text: str) -> str:
        """Return the service's text on one line, without secrets that it may have repeated."""
        parts = {part for value in self.headers.values() for part in (value, *value.split())}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= _FEWEST_CHARACTERS and part.lower() not in ("bearer", "basic", "token"):
                text = text.replace(part, "***")
        return " ".join(without_credentials(text).split())


def endpoint_of(section: ServiceConfig) -> Endpoint:
    """Build the endpoint with its headers, whose values come from this process's environment.

    Raises:
        ConfigError: a variable is not set, or its value is not valid in a header.
    """
    headers = {
        header: _header_value(header, variable, os.environ.get(variable))
        for header, variable in section.headers_from_environment.items()
    }
    return Endpoint(section, headers)


async def _content(response: httpx.Response, most: int) -> bytes | None:
    """Return the body, or None if it is longer than any valid answer."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > most:
            return None
    return bytes(content)


def _seconds_to_wait(text: str) -> float:
    """Return what `Retry-After` asks for: seconds, or a date (RFC 9110, section 10.2.3)."""
    if text.strip().isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    now = datetime.now(UTC)
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds())


def _header_value(header: str, variable: str, value: str | None) -> str:
    if value is None:
        raise ConfigError(
            f"headers_from_environment: {variable}, the value of the header {header}, is not set",
            "each variable is set in the environment of this command and of all nodes that score",
            f"set {variable} (in Kubernetes from a secret), or take {header} out",
        )
    if not (value and value.isascii() and value.isprintable() and value == value.strip()):
        raise ConfigError(
            f"headers_from_environment: {variable} holds a value that no "
            f"header may have: nothing, a line's end, "
            "spaces around it, or characters beyond ASCII",
            "the variable holds the whole value of the header, such as `Bearer ...`",
            f"set {variable} again: $(cat FILE) drops the line end of a file",
        )
    return value
