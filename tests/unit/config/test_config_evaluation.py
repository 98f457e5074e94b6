"""Best-of-N that cannot be measured is refused as the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.config.file import config_from_values, config_to_yaml
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError

REWARD = {"function": "rewards:one"}
BASE: dict[str, Any] = {
    "name": "job",
    "model": "model",
    "labeling": {"reward": REWARD},
    "evaluation": {"prompts": "heldout.jsonl", "judge": {"function": "rewards:two"}},
}


def job(best_of: dict[str, Any], evaluation: dict[str, Any], **changes: Any) -> Config:
    section = {**BASE["evaluation"], **evaluation, "best_of": best_of}
    return config_from_values({**BASE, "evaluation": section, **changes}, "test")


def test_a_job_of_best_of_n_alone_is_read_and_written() -> None:
    config = job({}, {})
    assert config.evaluates_reference_alone
    assert "samples_per_prompt: 128" in config_to_yaml(config)
    assert not job({}, {}, prompts="p.jsonl", training={}).evaluates_reference_alone


@pytest.mark.parametrize(
    ("best_of", "evaluation", "changes", "why"),
    [
        ({"n": [2, 1]}, {}, {}, "in rising order"),
        ({"n": [1, 1]}, {}, {}, "give each N once"),
        ({"n": [0, 1]}, {}, {}, "greater than 0"),
        ({"n": []}, {}, {}, "at least 1 item"),
        ({"samples_per_prompt": 64}, {}, {}, "needs at least 128 samples"),
        ({"models": ["reference", "reference"]}, {}, {}, "give each once"),
        ({"models": ["policy"]}, {}, {}, "without `training` there is none"),
        ({}, {"temperature": 0}, {}, "among equal completions"),
        ({}, {}, {"labeling": None}, "chooses by the reward of `labeling`"),
        ({}, {}, {"labeling": {"people": {}}}, "in a job of its own"),
        ({}, {}, {"labeling": {"reward": {"implicit": True}}}, "chooses by the reward"),
        ({}, {}, {"prompts": "p.jsonl", "training": {}, "online": {}}, "rounds do not measure it"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    best_of: dict[str, Any], evaluation: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        job(best_of, evaluation, **changes)
