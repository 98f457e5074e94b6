"""raydpo refuses online rounds that could not finish, before any cluster work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.check.findings import Findings
from raydpo.check.online import check_online, check_sections_of_rounds
from raydpo.cli import main
from raydpo.config.file import config_from_values, config_to_yaml, load_config
from raydpo.config.fit import check_config_fits
from raydpo.config.job import Config, OnlineConfig
from raydpo.core.errors import ConfigError

REWARD = {"function": "tests.integration.rewards:count_e"}


def job(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "rounds",
        "model": "model",
        "prompts": "prompts.jsonl",
        "sampling": {"engines": {"cpus": 0.1}},
        "labeling": {"reward": REWARD},
        "training": {"cpus_per_worker": 0.5},
        "online": {},
    }
    return config_from_values({**values, **changes}, "test")


def problems(config: Config) -> list[str]:
    findings = Findings()
    check_online(config, findings)
    return [str(problem) for problem in findings.problems]


def test_a_complete_job_passes(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert problems(job()) == []


def test_a_kl_budget_on_cut_samples_is_said_to_be_none(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    evaluation = {"prompts": "heldout.jsonl", "judge": REWARD}
    budget = {"stopping": {"max_kl_nats": 3}}

    def notes(**changes: Any) -> list[str]:
        findings = Findings()
        check_online(job(evaluation=evaluation, online=budget, **changes), findings)
        return [fact for fact in findings.facts if "no estimate of KL" in fact]

    assert notes() == []
    (note,) = notes(sampling={"top_p": 0.9, "engines": {"cpus": 0.1}})
    assert "top_p 0.9" in note


@pytest.mark.parametrize("section", ["online", "labeling", "training"])
def test_a_missing_section_is_named(section) -> None:
    with pytest.raises(ConfigError, match=f"no `{section}`"):
        check_sections_of_rounds(job(**{section: None}))


def test_limits_on_held_out_numbers_need_an_evaluation() -> None:
    config = job(online={"stopping": {"max_kl_nats": 3, "max_displacement_nats": 2}})
    with pytest.raises(ConfigError, match="sets max_kl_nats, and there is no `evaluation`"):
        check_sections_of_rounds(config)
    check_sections_of_rounds(job(online={"stopping": {"max_displacement_nats": 2}}))


def test_a_policy_gradient_has_no_chosen_completions_to_be_displaced() -> None:
    online = {"stopping": {"max_displacement_nats": 2}}
    with pytest.raises(ConfigError, match="max_displacement_nats 2 with objective"):
        check_sections_of_rounds(job(online=online, training={"objective": "policy_gradient"}))
    check_sections_of_rounds(job(training={"objective": "policy_gradient"}))


def test_self_play_takes_the_data_of_sft_and_nothing_else() -> None:
    sft = {"data": "chat.jsonl"}
    online = {"pairs": "self_play", "reference": "previous"}
    check_sections_of_rounds(job(prompts=None, labeling=None, sft=sft, online=online))
    with pytest.raises(ConfigError, match="no `sft`"):
        check_sections_of_rounds(job(labeling=None, online=online))
    with pytest.raises(ConfigError, match="there is a `prompts` section"):
        check_sections_of_rounds(job(labeling=None, sft=sft, online=online))
    full_text = {**sft, "loss_on": "all"}
    with pytest.raises(ConfigError, match="'all'"):
        check_sections_of_rounds(job(prompts=None, labeling=None, sft=full_text, online=online))
    curriculum = {**online, "min_spread_quantile": 0.5}
    with pytest.raises(ConfigError, match=r"min_spread_quantile 0\.5"):
        check_sections_of_rounds(job(prompts=None, labeling=None, sft=sft, online=curriculum))


@pytest.mark.parametrize("objective", ["kto", "plackett_luce"])
def test_self_play_offers_pairs_and_nothing_else(objective: str) -> None:
    changes = {"prompts": None, "labeling": None, "sft": {"data": "chat.jsonl"}}
    online = {"pairs": "self_play"}
    check_config_fits(job(**changes, online=online, training={"objective": "soft_label"}))
    with pytest.raises(ConfigError, match=f"{objective!r} with online.pairs 'self_play'"):
        check_config_fits(job(**changes, online=online, training={"objective": objective}))


def test_rounds_need_no_room_for_the_training_of_sft(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sft = {"data": "chat.jsonl", "num_workers": os.cpu_count() or 1}
    plays = {"prompts": None, "labeling": None, "online": {"pairs": "self_play"}}
    assert problems(job(sft=sft, **plays)) == []


def test_an_objective_without_a_reference_has_none_that_could_move() -> None:
    training = {"objective": {"name": "pairwise_cringe"}}
    check_sections_of_rounds(job(training=training))
    with pytest.raises(ConfigError, match="the objective is pairwise_cringe"):
        check_sections_of_rounds(job(training=training, online={"reference": "ema"}))


def test_an_implicit_reward_needs_a_reference_that_stays_behind() -> None:
    labeling = {"reward": {"implicit": True}}
    check_sections_of_rounds(job(labeling=labeling, online={"reference": "ema"}))
    with pytest.raises(ConfigError, match="every implicit reward 0"):
        check_sections_of_rounds(job(labeling=labeling, online={"reference": "previous"}))
    online = {"reference": "ema", "ema_alpha": 1.0}
    with pytest.raises(ConfigError, match="every implicit reward 0"):
        check_sections_of_rounds(job(labeling=labeling, online=online))


def test_engines_that_stay_alive_leave_room_for_the_train_workers(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cpus = os.cpu_count() or 1
    full = {"num_workers": cpus, "cpus_per_worker": 1.0}
    found = problems(job(training=full))
    assert len(found) == 1
    assert f"asks for {cpus} CPUs" in found[0]
    assert "keep_engines=false" in found[0]
    assert problems(job(training=full, online={"keep_engines": False})) == []
    assert problems(job(training=full, ray_address="ray://elsewhere:1")) == []


def test_engines_that_sleep_cannot_sample_ahead() -> None:
    sampling = {"engines": {"cpus": 0.1, "sleep": True, "gpu_share": 0.6}}
    check_sections_of_rounds(job(sampling=sampling))
    with pytest.raises(ConfigError, match="its engines are awake"):
        check_sections_of_rounds(job(sampling=sampling, online={"lookahead": 1}))


@pytest.mark.parametrize(
    ("engines", "online"),
    [
        ({"sleep": True, "gpu_share": 0.6}, {}),
        ({}, {"lookahead": 1}),
        ({}, {"keep_engines": False}),
    ],
)
def test_policies_are_sent_to_engines_that_wait_for_them(engines, online) -> None:
    sampling = {"engines": {"cpus": 0.1, "weight_transfer": "broadcast", **engines}}
    check_sections_of_rounds(job(sampling={"engines": {"weight_transfer": "broadcast"}}))
    with pytest.raises(ConfigError, match="'broadcast', and"):
        check_sections_of_rounds(job(sampling=sampling, online=online))


def test_policies_are_sent_between_devices_of_one_kind() -> None:
    sampling = {"engines": {"cpus": 0.1, "weight_transfer": "broadcast", "device": "cpu"}}
    with pytest.raises(ConfigError, match=r"'cpu', and training\.device 'auto'"):
        check_sections_of_rounds(job(sampling=sampling))


def test_an_average_is_of_whole_models(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))

    def rounds(reference: str, model: Path, reference_model: Path) -> list[str]:
        models = {"model": str(model), "reference": {"model": str(reference_model)}}
        return problems(job(online={"reference": reference}, **models))

    assert rounds("ema", base, base) == rounds("original", base, adapter) == []
    assert "'ema', and reference.model" in rounds("ema", base, adapter)[0]
    assert "'ema', and model" in rounds("ema", adapter, base)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"prompts": "split", "prompts_per_round": 4},
        {"reference": "original", "reference_every_rounds": 2},
        {"reference": "previous", "ema_alpha": 0.5},
        {"reference": "ema", "ema_alpha": 0.0},
        {"rounds": 0},
        {"lookahead": 1, "keep_engines": False},
        {"lookahead": 2},
        {"replay": {"share": 1.0}},
        {"replay": {"max_age_rounds": 2}},
        {"stopping": {"max_length_growth": 1.0}},
    ],
)
def test_values_that_contradict_each_other_or_mean_nothing_are_refused(values) -> None:
    with pytest.raises(ValidationError):
        OnlineConfig.model_validate(values)


def test_when_the_reference_changes() -> None:
    hard = OnlineConfig(reference="previous", reference_every_rounds=2)
    assert [hard.updates_reference(r) for r in range(5)] == [False, False, True, False, True]
    assert hard.reference_update_alpha == 1
    soft = OnlineConfig(reference="ema", ema_alpha=0.25)
    assert [soft.updates_reference(r) for r in range(3)] == [False, True, True]
    assert soft.reference_update_alpha == 0.25
    assert not any(OnlineConfig().updates_reference(r) for r in range(5))


def test_with_lookahead_the_sampler_is_one_round_behind() -> None:
    assert [OnlineConfig().sampler_of(r) for r in range(3)] == [0, 1, 2]
    assert [OnlineConfig(lookahead=1).sampler_of(r) for r in range(4)] == [0, 0, 1, 2]


def test_the_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = job(online={"reference": "ema", "replay": {"share": 0.2}})
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_the_command_line_refuses_a_job_without_rounds(tmp_path: Path, capsys) -> None:
    (tmp_path / "job.yaml").write_text(config_to_yaml(job(online=None)))
    assert main(["online", str(tmp_path / "job.yaml")]) == 1
    assert "no `online` section" in capsys.readouterr().err
