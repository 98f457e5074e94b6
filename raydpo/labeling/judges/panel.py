"""Ask the members of a panel any number of questions at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from math import fsum
from typing import Final

from raydpo.config.judges import JudgeConfig
from raydpo.core.judge_costs import COST
from raydpo.labeling.asking import Questions, client_of
from raydpo.labeling.exchange import Endpoint, endpoint_of
from raydpo.labeling.judges.chat import ChatJudge, Question
from raydpo.labeling.judges.kept import KeptAnswers, Ledger
from raydpo.labeling.judges.replies import Reply, form_of
from raydpo.labeling.judges.rubric import Rubric, rubric_of
from raydpo.labeling.judges.served import Server, identity_of, start_server
from raydpo.labeling.rewards import Refusal

#: Beginnings of counts in a manifest; the name of the reward follows.
REPLIES: Final = "judge_replies_for_"
FROM_RUN: Final = "judge_replies_from_run_for_"
REQUESTS: Final = "judge_requests_for_"
PROMPT_TOKENS: Final = "judge_prompt_tokens_for_"
COMPLETION_TOKENS: Final = "judge_completion_tokens_for_"


@dataclass(frozen=True)
class Bench:
    """What a worker needs to ask a judge.

    Attributes:
        judge: its section.
        scorer: its name in the scores table.
        rubric: what it is asked.
        endpoints: address and headers of each member.
        identities: for each member that is served here, what its answers depend on; else empty.
        servers: those that run for this judge.
        kept: the answers that the run has already.
        ledger: what it has spent.
    """

    judge: JudgeConfig
    scorer: str
    rubric: Rubric
    endpoints: tuple[Endpoint, ...]
    identities: tuple[str, ...]
    servers: tuple[Server, ...]
    kept: KeptAnswers
    ledger: Ledger

    @property
    def names(self) -> list[str]:
        """The members' names in counts: the reward's name, with the model's in a panel."""
        members = self.judge.members
        if len(members) == 1:
            return [self.scorer]
        models = [member.model for member in members]
        several = [models.count(model) > 1 for model in models]
        return [
            f"{self.scorer}/{model}" + (f"/{number + 1}" if more else "")
            for number, (model, more) in enumerate(zip(models, several, strict=True))
        ]


def bench_of(judge: JudgeConfig, scorer: str, kept: KeptAnswers) -> Bench:
    """Prepare a judge; models that raydpo serves are started.

    Raises:
        ConfigError: its rubric cannot be used, or a variable of a header is not set.
        ModelError: a model cannot be served.
    """
    rubric = rubric_of(judge)
    ledger = Ledger(scorer, judge.budget, kept.folder if kept.writes else None)
    endpoints: list[Endpoint] = []
    servers: list[Server] = []
    for member in judge.members:
        if member.served is None:
            endpoints.append(endpoint_of(member))
            continue
        server = start_server(member.served, member.model)
        servers.append(server)
        there = member.model_copy(update={"url": server.url})
        endpoints.append(Endpoint(there, server.headers))
    identities = tuple(
        identity_of(member.served) if member.served else "" for member in judge.members
    )
    return Bench(judge, scorer, rubric, tuple(endpoints), identities, tuple(servers), kept, ledger)


@dataclass
class Panel:
    """The members of a panel while questions are asked; use `open_panel`."""

    bench: Bench
    judges: list[ChatJudge]
    questions: list[Questions[Question, Reply]]

    async def replies(self, text: str) -> list[Reply | Refusal]:
        """Return each member's answer to a question.

        Raises:
            ServiceError, BudgetError: the run cannot go on.
        """
        return list(await asyncio.gather(*(self._reply(of, text) for of in self.questions)))

    async def _reply(self, questions: Questions[Question, Reply], text: str) -> Reply | Refusal:
        index = len(questions.rows)
        questions.rows.append(Question(text))
        await questions.judge([index], questions.service.limits.max_attempts)
        return questions.values[index]

    def counts(self) -> dict[str, int]:
        """Return the counts of requests, answers and tokens, for a manifest."""
        replies = [
            value
            for questions in self.questions
            for value in questions.values.values()
            if isinstance(value, Reply)
        ]
        scorer = self.bench.scorer
        return {
            f"{REPLIES}{scorer}": len(replies),
            f"{FROM_RUN}{scorer}": sum(judge.from_run for judge in self.judges),
            f"{REQUESTS}{scorer}": sum(judge.requests for judge in self.judges),
            f"{PROMPT_TOKENS}{scorer}": sum(reply.prompt_tokens for reply in replies),
            f"{COMPLETION_TOKENS}{scorer}": sum(reply.completion_tokens for reply in replies),
        }

    def sums(self) -> dict[str, float]:
        """Return what the answers cost, for a manifest; nothing if no judge has prices."""
        costs = [
            judge.member.cost(reply.prompt_tokens, reply.completion_tokens)
            for judge, questions in zip(self.judges, self.questions, strict=True)
            for reply in questions.values.values()
            if isinstance(reply, Reply)
        ]
        priced = any(member.is_priced for member in self.bench.judge.members)
        return {f"{COST}{self.bench.scorer}": fsum(costs)} if priced else {}


@asynccontextmanager
async def open_panel(bench: Bench) -> AsyncGenerator[Panel]:
    """Yield the panel with its connections; answers under way at the end are waited for."""
    judges = [
        ChatJudge(member, endpoint, form_of(bench.judge), bench.kept, bench.ledger, identity)
        for member, endpoint, identity in zip(
            bench.judge.members, bench.endpoints, bench.identities, strict=True
        )
    ]
    async with AsyncExitStack() as stack:
        questions: list[Questions[Question, Reply]] = []
        for judge in judges:
            client = await stack.enter_async_context(client_of(judge.endpoint.section))
            stack.push_async_callback(judge.finish)
            questions.append(Questions(judge, client, []))
        telling = [asyncio.create_task(of.tell_each_minute()) for of in questions]
        try:
            yield Panel(bench, judges, questions)
        finally:
            for task in telling:
                task.cancel()
