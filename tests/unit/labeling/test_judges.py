"""Judges: each completion gets a score or a refusal, nothing is asked twice, no bias stays."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from raydpo.config.judges import JudgeConfig
from raydpo.config.labeling import RewardConfig
from raydpo.core.errors import BudgetError, ConfigError, ServiceError
from raydpo.core.judge_costs import cost_lines
from raydpo.core.position_bias import position_bias
from raydpo.core.storage import Folder
from raydpo.labeling import asking
from raydpo.labeling.judges.kept import answers_folder
from raydpo.labeling.judges.replies import form_of
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.scorers import scorer_of
from tests.unit.labeling.judge_server import (
    FAULTS,
    JudgeServer,
    a_fifth_fails,
    judge_server,
)

QUALITIES = (1.0, 0.4, -0.2, -0.8)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT_SECONDS", 0.002)


def reward(server: JudgeServer, **changes: Any) -> RewardConfig:
    judge = {"url": server.url, "model": "planted", "rubric": "dialogue", **changes}
    return RewardConfig.model_validate({"judge": judge})


def judged(
    server: JudgeServer,
    completions: list[str],
    answers: Path | None = None,
    per_prompt: int = 1,
    more: dict[str, list[Any]] | None = None,
    **changes: Any,
) -> Judged:
    """What a judge gives for completions of which `per_prompt` each belong to a prompt."""
    folder = Folder(str(answers)) if answers is not None else None
    judge = scorer_of(reward(server, **changes)).load((), folder)
    prompts = [f"Question {n // per_prompt}?" for n in range(len(completions))]
    ids = [f"p{n // per_prompt}/{n % per_prompt}" for n in range(len(completions))]
    return judge(prompts, completions, {"candidate_ids": ids, **(more or {})})


def scores(server: JudgeServer, completions: list[str], **changes: Any) -> list[float | str]:
    """Scores, and the reasons of refusals."""
    found = judged(server, completions, **{"self_test": False, **changes})
    return [v.reason if isinstance(v, Refusal) else v for v in found.values]


def texts(count: int) -> list[str]:
    return [f"[q={1 + n % 9}] reply {n}" for n in range(count)]


def pairwise(prompts: int) -> list[str]:
    """Completions of four policies, of falling quality, for so many prompts."""
    return [f"[q={q}] reply to {p}" for p in range(prompts) for q in QUALITIES]


def test_a_pointwise_judge_scores_by_the_rubric_and_gives_its_reasons() -> None:
    with judge_server() as server:
        found = judged(server, texts(5), self_test=False)
    assert found.values == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [note.rationale for note in found.notes] == [f"because {n}" for n in range(1, 6)]
    [request] = [r for r in server.requests if "reply 3" in r["messages"][0]["content"]]
    assert "Question 3?" in request["messages"][0]["content"]
    assert request["temperature"] == 0
    demanded = request["response_format"]
    assert (demanded["type"], demanded["json_schema"]["strict"]) == ("json_schema", True)
    assert demanded["json_schema"]["schema"]["properties"]["score"]["enum"] == list(range(1, 11))
    assert demanded["json_schema"]["schema"]["additionalProperties"] is False
    assert found.counts["judge_prompt_tokens_for_planted"] == 500
    assert found.counts["judge_completion_tokens_for_planted"] == 100
    assert found.counts["judge_requests_for_planted"] == 5


def test_with_a_fifth_of_the_requests_failing_the_scores_are_those_without_faults() -> None:
    with judge_server(fails=a_fifth_fails()) as server:
        assert scores(server, texts(200)) == [1.0 + n % 9 for n in range(200)]
    failed = len(server.requests) - server.answered.total()
    assert 0.1 < failed / len(server.requests) < 0.3
    assert set(server.answered.values()) == {1}


def test_a_rationale_is_kept_whatever_its_characters_are(tmp_path: Path) -> None:
    odd = b'{"rationale": "line\\none\\ttwo\\u0000 \\ud800 end", "score": 3}'
    raw = '{"rationale": "a\x19 control character", "score": 4}'
    form = form_of(JudgeConfig(url="http://h/v1/chat/completions", model="m", rubric="summary"))
    assert form.read(odd.decode()) == (3, "line\none\ttwo\x00 ? end")
    assert form.read(raw) == (4, "a\x19 control character")


def test_the_length_of_a_rationale_is_a_part_of_the_schema() -> None:
    with judge_server() as server:
        found = scores(server, texts(2), max_rationale_characters=9, max_attempts=1)
        assert found == [1.0, 2.0]
        [schema] = {json.dumps(r["response_format"]["json_schema"]) for r in server.requests}
        assert json.loads(schema)["schema"]["properties"]["rationale"]["maxLength"] == 9
        found = scores(server, texts(1), max_rationale_characters=8, max_attempts=1)
    assert "a `rationale` of 9 characters" in str(found[0])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("prose", "answered with what is no JSON: 'The first one is better.'"),
        ("another key", "an object that has not just `rationale` and `score`"),
        ("one key more", "an object that has not just `rationale` and `score`"),
        ("out of range", "a `score` that is none of 1 to 10: "),
        ("a text", "a `score` that is none of 1 to 10: "),
        ("true", "a `score` that is none of 1 to 10: "),
        ("cut", "more than max_completion_tokens (1024)"),
        ("refused", "answered with a refusal"),
        ("500", "answered 500 Internal Server Error: 'boom', alone and in 3 of 3 attempts"),
        ("no choices", "answered 200 with JSON that is no chat completion"),
    ],
)
def test_an_answer_that_is_not_as_demanded_refuses_the_row_and_no_other(
    fault: str, said: str
) -> None:
    def fails(_number: int, question: str) -> Any:
        return FAULTS[fault] if "reply 3\n" in question else ""

    with judge_server(fails=fails) as server:
        found = scores(server, texts(6), max_attempts=3)
    assert found[:3] + found[4:] == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert isinstance(found[3], str)
    assert said in found[3]


def test_a_judge_that_refuses_the_schema_ends_the_run_and_refuses_no_row() -> None:
    fault = (400, b'{"error": "response_format is not supported"}')
    with (
        judge_server(fails=lambda _n, _q: fault) as server,
        pytest.raises(ServiceError, match="and so for each of 4 questions") as ended,
    ):
        judged(server, texts(8), self_test=False)
    assert "response_format is not supported" in ended.value.value


def test_secrets_come_from_the_environment_and_into_no_message(monkeypatch) -> None:
    headers = {"headers_from_environment": {"Authorization": "JUDGE_AUTHORIZATION"}}
    with judge_server() as server:
        with pytest.raises(ConfigError, match="JUDGE_AUTHORIZATION"):
            judged(server, texts(1), self_test=False, **headers)
        monkeypatch.setenv("JUDGE_AUTHORIZATION", "Bearer CaNaRy-0123456789")
        server.fails = lambda _n, _q: (401, b"no such key: CaNaRy-0123456789")
        with pytest.raises(ServiceError, match="no such key") as ended:
            judged(server, texts(1), self_test=False, **headers)
    assert server.headers[0]["authorization"] == "Bearer CaNaRy-0123456789"
    assert "CaNaRy" not in str(ended.value)


def test_both_orders_measure_the_position_bias_and_remove_it_despite_failures() -> None:
    completions = pairwise(60)
    with judge_server(bias=0.2, noise=0.5, fails=a_fifth_fails()) as server:
        found = judged(server, completions, per_prompt=4, mode="pairwise", max_attempts=12)
    assert not any(isinstance(value, Refusal) for value in found.values), "nothing is lost"
    bias = position_bias(found.counts, "planted")
    assert bias is not None
    assert bias.comparisons == 60 * 6
    assert bias.low < 0.2 < bias.high
    assert bias.low > 0.1
    # Contradictions come from the place alone: first with probability 0.2, in one of two orders.
    assert bias.inconsistent / bias.comparisons == pytest.approx(0.2, abs=0.06)
    values = [value for value in found.values if not isinstance(value, Refusal)]
    by_policy = [values[k::4] for k in range(4)]
    means = [fmean(of) for of in by_policy]
    margins = [1.96 * stdev(of) / len(of) ** 0.5 for of in by_policy]
    for better in range(3):
        assert means[better] - margins[better] > means[better + 1] + margins[better + 1]
    for value, note in zip(values, found.notes, strict=True):
        assert note.low is not None
        assert note.high is not None
        assert note.low < value < note.high


def test_a_bias_towards_the_first_gives_a_pair_of_equals_a_tie() -> None:
    with judge_server(bias=1.0) as server:
        found = judged(
            server, ["[q=1] a", "[q=1] b"], per_prompt=2, mode="pairwise", self_test=False
        )
    assert found.values == pytest.approx([0.0, 0.0])
    bias = position_bias(found.counts, "planted")
    assert bias is not None
    assert (bias.value, bias.inconsistent) == (1.0, 1)
    [vote] = json.loads(found.notes[1].rationale or "")
    assert vote == {
        "against": 0,
        "judge": "planted",
        "share": 0.5,
        "place": "second",
        "verdicts": ["first", "first"],
        "rationales": ["because first", "because first"],
    }


def test_identical_completions_tie_without_a_question() -> None:
    with judge_server() as server:
        found = judged(server, ["same", "same"], per_prompt=2, mode="pairwise", self_test=False)
    assert server.requests == []
    assert found.values == pytest.approx([0.0, 0.0])
    assert found.counts["identical_for_planted"] == 1
    assert position_bias(found.counts, "planted") is None


def test_a_completion_that_no_judge_can_compare_is_refused_and_the_others_stay() -> None:
    def fails(_number: int, question: str) -> Any:
        return (422, b"too long") if "poison" in question else ""

    completions = ["[q=3] a", "[q=2] poison", "[q=1] c", "[q=5] d"]
    with judge_server(fails=fails) as server:
        found = judged(server, completions, per_prompt=4, mode="pairwise", self_test=False)
    refused = [isinstance(value, Refusal) for value in found.values]
    assert refused == [False, True, False, False]
    assert "answered 422" in found.values[1].reason  # type: ignore[union-attr]
    kept = [found.values[n] for n in (3, 0, 2)]
    assert kept == sorted(kept, reverse=True)  # type: ignore[type-var]
    assert found.counts["failed_comparisons_for_planted"] == 3


def test_knockout_asks_for_fewer_comparisons_and_finds_the_best() -> None:
    completions = [f"[q={q}] r{q}" for q in (1, 4, 2, 7, 5, 3, 6)]
    with judge_server() as server:
        found = judged(
            server, completions, per_prompt=7, mode="pairwise", schedule="knockout", self_test=False
        )
    assert len(server.requests) == 2 * 6
    values = [float(value) for value in found.values]  # type: ignore[arg-type]
    assert max(values) == values[3]


def test_a_baseline_of_the_data_makes_scores_of_different_tables_comparable() -> None:
    column = ["[q=3] the reference"] * 2
    settings = {
        "mode": "pairwise",
        "schedule": "against_baseline",
        "baseline_column": "human",
        "self_test": False,
        "per_prompt": 2,
    }
    with judge_server() as server:
        better = judged(server, ["[q=5] a", "[q=4] b"], more={"human": column}, **settings)
        mixed = judged(server, ["[q=5] a", "[q=1] c"], more={"human": column}, **settings)
        lacking = judged(server, ["[q=5] a", "b"], more={"human": [None, None]}, **settings)
    assert better.values[0] == better.values[1] == mixed.values[0] == -mixed.values[1]  # type: ignore[operator]
    assert better.values[0] > 0  # type: ignore[operator]
    assert "holds no text to compare with" in lacking.values[0].reason  # type: ignore[union-attr]
    [vote] = json.loads(mixed.notes[1].rationale or "")
    assert (vote["against"], vote["share"]) == ("baseline", 0.0)


def test_a_panel_votes_and_its_scores_are_averaged() -> None:
    with judge_server() as one, judge_server(bias=1.0) as other:
        other.answer = lambda request: JudgeServer.answer(one, request)  # type: ignore[method-assign]
        panel = {"panel": [{"url": other.url, "model": "second"}], "self_test": False}
        points = judged(one, texts(3), **panel)
        assert points.values == [1.0, 2.0, 3.0]
        assert points.notes[1].rationale == "planted (2): because 2\nsecond (2): because 2"
        other.answer = lambda request: JudgeServer.answer(other, request)  # type: ignore[method-assign]
        found = judged(one, ["[q=2] a", "[q=1] b"], per_prompt=2, mode="pairwise", **panel)
    votes = json.loads(found.notes[0].rationale or "")
    assert [(vote["judge"], vote["share"]) for vote in votes] == [
        ("planted/planted", 1.0),
        ("planted/second", 0.5),
    ]
    biased = position_bias(found.counts, "planted/second")
    fair = position_bias(found.counts, "planted/planted")
    assert biased is not None
    assert fair is not None
    assert (biased.value, fair.value) == (1.0, 0.0)


def test_answers_are_kept_and_none_is_asked_twice(tmp_path: Path) -> None:
    with judge_server() as server:
        first = judged(server, pairwise(3), tmp_path, per_prompt=4, mode="pairwise")
        asked = len(server.requests)
        again = judged(server, pairwise(4), tmp_path, per_prompt=4, mode="pairwise")
        assert again.values[:12] == first.values
        assert len(server.requests) == asked + 12
        assert set(server.answered.values()) == {1}
        assert again.counts["judge_replies_from_run_for_planted"] == 36
        judged(server, pairwise(3), tmp_path, per_prompt=4, mode="pairwise", version="2")
        assert len(server.requests) > asked + 12, "another version is another judge"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"max_requests": 30}, "30 requests"),
        ({"max_tokens": 30 * 120}, "3,600 tokens"),
        ({"max_cost": 30 * 120 * 2e-6}, "cost 0.01"),
    ],
)
def test_a_budget_stops_the_run_and_a_larger_one_goes_on(
    budget: dict[str, Any], said: str, tmp_path: Path
) -> None:
    priced = {"price_per_million_prompt_tokens": 2, "price_per_million_completion_tokens": 2}
    settings = {"max_concurrent_requests": 1, "self_test": False, **priced}
    with judge_server() as server:
        with pytest.raises(BudgetError, match="has spent its budget") as ended:
            judged(server, texts(50), tmp_path, budget=budget, **settings)
        assert said in ended.value.value
        assert len(server.requests) == 30
        with pytest.raises(BudgetError):
            judged(server, texts(50), tmp_path, budget=budget, **settings)
        assert len(server.requests) == 30, "what an earlier process has spent counts"
        more = {name: 2 * limit for name, limit in budget.items()}
        found = judged(server, texts(50), tmp_path, budget=more, **settings)
    assert len(found.values) == 50
    cost = 50 * 120 * 2e-6
    assert found.sums == {"judge_cost_for_planted": pytest.approx(cost)}
    assert cost_lines({"sums": found.sums}) == [
        "planted: its answers cost 0.01 by the configured prices"
    ]
    assert set(server.answered.values()) == {1}


def test_what_is_under_way_when_the_budget_ends_is_kept(tmp_path: Path) -> None:
    with judge_server() as server:
        with pytest.raises(BudgetError):
            judged(server, texts(50), tmp_path, budget={"max_requests": 21}, self_test=False)
        assert len(server.requests) == 21
        judged(server, texts(50), tmp_path, self_test=False)
    assert set(server.answered.values()) == {1}


@pytest.mark.parametrize("rubric", ["dialogue", "summary"])
@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
def test_a_judge_that_prefers_the_better_planted_answers_passes_the_self_test(
    rubric: str, mode: str
) -> None:
    with judge_server() as server:
        judged(server, [], rubric=rubric, mode=mode, highest_score=60) if mode == "pointwise" else (
            judged(server, [], rubric=rubric, mode=mode)
        )
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("mode", "rule", "said"),
    [
        ("pairwise", "worse", "prefers the worse answer (second and first)"),
        ("pairwise", "first", "tells apart only 0 of 4 planted pairs"),
        ("pointwise", "same", "tells apart only 0 of 4 planted pairs"),
        ("pointwise", "prose", "gave no answer"),
    ],
)
def test_a_judge_that_fails_the_self_test_judges_nothing(mode: str, rule: str, said: str) -> None:
    with judge_server() as server:
        honest = server.verdict
        other = {"first": "second", "second": "first"}
        if rule == "worse":
            server.verdict = lambda question: other[honest(question)]  # type: ignore[method-assign]
        elif rule == "first":
            server.bias = 1.0
        elif rule == "prose":
            server.fails = lambda _n, _q: FAULTS["prose"]
        changes = {"lowest_score": 1, "highest_score": 2} if rule == "same" else {}
        with pytest.raises(ServiceError, match="fails its self-test") as ended:
            judged(server, texts(3), mode=mode, max_attempts=2, **changes)
        assert said in ended.value.value
        assert not any("[q=" in question for question in server.questions)


def test_a_self_test_of_the_user_s_own_has_the_columns_of_the_rubric(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.j2"
    rubric.write_text("{{ prompt }} {{ level }}\n<reply>\n{{ completion }}\n</reply>")
    cases = tmp_path / "cases.jsonl"
    row = {"prompt": "p", "better": "[q=9] yes", "worse": "[q=1] no", "level": 3}
    cases.write_text(json.dumps(row) + "\n")
    with judge_server() as server:
        own = {"rubric": str(rubric), "self_test": str(cases)}
        found = judged(server, texts(2), more={"level": [5, None]}, **own)
        assert found.values == [1.0, 2.0]
        assert server.questions[0].startswith("p 3\n")
        assert "Question 1? None" in server.questions[-1] + server.questions[-2]
        scorer = scorer_of(reward(server, rubric=str(rubric)))
        assert scorer.columns() == ("level",)
        with pytest.raises(ConfigError, match="its cases have no 'level'"):
            scorer.check()


@pytest.mark.parametrize(
    ("template", "mode", "said"),
    [
        ("{{ prompt }} {{ completion", "pointwise", "line 1"),
        ("{{ prompt }} {{ answer }}", "pointwise", "does not contain {{ completion }}"),
        ("{{ completion }}", "pointwise", "does not contain {{ prompt }}"),
        ("{{ prompt }} {{ first }}", "pairwise", "does not contain {{ second }}"),
        ("{{ prompt }} {{ completion }}", "pairwise", "{{ first }}, {{ second }}"),
    ],
)
def test_templates_that_cannot_be_asked_are_refused(
    template: str, mode: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "rubric.j2"
    path.write_text(template)
    scorer = scorer_of(
        reward(JudgeServer("http://h/v1/chat/completions"), rubric=str(path), mode=mode)
    )
    with pytest.raises(ConfigError) as refused:
        scorer.check()
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "swiss", "mode": "pairwise"}, "schedule"),
        ({"schedule": "knockout"}, "a pointwise judge does not read `schedule`"),
        ({"mode": "pairwise", "highest_score": 5}, "does not read `highest_score`"),
        ({"lowest_score": 5, "highest_score": 5}, "the lowest is below the highest"),
        ({"url": "http://h/v1"}, "ends with /chat/completions"),
        ({"panel": [{"url": "http://h/v1/chat/completions", "model": "planted"}]}, "twice"),
        ({"budget": {}}, "a budget has a limit"),
        ({"budget": {"max_cost": 1}}, "needs both prices of planted"),
        ({"mode": "pairwise", "baseline_column": "x"}, "is for `schedule: against_baseline`"),
        ({"rubrik": "x"}, "rubrik"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        reward(JudgeServer("http://h/v1/chat/completions"), **changes)


def test_the_key_has_what_is_asked_and_not_what_it_may_cost(tmp_path: Path) -> None:
    server = JudgeServer("http://h/v1/chat/completions")
    path = tmp_path / "rubric.j2"
    path.write_text("{{ prompt }} {{ completion }}")
    base = {"rubric": str(path)}

    def key(**changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
        scorer = scorer_of(reward(server, **{**base, **changes}))
        return scorer.settings(), scorer.inputs()

    same = {"budget": {"max_requests": 3}, "self_test": False, "max_attempts": 2}
    assert key(**same) == key()
    for change in ({"model": "m"}, {"version": "2"}, {"highest_score": 5}, {"temperature": None}):
        assert key(**change) != key()
    before = key()
    path.write_text("{{ prompt }} and {{ completion }}")
    assert key() != before


@pytest.mark.parametrize(
    ("stage", "answers"),
    [
        ("/runs/a/round-000/scores", "/runs/a/judge-answers"),
        ("/runs/round-001/b/round-012/evaluation/policy_scores", "/runs/round-001/b/judge-answers"),
        ("s3://bucket/a/round-000/scores", "s3://bucket/a/judge-answers"),
        ("/elsewhere/scores", "/elsewhere/judge-answers"),
    ],
)
def test_answers_lie_in_the_run_beside_its_rounds(stage: str, answers: str) -> None:
    assert answers_folder(Folder(stage)).uri == answers
