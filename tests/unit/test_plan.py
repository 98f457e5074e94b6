from __future__ import annotations

import logging
from typing import Any

import pytest

from raydpo.config.job import Config
from raydpo.core.resources import Resources
from raydpo.plan import (
    announce,
    engines_can_stay,
    stage_needs,
    stages_can_stream,
    workers_can_wait,
)


def config(engine_cpus: float = 1.0, train_cpus: float = 1.0, **engines: Any) -> Config:
    return Config.model_validate(
        {
            "name": "plan",
            "model": "m",
            "prompts": "p.jsonl",
            "sampling": {"engines": {"cpus": engine_cpus, **engines}},
            "labeling": {"reward": {"function": "a:b"}},
            "training": {"num_workers": 2, "cpus_per_worker": train_cpus},
        }
    )


def test_a_plan_names_each_stage_in_order() -> None:
    stages = [needs.stage for needs in stage_needs(config())]
    assert stages == ["sampling.engines", "labeling.reward", "reference", "training"]


def test_engines_stay_where_every_other_stage_finds_room_beside_them() -> None:
    assert engines_can_stay(config(), Resources(3, 0))
    assert not engines_can_stay(config(), Resources(2, 0))
    assert engines_can_stay(config(0.5, 0.5), Resources(1.5, 0))
    assert not engines_can_stay(config(0.6, 0.5), Resources(1.5, 0))


def test_train_workers_wait_where_every_stage_before_finds_room_beside_them_and_the_engines() -> (
    None
):
    assert workers_can_wait(config(0.2, 0.4), Resources(2, 0))
    assert not workers_can_wait(config(0.2, 0.5), Resources(2, 0))
    assert not workers_can_wait(config(device="cuda"), Resources(16, 2))
    assert workers_can_wait(config(device="cuda"), Resources(16, 4))


def test_stages_on_cpus_stream_by_turns_beside_engines_that_stay() -> None:
    assert stages_can_stream(config(0.2, 0.4), Resources(2, 0))
    assert not stages_can_stream(config(), Resources(2, 0))


def test_stages_on_gpus_stream_where_each_has_gpus_of_its_own() -> None:
    values = config(device="cuda").model_dump(exclude_none=True)
    values["labeling"] = {"reward": {"classifier": "judge", "label": 0}}
    values["training"]["num_workers"] = 1
    job = Config.model_validate(values)
    assert engines_can_stay(job, Resources(16, 2))
    assert not stages_can_stream(job, Resources(16, 2))
    assert not stages_can_stream(job, Resources(16, 3))  # train workers wait on one of them
    assert stages_can_stream(job, Resources(16, 4))


def test_engines_that_sleep_share_a_gpu_with_every_stage_and_stream_into_none() -> None:
    values = config(device="cuda", sleep=True, gpu_share=0.6).model_dump(exclude_none=True)
    values["labeling"] = {"reward": {"classifier": "judge", "label": 0, "gpus_per_worker": 0.4}}
    values["reference"]["gpus_per_worker"] = 0.4
    values["training"] |= {"num_workers": 1, "gpus_per_worker": 0.4}
    job = Config.model_validate(values)
    assert {needs.stage: needs.total(True).gpus for needs in stage_needs(job)} == {
        "sampling.engines": 0.6,
        "labeling.reward": 0.4,
        "reference": 0.4,
        "training": 0.4,
    }
    assert engines_can_stay(job, Resources(16, 1))
    assert not workers_can_wait(job, Resources(16, 1))
    assert not stages_can_stream(job, Resources(16, 8))
    values["training"]["gpus_per_worker"] = 0.5
    assert not engines_can_stay(Config.model_validate(values), Resources(16, 1))


def test_the_judge_of_the_evaluation_needs_room_too() -> None:
    judged = config(0.5, 0.5).model_dump(exclude_none=True)
    judged["evaluation"] = {"prompts": "p.jsonl", "judge": {"function": "a:b", "workers": 2}}
    job = Config.model_validate(judged)
    assert stage_needs(job)[-1].stage == "evaluation.judge"
    assert engines_can_stay(job, Resources(2.5, 0))
    assert not engines_can_stay(job, Resources(1.5, 0))


def test_gpus_count_where_there_are_any() -> None:
    job = config(count=2, tensor_parallel=2)
    assert engines_can_stay(job, Resources(16, 6))
    assert not engines_can_stay(job, Resources(16, 5))
    assert engines_can_stay(config(device="cpu"), Resources(16, 2))
    assert not engines_can_stay(config(device="cuda"), Resources(16, 2))


def test_a_stage_larger_than_the_cluster_is_said_before_it_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    with caplog.at_level(logging.INFO, "raydpo"):
        announce(config(), Resources(1, 0))
    lines = {record.levelname: record.getMessage() for record in caplog.records}
    assert "training: 2 worker(s) hold 2 CPUs and 0 GPUs: more than" in lines["WARNING"]


def test_rounds_whose_engines_leave_no_room_are_said_before_they_wait(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    rounds = Config.model_validate({**config().model_dump(exclude_none=True), "online": {}})
    with caplog.at_level(logging.WARNING, "raydpo"):
        announce(rounds, Resources(3, 0))
        assert not caplog.records
        announce(rounds, Resources(2, 0))
    assert "engines live through all rounds and keep 1 CPUs and 0 GPUs" in caplog.text
    assert "asks for 2 CPUs and 0 GPUs: more than the cluster has" in caplog.text


def test_rounds_say_that_they_leave_groups_out(caplog) -> None:
    values = config().model_dump(mode="json")
    heldout = {"prompts": "h.jsonl", "judge": {"function": "a:b"}, "heldout_fraction": 0.2}
    with caplog.at_level(logging.INFO, "raydpo"):
        announce(Config.model_validate({**values, "online": {}}), Resources(9, 0))
        assert "left out" not in caplog.text
        both = {**values, "online": {}, "evaluation": heldout}
        announce(Config.model_validate(both), Resources(9, 0))
    assert "20% of each round's groups are left out" in caplog.text
