"""Every objective through the real train step: first value, falling loss, indifferent to layout."""

from __future__ import annotations

import functools
import math
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.config.job import TrainingConfig
from raydpo.training.batch import build_micro_batch, split_by_sequence
from raydpo.training.composition import Plan
from raydpo.training.groups import Group, GroupDataset, joined_rows, write_groups
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.loop import Hooks, Step
from raydpo.training.objectives import make_objective
from raydpo.training.sharding import World

LOG2 = math.log(2)
#: Mean log K! and log K of the rankings below, which have 2, 3 and 4 completions in turn.
KS = [2, 3, 4, 2, 3, 4]

#: Section of the objective, and its value where policy and reference are equal (OBJECTIVES.md).
OBJECTIVES: list[tuple[dict[str, Any], float | None]] = [
    ({"name": "dpo"}, LOG2),
    ({"name": "dpo", "length": "mean", "beta": 5.0}, LOG2),
    ({"name": "dpo", "length": {"ld_alpha": 0.3}}, LOG2),
    ({"name": "cdpo"}, LOG2),
    ({"name": "robust", "flip_rate": 0.2}, LOG2),
    ({"name": "outlier_mixture"}, LOG2),
    ({"name": "soft_label"}, LOG2),
    ({"name": "ipo", "tau": 0.2}, 1 / (4 * 0.2**2)),
    ({"name": "hinge"}, 1.0),
    ({"name": "f_dpo"}, LOG2),
    ({"name": "f_dpo", "divergence": "reverse_kl"}, LOG2),
    ({"name": "f_dpo", "divergence": "js"}, LOG2),
    ({"name": "f_dpo", "divergence": "alpha", "alpha": 0.5}, LOG2),
    ({"name": "dpop"}, LOG2),
    ({"name": "exo", "label_smoothing": 0.01}, -LOG2 - math.log(0.01 * 0.99) / 2),
    ({"name": "nca"}, 2 * LOG2),
    ({"name": "apo_zero"}, 0.0),
    ({"name": "apo_down"}, 0.0),
    ({"name": "sppo", "beta": 0.5}, 1 / (2 * 0.5**2)),
    ({"name": "sppo", "win_rates": "soft"}, None),
    ({"name": "discopop"}, (LOG2 + 1) / 2),
    ({"name": "aot"}, LOG2),
    ({"name": "aot", "alignment": "unpaired"}, LOG2),
    ({"name": "bco"}, 2 * LOG2),
    ({"name": "bco", "reward_shift": "zero"}, 2 * LOG2),
    (
        {"name": "plackett_luce"},
        sum(math.log(math.factorial(k)) for k in KS) / len(KS),
    ),
    ({"name": "best_of_k", "length": {"ld_alpha": 0.5}}, sum(map(math.log, KS)) / len(KS)),
    ({"name": "tdpo1"}, LOG2),
    ({"name": "tdpo2", "alpha": 0.3}, LOG2),
    ({"name": "binary_cringe", "top_k": 3}, None),
    ({"name": "pairwise_cringe", "gate_gradient": True}, None),
    ({"name": "simpo"}, None),
    ({"name": "orpo"}, None),
    ({"name": "preferred_sft"}, None),
    ({"name": "unlikelihood", "length": "mean"}, None),
    ({"name": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.5),
    ({"name": "policy_gradient"}, None),
    ({"name": "policy_gradient", "advantages": "batch_mean", "loss_per": "token"}, None),
    (
        {
            "name": "policy_gradient",
            "advantages": "group_normalized",
            "kl": "weighted_loss",
            "loss_per": "completion_mean",
        },
        None,
    ),
    ({"name": "dpo", "sft_weight": 0.5}, None),
    ({"name": "kto", "sft_weight": 0.5}, None),
    (
        {
            "name": "sum",
            "terms": [
                {"weight": 2.0, "objective": {"name": "dpo"}},
                {"weight": 0.5, "objective": {"name": "plackett_luce"}},
                {"objective": {"name": "aot"}},
            ],
        },
        3 * LOG2 + 0.5 * sum(math.log(math.factorial(k)) for k in KS) / len(KS),
    ),
]
IDS = [f"{number}-{section['name']}" for number, (section, _) in enumerate(OBJECTIVES)]


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def _completions(rng: np.random.Generator, count: int) -> list[list[int]]:
    return [rng.integers(3, 61, rng.integers(1, 12)).tolist() for _ in range(count)]


def pair_rows() -> list[dict[str, Any]]:
    """Groups of 2 to 4 completions with all pairs, odd weights, soft labels and a ranking."""
    rng = np.random.default_rng(0)
    rows = []
    for number, k in enumerate(KS):
        ranking = rng.permutation(k).tolist()
        pairs = [
            {
                "chosen": better,
                "rejected": ranking[place],
                "weight": float(rng.choice([0.5, 1.0])),
                "probability": float(rng.uniform(0.5, 1)),
            }
            for place in range(k)
            for better in ranking[:place]
        ]
        prompt = rng.integers(3, 61, rng.integers(1, 9)).tolist()
        known = {"pairs": pairs, "ranking": ranking, "desirable": None}
        rows.append(_row(number, prompt, _completions(rng, k), known))
    return rows


def unpaired_rows() -> list[dict[str, Any]]:
    """Judged completions, each with one of another prompt beside it."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(6):
        known = {"pairs": [], "ranking": None, "desirable": [number % 3 == 0, None]}
        prompt = rng.integers(3, 61, rng.integers(1, 9)).tolist()
        rows.append(_row(number, prompt, _completions(rng, 2), known))
    return rows


def sampled_rows() -> list[dict[str, Any]]:
    """Groups of 2 to 4 completions with rewards, and their log-probs under the policy."""
    rng = np.random.default_rng(2)
    module = TokenLogps(make_model())
    rows = []
    for number, k in enumerate(KS):
        prompt = rng.integers(3, 61, rng.integers(1, 9)).tolist()
        completions = _completions(rng, k)
        group = Group("", prompt, completions, [], None)
        (logps,) = _logps(module, [group])
        known = {"rewards": rng.normal(size=k).tolist(), "sampler_token_logps": logps}
        rows.append(_row(number, prompt, completions, {"pairs": [], **known}))
    return rows


#: Rows by the kind of what an objective learns from.
ROWS = {"pairs": pair_rows, "unpaired": unpaired_rows, "sampled": sampled_rows}
#: Objectives that learn from something else than pairs.
KINDS = {"kto": "unpaired", "policy_gradient": "sampled"}


@torch.no_grad()
def _logps(module: TokenLogps, groups: list[Group]) -> list[list[list[float]]]:
    flat = token_logps(module, batch := build_micro_batch(groups)).tolist()
    values = iter(split_by_sequence(flat, batch))
    return [[next(values) for _ in group.completions] for group in groups]


def _row(number: int, prompt: list[int], completions: list[list[int]], known: Any) -> Any:
    name = str(number)
    row = {"group_id": name, "prompt_id": name, "prompt_ids": prompt, "completions": completions}
    return {**row, **known}


@functools.cache
def dataset(kind: str, reference_seed: int = 0) -> GroupDataset:
    rows = ROWS[kind]()
    plain = GroupDataset(
        write_groups(
            ({k: v for k, v in row.items() if k != "prompt_id"} for row in rows), uuid.uuid4().hex
        )
    )
    module = TokenLogps(make_model(reference_seed))
    scored = []
    for number, row in enumerate(rows):
        (values,) = _logps(module, [plain[number]])
        scored.append({"group_id": row["group_id"], "reference_token_logps": values})
    return GroupDataset(write_groups(joined_rows(rows, scored, lambda _: True), uuid.uuid4().hex))


def step_of(
    section: dict[str, Any],
    max_tokens: int,
    reference_seed: int = 0,
    attention: str | None = "segments",
) -> Step:
    settings = TrainingConfig.model_validate(
        {
            "objective": section,
            "max_tokens_per_micro_batch": max_tokens,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "max_grad_norm": None,
        }
    )
    module = TokenLogps(make_model(), attention=attention)
    module.put_beside(TokenLogps(make_model(reference_seed), attention=attention))
    return Step(
        module=module,
        shared=module.shared,
        data=dataset(KINDS.get(section["name"], "pairs"), reference_seed),
        objective=make_objective(settings.objective, seed=5),
        settings=settings,
        plan=Plan(6, 6, 3, 3, seed=0),
        world=World(0, 1, torch.device("cpu")),
        optimizer=torch.optim.SGD(module.parameters(), lr=3e-3),
        hooks=Hooks(
            log=lambda _step, _metrics: None,
            checkpoint=lambda _step, _metrics, _save: None,
            first_step=lambda _largest: None,
            failed=lambda _step, _names: None,
        ),
    )


def loss_and_gradient(step: Step) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics and gradient of the first step."""
    groups = step.plan.step_groups(0)
    objective = step._objective(0, groups)
    normalizer = objective.normalizer(groups, step.data.sizes)
    metrics = step._reduced(step._accumulate(0, objective, groups, normalizer), normalizer)
    gradients = [p.grad.flatten() for p in step.module.parameters() if p.grad is not None]
    return metrics, torch.cat(gradients)


@pytest.mark.thorough
@pytest.mark.parametrize(("section", "first"), OBJECTIVES, ids=IDS)
def test_first_loss_is_that_of_the_table_and_training_lowers_it(section, first) -> None:
    step = step_of(section, max_tokens=200)
    metrics = [step(index) for index in range(3)]
    if first is not None:
        assert metrics[0]["loss"] == pytest.approx(first, abs=2e-5)
    # The step of Cringe draws other tokens each time, so its loss is compared in its log-probs.
    if "cringe" in section["name"]:
        assert metrics[2]["logps/margins"] > metrics[0]["logps/margins"]
    else:
        assert metrics[2]["loss"] < metrics[0]["loss"]


@pytest.mark.thorough
@pytest.mark.parametrize(("section", "first"), OBJECTIVES, ids=IDS)
def test_neither_micro_batches_nor_layout_change_loss_or_gradient(section, first) -> None:
    """Away from the reference, where nothing cancels by symmetry."""
    (one, cut), (other, whole) = (
        loss_and_gradient(step_of(section, max_tokens, reference_seed=1, attention=attention))
        for max_tokens, attention in ((1, "segments"), (10**9, None))
    )
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    assert whole.norm() > 0
    assert (cut - whole).norm() < 1e-5 * whole.norm()


def test_metrics_have_the_names_of_trl() -> None:
    pairs = {
        f"{kind}/{side}"
        for kind, side in [
            ("rewards", "chosen"),
            ("rewards", "rejected"),
            ("rewards", "margins"),
            ("rewards", "accuracies"),
            ("logps", "chosen"),
            ("logps", "rejected"),
        ]
    }
    for name in ("dpo", "simpo", "plackett_luce"):
        assert pairs <= step_of({"name": name}, 10**9)(0).keys()
    kto = step_of({"name": "kto"}, 10**9)(0)
    assert pairs - {"rewards/accuracies"} <= kto.keys()
    assert kto["kl"] == pytest.approx(0, abs=1e-4)
    assert "nll_loss" in step_of({"name": "dpo", "sft_weight": 0.1}, 10**9)(0)


def test_policy_gradient_where_the_policy_sampled_has_ratios_of_one() -> None:
    metrics = step_of({"name": "policy_gradient"}, 50, reference_seed=1)(0)
    rewards = [reward for row in sampled_rows() for reward in row["rewards"]]
    assert metrics["rewards/mean"] == pytest.approx(np.mean(rewards), rel=1e-6)
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["ratio/clipped"] == 0
    assert metrics["kl"] > 0.01
    flat = [v for row in sampled_rows() for own in row["sampler_token_logps"] for v in own]
    assert metrics["entropy"] == pytest.approx(-np.mean(flat), rel=1e-5)


def test_before_the_first_update_policy_and_sampler_are_compared_on_every_token() -> None:
    step = step_of({"name": "policy_gradient", "beta": 0.0}, 50)
    found: list[tuple[int, float, float]] = []
    hooks = replace(step.hooks, first_ratios=lambda *values: found.append(values))
    step = replace(step, hooks=hooks)
    step(0)
    step(1)
    ((tokens, total, largest),) = found
    assert tokens == sum(len(ids) for row in sampled_rows() for ids in row["completions"])
    assert total < 1e-6 * tokens
    assert 0 < largest < 1e-5
    other = replace(step, module=TokenLogps(make_model(seed=3)), shared=False)
    other(0)
    assert found[-1][0] == tokens
    assert found[-1][1] > 0.01 * tokens
    assert found[-1][2] > found[-1][1] / tokens


def test_kto_metrics_are_means_over_each_side() -> None:
    """Rewards of desirable and undesirable completions, against the data read one by one."""
    step = step_of({"name": "kto", "beta": 0.5}, 1, reference_seed=1)
    module, data = TokenLogps(make_model()), step.data
    sides: dict[bool | None, list[float]] = {True: [], False: [], None: []}
    for number in range(len(data)):
        group = data[number]
        with torch.no_grad():
            batch = build_micro_batch([group])
            values = batch.sequence_sums(token_logps(module, batch) - batch.reference_token_logps)
        for judgement, value in zip(group.desirable, values.tolist(), strict=True):
            sides[judgement].append(value)
    metrics = step(0)
    assert metrics["rewards/chosen"] == pytest.approx(0.5 * np.mean(sides[True]), rel=1e-4)
    assert metrics["rewards/rejected"] == pytest.approx(0.5 * np.mean(sides[False]), rel=1e-4)
    assert metrics["kl"] == pytest.approx(max(0, np.mean(sides[None])), rel=1e-4)


def test_bco_shifts_by_the_mean_reward_of_the_pairs_of_the_global_batch() -> None:
    step = step_of({"name": "bco", "beta": 0.5}, 1, reference_seed=1)
    metrics, _ = loss_and_gradient(step)
    mean = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
    assert abs(mean) > 0.01
    assert metrics["rewards/shift"] == pytest.approx(mean, rel=1e-4)
    zero = step_of({"name": "bco", "beta": 0.5, "reward_shift": "zero"}, 1, reference_seed=1)
    unshifted, _ = loss_and_gradient(zero)
    assert unshifted["rewards/shift"] == 0
    assert metrics["loss"] < unshifted["loss"]  # the shift helps where all rewards lie on one side


def test_a_sum_is_the_weighted_sum_of_its_terms() -> None:
    names = [{"name": "dpo"}, {"name": "plackett_luce"}, {"name": "aot"}]
    alone = [step_of(section, 10**9, reference_seed=1)(0)["loss"] for section in names]
    terms = [{"weight": w, "objective": o} for w, o in zip((2.0, 0.5, 1.0), names, strict=True)]
    metrics = step_of({"name": "sum", "terms": terms}, 50, reference_seed=1)(0)
    assert metrics["loss"] == pytest.approx(2 * alone[0] + alone[1] / 2 + alone[2], rel=1e-5)
    assert metrics["loss/plackett_luce"] == pytest.approx(alone[1], rel=1e-5)


def test_soft_labels_come_from_the_data() -> None:
    """With the probability of each pair, the loss is another than with hard labels."""
    soft = step_of({"name": "soft_label"}, 10**9, reference_seed=1)(0)["loss"]
    hard = step_of({"name": "dpo"}, 10**9, reference_seed=1)(0)["loss"]
    assert soft != pytest.approx(hard, rel=1e-3)
