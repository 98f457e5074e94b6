"""The study of wrong labels: its labels, its runs on the world and the model, its tables, its
resume.
"""

from __future__ import annotations

import importlib
import json
import sys
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
    names = ("contenders", "estimates", "labels", "model", "plot", "tables", "world")
    with modules_of("noise", names) as found:
        found.study = importlib.import_module("noise_study")
        found.two_way_mean = importlib.import_module("seeds.estimates").two_way_mean
        yield found


def results(jobs: Any) -> list[Any]:
    """Two prompts of two pairs; `ipo` orders one pair more than `dpo`."""
    make, prompts = jobs.contenders.Result, ["a", "a", "b", "b"]
    samples = {"scores": [0.2, 0.4], "kl": [1.0, 3.0], "score_prompts": ["a", "b"]}
    better = {"scores": [0.5, 0.5], "kl": [2.0, 2.0], "score_prompts": ["a", "b"]}
    missed = {"missing": [0.2, 0.3], "missing_prompts": ["a", "b"]}
    return [
        make("exact", "dpo", "none", 0.0, 0, [1.0, 1.0, 1.0, 0.0], prompts, **missed),
        make("exact", "dpo", "flips", 0.2, 0, [1.0, 1.0, 1.0, 0.0], prompts, **missed),
        make("model", "dpo", "flips", 0.2, 0, [1.0, 0.0, 1.0, 0.0], prompts, **samples),
        make("model", "ipo", "flips", 0.2, 0, [1.0, 1.0, 1.0, 0.0], prompts, **better),
    ]


@pytest.mark.parametrize(("corruption", "wrong"), [("flips", 0.2), ("outliers", 0.1)])
def test_contenders_are_told_the_true_rate(jobs: Any, corruption: str, wrong: float) -> None:
    told = jobs.contenders.contenders(jobs.labels.Noise(corruption, 0.2), beta=0.3)
    assert told["cdpo"].section.label_smoothing == told["robust"].section.flip_rate == wrong
    assert told["outlier_mixture"].section.outlier_rate == 2 * wrong
    assert (told["dpo"].section.beta, told["ipo"].section.tau) == (0.3, 0.3)
    assert told["soft_label"].asked == jobs.labels.Asked(3, 1.0)
    equal = told["soft_label, equal votes"].asked
    assert equal.votes * equal.share == 1


def test_a_gain_is_paired_and_clustered_by_prompt(jobs: Any) -> None:
    *_, dpo, ipo = results(jobs)
    estimates = jobs.estimates
    assert estimates.mean([dpo], estimates.right).mean == 0.5
    gain = estimates.gain([ipo], [dpo], estimates.right)
    assert (gain.mean, gain.prompts) == (0.25, 2)
    assert gain.standard_error == pytest.approx(0.25)  # prompts gain 0.5 and 0
    assert estimates.gain([ipo], [dpo], estimates.score).mean == pytest.approx(0.2)
    assert estimates.gain([ipo], [dpo], estimates.score).standard_error == pytest.approx(0.1)


def test_a_mean_over_seeds_has_the_spread_of_prompts_and_of_seeds(jobs: Any) -> None:
    two_way_mean = jobs.two_way_mean
    prompts, seeds = ["a", "b"] * 3, [s for s in "012" for _ in range(2)]
    # Seeds alone differ: 0 of prompts, 1/12 of the three seeds, less 1/30 of the six cells.
    of_seeds = two_way_mean([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], prompts, seeds)
    assert of_seeds.mean == 0.5
    assert of_seeds.standard_error == pytest.approx((1 / 12 - 1 / 30) ** 0.5)
    # Prompts alone differ, in the same way with each seed: two draws, and not six.
    of_prompts = two_way_mean([0.0, 1.0] * 3, prompts, seeds)
    assert of_prompts.standard_error == pytest.approx(0.5)
    # On worlds, a prompt of another seed is another prompt.
    make = jobs.contenders.Result
    worlds = [make("world", "dpo", "none", 0.0, s, [0.0, 1.0], ["a", "b"]) for s in range(3)]
    assert jobs.estimates.mean(worlds, jobs.estimates.right).prompts == 6


def test_tables_show_the_gain_over_dpo_or_what_is_missed(jobs: Any) -> None:
    lines = ["\n".join(table) for table in jobs.tables.tables(results(jobs))]
    assert "| corrupted | 0% | 20% |" in lines[0]
    assert "| `dpo` | 75.0 ± 25.0 (misses 0.25) | 75.0 ± 25.0 (misses 0.25) |" in lines[0]
    assert "| `ipo` | 75.0 ± 25.0 (+25.0 ± 25.0) |" in lines[1]
    assert "| `dpo` | 50.0 ± 0.0 |" in lines[1]
    assert "| `ipo` | 50.0 ± 0.0 (+20.0 ± 10.0) |" in lines[2]
    assert "| `dpo` | 2.00 ± 1.00 |" in lines[3]


@pytest.mark.parametrize(("corruption", "wrong"), [("flips", 0.3), ("outliers", 0.15)])
def test_a_rate_of_a_worlds_labels_is_corrupted_and_the_others_stay(
    jobs: Any, corruption: str, wrong: float
) -> None:
    labels, world = jobs.labels, jobs.world.tabular.random_world(400, 4, 3, reward_scale=1.5)
    one = labels.Asked()
    (clean, sure), (noisy, _) = (
        jobs.world.draw_labels(world, labels.Noise(corruption, rate), 3, one) for rate in (0, 0.3)
    )
    assert bool((sure == 1).all())
    same, turned = (clean == noisy).all(1), (clean == noisy[:, [0, 2, 1]]).all(1)
    assert bool((same ^ turned).all())
    assert turned.double().mean().item() == pytest.approx(wrong, abs=0.03)
    all_there_are, weights = jobs.world.all_labels(world, wrong)
    assert len(all_there_are) == 400 * 4 * 3
    assert weights.sum().item() == pytest.approx(400 * 6)


def test_votes_on_a_world_give_soft_labels_of_the_majority(jobs: Any) -> None:
    labels, world = jobs.labels, jobs.world.tabular.random_world(400, 4, 3, reward_scale=1.5)
    noise, three = labels.Noise("flips", 0.3), labels.Asked(3)
    found, share = jobs.world.draw_labels(world, noise, 3, three)
    assert set(share.mul(3).round().int().tolist()) == {2, 3}
    wrong = world.rewards[found[:, 0], found[:, 1]] < world.rewards[found[:, 0], found[:, 2]]
    single, _ = jobs.world.draw_labels(world, noise, 3, labels.Asked())
    wrong_single = (
        world.rewards[single[:, 0], single[:, 1]] < world.rewards[single[:, 0], single[:, 2]]
    )
    assert wrong.double().mean() < wrong_single.double().mean() - 0.03
    fewer, _ = jobs.world.draw_labels(world, noise, 3, labels.Asked(3, 1 / 3))
    assert len(fewer) / len(found) == pytest.approx(1 / 3, abs=0.04)


def test_few_labels_on_a_world_and_what_is_done_is_skipped(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.world, "PROMPTS", 20)
    monkeypatch.setattr(jobs.world, "STEPS", 100)
    skip = {"cdpo", "robust", "outlier_mixture", "hinge"}
    clean = jobs.labels.Noise("flips", 0.0)
    dpo, ipo = jobs.world.run_world(clean, seed=0, exact=True, skip=skip)
    assert (dpo.objective, ipo.objective) == ("dpo", "ipo")
    mean, estimates = jobs.estimates.mean, jobs.estimates
    assert mean([dpo], estimates.right).mean > 0.95
    missed = [mean([one], estimates.missing).mean for one in (dpo, ipo)]
    assert missed[0] < 0.1 < missed[1]  # ipo has an optimum of its own
    assert len(dpo.right) == len(dpo.prompts) == 20 * 6
    drawn = [r.objective for r in jobs.world.run_world(clean, seed=0, exact=False, skip=skip)]
    assert drawn == ["dpo", "ipo", "soft_label", "soft_label, equal votes"]


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


def trained_pairs(jobs: Any, made: Any, noise: Any, asked: Any) -> dict[str, dict[Any, float]]:
    """By prompt, the pairs that training gets, with the share of votes for chosen."""
    data = jobs.model._dataset(jobs.model.training_rows(made, noise, 0, asked))
    groups = [data[number] for number in range(len(data))]
    return {g.group_id: {(p.chosen, p.rejected): p.probability for p in g.pairs} for g in groups}


def test_training_labels_are_flipped_and_held_out_ones_are_not(jobs: Any) -> None:
    made, noise, one = material(jobs, 60), jobs.labels.Noise, jobs.labels.Asked()
    train = trained_pairs(jobs, made, noise("flips", 0.4), one)
    clean = trained_pairs(jobs, made, noise("flips", 0.0), one)
    held = jobs.model._dataset(jobs.model.heldout_rows(made, 0))
    heldout = {held[n].group_id: {p[:2] for p in held[n].pairs} for n in range(len(held))}
    assert train.keys() == clean.keys()
    assert len(train) + len(heldout) == 60
    assert not train.keys() & heldout.keys()
    assert all(own == {(0, 1), (0, 2), (1, 2)} for own in heldout.values())
    flipped = sum(len(train[name].keys() - clean[name].keys()) for name in train)
    assert flipped / (3 * len(train)) == pytest.approx(0.4, abs=0.12)
    # They are the labels that `labeling.pairs.flip_rate` flips.
    scored = [
        jobs.model.Scored(i, tuple(ids), 2.0 - i) for i, ids in enumerate(made.completions[0])
    ]
    config = jobs.model.PairsConfig(builder="all_pairs", flip_rate=0.4)
    for name, pairs in train.items():
        draws = jobs.model.Draws(0, 0, name)
        assert set(jobs.model.build_pairs(scored, config, draws).pairs) == pairs.keys()


def test_outliers_are_drawn_at_random_and_votes_are_counted(jobs: Any) -> None:
    made, labels = material(jobs, 150), jobs.labels
    everything = trained_pairs(jobs, made, labels.Noise("outliers", 1.0), labels.Asked())
    right = [pair[0] < pair[1] for own in everything.values() for pair in own]
    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.1)
    voted = trained_pairs(jobs, made, labels.Noise("flips", 0.3), labels.Asked(3))
    shares = [share for own in voted.values() for share in own.values()]
    assert {round(3 * share) for share in shares} == {2, 3}
    right = [pair[0] < pair[1] for own in voted.values() for pair in own]
    assert sum(right) / len(right) == pytest.approx(0.784, abs=0.07)  # 0.7^3 + 3 0.7^2 0.3
    third = trained_pairs(jobs, made, labels.Noise("flips", 0.3), labels.Asked(3, 1 / 3))
    assert sum(map(len, third.values())) / len(shares) == pytest.approx(1 / 3, abs=0.08)


def test_a_model_learns_the_order_of_held_out_pairs(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(jobs.model, "MAX_COMPLETION_TOKENS", 4)
    skip = {"cdpo", "robust", "ipo", "hinge", "soft_label, equal votes"}
    noise = jobs.labels.Noise("flips", 0.0)
    trained = list(jobs.model.run_model(material(jobs, 24), noise, seed=0, epochs=2, skip=skip))
    # Without noise the three have one loss, and are trained once.
    assert [r.objective for r in trained] == ["dpo", "outlier_mixture", "soft_label"]
    result = trained[0]
    assert trained[1].right == result.right
    right = jobs.estimates.mean([result], jobs.estimates.right)
    assert right.mean > 0.9  # the same three completions, on other prompts
    assert len(result.scores) == jobs.model.SAMPLES * len(set(result.prompts))
    assert all(0 <= score <= 1 for score in result.scores)
    assert jobs.estimates.mean([result], jobs.estimates.kl).mean > 0.1


def test_a_study_goes_on_where_it_was_and_draws(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[float, set[str]]] = []
    missed = {"missing": [0.5], "missing_prompts": ["a"]}

    def result(name: str, noise: Any, seed: int) -> Any:
        make = jobs.contenders.Result
        return make("exact", name, noise.name, noise.rate, seed, [1.0], ["a"], **missed)

    def run_world(noise: Any, seed: int, exact: bool, skip: set[str]) -> Iterator[Any]:
        asked.append((noise.rate, skip))
        for name in ("dpo", "ipo"):
            if name not in skip:
                yield result(name, noise, seed)

    monkeypatch.setattr(jobs.study, "run_world", run_world)
    first = result("dpo", jobs.labels.Noise("flips", 0.1), 0)
    (tmp_path / "results.jsonl").write_text(json.dumps(first.__dict__) + "\n")
    picture = tmp_path / "plot.png"
    arguments = ["--settings", "exact", "--corruption", "flips", "--rates", "0.1", "0.2"]
    arguments += ["--seeds", "0", "--output", str(tmp_path), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["noise_study.py", *arguments])
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
