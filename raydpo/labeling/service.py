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

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, assert_never, cast

import httpx

from raydpo.config.http import HttpConfig
from raydpo.labeling.exchange import MOST_SHOWN, Endpoint, Failure, endpoint_of
from raydpo.labeling.rewards import Refusal


class Row(NamedTuple):
    """A prompt and its completion, with the columns of the data that are sent beside them."""

    prompt: str
    completion: str
    columns: Mapping[str, Any] = MappingProxyType({})


#: raydpo's own row, which distinguishes a service that is down from one that fails on some rows.
PROBE: Final = Row("A prompt.", " A completion.")
#: Maximum bytes of an answer: a base, and an allowance for each reward in it.
_MOST_BYTES: Final = 1 << 20
_MOST_BYTES_PER_REWARD: Final = 1 << 12
#: The answer that a service must give.
OWED_BY_SERVICES: Final = (
    'a reward service answers each request with status 200 and {"rewards": [...]}, a number for '
    "each completion; what fails for a while is tried again"
)


@dataclass(frozen=True)
class Service:
    """A reward service as one worker calls it."""

    http: HttpConfig
    endpoint: Endpoint
    probe: Row = PROBE
    owed: str = OWED_BY_SERVICES
    unit: str = "completions"

    @property
    def limits(self) -> HttpConfig:
        """The limits of its requests."""
        return self.http

    @property
    def name(self) -> str:
        """The service's name in messages."""
        return f"reward service {self.endpoint.address}"

    async def ask(
        self, client: httpx.AsyncClient, rows: Sequence[Row]
    ) -> list[float | Refusal] | Failure:
        """Send one request; the result has the order of the rows."""
        most = _MOST_BYTES + _MOST_BYTES_PER_REWARD * len(rows)
        answer = await self.endpoint.post(client, _request(self.http, rows), most)
        if isinstance(answer, Failure):
            return answer
        status, content = answer
        try:
            return rewards_in(content, len(rows))
        except ValueError as error:
            how = f"answered {status} with {error}"
            return Failure("passing", how, self.endpoint.beginning(content))


def service_of(http: HttpConfig) -> Service:
    """Build the service with its headers, whose values come from this process's environment.

    Raises:
        ConfigError: a variable is not set, or its value is not valid in a header.
    """
    return Service(http, endpoint_of(http))


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
        if len(shown) > MOST_SHOWN:
            shown = shown[:MOST_SHOWN] + "..."
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
