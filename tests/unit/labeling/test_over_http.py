"""Rewards over HTTP: raydpo retries failures, refuses a failing row alone, and loses nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from raydpo.config.http import HttpConfig
from raydpo.core.errors import ConfigError, ServiceError
from raydpo.labeling import asking
from raydpo.labeling.over_http import judge_over_http, probe
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.service import PROBE, Row, rewards_in
from tests.unit.labeling.reward_server import Answer, Plan, Service, reward_of, reward_service

COUNT = 60
PROMPTS = [f"the film {'x' * (i % 5)}" for i in range(COUNT)]
COMPLETIONS = [f"was good {'!' * i}" for i in range(COUNT)]
POISONED = 37
SECRET = "Bearer CaNaRy-0123456789"
OK = Answer()

#: What goes wrong for a while, or for one row.
FAULTS = {
    "500": Answer(500, b"Traceback: boom"),
    "503": Answer(503, b""),
    "429": Answer(429, b"slow down", headers={"Retry-After": "0"}),
    "408": Answer(408, b"late"),
    "no answer in time": Answer(seconds=1.8),
    "no connection": Answer(drop=True),
    "no JSON": Answer(200, b"<html>busy</html>"),
    "no object": Answer(200, b"[1.0]"),
    "too few": Answer(change=lambda rewards: rewards[:-1]),
    "too many": Answer(change=lambda rewards: [*rewards, 0.0]),
    "NaN": Answer(change=lambda rewards: [float("nan"), *rewards[1:]]),
    "infinite": Answer(change=lambda rewards: [*rewards[:-1], float("inf")]),
    "null": Answer(change=lambda rewards: [None, *rewards[1:]]),
    "text": Answer(change=lambda rewards: [str(rewards[0]), *rewards[1:]]),
    "true": Answer(change=lambda rewards: [True, *rewards[1:]]),
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT_SECONDS", 0.002)


def judged(service: Service, completions: list[str] = COMPLETIONS, **changes: object) -> Judged:
    values = {"url": service.url, "timeout_seconds": 1.2, **changes}
    return judge_over_http(
        HttpConfig.model_validate(values), 8, PROMPTS[: len(completions)], completions
    )


def refusals(found: Judged, completions: list[str] = COMPLETIONS) -> dict[int, str]:
    """Reasons by number of the row; all others have what an undisturbed service gives."""
    assert len(found.values) == len(completions)
    refused = {i: v.reason for i, v in enumerate(found.values) if isinstance(v, Refusal)}
    for index, value in enumerate(found.values):
        if index not in refused:
            assert value == reward_of(PROMPTS[index], completions[index])
    return refused


def singles(service: Service) -> list[str]:
    """The completions of requests for one row."""
    return [texts[0] for texts in service.completions() if len(texts) == 1]


def on_poison(poisoned: Answer) -> tuple[Plan, list[str]]:
    """A plan that answers so whenever one row is in the batch, and the completions with it."""
    completions = [*COMPLETIONS]
    completions[POISONED] += " poison"

    def plan(_number: int, texts: list[str]) -> Answer:
        return poisoned if any("poison" in text for text in texts) else OK

    return plan, completions


def test_batches_are_bounded_in_size_and_in_number_at_once() -> None:
    with reward_service(lambda _n, _c: Answer(seconds=0.5)) as service:
        assert refusals(judged(service, max_concurrent_requests=3)) == {}
    # The last requests are under way together, and arrive in any order.
    assert sorted(len(batch) for batch in service.completions()) == [4] + [8] * 7
    assert service.most_at_once == 3
    assert {headers["content-type"] for headers in service.headers} == {"application/json"}


@pytest.mark.thorough
def test_with_a_fifth_of_the_requests_failing_the_scores_are_those_without_faults(caplog) -> None:
    draw = random.Random(7)
    kinds = itertools.cycle(FAULTS)
    seen: list[str] = []

    def plan(_number: int, _texts: list[str]) -> Answer:
        if draw.random() >= 0.2:
            return OK
        seen.append(next(kinds))
        return FAULTS[seen[-1]]

    with reward_service(plan) as service:
        for _ in range(8):
            assert refusals(judged(service)) == {}
    assert set(seen) == set(FAULTS)
    assert 0.1 < len(seen) / len(service.requests) < 0.3
    assert "was good" not in caplog.text


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "answered 500 Internal Server Error: 'Traceback: boom'"),
        ("503", "answered 503 Service Unavailable: an empty answer"),
        ("no JSON", "answered 200 with what is no JSON: '<html>busy</html>'"),
        ("too few", "answered 200 with 0 rewards for 1 completions: '{\"rewards\": []}'"),
        pytest.param(
            "no answer in time",
            "gave no answer in 1.2 s (timeout_seconds)",
            marks=pytest.mark.thorough,
        ),
        ("no connection", "could not be reached, or broke off (RemoteProtocolError"),
    ],
)
def test_a_poisoned_row_alone_is_refused_with_the_last_answer(fault: str, said: str) -> None:
    plan, completions = on_poison(FAULTS[fault])
    with reward_service(plan) as service:
        found = refusals(judged(service, completions, max_attempts=2), completions)
    assert found.keys() == {POISONED}
    assert found[POISONED].startswith(f"the reward service {service.url} {said}")
    assert found[POISONED].endswith(", alone and in 2 of 2 attempts")
    assert len(service.requests) < 45


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), [0.5]])
def test_a_row_whose_reward_is_no_number_is_refused_and_no_other(value: object) -> None:
    completions = [*COMPLETIONS]
    completions[POISONED] += " poison"

    def plan(_number: int, texts: list[str]) -> Answer:
        at = [index for index, text in enumerate(texts) if "poison" in text]
        return Answer(change=lambda given: [value if i in at else r for i, r in enumerate(given)])

    with reward_service(plan) as service:
        found = refusals(judged(service, completions, max_attempts=3), completions)
    assert found.keys() == {POISONED}
    assert found[POISONED].startswith("the reward service answered ")
    assert [len(texts) for texts in service.completions()].count(1) == 2, "it alone, twice more"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_the_service_refuses_is_not_sent_again_and_again(status: int) -> None:
    plan, completions = on_poison(Answer(status, b'{"detail": "too long"}'))
    with reward_service(plan) as service:
        found = refusals(judged(service, completions), completions)
    assert found.keys() == {POISONED}
    assert f"answered {status} " in found[POISONED]
    assert "too long" in found[POISONED]
    assert len(service.requests) == 8 + 2 * 3, "three halvings, and both of the last alone"


@pytest.mark.thorough
def test_a_row_that_kills_the_service_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Six attempts wait for at least 0.6 s, and each death takes the service away for 0.05 s.
    monkeypatch.setattr(asking, "_FIRST_WAIT_SECONDS", 0.04)
    killers = (3, POISONED, 40)
    completions = [f"{text} kills" if i in killers else text for i, text in enumerate(COMPLETIONS)]
    down_until = [0.0]
    beside: list[int] = []

    def plan(_number: int, texts: list[str]) -> Answer:
        if len(texts) == 1:
            beside.append(service.at_once - 1)
        if time.monotonic() < down_until[0]:
            return Answer(drop=True)
        if any("kills" in text for text in texts):
            down_until[0] = time.monotonic() + 0.05
            return Answer(drop=True, seconds=0.02)
        return Answer(seconds=0.02)

    with reward_service(plan) as service:
        found = refusals(judged(service, completions, max_attempts=6), completions)
    assert found.keys() == set(killers)
    for index, reason in found.items():
        assert reason.endswith("alone and in 6 of 6 attempts")
        assert service.completions().count([completions[index]]) == 6
    alone = zip(beside, singles(service), strict=True)
    assert {count for count, text in alone if text != PROBE[1]} == {0}


def test_a_service_that_is_not_there_ends_the_run_and_refuses_no_row(caplog) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on it
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
        with caplog.at_level(logging.WARNING, "raydpo"), pytest.raises(ServiceError) as ended:
            judged(Service(url), max_attempts=4)
    assert f"reward service {url} could not be reached" in ended.value.value
    assert "it answered no other row in 4 attempts, either" in ended.value.value
    assert "3 of 4 attempts in 0 s, the next in 0 s" in caplog.text


@pytest.mark.parametrize("fault", ["500", "no JSON", "no answer in time"])
def test_a_service_that_answers_nothing_ends_the_run_and_refuses_no_row(fault: str) -> None:
    with (
        reward_service(lambda _n, _c: FAULTS[fault]) as service,
        pytest.raises(ServiceError, match="it answered no other row in 2 attempts, either"),
    ):
        judged(service, COMPLETIONS[:16], max_attempts=2)
    assert len(service.requests) <= 2 * 2 * 2, "each of 2 batches, and a row of our own for it"
    assert [PROBE[1]] in service.completions()


def test_a_service_that_fails_on_all_rows_and_answers_ours_ends_the_run() -> None:
    def plan(_number: int, texts: list[str]) -> Answer:
        return OK if texts == [PROBE[1]] else FAULTS["500"]

    with reward_service(plan) as service, pytest.raises(ServiceError) as ended:
        judged(service, COMPLETIONS[:16], max_attempts=1)
    assert "answered 500 Internal Server Error: 'Traceback: boom'" in ended.value.value
    assert "and so for each of 4 completions" in ended.value.value


@pytest.mark.thorough
def test_what_the_service_asks_to_wait_is_waited() -> None:
    times: list[float] = []

    def plan(number: int, _texts: list[str]) -> Answer:
        times.append(time.monotonic())
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        asked = ["1", later, "soon"][number : number + 1]
        return Answer(429, headers={"Retry-After": asked[0]}) if asked else OK

    with reward_service(plan) as service:
        assert refusals(judged(service, COMPLETIONS[:4]), COMPLETIONS[:4]) == {}
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[0] >= 1
    assert waits[1] > 0.9, "a date is of whole seconds"
    assert waits[2] < 0.9


def test_too_many_requests_without_end_are_no_row_s_fault() -> None:
    with (
        reward_service(lambda _n, _c: FAULTS["429"]) as service,
        pytest.raises(ServiceError, match=r"answered 429 .*in all attempts") as ended,
    ):
        judged(service, max_attempts=3)
    assert "max_concurrent_requests" in ended.value.way_out
    assert len(service.requests) <= 8 * 3, "no batch is halved"


@pytest.mark.thorough
def test_a_throttled_half_or_row_is_sent_again() -> None:
    poison, completions = on_poison(FAULTS["500"])

    draw = random.Random(7)

    def plan(number: int, texts: list[str]) -> Answer:
        throttled = len(texts) < 8 and draw.random() < 0.4
        return FAULTS["429"] if throttled else poison(number, texts)

    with reward_service(plan) as service:
        found = refusals(judged(service, completions), completions)
    assert found.keys() == {POISONED}


def test_a_wait_of_hours_ends_the_run_at_once() -> None:
    answer = Answer(503, headers={"Retry-After": "7200"})
    with (
        reward_service(lambda _n, _c: answer) as service,
        pytest.raises(ServiceError, match="asks for a wait of 7,200 s"),
    ):
        judged(service, max_concurrent_requests=1)
    assert len(service.requests) == 1


@pytest.mark.thorough
def test_an_answer_that_drips_is_not_waited_for_without_end() -> None:
    begun = time.monotonic()
    with (
        reward_service(lambda _n, _c: Answer(drip_seconds=0.5)) as service,
        pytest.raises(ServiceError, match=r"gave no answer in 1\.2 s"),
    ):
        judged(service, COMPLETIONS[:8], max_attempts=1)
    assert time.monotonic() - begun < 60


def test_an_answer_without_end_is_not_kept() -> None:
    answer = Answer(body=b" " * (2 << 20))
    with (
        reward_service(lambda _n, _c: answer) as service,
        pytest.raises(ServiceError, match=r"sent an answer of more than 1,\d\d\d,\d\d\d bytes"),
    ):
        judged(service, COMPLETIONS[:1], max_attempts=1, timeout_seconds=5)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_service_that_is_asked_wrongly_ends_the_run_without_the_secret(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("REWARD_HEADER", SECRET)
    echo = Answer(status, f"no such {SECRET.split()[1]} here".encode())
    with (
        caplog.at_level(logging.DEBUG),
        reward_service(lambda _n, _c: echo) as service,
        pytest.raises(ServiceError) as ended,
    ):
        judged(
            service,
            max_concurrent_requests=1,
            headers_from_environment={"Authorization": "REWARD_HEADER"},
        )
    assert len(service.requests) == 1
    assert service.headers[0]["authorization"] == SECRET
    assert f"answered {status} " in ended.value.value
    assert "no such *** here" in ended.value.value
    assert "CaNaRy" not in str(ended.value) + caplog.text


def test_a_redirect_takes_the_secret_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_HEADER", SECRET)
    with reward_service() as other:
        away = Answer(307, headers={"Location": other.url})
        with (
            reward_service(lambda _n, _c: away) as service,
            pytest.raises(ServiceError, match=r"a redirect to http://127.* which is not followed"),
        ):
            judged(service, headers_from_environment={"X-Api-Key": "REWARD_HEADER"})
    assert other.requests == []


@pytest.mark.parametrize("value", [None, "", "two\nlines", "ends \n", "ünicode"])
def test_a_header_s_variable_is_set_to_what_a_header_may_be(value, monkeypatch) -> None:
    if value is not None:
        monkeypatch.setenv("REWARD_HEADER", value)
    with reward_service() as service, pytest.raises(ConfigError, match="REWARD_HEADER") as refused:
        judged(service, headers_from_environment={"X-Api-Key": "REWARD_HEADER"})
    assert service.requests == []
    assert not value or value.strip() not in str(refused.value)


def test_the_same_rows_are_the_same_request() -> None:
    with reward_service(lambda number, _c: FAULTS["500"] if number < 2 else OK) as service:
        judged(service, COMPLETIONS[:8])
        judged(service, COMPLETIONS[8:16])
    keys = [headers["idempotency-key"] for headers in service.headers]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_openrlhf_s_shape_is_spoken() -> None:
    with reward_service() as service:
        judged(service, COMPLETIONS[:2], shape="openrlhf")
    queries = [p + c for p, c in zip(PROMPTS[:2], COMPLETIONS[:2], strict=True)]
    (request,) = service.requests
    assert request == {"query": queries, "prompts": PROMPTS[:2], "labels": ["", ""]}


MORE = {"answer": ["a", None], "level": [1, 2], "completion_ids": [[1], [2]]}


def test_a_service_gets_the_columns_that_the_configuration_names() -> None:
    with reward_service() as service:
        http = HttpConfig(url=service.url, columns=("answer", "absent"))
        judge_over_http(http, 8, PROMPTS[:2], COMPLETIONS[:2], MORE)
        (request,) = service.requests
    assert request["columns"] == {"answer": ["a", None], "absent": [None, None]}
    assert request["prompts"] == PROMPTS[:2]


def test_openrlhf_s_labels_are_the_column_that_the_configuration_names() -> None:
    with reward_service() as service:
        http = HttpConfig(url=service.url, shape="openrlhf", columns=("answer",))
        judge_over_http(http, 8, PROMPTS[:2], COMPLETIONS[:2], MORE)
        (request,) = service.requests
    assert request["labels"] == ["a", ""]
    with pytest.raises(ValueError, match="holds one column"):
        HttpConfig(url="http://a", shape="openrlhf", columns=("answer", "level"))


def test_a_cell_of_a_notebook_where_a_loop_runs_asks_a_service() -> None:
    async def cell() -> tuple[Judged, list[float | Refusal]]:
        rows = list(map(Row, PROMPTS[:2], COMPLETIONS[:2]))
        return judged(service), probe(HttpConfig(url=service.url), rows, 1)

    with reward_service() as service:
        found, first = asyncio.run(cell())
    assert refusals(found) == {}
    assert first == found.values[:2]


def test_a_part_without_rows_asks_for_nothing() -> None:
    assert judge_over_http(HttpConfig(url="http://127.0.0.1:1/"), 8, [], []).values == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"rewards": 1' + b"0" * 5000 + b"}", "no JSON"),
        (b"[1, 2]", "no object"),
        (b'{"scores": [1, 2]}', "no object"),
        (b'{"rewards": {"0": 1, "1": 2}}', "no object"),
        (b'{"rewards": "12"}', "no object"),
        (b'{"rewards": [1]}', "1 rewards for 2 completions"),
    ],
)
def test_an_answer_of_another_form_is_none(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rewards_in(content, 2)


@pytest.mark.parametrize(
    "value", ["null", "true", '"0.5"', "[0.5]", "{}", "NaN", "Infinity", "1e999", "1" + "0" * 400]
)
def test_a_value_that_is_no_finite_number_is_refused_by_itself(value: str) -> None:
    first, second = rewards_in(f'{{"rewards": [{value}, -2], "other": 1}}'.encode(), 2)
    assert isinstance(first, Refusal)
    assert second == -2.0


def test_the_service_of_the_documentation_answers(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reward-services.md").read_text(encoding="utf-8")
    source = page.partition("```python\n")[2].partition("```")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert source.count("8000") == 1
    (tmp_path / "service.py").write_text(source.replace("8000", str(port)))
    with subprocess.Popen(
        [sys.executable, tmp_path / "service.py"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            http = HttpConfig(url=f"http://127.0.0.1:{port}/", max_attempts=40)
            found = judge_over_http(http, 8, PROMPTS, COMPLETIONS)
        finally:
            process.kill()
    assert found.values == [-len(text) for text in COMPLETIONS]
