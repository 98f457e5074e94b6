"""Every candidate has all its scores or stands in the quarantine, once, with the reasons."""

from __future__ import annotations

import json
import threading
import time

import pytest

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.notices import tell, telling
from raydpo.core.storage import Folder
from raydpo.labeling.preferences import combined_rewards
from raydpo.labeling.rewards import Judged, judge_with_function
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.stage import check_rewards, make_judge, score_part
from tests.unit.labeling.reward_server import Answer, reward_of, reward_service


def by_function(function):
    return lambda prompts, completions, more=None: judge_with_function(
        function, "x", prompts, completions, more=more or {}
    )


@pytest.fixture
def candidates(make_candidate):
    return [make_candidate(f"p{i}", k) for i in range(3) for k in range(2)]


def test_one_row_a_candidate_and_scorer_in_the_order_of_the_candidates(candidates):
    judges = {
        "length": by_function(lambda _p, c: [len(text) for text in c]),
        "last": by_function(lambda _p, c: [int(text[-1]) for text in c]),
    }
    result = score_part(judges, candidates)
    assert [(r["prompt_id"], r["candidate"], r["scorer"], r["value"]) for r in result.rows] == [
        (row["prompt_id"], row["candidate"], scorer, value)
        for row in candidates
        for scorer, value in (("length", 13.0), ("last", float(row["candidate"])))
    ]
    assert result.counts["scored"] == 6


def test_a_candidate_that_two_scorers_refuse_is_quarantined_once(candidates):
    def picky(bad: int):
        odd = float("nan")
        return by_function(lambda _p, c: [odd if i in (1, bad) else 1.0 for i in range(len(c))])

    result = score_part({"first": picky(1), "second": picky(4)}, candidates)
    assert [(row["id"], row["reason"]) for row in result.quarantined] == [
        ("p0/1", "first: the reward is nan; second: the reward is nan"),
        ("p2/0", "second: the reward is nan"),
    ]
    assert json.loads(result.quarantined[0]["row"]) == candidates[1]
    scored = {(row["prompt_id"], row["candidate"]) for row in result.rows}
    assert len(scored) == result.counts["scored"] == 4
    assert len(result.rows) == 8
    assert len(candidates) == result.counts["scored"] + len(result.quarantined)


def test_none_of_one_scorer_does_not_apply_and_none_of_all_is_refused(candidates):
    def absent(*places: int):
        return by_function(lambda _p, c: [None if i in places else 2.0 for i in range(len(c))])

    result = score_part({"first": absent(0, 1), "second": absent(1)}, candidates)
    values = {(r["prompt_id"], r["candidate"], r["scorer"]): r["value"] for r in result.rows}
    assert values["p0", 0, "first"] is None
    assert values["p0", 0, "second"] == 2.0
    assert result.counts["does_not_apply_first"] == 1
    assert "does_not_apply_second" not in result.counts
    assert [row["id"] for row in result.quarantined] == ["p0/1"]
    rewards = combined_rewards(result.rows, {"first": 10.0, "second": 0.5})
    assert rewards["p0", 0] == 1.0
    assert rewards["p1", 0] == 21.0


def test_scorers_read_what_the_data_says_of_the_row(candidates):
    rows = [
        {**row, "metadata": json.dumps({"truth": i}), "prompt_messages": None}
        for i, row in enumerate(candidates)
    ]

    def reward(completions, truth, completion_ids, finish_reasons, messages):
        assert completion_ids == [row["completion_ids"] for row in candidates]
        assert finish_reasons == [row["finish_reason"] for row in candidates]
        assert messages == [None] * len(candidates)
        return truth

    result = score_part({"truth": by_function(reward)}, rows)
    assert [row["value"] for row in result.rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_services_and_functions_of_a_part_work_at_the_same_time(candidates):
    """Each service answers only once both have a request."""
    both = threading.Barrier(2)

    def plan(_number, _texts):
        both.wait(timeout=30)
        return Answer()

    with reward_service(plan) as one, reward_service(plan) as other:
        urls = {"first": one.url, "second": other.url}
        rewards = [
            RewardConfig.model_validate({"http": {"url": url, "max_attempts": 1}, "name": name})
            for name, url in urls.items()
        ]
        judges = {"length": by_function(lambda _p, c: [len(x) for x in c])}
        judges |= {reward.scorer: make_judge(reward) for reward in rewards}
        elsewhere = frozenset(reward.scorer for reward in rewards if reward.works_elsewhere)
        result = score_part(judges, candidates, elsewhere)
    assert [row["scorer"] for row in result.rows] == ["length", "first", "second"] * 6
    texts = [row["completion"] for row in candidates]
    prompts = [row["prompt"] for row in candidates]
    given = [row["value"] for row in result.rows if row["scorer"] == "second"]
    assert given == [reward_of(p, c) for p, c in zip(prompts, texts, strict=True)]


def test_the_error_of_judges_that_work_at_once_is_that_of_the_first(candidates):
    def failing(name, seconds):
        def fail(prompts, completions, more=None):
            time.sleep(seconds)
            raise DataError(name, "rule", "way out")

        return fail

    judges = {"slow": failing("slow", 0.2), "quick": failing("quick", 0.0)}
    for elsewhere in (frozenset(), frozenset(judges)):
        with pytest.raises(DataError, match="slow"):
            score_part(judges, candidates, elsewhere)


def test_which_rewards_work_elsewhere():
    function = RewardConfig(function="tests.integration.rewards:count_e")
    classifier = RewardConfig(classifier="org/model")
    assert [function.works_elsewhere, classifier.works_elsewhere] == [True, False]


def test_lines_of_judges_that_work_at_once_are_told_about_their_part(candidates, tmp_path):
    def telling_judge(name):
        def judge(prompts, completions, more=None):
            tell(f"{name} waits")
            return Judged([1.0] * len(completions))

        return judge

    judges = {name: telling_judge(name) for name in ("a", "b")}
    with telling(Folder(str(tmp_path)), "part-00000"):
        score_part(judges, candidates, frozenset(judges))
        [name] = Folder(str(tmp_path)).child("_notices").files()
        lines = Folder(str(tmp_path)).child("_notices").read_json(name)
    assert sorted(lines) == ["a waits", "b waits"]


def test_cut_texts_are_counted_for_each_scorer(candidates):
    judges = {
        "long": lambda _p, c, _more: Judged([0.0] * len(c), truncated=2),
        "short": lambda _p, c, _more: Judged([0.0] * len(c)),
    }
    counts = score_part(judges, candidates).counts
    assert (counts["truncated_for_long"], counts["truncated_for_short"]) == (2, 0)


def test_an_empty_part_has_no_scores():
    result = score_part({"length": by_function(lambda _p, c: [len(x) for x in c])}, [])
    assert (result.rows, result.quarantined) == ([], [])


def test_scores_are_known_by_what_the_scorer_reads():
    def settings(**reward):
        return scorer_of(RewardConfig(**reward)).settings()

    function = "tests.integration.rewards:count_e"
    assert "as_messages" not in settings(function=function)
    assert settings(function=function, as_messages=True)["as_messages"] is True
    assert not {"options", "columns"} & settings(function=function).keys()
    http = {"url": "http://rewards:8000/"}
    assert "columns" not in settings(http=http)
    assert settings(http={**http, "columns": ["answer"]})["columns"] == ("answer",)
    with pytest.raises(ValueError, match="`as_messages` is for a `function`"):
        RewardConfig(classifier="org/model", as_messages=True)


def test_options_and_columns_of_a_function_are_in_its_settings():
    def settings(**reward):
        return scorer_of(RewardConfig(function="tests.integration.rewards:scaled", **reward))

    scorer = settings(options={"factor": 2.0}, columns={"letter": "wanted"})
    assert scorer.settings()["options"] == {"factor": 2.0}
    assert scorer.settings()["columns"] == {"letter": "wanted"}
    assert scorer.columns() == ("wanted",)
    assert settings(options={"factor": 2.0}).columns() == ("letter",)
    with pytest.raises(ConfigError, match="it takes no option `facter`"):
        settings(options={"facter": 2.0}).check()
    with pytest.raises(ConfigError, match="gets no column as `leter`"):
        settings(options={"factor": 1}, columns={"leter": "wanted"}).check()
    for name in ("options", "columns"):
        with pytest.raises(ValueError, match=f"`{name}` is for a `function`"):
            RewardConfig.model_validate({"classifier": "org/model", name: {"x": "y"}})
    with pytest.raises(ValueError, match="`x` is among `options` and `columns`"):
        settings(options={"x": 1}, columns={"x": "y"})
    with pytest.raises(ValueError, match="an option holds a Hugging Face token"):
        settings(options={"to": ["hf_" + "a" * 30]})


def test_a_function_gets_its_options_and_columns_under_its_own_names(candidates):
    rows = [{**row, "metadata": json.dumps({"wanted": "o"})} for row in candidates]
    reward = RewardConfig(
        function="tests.integration.rewards:scaled",
        options={"factor": 2.0},
        columns={"letter": "wanted"},
    )
    result = score_part({"scaled": make_judge(reward)}, rows)
    assert [row["value"] for row in result.rows] == [4.0] * len(rows)


def test_scorers_of_one_name_are_refused():
    reward = RewardConfig(function="tests.integration.rewards:count_e")
    with pytest.raises(
        ConfigError, match=r"2 scorers are called 'tests\.integration\.rewards:count_e'"
    ):
        check_rewards((reward, reward))
    check_rewards(
        (reward, RewardConfig(function="tests.integration.rewards:count_e", name="other"))
    )


def test_a_wrong_function_or_label_is_found_before_anything_runs(make_classifier):
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        check_rewards((RewardConfig(function="tests.integration.rewards:nothing"),))
    with pytest.raises(ConfigError, match="labels: 0 "):
        check_rewards((RewardConfig(classifier=str(make_classifier()), label="nothing"),))


def test_a_judge_is_made_from_its_configuration(make_classifier):
    judge = make_judge(
        RewardConfig(classifier=str(make_classifier()), label="pos", output="probability")
    )
    (value,) = judge(["the film "], ["was good"]).values
    assert isinstance(value, float)
    assert 0 < value < 1
