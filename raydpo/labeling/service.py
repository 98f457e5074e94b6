"""Send one request to a reward service, and interpret its answer.

Each completion gets a reward or a refusal, or the module says why the request failed. A request
is a POST of JSON, in one of two shapes:

    raydpo      {"prompts": [...], "completions": [...], "columns": {"answer": [...]}}
    openrlhf    {"query": [prompt + completion, ...], "prompts": [...], "labels": [...]}

OpenRLHF sends the second to its remote reward models (`openrlhf/utils/agent.py`,
`_fetch_rewards_via_http`, and `openrlhf/cli/serve_rm.py` at commit 3c3be62); without a column of
labels, its labels are empty. `columns` are there where the configuration names some. A service answers both with {"rewards": [...]}, a number for each
completion; raydpo ignores other keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, assert_never, cast

import httpx

from raydpo.config.http import HttpConfig
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import ConfigError, said_by
from raydpo.labeling.rewards import Refusal


class Row(NamedTuple):
    """A prompt and its completion, with the columns of the data that are sent beside them."""

    prompt: str
    completion: str
    columns: Mapping[str, Any] = MappingProxyType({})


#: Maximum bytes of an answer: a base, and an allowance for each reward in it.
_MOST_BYTES: Final = 1 << 20
_MOST_BYTES_PER_REWARD: Final = 1 << 12
#: Characters of an answer that a reason may quote.
_MOST_SHOWN: Final = 200
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
class Service:
    """A service as one worker calls it.

    Attributes:
        http: the service's section.
        headers: the headers of every request, including secrets; never shown.
    """

    http: HttpConfig
    headers: dict[str, str]

    def __repr__(self) -> str:
        """Return the text form without the headers."""
        return f"Service({self.http.url!r})"

    @property
    def name(self) -> str:
        """The service's name in messages."""
        return f"reward service {without_credentials(self.http.url)}"

    async def ask(
        self, client: httpx.AsyncClient, rows: Sequence[Row]
    ) -> list[float | Refusal] | Failure:
        """Send one request; the result has the order of the rows."""
        body = _request(self.http, rows)
        # The same rows form the same request, whenever they are sent again.
        own = {"Content-Type": "application/json", "Accept": "application/json"}
        own["Idempotency-Key"] = hashlib.sha256(body).hexdigest()
        most = _MOST_BYTES + _MOST_BYTES_PER_REWARD * len(rows)
        seconds = self.http.timeout_seconds
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream(
                    "POST", self.http.url, content=body, headers={**self.headers, **own}
                ) as response,
            ):
                content = await _content(response, most)
        except (TimeoutError, httpx.TimeoutException):
            return Failure("passing", f"gave no answer in {seconds:g} s (timeout_seconds)")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            said = self._shown(f"{type(error).__name__}, {said_by(error)}")
            return Failure("passing", f"could not be reached, or broke off ({said})")
        if not response.is_success:
            return self._refused(response, content)
        if content is None:
            return Failure("passing", f"sent an answer of more than {most:,} bytes")
        try:
            return rewards_in(content, len(rows))
        except ValueError as error:
            how = f"answered {response.status_code} with {error}"
            return Failure("passing", how, self._beginning(content))

    def _refused(self, response: httpx.Response, content: bytes | None) -> Failure:
        status = response.status_code
        how = f"answered {status} {response.reason_phrase}".rstrip()
        answer = self._beginning(content or b"")
        if response.has_redirect_location:
            target = self._shown(str(response.headers["location"]))
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

    def _beginning(self, content: bytes) -> str:
        text = self._shown(content[:_MOST_LOOKED_AT].decode(errors="replace"))
        cut = f"{text[:_MOST_SHOWN]}..." if len(text) > _MOST_SHOWN else text
        return repr(cut) if cut else "an empty answer"

    def _shown(self, text: str) -> str:
        """Return the service's text on one line, without secrets that it may have repeated."""
        parts = {part for value in self.headers.values() for part in (value, *value.split())}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= _FEWEST_CHARACTERS and part.lower() not in ("bearer", "basic", "token"):
                text = text.replace(part, "***")
        return " ".join(without_credentials(text).split())


def service_of(http: HttpConfig) -> Service:
    """Build the service with its headers, whose values come from this process's environment.

    Raises:
        ConfigError: a variable is not set, or its value is not valid in a header.
    """
    headers = {
        header: _header_value(header, variable, os.environ.get(variable))
        for header, variable in http.headers_from_environment.items()
    }
    return Service(http, headers)


def rewards_in(content: bytes, count: int) -> list[float | Refusal]:
    """Return the rewards of an answer; each value that is not a finite number is refused.

    Args:
        content: the answer's body.
        count: how many completions were sent.

    Raises:
        ValueError: it is not an answer to this many completions; the message says what it is.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("what is no JSON") from None
    rewards = cast("dict[str, Any]", answer).get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        raise ValueError("JSON that is no object with a list `rewards`")
    found = cast("list[object]", rewards)
    if len(found) != count:
        raise ValueError(f"{len(found)} rewards for {count} completions")
    return [_reward(value) for value in found]


def _reward(value: object) -> float | Refusal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = json.dumps(value)
        if len(shown) > _MOST_SHOWN:
            shown = shown[:_MOST_SHOWN] + "..."
        return Refusal(f"the reward service answered {shown}, not a number")
    try:
        reward = float(value)
    except OverflowError:
        reward = math.inf
    return reward if math.isfinite(reward) else Refusal(f"the reward service answered {reward}")


def _request(http: HttpConfig, rows: Sequence[Row]) -> bytes:
    prompts = [row.prompt for row in rows]
    columns = {name: [row.columns.get(name) for row in rows] for name in http.columns}
    request: dict[str, Any]
    match http.shape:
        case "raydpo":
            request = {"prompts": prompts, "completions": [row.completion for row in rows]}
            if columns:
                request["columns"] = columns
        case "openrlhf":
            [labels] = columns.values() or [[None] * len(rows)]
            texts = ["" if label is None else str(label) for label in labels]
            queries = [row.prompt + row.completion for row in rows]
            request = {"query": queries, "prompts": prompts, "labels": texts}
        case _:
            assert_never(http.shape)
    return json.dumps(request).encode()


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
