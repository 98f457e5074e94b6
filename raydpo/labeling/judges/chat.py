"""Ask a judge one question over OpenAI's chat completions, unless the run has the answer already.

The request is a POST of JSON with `model`, `messages` and `response_format`, whose JSON schema the
service enforces. The answer is in `choices[0].message.content`, its tokens are in `usage`
(OpenAI's API reference, "Create chat completion"; vLLM's server has the same).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import httpx

from raydpo.config.judges import JudgeMember
from raydpo.core.storage import canonical_json
from raydpo.labeling.exchange import Endpoint, Failure
from raydpo.labeling.judges.kept import KeptAnswers, Ledger
from raydpo.labeling.judges.replies import Form, Reply
from raydpo.labeling.rewards import Refusal

_MOST_BYTES: Final = 1 << 22
_OWED: Final = (
    "a judge answers with status 200 and a chat completion whose content is the JSON that the "
    "request's `response_format` demands; what fails for a while is tried again"
)


class Question(NamedTuple):
    """A question, and whether it is asked although its answer is known."""

    text: str
    again: bool = False


#: raydpo's own question, which distinguishes a judge that is down from one that fails on some.
PROBE: Final = Question("Are you there? Give any answer that the schema allows.", again=True)


@dataclass
class ChatJudge:
    """A member of a panel as one worker asks it.

    Attributes:
        member: its section.
        endpoint: its address and headers.
        form: the form of its answers.
        kept: the answers that the run has already.
        ledger: what was spent.
        identity: what the answers of a model that is served here depend on; else empty.
        from_run: how many answers were there already.
        requests: how many requests this object has sent.
    """

    member: JudgeMember
    endpoint: Endpoint
    form: Form
    kept: KeptAnswers
    ledger: Ledger
    identity: str = ""
    from_run: int = 0
    requests: int = 0
    probe: Question = PROBE
    owed: str = _OWED
    unit: str = "questions"
    _under_way: dict[str, asyncio.Task[list[Reply | Refusal] | Failure]] = field(
        default_factory=dict[str, asyncio.Task[list[Reply | Refusal] | Failure]]
    )

    @property
    def limits(self) -> JudgeMember:
        """The limits of its requests."""
        return self.member

    @property
    def name(self) -> str:
        """The judge's name in messages."""
        return f"judge {self.member.model} at {self.endpoint.address}"

    async def ask(
        self, client: httpx.AsyncClient, rows: Sequence[Question]
    ) -> list[Reply | Refusal] | Failure:
        """Return the answer to one question.

        Raises:
            BudgetError: the budget is spent.
        """
        [question] = rows
        body = self._body(question.text)
        key = self._key(body)
        if not question.again:
            known = await asyncio.to_thread(self.kept.get, key)
            if known is not None:
                self.from_run += 1
                return [self._reply(known)]
        task = self._under_way.get(key)
        if task is None:
            self.ledger.reserve()
            self.requests += 1
            task = asyncio.create_task(self._exchange(client, body, key))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # What is under way is paid for, so its answer is kept even if the run stops meanwhile.
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait for the answers that are under way, and write what was spent."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await asyncio.to_thread(self.ledger.write)

    async def _exchange(
        self, client: httpx.AsyncClient, body: bytes, key: str
    ) -> list[Reply | Refusal] | Failure:
        answer = await self.endpoint.post(client, body, _MOST_BYTES)
        if isinstance(answer, Failure):
            return answer
        _, content = answer
        try:
            found = _completion(content)
        except ValueError as error:
            return Failure(
                "passing", f"answered 200 with {error}", self.endpoint.beginning(content)
            )
        if self._needs_usage and not found["usage"]:
            return Failure(
                "final", "does not count its tokens (`usage`), which the budget is made of"
            )
        self.ledger.add(self.member, found["prompt_tokens"], found["completion_tokens"])
        await asyncio.to_thread(self.ledger.write)
        try:
            reply = self._reply(found)
        except ValueError as error:
            said = self.endpoint.beginning((found["content"] or "").encode())
            return [Refusal(f"the judge {self.member.model} answered with {error}: {said}")]
        await asyncio.to_thread(self.kept.put, key, found)
        return [reply]

    @property
    def _needs_usage(self) -> bool:
        budget = self.ledger.budget
        return budget is not None and (budget.max_tokens or budget.max_cost) is not None

    def _reply(self, found: dict[str, Any]) -> Reply:
        """Read a completion.

        Raises:
            ValueError: it was cut, or is not what the schema demands.
        """
        if found["content"] is None:
            raise ValueError("a refusal" if found["refusal"] else "no content")
        if found["finish_reason"] == "length":
            limit = self.member.max_completion_tokens
            raise ValueError(f"more than max_completion_tokens ({limit})")
        value, rationale = self.form.read(found["content"])
        return Reply(value, rationale, found["prompt_tokens"], found["completion_tokens"])

    def _body(self, text: str) -> bytes:
        schema = {"name": "judgement", "strict": True, "schema": self.form.schema()}
        request: dict[str, Any] = {
            "model": self.member.model,
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": self.member.max_completion_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        if self.member.temperature is not None:
            request["temperature"] = self.member.temperature
        return json.dumps(request).encode()

    def _key(self, body: bytes) -> str:
        """Return the hash of a request: where it goes, and its content."""
        own = [self.identity] if self.identity else []
        where = canonical_json([self.member.url, self.member.version, *own])
        return hashlib.sha256(where + b"\n" + body).hexdigest()


def _completion(content: bytes) -> dict[str, Any]:
    """Return what raydpo reads of a chat completion; a JSON value.

    Raises:
        ValueError: it is no chat completion.
    """
    try:
        answer = json.loads(content)
        choice = cast("dict[str, Any]", answer["choices"][0])
        message = cast("dict[str, Any]", choice["message"])
        text = message.get("content")
    except (ValueError, RecursionError):
        raise ValueError("what is no JSON") from None
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("JSON that is no chat completion") from None
    if text is not None and not isinstance(text, str):
        raise ValueError("a chat completion whose content is no text")
    usage = answer.get("usage")
    counted: dict[str, Any] = usage if isinstance(usage, dict) else {}
    tokens = {name: counted.get(name) for name in ("prompt_tokens", "completion_tokens")}
    whole = all(type(value) is int and value >= 0 for value in tokens.values())
    return {
        "content": text,
        "refusal": bool(message.get("refusal")),
        "finish_reason": choice.get("finish_reason"),
        "usage": whole,
        **(tokens if whole else dict.fromkeys(tokens, 0)),
    }
