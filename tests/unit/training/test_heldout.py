"""Measurements on held-out data by the train loop, compared with transformers' own forward pass."""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from raydpo.config.job import ModelConfig, SftConfig, TrainerConfig, TrainingConfig
from raydpo.core.errors import ConfigError, NumericsError
from raydpo.training.checkpoints import newest_whole
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, write_groups
from raydpo.training.heldout import Evaluation, Evaluator
from raydpo.training.logps import TokenLogps
from raydpo.training.loop import BeginSave, EndSave, Hooks, Metrics, Outcome, train
from raydpo.training.objectives import Objective, SftObjective, make_objective
from raydpo.training.reward import reward_module
from raydpo.training.sharding import World

WORLD = World(0, 1, torch.device("cpu"))
BETA = 0.1
Rows = list[dict[str, Any]]


def llama(seed: int = 0, kind: Any = LlamaForCausalLM, **more: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=64, num_attention_heads=2, pad_token_id=0, **sizes, **more)
    return kind(config).eval()


def completion_logps(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probs of a completion's tokens by the model's own forward pass on it alone."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].log_softmax(-1)[:-1]
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(prompt) - 1 :]


def rows_of(count: int, seed: int, reference: Any) -> Rows:
    """Groups of two to four completions with one or more pairs of unequal weights."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most, (1,), generator=draw))
        return torch.randint(3, 64, (length,), generator=draw).tolist()

    rows = []
    for number in range(count):
        prompt = ids(9)
        completions = [ids(12) for _ in range(2 + number % 3)]
        pairs = [
            {"chosen": 0, "rejected": other, "weight": 1.0 / other, "probability": None}
            for other in range(1, len(completions))
        ]
        logps = [completion_logps(reference, prompt, c).tolist() for c in completions]
        rows.append(
            {
                "group_id": f"group {number}",
                "prompt_ids": prompt,
                "completions": completions,
                "pairs": pairs,
                "reference_token_logps": logps,
                "rewards": [float(n) for n in range(len(completions))],
                "sampler_token_logps": logps,
            }
        )
    return rows


def dataset(rows: Rows) -> GroupDataset:
    return GroupDataset(write_groups(rows, uuid.uuid4().hex))


def module_of(model: Any) -> TokenLogps:
    """A copy, since the shared layout replaces the model's attention."""
    return TokenLogps(copy.deepcopy(model), attention="segments")


def evaluation_of(
    model: Any, rows: Rows, objective: Objective, settings: TrainerConfig | None = None
) -> Evaluation:
    settings = settings or TrainingConfig()
    module = model if isinstance(model, TokenLogps) else module_of(model)
    data = dataset(rows)
    return Evaluator(module, module.shared, data, objective, settings, WORLD, lambda _: None)(7)


def by_hand(model: Any, rows: Rows) -> dict[str, float]:
    """The DPO metrics from transformers' own log-probs: means over pairs, by their weights."""
    total = dict.fromkeys(("loss", "accuracy", "margin", "chosen", "rejected"), 0.0)
    weights = 0.0
    for row in rows:
        logps = [completion_logps(model, row["prompt_ids"], c).sum() for c in row["completions"]]
        reference = [torch.tensor(values).sum() for values in row["reference_token_logps"]]
        for pair in row["pairs"]:
            a, b, weight = pair["chosen"], pair["rejected"], pair["weight"]
            margin = BETA * ((logps[a] - reference[a]) - (logps[b] - reference[b])).item()
            total["loss"] += weight * math.log1p(math.exp(-margin))
            total["accuracy"] += weight * (margin > 0)
            total["margin"] += weight * margin
            total["chosen"] += weight * logps[a].item()
            total["rejected"] += weight * logps[b].item()
            weights += weight
    return {name: value / weights for name, value in total.items()}


@pytest.fixture(scope="module")
def rows() -> Rows:
    return rows_of(9, 1, llama(0))


@pytest.mark.parametrize("max_tokens", [1, 100, 10**9])
def test_the_numbers_are_those_of_a_plain_forward_pass(rows, max_tokens: int) -> None:
    policy = llama(5)
    settings = TrainingConfig(max_tokens_per_micro_batch=max_tokens)
    found = evaluation_of(policy, rows, make_objective(settings.objective), settings)
    expected = by_hand(policy, rows)
    names = {
        "loss": "loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "logps/chosen": "chosen",
        "logps/rejected": "rejected",
    }
    for name, own in names.items():
        assert found.means[name] == pytest.approx(expected[own], rel=1e-5, abs=1e-6), name
    assert 0 < found.means["rewards/accuracies"] < 1
    assert found.metrics["heldout/loss"] == found.means["loss"]
    assert found.step == 7


def test_before_training_the_loss_is_log_two_and_a_tie_is_no_success(rows) -> None:
    model, objective = llama(0), make_objective(TrainingConfig().objective)
    exact = evaluation_of(model, rows, objective)
    assert exact.means["loss"] == pytest.approx(math.log(2), abs=1e-6)
    own = [
        {
            **row,
            "reference_token_logps": logps,
            "pairs": [{**pair, "weight": 0.5} for pair in row["pairs"]],
        }
        for row, logps in zip(rows, by_group(model, rows), strict=True)
    ]
    settings = TrainingConfig(max_tokens_per_micro_batch=1)
    exact = evaluation_of(model, own, objective, settings)
    assert exact.means["loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-13)
    assert exact.means["rewards/margins"] == 0
    assert exact.means["rewards/accuracies"] == 0


def by_group(model: Any, rows: Rows) -> list[list[list[float]]]:
    """Reference log-probs as the project's own forward pass gives them, a group at a time."""
    from raydpo.training.logps import completion_logps as by_module

    module, data = module_of(model), dataset(rows)
    with torch.no_grad():
        return [by_module(module, [data[n]], True, WORLD.device)[0] for n in range(len(data))]


def test_fine_tuning_has_the_loss_and_the_perplexity_of_a_token(rows) -> None:
    examples = [
        {**row, "completions": row["completions"][:1], "pairs": [], "reference_token_logps": None}
        for row in rows
    ]
    model = llama(5)
    found = evaluation_of(model, examples, SftObjective(), SftConfig(data="x"))
    logps = [completion_logps(model, e["prompt_ids"], e["completions"][0]) for e in examples]
    loss = -torch.cat(logps).double().mean().item()
    assert found.means == pytest.approx({"loss": loss, "perplexity": math.exp(loss)}, rel=1e-6)


def test_a_reward_model_has_the_losses_of_its_own_rewards(rows) -> None:
    model = llama(5, LlamaForSequenceClassification, num_labels=1)
    settings = TrainingConfig.model_validate({"objective": "reward_model"})
    module = reward_module(model, ModelConfig(path="x"))
    found = evaluation_of(module, rows, make_objective(settings.objective), settings)
    total = weights = right = 0.0
    for row in rows:
        rewards = []
        for completion in row["completions"]:
            # The last token only says that the text has ended: the reward is read before it.
            ids = torch.tensor([row["prompt_ids"] + completion])[:, :-1]
            with torch.no_grad():
                rewards.append(model(input_ids=ids).logits.item())
        for pair in row["pairs"]:
            margin = rewards[pair["chosen"]] - rewards[pair["rejected"]]
            total += pair["weight"] * math.log1p(math.exp(-margin))
            right += pair["weight"] * (margin > 0)
            weights += pair["weight"]
    assert found.means["loss"] == pytest.approx(total / weights, rel=1e-5)
    assert found.means["rewards/accuracies"] == pytest.approx(right / weights)
    assert not any(name.startswith("logps") for name in found.means)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "aot"},
        {"name": "bco"},
        {"name": "pairwise_cringe"},
        {"name": "simpo"},
        {"name": "policy_gradient"},
        {"name": "preferred_sft"},
        {"name": "unlikelihood"},
        {"name": "dpo", "sft_weight": 1.0},
        {
            "name": "sum",
            "terms": [{"objective": "ipo"}, {"weight": 0.5, "objective": {"name": "aot"}}],
        },
    ],
    ids=lambda section: str(section["name"]),
)
def test_all_held_out_groups_are_one_global_batch(rows, section: dict[str, Any]) -> None:
    """The loss is that of a train step over all of them, whatever the micro-batches."""
    settings = TrainingConfig.model_validate(
        {"objective": section, "global_batch_groups": 99, "learning_rate": 1e-9}
    )
    objective = make_objective(settings.objective)
    policy, data = llama(5), dataset(rows)
    of_step: list[Metrics] = []
    hooks = Hooks(
        log=lambda _, metrics: of_step.append(metrics),
        checkpoint=lambda *_: lambda: None,
        first_step=lambda _: None,
        failed=lambda _: None,
    )
    module = module_of(policy)
    train(module, data, objective, settings, Plan(len(data), 99, 1, 1, 0), WORLD, hooks)
    for max_tokens in (1, 10**9):
        small = settings.model_copy(update={"max_tokens_per_micro_batch": max_tokens})
        found = evaluation_of(policy, rows, objective, small).means
        for name, value in found.items():
            assert value == pytest.approx(of_step[0][name], rel=1e-4, abs=1e-5), name


def test_unpaired_data_are_measured(rows) -> None:
    unpaired = [
        {**row, "pairs": [], "desirable": [True, *[None] * (len(row["completions"]) - 1)]}
        for row in rows
    ]
    unpaired[0]["desirable"] = [False, *unpaired[0]["desirable"][1:]]
    objective = make_objective(TrainingConfig.model_validate({"objective": "kto"}).objective)
    found = evaluation_of(llama(5), unpaired, objective)
    assert {"loss", "rewards/margins", "logps/chosen"} <= set(found.means)
    assert found.weights == [1.0] * len(rows)


def test_what_is_not_finite_is_refused_by_the_names_of_its_groups(rows) -> None:
    broken = [dict(row) for row in rows]
    broken[3]["reference_token_logps"] = [
        [-math.inf] * len(values) for values in rows[3]["reference_token_logps"]
    ]
    with pytest.raises(NumericsError, match="group 3"):
        evaluation_of(llama(5), broken, make_objective(TrainingConfig().objective))


@dataclass
class Trained:
    """What a training told its hooks, and the parameters that it left."""

    rows: list[dict[str, float]] = field(default_factory=list)
    outcome: Outcome | None = None
    before: Evaluation | None = None
    saved: list[int] = field(default_factory=list)
    ranks: list[float | None] = field(default_factory=list)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> list[float]:
        return [row["step"] for row in self.rows]


def trained(
    training: Rows,
    heldout: Rows | None,
    folder: Path,
    resume: bool = False,
    max_steps: int = 8,
    spoil: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> Trained:
    """Train `llama(0)`, with its checkpoints in `folder`."""
    values = {"learning_rate": 3e-3, "checkpoint_every_steps": 3, "epochs": 20, **settings}
    config = TrainingConfig.model_validate(values)
    result = Trained()

    def log(step: int, metrics: Metrics) -> None:
        spoil(step)
        result.rows.append({"step": step, **metrics})

    def checkpoint(step: int, metrics: Metrics, save: BeginSave) -> EndSave:
        result.saved.append(step)
        result.ranks.append(metrics.get("checkpoint_rank"))
        return save(folder / f"{step:03d}")

    @contextmanager
    def checkpoint_of(step: int) -> Generator[Path]:
        yield folder / f"{step:03d}"

    hooks = Hooks(
        log=log,
        checkpoint=checkpoint,
        first_step=lambda _: None,
        failed=lambda _: None,
        before=lambda evaluation: setattr(result, "before", evaluation),
        checkpoint_of=checkpoint_of,
        ended=lambda outcome: setattr(result, "outcome", outcome),
    )
    data = dataset(training)
    start = newest_whole(sorted(folder.glob("*"), reverse=True)) if resume else None
    module = train(
        TokenLogps(llama(0), attention="segments"),
        data,
        make_objective(config.objective),
        config,
        Plan(len(data), 4, 20, max_steps, seed=3),
        WORLD,
        hooks,
        start and start[0],
        heldout=None if heldout is None else dataset(heldout),
    )
    result.parameters = {n: v.detach().clone() for n, v in module.state_dict().items()}
    return result


#: Values of a step that are times, or follow from them.
TIMES = ("step_seconds", "tokens_per_second", "groups_per_second")


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: v for name, v in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def training() -> Rows:
    return rows_of(10, 2, llama(0))


def assert_equal(one: Trained, other: Trained) -> None:
    for name, value in one.parameters.items():
        assert torch.equal(value, other.parameters[name]), name


def test_measuring_changes_no_weight_and_no_other_metric(training, rows, tmp_path) -> None:
    plain = trained(training, None, tmp_path / "plain")
    measured = trained(training, rows, tmp_path / "measured", evaluate_every_steps=2)
    assert plain.steps == list(range(1, 9))
    assert measured.steps == list(range(9))
    at = [row["step"] for row in measured.rows if "heldout/loss" in row]
    assert at == [0, 2, 4, 6, 8]
    own = [{n: v for n, v in row.items() if not n.startswith("heldout/")} for row in measured.rows]
    assert untimed(own[1:]) == untimed(plain.rows)
    assert plain.outcome is not None
    assert plain.outcome.evaluation is None
    assert plain.ranks == measured.ranks == [None] * 3
    assert_equal(plain, measured)


def test_without_steps_between_it_measures_before_and_after(training, rows, tmp_path) -> None:
    found = trained(training, rows, tmp_path)
    assert [row["step"] for row in found.rows if "heldout/loss" in row] == [0, 8]
    assert found.before is not None
    assert found.outcome is not None
    assert found.outcome.evaluation is not None
    assert found.before.metrics.items() <= found.rows[0].items()
    assert found.outcome.evaluation.metrics.items() <= found.rows[-1].items()
    assert (found.outcome.exported_step, found.outcome.done) == (8, 8)


class Killed(BaseException):
    """Stands for the end of the process."""


STOPPING = {"evaluate_every_steps": 1, "early_stopping": {"patience": 2}}


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_killed_and_resumed_training_decides_as_an_uninterrupted_one(
    training, rows, tmp_path, killed_at: int
) -> None:
    settings: dict[str, Any] = {**STOPPING, "checkpoint_every_steps": 1, "learning_rate": 3e-2}
    whole = trained(training, rows, tmp_path / "whole", **settings)

    def die(step: int) -> None:
        if step == killed_at:
            raise Killed

    if killed_at <= whole.steps[-1]:
        with pytest.raises(Killed):
            trained(training, rows, tmp_path / "killed", spoil=die, **settings)
    resumed = trained(training, rows, tmp_path / "killed", resume=True, **settings)
    rest = [row for row in whole.rows if row["step"] >= resumed.steps[0]]
    assert untimed(resumed.rows) == untimed(rest)
    assert resumed.outcome == whole.outcome
    assert_equal(resumed, whole)


def test_training_stops_early_and_leaves_the_best_step(training, rows, tmp_path) -> None:
    only_best: dict[str, Any] = {**STOPPING, "learning_rate": 3e-2, "checkpoint_every_steps": 99}
    found = trained(training, rows, tmp_path / "stopped", **only_best)
    losses = {int(row["step"]): row["heldout/loss"] for row in found.rows}
    assert found.outcome is not None
    best, done = found.outcome.exported_step, found.outcome.done
    assert done < found.outcome.planned == 8
    assert losses[best] == min(loss for step, loss in losses.items() if step > 0)
    assert found.outcome.evaluation is not None
    assert found.outcome.evaluation.means["loss"] == losses[best]
    assert found.saved[-1] == done
    assert found.ranks[found.saved.index(best)] == best
    last = trained(training, rows, tmp_path / "last", learning_rate=3e-2)
    assert last.rows[0]["heldout/loss"] == losses[0]
    assert any(not torch.equal(v, last.parameters[n]) for n, v in found.parameters.items())


def test_a_finished_training_that_only_exports_finds_the_best_step_again(
    training, rows, tmp_path
) -> None:
    found = trained(training, rows, tmp_path, learning_rate=3e-2, **STOPPING)
    again = trained(training, rows, tmp_path, resume=True, learning_rate=3e-2, **STOPPING)
    assert again.rows == []
    assert again.outcome == found.outcome
    assert_equal(again, found)


def test_without_patience_it_trains_to_the_end_and_leaves_the_best_step(
    training, rows, tmp_path
) -> None:
    settings: dict[str, Any] = {"evaluate_every_steps": 2, "early_stopping": {"patience": None}}
    settings["checkpoint_every_steps"] = 99
    found = trained(training, rows, tmp_path, learning_rate=3e-2, **settings)
    assert found.outcome is not None
    assert found.outcome.done == 8
    losses = {row["step"]: row["heldout/loss"] for row in found.rows if "heldout/loss" in row}
    assert losses[found.outcome.exported_step] == min(v for k, v in losses.items() if k)


def test_an_adapter_goes_back_to_the_best_step(training, rows, tmp_path) -> None:
    settings: dict[str, Any] = {**STOPPING, "lora": {"rank": 2}, "learning_rate": 0.3}
    found = trained(training, rows, tmp_path, **settings)
    assert found.outcome is not None
    assert found.outcome.exported_step < found.outcome.done
    assert found.outcome.evaluation is not None
    measured = found.rows[found.outcome.exported_step]["heldout/loss"]
    assert found.outcome.evaluation.means["loss"] == measured


def test_a_metric_that_the_objective_has_not_is_refused_before_the_first_step(
    training, rows, tmp_path
) -> None:
    settings = {
        "objective": "binary_cringe",
        "evaluate_every_steps": 1,
        "early_stopping": {"metric": "rewards/accuracies"},
    }
    with pytest.raises(ConfigError, match="logps/chosen"):
        trained(training, rows, tmp_path, **settings)
