"""The rewards that made the labels on the evaluation's samples, and what their rise says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import make_config, make_logps, make_samples

from raydpo.config.job import Config, LabelingConfig, RewardConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import measure
from raydpo.evaluation.plots import label_rewards
from raydpo.evaluation.report import number_lines
from raydpo.evaluation.samples import Sample
from raydpo.evaluation.training_rewards import (
    LabelRewards,
    describe_labels,
    read_label_rewards,
    training_reward,
)
from raydpo.labeling.stage import all_judge
from tests.group_rows import group_row

CLASS = RewardConfig(classifier="models/sentiment")
LENGTH = RewardConfig(function="own:length", name="length")


def job(*rewards: RewardConfig, judge: str = "judge", **evaluation: Any) -> Config:
    config = make_config(**evaluation)
    labeling = LabelingConfig(reward=rewards) if rewards else None
    assert config.evaluation is not None
    other = config.evaluation.judge[0].model_copy(update={"classifier": judge, "name": "judge"})
    judged = config.evaluation.model_copy(update={"judge": (other,)})
    return config.model_copy(update={"labeling": labeling, "evaluation": judged})


def rewarded(sentiment: float, length: float, seed: int, weight: float = 1.0) -> list[Sample]:
    """Samples with the two components' values, and their weighted sum."""
    values = [(sentiment + s.score, length - s.score / 3) for s in make_samples(0.0, seed=seed)]
    return [
        replace(s, score=a + weight * b, values={"sentiment": a, "length": b})
        for s, (a, b) in zip(make_samples(0.0, seed=seed), values, strict=True)
    ]


def said(config: Config, judge_gain: float, reward_gain: float) -> dict[str, Any]:
    reference, policy = make_samples(0.4, seed=0), make_samples(0.4 + judge_gain, seed=1)
    assert config.evaluation is not None
    ours = rewarded(1.0 + reward_gain, 5.0, seed=3)
    found = {
        **measure(config, config.evaluation, reference, policy, make_logps(policy, 0.1), None),
        "training_reward": training_reward(config, rewarded(1.0, 5.0, seed=2), ours),
    }
    return {**found, **examine(found, reference, policy, {})}


def check(found: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in found["checks"] if c["name"] == "training reward")


def test_each_component_is_in_its_own_units_and_the_sum_is_weighted() -> None:
    config = job(CLASS, LENGTH.model_copy(update={"weight": -0.5}))
    reference = rewarded(1.0, 5.0, seed=2, weight=-0.5)
    policy = rewarded(1.3, 9.0, seed=2, weight=-0.5)
    found = training_reward(config, reference, policy)
    sentiment, length = found["components"]
    assert sentiment["difference"]["mean"] == pytest.approx(0.3)
    assert (length["name"], length["unit"], length["weight"]) == ("length", "reward", -0.5)
    assert length["difference"]["mean"] == pytest.approx(4.0)
    assert found["sum"]["difference"]["mean"] == pytest.approx(0.3 - 0.5 * 4.0)
    assert found["sum"]["unit"] == "weighted sum of rewards"
    json.dumps(found, allow_nan=False)


def test_the_sum_says_how_it_is_combined_and_has_no_z_scores() -> None:
    reference, policy = rewarded(1.0, 5.0, seed=2), rewarded(2.0, 5.0, seed=3)

    def unit(*rewards: RewardConfig, **combine: Any) -> str:
        config = job(*rewards)
        labeling = LabelingConfig.model_validate({"reward": rewards, "combine": combine})
        config = config.model_copy(update={"labeling": labeling})
        return training_reward(config, reference, policy)["sum"]["unit"]

    assert unit(CLASS, LENGTH) == "weighted sum of rewards"
    assert unit(CLASS, LENGTH, clip=[0, 1]) == "weighted sum of clipped rewards"
    assert unit(CLASS, LENGTH, normalize="z_score") == "weighted sum of rewards"
    assert unit(CLASS, LENGTH, method="mean_minus_spread") == "mean minus spread of rewards"
    assert unit(CLASS) == "log-odds"


def test_one_components_interval_is_paired_by_prompt() -> None:
    reference = rewarded(1.0, 5.0, seed=2)
    shift = {f"p{n}": 0.1 * n for n in range(8)}
    policy = [
        replace(s, values={**s.values, "sentiment": s.values["sentiment"] + shift[s.prompt_id]})
        for s in reference
    ]
    found = training_reward(job(CLASS, LENGTH), reference, policy)
    # The completions themselves vary by 0.1; the shifts alone make this standard error.
    of_shifts = (sum((s - 0.35) ** 2 for s in shift.values()) / 7 / 8) ** 0.5
    difference = found["components"][0]["difference"]
    assert difference["standard_error"] == pytest.approx(of_shifts)
    assert difference["z"] == pytest.approx(0.35 / of_shifts)


@pytest.mark.parametrize(
    ("judge_gain", "reward_gain", "words"),
    [
        (0.3, 0.5, None),
        (0.0, 0.5, "over-optimization: the reward that made the labels rose, and the judge score "),
        (-0.3, 0.5, "over-optimization: "),
        (0.3, 0.0, "the judge score rose without the reward that made the labels"),
        (0.0, 0.0, "training did not raise the reward that made the labels"),
    ],
)
def test_a_training_reward_that_goes_another_way_than_the_judge_is_flagged(
    judge_gain: float, reward_gain: float, words: str | None
) -> None:
    found = said(job(CLASS, LENGTH), judge_gain, reward_gain)
    assert check(found)["flagged"] == (words is not None)
    against = " ".join(found["speaks_against_it"])
    if words is None:
        assert "the reward that made the labels" not in against
    else:
        assert words in against
        low, high = check(found)["difference"]["ci95"]
        assert low < check(found)["difference"]["mean"] < high
        assert words in found["verdict"]


def test_a_judge_that_made_the_labels_tells_nothing_of_over_optimization() -> None:
    found = said(job(CLASS, judge="models/sentiment"), 0.0, 0.5)
    assert not check(found)["flagged"]


def test_a_component_that_fell_is_noted_by_the_sign_of_its_weight() -> None:
    reward = job(CLASS, LENGTH.model_copy(update={"weight": -1.0}))
    reference, policy = rewarded(1.0, 5.0, 2, -1.0), rewarded(3.0, 6.0, 3, -1.0)
    found = {
        **said(reward, 0.3, 0.5),
        "training_reward": training_reward(reward, reference, policy),
    }
    samples = make_samples(0.4, seed=0), make_samples(0.7, seed=1)
    notes = examine(found, *samples, {})["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("Of the training reward, length rose, and its weight is negative: +")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (job(), "the preferences are existing data"),
        (job(RewardConfig(implicit=True)), "see the KL"),
        (job(CLASS, training_rewards=False), "evaluation.training_rewards is false"),
        (
            job().model_copy(
                update={"labeling": LabelingConfig.model_validate({"people": {}})},
            ),
            "people made the labels",
        ),
    ],
)
def test_rewards_that_are_not_asked_say_why(config: Config, reason: str) -> None:
    assert config.rewards_evaluated == ()
    found = training_reward(config, None, None)
    assert reason in found["missing_because"]
    metrics = {**said(job(CLASS, LENGTH), 0.3, 0.5), "training_reward": found}
    line = next(line for line in number_lines(metrics) if line.name == "training reward")
    assert reason in line.reference.detail
    checks = examine(metrics, make_samples(0.4, seed=0), make_samples(0.7, seed=1), {})["checks"]
    assert "training reward" not in {c["name"] for c in checks}


def test_samples_that_the_reward_refused_are_said_to_be_missing() -> None:
    found = training_reward(job(CLASS), [], rewarded(1.0, 5.0, seed=2))
    assert "refused" in found["missing_because"]


def test_the_page_has_a_line_for_the_sum_and_one_for_each_component() -> None:
    names = [line.name for line in number_lines(said(job(CLASS, LENGTH), 0.3, 0.5))]
    assert names[1:4] == [
        "training reward (weighted sum of rewards)",
        "of which 1 × sentiment (log-odds)",
        "of which 1 × length (reward)",
    ]


def test_scores_are_made_once_where_the_judge_is_the_reward() -> None:
    heavier = LENGTH.model_copy(update={"weight": 2.0})
    function = "tests.integration.rewards:count_e"
    same = RewardConfig(function=function), RewardConfig(function=function, weight=3.0)
    assert all_judge(same[:1], same[1:])
    assert not all_judge(same[:1], (RewardConfig(function=function, name="other"),))
    assert heavier.scorer == LENGTH.scorer


def table(folder: Path, rows: list[dict[str, Any]]) -> Table:
    stage = Stage(Place(Folder(str(folder)), "test"), "preferences", "preferences", {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult(rows, counts={"input": len(rows)}))
    return Table(stage.folder, commit(stage, {}))


def test_rewards_and_margins_are_those_of_the_preferences(tmp_path: Path) -> None:
    pair = {"chosen": 1, "rejected": 0, "weight": 1.0, "probability": 1.0}
    rows = [
        {**group_row("g", [[5], [6], [7]]), "rewards": [0.5, 2.0, -1.0], "pairs": [pair]},
        {**group_row("h", [[5], [6]]), "rewards": [3.0, 1.0], "pairs": [pair]},
    ]
    labels = read_label_rewards(table(tmp_path / "rewarded", rows))
    assert labels == LabelRewards([0.5, 2.0, -1.0, 3.0, 1.0], [1.5, -2.0])
    found = describe_labels(labels)
    assert found is not None
    assert (found["completions"]["median"], found["pairs"]["count"]) == (1.0, 2)
    assert found["pairs_against_the_reward"] == 1
    assert label_rewards(labels.rewards, labels.margins, "logit").startswith(b"\x89PNG")
    without = [{**row, "rewards": None} for row in rows]
    assert read_label_rewards(table(tmp_path / "unrewarded", without)) is None
