"""A reward model in the train loop: what it computes, that it learns, and what is refused."""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo.config.job import ModelConfig, TrainingConfig
from raydpo.core.errors import ModelError
from raydpo.labeling.classifier import load_classifier
from raydpo.models.loading import load_causal_lm, load_scalar_head, load_tokenizer, meta_scalar_head
from raydpo.training.batch import build_micro_batch
from raydpo.training.composition import Plan
from raydpo.training.groups import Group, GroupDataset, rows_without_reference, write_groups
from raydpo.training.logps import HeadRequest, token_outputs
from raydpo.training.loop import Hooks, train
from raydpo.training.objectives import make_objective
from raydpo.training.reward import TokenRewards, ended_by_eos, reward_module
from raydpo.training.sharding import World

CPU = torch.device("cpu")
EOS = 2


def with_random_head(folder: Path) -> Any:
    model = load_scalar_head(ModelConfig(path=str(folder)))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    return model


def rewards_of(module: TokenRewards, groups: list[Group]) -> list[float]:
    batch = build_micro_batch(groups)
    with torch.no_grad():
        return batch.sequence_sums(token_outputs(module, batch, HeadRequest()).logps).tolist()


def test_a_reward_is_that_of_the_text_without_eos_whatever_the_batch(tiny_model: Path) -> None:
    model = with_random_head(tiny_model)
    module = TokenRewards(model)
    rows = [([1, 50, 60, 70], [[80, 90, EOS], [100, EOS]]), ([1, 55], [[61, 62, 63, 64, EOS]])]
    groups = [Group("", prompt, completions, [], None) for prompt, completions in rows]
    texts = [prompt + completion[:-1] for prompt, own in rows for completion in own]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids in texts]
    assert len(set(expected)) == 3
    assert rewards_of(module, groups) == pytest.approx(expected, abs=1e-5)
    assert rewards_of(module, groups[1:]) == pytest.approx(expected[2:], abs=1e-5)


def test_a_completion_that_was_cut_is_read_at_its_last_token_too() -> None:
    row = {"group_id": "g", "completions": [[7, 8], [9, EOS]]}
    assert ended_by_eos(row, EOS)["completions"] == [[7, 8, EOS], [9, EOS]]


def test_a_new_head_is_zero_and_an_old_one_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny_model))
    assert not load_scalar_head(base).score.weight.any()
    one = with_random_head(tiny_model)
    one.save_pretrained(tmp_path)
    again = load_scalar_head(ModelConfig(path=str(tmp_path)))
    assert torch.equal(again.score.weight, one.score.weight)
    empty = meta_scalar_head(base)
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in one.named_parameters()
    }


def test_what_is_no_reward_model_is_refused(tiny_model: Path) -> None:
    config = ModelConfig(path=str(tiny_model))
    with pytest.raises(ModelError, match="has no `score` layer"):
        reward_module(load_causal_lm(config), config)
    shared = config.model_copy(update={"layout": "shared"})
    with pytest.raises(ModelError, match="padded"):
        reward_module(load_scalar_head(config), shared)


def rows() -> list[dict[str, Any]]:
    """Token 80 is good, 90 is neither, 100 is bad, behind different prompts."""
    return [
        {
            "group_id": str(number),
            "prompt_ids": [1, 40 + number, 50],
            "completions": [[100, EOS], [80, EOS], [90, EOS]],
            "pairs": [
                {"chosen": 1, "rejected": 0, "weight": 1.0, "probability": 1.0},
                {"chosen": 1, "rejected": 2, "weight": 1.0, "probability": 1.0},
                {"chosen": 2, "rejected": 0, "weight": 1.0, "probability": 1.0},
            ],
            "ranking": [1, 2, 0],
            "desirable": None,
        }
        for number in range(8)
    ]


def fitted(
    tiny_model: Path, objective: dict[str, Any], **training: Any
) -> tuple[TokenRewards, list[dict[str, float]]]:
    """A reward model after 20 steps, and the metrics of each."""
    settings = TrainingConfig.model_validate(
        {
            "objective": {"name": "reward_model", **objective},
            "learning_rate": 3e-3,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            **training,
        }
    )
    data = GroupDataset(
        write_groups(rows_without_reference(rows(), lambda _: True), uuid.uuid4().hex)
    )
    module = TokenRewards(load_scalar_head(ModelConfig(path=str(tiny_model))))
    log: list[dict[str, float]] = []
    hooks = Hooks(
        log=lambda _step, metrics: log.append(metrics),
        checkpoint=lambda _step, _metrics, _save: lambda: None,
        first_step=lambda _: None,
        failed=lambda _: None,
    )
    plan = Plan(len(data), 8, 20, None, seed=0)
    train(module, data, make_objective(settings.objective), settings, plan, World(0, 1, CPU), hooks)
    return module, log


@pytest.mark.parametrize(
    ("objective", "first", "training"),
    [
        ({"learns_from": "pairs"}, 2.0, {}),
        ({"learns_from": "rankings"}, 6.0, {}),
        ({"learns_from": "pairs"}, 2.0, {"lora": {"rank": 8}, "learning_rate": 1e-2}),
    ],
)
def test_it_learns_the_order(
    tiny_model: Path, objective: dict[str, Any], first: float, training: dict[str, Any]
) -> None:
    module, log = fitted(tiny_model, objective, **training)
    assert log[0]["loss"] == pytest.approx(math.log(first), abs=1e-6)  # log 2, or log K!
    assert log[-1]["loss"] < 0.3
    assert log[-1]["rewards/accuracies"] == 1.0
    unseen = [Group("", [1, 200, 50], [[100, EOS], [80, EOS], [90, EOS]], [], None)]
    bad, good, neither = rewards_of(module, unseen)
    assert good > neither > bad


def test_centered_rewards_move_to_zero_and_keep_the_order(tiny_model: Path, tmp_path: Path) -> None:
    """From a head whose rewards are not around 0."""
    with_random_head(tiny_model).save_pretrained(tmp_path)

    def mean_and_order(centering_weight: float) -> tuple[float, bool]:
        module, log = fitted(tmp_path, {"centering_weight": centering_weight})
        bad, good, neither = rewards_of(
            module, [Group("", [1, 44, 50], [[100, EOS], [80, EOS], [90, EOS]], [], None)]
        )
        means = [(step["rewards/chosen"] + step["rewards/rejected"]) / 2 for step in log[-5:]]
        return abs(sum(means)) / len(means), good > neither > bad

    free, _ = mean_and_order(0.0)
    centered, in_order = mean_and_order(0.1)
    assert centered < free / 2
    assert in_order


def test_labeling_reads_the_saved_folder(tiny_model: Path, tmp_path: Path) -> None:
    from raydpo.config.job import RewardConfig
    from raydpo.labeling.classifier import judge_with_classifier

    config = ModelConfig(path=str(tiny_model))
    tokenizer = load_tokenizer(config)
    model = with_random_head(tiny_model)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = RewardConfig(classifier=str(tmp_path), output="logit")
    prompts, completions = ["the film was", "it"], [" good", " was bad and slow"]
    judged = judge_with_classifier(load_classifier(reward), prompts, completions).values
    groups = [
        Group("", tokenizer(p)["input_ids"], [[*tokenizer(c)["input_ids"][1:], EOS]], [], None)
        for p, c in zip(prompts, completions, strict=True)
    ]
    assert rewards_of(TokenRewards(model), groups) == pytest.approx(judged, abs=1e-4)
