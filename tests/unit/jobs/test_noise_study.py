"""The study of flipped labels: its labels, its runs on the world and the model, its tables, its
resume.
"""

from __future__ import annotations

import importlib
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.jobs.job_modules import modules_of

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    with modules_of("noise", ("contenders", "model", "plot", "world")) as found:
        found.study = importlib.import_module("noise_study")
        yield found


def results(jobs: Any) -> list[Any]:
    """Two prompts of two pairs; `ipo` orders one pair more than `dpo`."""
    make, prompts = jobs.contenders.Result, ["a", "a", "b", "b"]
    samples = {"scores": [0.2, 0.4], "score_prompts": ["a", "b"]}
    return [
        make("exact", "dpo", 0.0, [1.0, 1.0, 1.0, 0.0], prompts, missing=0.25),
        make("model", "dpo", 0.2, [1.0, 0.0, 1.0, 0.0], prompts, **samples),
        make("model", "ipo", 0.2, [1.0, 1.0, 1.0, 0.0], prompts, None, [0.5, 0.5], ["a", "b"]),
    ]


def test_contenders_are_told_the_true_rate(jobs: Any) -> None:
    told = jobs.contenders.contenders(0.2, beta=0.3)
    assert told["cdpo"].label_smoothing == told["robust"].flip_rate == 0.2
    assert told["outlier_mixture"].outlier_rate == 0.4
    assert (told["dpo"].beta, told["ipo"].tau) == (0.3, 0.3)


def test_a_gain_is_paired_and_clustered_by_prompt(jobs: Any) -> None:
    _, dpo, ipo = results(jobs)
    assert (dpo.accuracy.mean, ipo.accuracy.mean) == (0.5, 0.75)
    gain = ipo.gain(dpo)
    assert (gain.mean, gain.prompts) == (0.25, 2)
    assert gain.standard_error == pytest.approx(0.25)  # prompts gain 0.5 and 0
    assert ipo.score_gain(dpo).mean == pytest.approx(0.2)
    assert ipo.score_gain(dpo).standard_error == pytest.approx(0.1)


def test_tables_show_the_gain_over_dpo_or_what_is_missed(jobs: Any) -> None:
    lines = ["\n".join(table) for table in jobs.study.tables(results(jobs))]
    assert "| `dpo` | 75.0 ± 25.0 (misses 0.25) |" in lines[0]
    assert "| `ipo` | 75.0 ± 25.0 (+25.0 ± 25.0) |" in lines[1]
    assert "| `dpo` | 50.0 ± 0.0 |" in lines[1]
    assert "| `ipo` | 50.0 ± 0.0 (+20.0 ± 10.0) |" in lines[2]


def test_the_same_labels_are_drawn_at_every_rate_and_then_flipped(jobs: Any) -> None:
    world = jobs.world.tabular.random_world(400, 4, seed=3, reward_scale=1.5)
    clean, noisy = (jobs.world.draw_labels(world, rate, seed=3) for rate in (0.0, 0.3))
    same, turned = (clean == noisy).all(1), (clean == noisy[:, [0, 2, 1]]).all(1)
    assert bool((same ^ turned).all())
    assert turned.double().mean().item() == pytest.approx(0.3, abs=0.03)
    labels, weights = jobs.world.all_labels(world, 0.3)
    assert len(labels) == 400 * 4 * 3
    assert weights.sum().item() == pytest.approx(400 * 6)


def test_few_labels_on_a_world_and_what_is_done_is_skipped(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.world, "PROMPTS", 20)
    monkeypatch.setattr(jobs.world, "STEPS", 100)
    skip = {"cdpo", "robust", "outlier_mixture", "hinge"}
    dpo, ipo = jobs.world.run_world(0.0, seed=0, exact=True, skip=skip)
    assert (dpo.objective, ipo.objective) == ("dpo", "ipo")
    assert dpo.accuracy.mean > 0.95
    assert dpo.missing < 0.1 < ipo.missing  # ipo has an optimum of its own
    assert len(dpo.right) == len(dpo.prompts) == 20 * 6


def material(jobs: Any, prompts: int) -> Any:
    """Candidates that were not sampled: words of the demo's tokenizer, rewards by their number."""
    tokenizer = jobs.model.load_tokenizer(jobs.model.MODEL)
    ids = tokenizer(" good bad film plot", add_special_tokens=False)["input_ids"]
    ends = [tokenizer.eos_token_id]
    module = jobs.model.TokenLogps(jobs.model.load_causal_lm(jobs.model.MODEL))
    completions = [[ids[n : n + 1] + ends for n in range(3)] for _ in range(prompts)]
    prompt_ids = [ids[-1:] + ids[: n % 3] for n in range(prompts)]
    groups = [
        jobs.model.Group("", prompt, answers, [], None)
        for prompt, answers in zip(prompt_ids, completions, strict=True)
    ]
    reference = [jobs.model._logps(module, group) for group in groups]
    return jobs.model.Material(prompt_ids, completions, [[2.0, 1.0, 0.0]] * prompts, reference)


def test_training_labels_are_flipped_and_held_out_ones_are_not(jobs: Any) -> None:
    made = material(jobs, 60)

    def pairs(flip_rate: float, heldout: bool) -> dict[str, set[tuple[int, int]]]:
        rows = jobs.model._rows(made, flip_rate, 0, heldout)
        data = jobs.model.GroupDataset(jobs.model.write_groups(rows, uuid.uuid4().hex))
        groups = [data[number] for number in range(len(data))]
        return {g.group_id: {(p.chosen, p.rejected) for p in g.pairs} for g in groups}

    train, clean, heldout = pairs(0.4, False), pairs(0.0, False), pairs(0.0, True)
    assert train.keys() == clean.keys()
    assert len(train) + len(heldout) == 60
    assert not train.keys() & heldout.keys()
    assert all(own == {(0, 1), (0, 2), (1, 2)} for own in heldout.values())
    flipped = sum(len(train[name] - clean[name]) for name in train)
    assert flipped / (3 * len(train)) == pytest.approx(0.4, abs=0.12)


def test_a_model_learns_the_order_of_held_out_pairs(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(jobs.model, "MAX_COMPLETION_TOKENS", 4)
    skip = {"cdpo", "robust", "outlier_mixture", "ipo", "hinge"}
    (result,) = jobs.model.run_model(material(jobs, 24), 0.0, seed=0, epochs=2, skip=skip)
    assert result.objective == "dpo"
    assert result.accuracy.mean > 0.9  # the same three completions, on other prompts
    assert len(result.scores) == jobs.model.SAMPLES * len(set(result.prompts))
    assert all(0 <= score <= 1 for score in result.scores)


def test_a_study_goes_on_where_it_was_and_draws(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[float, set[str]]] = []

    def run_world(flip_rate: float, seed: int, exact: bool, skip: set[str]) -> Iterator[Any]:
        asked.append((flip_rate, skip))
        for name in ("dpo", "ipo"):
            if name not in skip:
                yield jobs.contenders.Result("exact", name, flip_rate, [1.0], ["a"], 0.5)

    monkeypatch.setattr(jobs.study, "run_world", run_world)
    first = jobs.contenders.Result("exact", "dpo", 0.1, [1.0], ["a"], 0.5)
    (tmp_path / "results.jsonl").write_text(json.dumps(first.__dict__) + "\n")
    picture = tmp_path / "plot.png"
    arguments = ["--settings", "exact", "--flip-rates", "0.1", "0.2", "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["noise_study.py", "--output", str(tmp_path), *arguments])
    jobs.study.main()
    jobs.study.main()
    assert asked == [
        (0.1, {"dpo"}),
        (0.2, set()),
        (0.1, {"dpo", "ipo"}),
        (0.2, {"dpo", "ipo"}),
    ]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| `ipo` | 100.0 ± 0.0 (misses 0.50) | 100.0" in capsys.readouterr().out
