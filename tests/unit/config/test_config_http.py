"""A reward over HTTP in the configuration: what is refused, what counts, what stays secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import config_from_values, config_to_yaml, load_config
from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.storage import Folder
from raydpo.labeling.scorers import scorer_of
from raydpo.labeling.stage import scores_stage

URL = "http://rewards:8000/score"
FOLDER = Folder("/nothing/is/written/here")


def job(reward: dict[str, Any]):
    values = {"name": "a", "model": "b", "prompts": "c", "labeling": {"reward": reward}}
    return config_from_values(values, "a test")


def key(**http: object) -> str:
    reward = RewardConfig.model_validate({"http": {"url": URL, **http}, "name": "judge"})
    candidates = Table(FOLDER, {"fingerprint": "of candidates", "inputs": {}})
    return scores_stage(Place(FOLDER, "test"), candidates, (reward,)).key


def test_a_url_alone_stands_for_the_section(tmp_path: Path) -> None:
    config = job({"http": URL})
    assert config == job({"http": {"url": URL}})
    file = tmp_path / "job.yaml"
    file.write_text(config_to_yaml(config))
    assert load_config(file) == config
    file.write_text(f"{{name: a, model: b, prompts: c, labeling: {{reward: {{http: '{URL}'}}}}}}")
    changed = load_config(file, ["labeling.reward.http.timeout_seconds=5"])
    assert changed == job({"http": {"url": URL, "timeout_seconds": 5}})


@pytest.mark.parametrize(
    ("url", "scorer"),
    [
        (URL, "score"),
        ("https://rewards:8000/v1/score/?model=a/b", "score"),
        ("http://rewards:8000", "rewards:8000"),
        ("http://[::1]:8000/", "[::1]:8000"),
    ],
)
def test_a_scorer_s_name_is_the_last_of_its_path(url: str, scorer: str) -> None:
    assert RewardConfig.model_validate({"http": url}).scorer == scorer


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rewards:8000/score", "begins with"),
        ("ftp://rewards/score", "begins with"),
        ("http:///score", "begins with"),
        ("http://rewards:port/score", "host:port"),
        ("http://rewards:99999/score", "host:port"),
        ("http://[rewards/score", "host:port"),
        ("http://me@rewards/score", "holds no user"),
        ("http://rewards/a b", "write %20"),
        ("http://rewards/a\nb", "write %20"),
        ("http://rëwards/", "in ASCII"),
        ("http://rewards/score#top", "not sent"),
        ("http://me:secret-word@rewards/score", "give it in the environment"),
        ("http://rewards/score?api_key=secret-word", "give it in the environment"),
    ],
)
def test_what_is_no_address_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        job({"http": url})
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Authorization": "Bearer secret-word"}, "name of an environment variable"),
        ({"Authorization": {"secret-word": 1}}, "name of an environment variable"),
        ({"X-Key": 5550123}, "name of an environment variable"),
        ({"X Key": "REWARD_KEY"}, "letters, digits and hyphens"),
        ({1: "REWARD_KEY"}, "letters, digits and hyphens"),
        ({"Host": "REWARD_HOST"}, "raydpo itself sends"),
    ],
)
def test_what_stands_for_a_variable_is_never_repeated(headers: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        job({"http": {"url": URL, "headers_from_environment": headers}})
    assert "secret-word" not in str(refused.value)
    assert "5550123" not in str(refused.value)


def test_the_saved_configuration_has_names_of_variables_and_no_values(monkeypatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "secret-word")
    headers = {"X-Key": "REWARD_KEY"}
    saved = config_to_yaml(job({"http": {"url": URL, "headers_from_environment": headers}}))
    assert "REWARD_KEY" in saved
    assert "secret-word" not in saved


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"http": URL, "function": "a:b"}, "exactly one of"),
        ({"http": URL, "timeout_seconds": 5}, "take it out, or into `http`"),
        ({"http": URL, "depends_on": ["x"]}, "a service has a `version`"),
        ({"http": URL, "output": "logit"}, "`output` is for a `classifier`"),
        ({"http": {"url": URL, "max_attempts": 0}}, "greater than 0"),
        ({"http": {"url": URL, "shape": "other"}}, "shape"),
        ({"http": {"url": URL, "timeout": 5}}, "did you mean 'timeout_seconds'"),
    ],
)
def test_what_a_service_does_not_read_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        job(values)


def test_where_and_what_is_asked_makes_scores_stale_and_how_does_not() -> None:
    same = {
        "timeout_seconds": 5,
        "max_attempts": 2,
        "max_concurrent_requests": 16,
        "headers_from_environment": {"X-Key": "REWARD_KEY"},
    }
    assert key(**same) == key()
    others = [{"url": URL + "/v2"}, {"shape": "openrlhf"}, {"version": "of May"}]
    assert len({key(), *(key(**other) for other in others)}) == 4


def test_scores_of_other_rewards_keep_their_keys() -> None:
    function = RewardConfig(function="mine:length")
    assert scorer_of(function).settings() == {"function": "mine:length"}
    classifier = RewardConfig(classifier="org/model", label="good")
    read = {"label": "good", "output": "log_odds", "input": "prompt_and_completion"}
    assert scorer_of(classifier).settings() == read
