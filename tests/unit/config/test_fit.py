"""raydpo refuses an objective and data that do not fit, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.check.job import check
from raydpo.config.fit import check_config_fits, check_counts_fit
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError, DataError

REWARD = {"reward": {"function": "a.b:c"}}
PAIR_COUNTS = {"input": 4, "pairs": 4, "rankings": 4, "soft_labels": 0}


def job(objective: Any, layout: str | None = None, labeling: Any = None) -> Config:
    source: dict[str, Any] = {"prompts": "prompts.jsonl", "labeling": labeling}
    if layout is not None:
        source = {"preferences": {"path": "pairs.jsonl", "layout": layout}}
    values = {"name": "job", "model": "m", "training": {"objective": objective}, **source}
    return Config.model_validate(values)


@pytest.mark.parametrize(
    ("objective", "layout"),
    [
        ("dpo", "explicit"),
        ("plackett_luce", "implicit"),  # a pair is a ranking of two
        ("soft_label", "ranked"),
        ("kto", "unpaired"),
        ("kto", "auto"),
        ({"name": "sppo", "win_rates": "hard"}, "explicit"),
    ],
)
def test_data_that_an_objective_learns_from_fits(objective: Any, layout: str) -> None:
    check_config_fits(job(objective, layout))


@pytest.mark.parametrize("section", ["evaluation", "online"])
def test_nothing_is_sampled_from_a_reward_model(section: str) -> None:
    sections = {
        "evaluation": {"prompts": "p.jsonl", "judge": {"function": "a.b:c"}},
        "online": {},
    }
    config = job("reward_model", labeling=REWARD)
    check_config_fits(config)
    values = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="a reward model writes no text"):
        check_config_fits(Config.model_validate({**values, section: sections[section]}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (job({"name": "reward_model", "learns_from": "rankings"}), "reward_model learns from"),
        (job("kto", "explicit"), "kto learns from single completions"),
        (job("kto", labeling=REWARD), "give preferences of the layout `unpaired`"),
        (job("dpo", "unpaired"), "use `kto` for single judged completions"),
        (job("soft_label", "sharegpt"), "or use `cdpo`"),
        (job({"name": "sppo", "win_rates": "soft"}, "explicit"), "the probability that chosen"),
        (
            job("soft_label", labeling={**REWARD, "pairs": {"builder": "data_chosen"}}),
            "with pairs.builder 'data_chosen': what is there is pairs",
        ),
        (job("best_of_k"), "best_of_k learns from rankings"),  # of people's votes
        (
            job({"name": "sum", "terms": [{"objective": "dpo"}, {"objective": "kto"}]}, "explicit"),
            "kto learns from",
        ),
    ],
)
def test_what_can_never_fit_is_refused_by_the_configuration(config: Config, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config_fits(config)
    assert message in str(caught.value)


def test_people_and_rewards_give_soft_labels() -> None:
    check_config_fits(job("soft_label"))
    check_config_fits(job("soft_label", labeling=REWARD))


def test_a_table_without_what_is_needed_is_refused_by_its_counts() -> None:
    check_counts_fit(job("dpo", "auto"), PAIR_COUNTS)
    with pytest.raises(ConfigError, match="single completions"):
        check_counts_fit(job("kto", "auto"), PAIR_COUNTS)
    with pytest.raises(ConfigError, match="ranking_ties: by_candidate"):
        check_counts_fit(job("plackett_luce", "ranked"), {**PAIR_COUNTS, "rankings": 0})
    check_counts_fit(job("kto", "unpaired"), {"input": 2, "desirable": 1, "undesirable": 1})


@pytest.mark.parametrize("missing", ["desirable", "undesirable"])
def test_kto_of_one_judgement_is_refused_once_the_whole_table_is_known(missing: str) -> None:
    counts = {"input": 2, "desirable": 2, "undesirable": 2, missing: 0}
    with pytest.raises(ConfigError, match=f"2 judged completions, none of them {missing}"):
        check_counts_fit(job("kto", "unpaired"), counts)
    check_counts_fit(job("kto", "unpaired"), counts, is_whole=False)


def test_the_check_says_it_and_shows_unpaired_data(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "unpaired.jsonl"
    rows = [{"prompt": f"film {n}", "completion": " good", "label": n > 1} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def report(objective: str) -> Any:
        values = {
            "name": "job",
            "output": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "training": {"objective": objective},
            "preferences": {
                "path": str(file),
                "max_prompt_tokens": 32,
                "max_completion_tokens": 32,
            },
        }
        return check(Config.model_validate(values))

    fits = report("kto")
    assert fits.problems == ()
    assert "  undesirable (in the table below):" in fits.lines
    (problem,) = report("dpo").problems
    assert "dpo learns from pairs" in str(problem)


POLICY_GRADIENT = {"name": "policy_gradient"}


def sampled(**changes: Any) -> Config:
    """Rounds that sample, score and train by policy gradient; changes by dotted path."""
    values = job(POLICY_GRADIENT, labeling=REWARD).model_dump(mode="json", exclude_unset=True)
    values["online"] = {}
    for path, value in changes.items():
        *sections, name = path.split("__")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return Config.model_validate(values)


def test_policy_gradient_fits_a_job_that_samples_and_scores() -> None:
    check_config_fits(sampled())
    check_config_fits(sampled(sampling__function={"path": "a.b:c", "returns_logprobs": True}))
    check_config_fits(sampled(sampling__candidates=1, training__objective__advantages="batch_mean"))
    check_config_fits(sampled(online=None, training__objective__kl="weighted_loss"))
    check_config_fits(sampled(online=None, training__objective__beta=0))
    check_config_fits(sampled(online=None, reference={"model": "another"}))
    check_config_fits(sampled(online={"reference": "previous", "reference_every_rounds": 2}))
    check_config_fits(sampled(online__reference="ema"))
    check_counts_fit(sampled(), {"output": 3, "samples": 9, "groups_with_equal_rewards": 2})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (job(POLICY_GRADIENT, "auto"), "existing `preferences`"),
        (job(POLICY_GRADIENT), "no reward in `labeling`"),
        (job(POLICY_GRADIENT, labeling={"people": {}}), "no reward in `labeling`"),
        (sampled(sampling__temperature=0.7), "sampling.temperature 0.7"),
        (sampled(sampling__temperature=0.0), "sampling.temperature 0.0"),
        (sampled(sampling__top_p=0.9), "sampling.top_p 0.9"),
        (sampled(sampling__top_k=5), "sampling.top_k 5"),
        (sampled(sampling__min_p=0.1), "sampling.min_p 0.1"),
        (sampled(sampling__presence_penalty=0.5), "sampling.presence_penalty 0.5"),
        (sampled(sampling__frequency_penalty=0.5), "sampling.frequency_penalty 0.5"),
        (sampled(sampling__repetition_penalty=1.1), "sampling.repetition_penalty 1.1"),
        (sampled(sampling__temperatures=[0.5, 1.0]), "sampling.temperatures"),
        (sampled(sampling__extra={"bad_words": ["a"]}), "sampling.extra"),
        (sampled(sampling__min_completion_tokens=2), "sampling.min_completion_tokens 2"),
        (sampled(sampling__candidates=1), "sampling.candidates 1"),
        (sampled(sampling__function="a.b:c"), "the sampler function 'a.b:c'"),
        (sampled(labeling__pairs={"flip_rate": 0.1}), "labeling.pairs.flip_rate 0.1"),
        (sampled(labeling__pairs={"labels": "bradley_terry"}), "labeling.pairs.labels"),
        (sampled(online=None), "one round, whose sampler is the reference"),
        (sampled(online=None, reference={"model": "m"}), "one round, whose sampler is"),
        (sampled(online__reference="previous"), "online.reference 'previous'"),
    ],
)
def test_policy_gradient_refuses_what_it_cannot_learn_from(config: Config, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config_fits(config)
    assert message in str(caught.value)


def test_policy_gradient_stands_alone_and_keeps_no_checkpoints_by_pairs() -> None:
    terms = {"name": "sum", "terms": [{"objective": "dpo"}, {"objective": POLICY_GRADIENT}]}
    with pytest.raises(ValidationError, match="stands alone"):
        job(terms, labeling=REWARD)
    with pytest.raises(ValidationError, match="keep_best_by 'rewards/margins'"):
        sampled(training__keep_best_by="rewards/margins")


def test_samples_whose_rewards_are_equal_for_each_prompt_are_refused() -> None:
    counts = {"output": 3, "samples": 9, "groups_with_equal_rewards": 3}
    with pytest.raises(DataError, match="each of the 3 prompts have the same reward"):
        check_counts_fit(sampled(), counts)
    check_counts_fit(sampled(training__objective__advantages="batch_mean"), counts)


PAIRED = ({"builder": "top_bottom"}, {"builder": "best_of_n"}, {"max_per_prompt": 2})


@pytest.mark.parametrize("pairs", [*PAIRED, {"weight_by": "margin"}, {"merge_similarity": 0.9}])
@pytest.mark.parametrize("objective", ["plackett_luce", "best_of_k", POLICY_GRADIENT])
def test_settings_of_pairs_are_refused_where_no_pairs_are_read(pairs: Any, objective: Any) -> None:
    labeling = {**REWARD, "pairs": pairs}
    config = job(objective, labeling=labeling)
    (name,) = pairs
    with pytest.raises(ConfigError, match=f"labeling.pairs.{name} .*"):
        check_config_fits(config)
    check_config_fits(job("dpo", labeling=labeling))
    terms = [{"objective": "dpo"}, {"objective": "plackett_luce"}]
    check_config_fits(job({"name": "sum", "terms": terms}, labeling=labeling))


def test_rejection_sampling_that_accepts_all_candidates_is_refused() -> None:
    pairs = {"builder": "rejection_sampling", "accepted": 4}
    config = job("dpo", labeling={**REWARD, "pairs": pairs})
    with pytest.raises(ConfigError, match="accepts 4 candidates"):
        check_config_fits(config)
    values = config.model_dump(mode="json", exclude_unset=True)
    check_config_fits(Config.model_validate({**values, "sampling": {"candidates": 16}}))
