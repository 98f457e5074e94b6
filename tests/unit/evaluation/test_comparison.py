"""Runs side by side: what is paired, what is refused, what is named, what the page says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from evaluation_samples import make_logps, make_samples

from raydpo.core.errors import DataError, RunError
from raydpo.evaluation.comparable import EvaluatedRun
from raydpo.evaluation.comparison import compare
from raydpo.evaluation.comparison_page import (
    comparison_text,
    draw_comparison,
    headline,
    note_lines,
    render_comparison,
)
from raydpo.evaluation.metrics import sequence_logratios, win_rate
from raydpo.evaluation.samples import Sample

HOSTILE = "<script>alert('x')</script>"
MADE_WITH = {
    "prompts": "a" * 64,
    "reference weights": "b" * 64,
    "tokenizer": "c" * 64,
    "samples_per_prompt": 2,
    "temperature": 1.0,
}


def make_run(label: str, mean: float, gap: float, seed: int = 1, **changes: Any) -> EvaluatedRun:
    """A run whose policy scores about `mean`, `gap` nats a token away from its reference."""
    policy = changes.pop("policy", make_samples(mean, seed=seed))
    logps = make_logps(policy, gap)
    run = EvaluatedRun(
        label=label,
        run=f"runs/{label}",
        round_index=0,
        online=False,
        policy=policy,
        reference=make_samples(0.4, seed=0),
        kl_prompts=logps.prompts,
        kl_nats=sequence_logratios(logps.policy, logps.reference),
        kl_not_exact_because=[],
        judge={"scorers": [{"name": "judge"}], "weights": {"judge": 1.0}},
        evaluated_with=MADE_WITH,
        shares=False,
        unit="probability of “positive”",
        beta=0.25,
        settings={"name": label, "training.objective.beta": gap, "seed": 0},
        training=[{"step": s, "loss": 0.7 - gap * s, "rewards/margins": 0.1} for s in (1, 2)],
    )
    return replace(run, **changes)


def without(samples: list[Sample], *prompts: str) -> list[Sample]:
    return [sample for sample in samples if sample.prompt_id not in prompts]


def compared(*runs: EvaluatedRun) -> dict[str, Any]:
    return compare(runs, seed=0, resamples=300)


def test_pairs_have_differences_win_rates_and_dominance():
    good, far, bad = make_run("a", 0.7, 0.1), make_run("b", 0.9, 0.2, 2), make_run("c", 0.4, 0.3, 3)
    found = compared(good, far, bad)
    first, second, third = found["pairs"]
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    scores = [run["score"]["mean"] for run in found["runs"]]
    assert first["score_difference"]["mean"] == pytest.approx(scores[0] - scores[1])
    assert first["dominates"] is None
    assert (second["dominates"], third["dominates"]) == ("a", "b")
    assert second["beyond_chance"]
    assert found["not_dominated"] == ["a", "b"]
    values = [([s.score for s in r.policy], [s.prompt_id for s in r.policy]) for r in (good, bad)]
    assert second["win_rate"]["mean"] == pytest.approx(win_rate(*values[0], *values[1]).mean)
    assert second["score_difference"]["p_holm"] >= second["score_difference"]["p"]
    for pair in found["pairs"]:
        quantities = ("score_difference", "completion_tokens_difference", "win_rate")
        for name in (*quantities, "kl_nats_per_completion_difference"):
            low, high = pair[name]["ci95"]
            assert low <= pair[name]["mean"] <= high, (pair["first"], pair["second"], name)
    assert second["kl_nats_per_completion_difference"]["ci95"][1] < 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_run_compared_with_its_copy_differs_by_nothing():
    run = make_run("a", 0.7, 0.1)
    [pair] = compared(run, replace(run, label="a (2)"))["pairs"]
    for name in ("score", "kl_nats_per_completion", "completion_tokens"):
        assert pair[f"{name}_difference"]["mean"] == 0
        assert pair[f"{name}_difference"]["ci95"] == [0, 0]
    assert pair["win_rate"]["mean"] == 0.5
    assert (pair["score_difference"]["p"], pair["dominates"]) == (1.0, None)


def test_only_prompts_of_all_runs_count_and_the_others_are_counted():
    run = make_run("a", 0.7, 0.1)
    fewer = make_run("b", 0.5, 0.1, policy=without(make_samples(0.5, seed=2), "p0", "p3"))
    found = compared(run, fewer)
    assert found["prompts"] == {"in_all_runs": 6, "dropped": {"a": 2, "b": 2}}
    assert [r["score"]["prompts"] for r in found["runs"]] == [6, 6]
    kept = [s.score for s in without(run.policy, "p0", "p3")]
    assert found["runs"][0]["score"]["mean"] == pytest.approx(sum(kept) / len(kept))
    assert "6 prompts are in all runs; not compared are 2 of a, 2 of b." in note_lines(found)


def test_a_prompt_counts_only_with_log_probs_and_samples_of_both_models():
    run, other = make_run("a", 0.7, 0.1), make_run("b", 0.5, 0.1, 2)
    kl = [(n, p) for n, p in zip(other.kl_nats, other.kl_prompts, strict=True) if p != "p2"]
    other = replace(other, kl_nats=[n for n, _ in kl], kl_prompts=[p for _, p in kl])
    run = replace(run, reference=without(run.reference, "p7"))
    found = compared(run, other)
    assert found["prompts"] == {"in_all_runs": 6, "dropped": {"a": 2, "b": 2}}
    assert {
        estimate["prompts"] for estimate in found["runs"][1].values() if isinstance(estimate, dict)
    } == {6}


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"scorers": [{"name": "judge"}], "weights": {"judge": 0.5}}, "weights: "),
        ({"scorers": [{"name": "judge", "output": "logit"}], "weights": {"judge": 1.0}}, "scorers"),
        ({**make_run("a", 0, 0).judge, "model of judge": "d" * 64}, "model of judge: null and"),
    ],
)
def test_another_judge_is_refused_and_named(judge: dict[str, Any], said: str):
    with pytest.raises(RunError, match=said):
        compared(make_run("a", 0.7, 0.1), make_run("b", 0.5, 0.1, judge=judge))


def test_runs_without_a_common_prompt_are_refused():
    others = [replace(s, prompt_id=f"other {s.prompt_id}") for s in make_samples(0.5, seed=2)]
    with pytest.raises(RunError, match="no prompt was evaluated in all 2 runs"):
        compared(make_run("a", 0.7, 0.1), make_run("b", 0.5, 0.1, policy=others))


def test_one_id_for_two_texts_is_refused():
    others = [replace(s, prompt="The book was") for s in make_samples(0.5, seed=2)]
    with pytest.raises(DataError, match="'The film was' in a and 'The book was' in b"):
        compared(make_run("a", 0.7, 0.1), make_run("b", 0.5, 0.1, policy=others))


def test_another_reference_is_named_and_its_kl_is_not_compared():
    other = make_run("b", 0.5, 0.2, evaluated_with={**MADE_WITH, "reference weights": "e" * 64})
    found = compared(make_run("a", 0.7, 0.1), other)
    assert [note["field"] for note in found["notes"]] == ["reference weights"]
    [pair] = found["pairs"]
    assert pair["kl_nats_per_completion_difference"] is pair["dominates"] is None
    assert found["not_dominated"] is None
    assert "measured from different models" in headline(found)
    assert "None" not in comparison_text(found)


def test_another_temperature_is_named_with_both_values():
    other = make_run(
        "b",
        0.5,
        0.2,
        evaluated_with={**MADE_WITH, "temperature": 0.5},
        kl_not_exact_because=["temperature 0.5"],
    )
    lines = note_lines(compared(make_run("a", 0.7, 0.1), other))
    assert any(line.startswith("temperature: a has 1.0, b has 0.5.") for line in lines)
    assert any("the mean log-ratio" in line for line in lines)


def test_settings_that_differ_are_listed_and_places_are_not():
    one = make_run("a", 0.7, 0.1)
    other = make_run("b", 0.5, 0.2)
    other = replace(other, settings={**other.settings, "sft.epochs": 2, "sft.lr": 1})
    one = replace(one, settings={**one.settings, "sft": None})
    assert compared(one, other)["settings"] == {
        "sft": {"a": None, "b": "a section"},
        "training.objective.beta": {"a": 0.1, "b": 0.2},
    }


def test_prompts_that_differ_most_come_first_with_all_samples():
    far = [
        replace(s, score=9.0, completion=f"far {s.candidate}") if s.prompt_id == "p5" else s
        for s in make_samples(0.5, seed=2)
    ]
    samples = compared(make_run("a", 0.7, 0.1), make_run("b", 0.5, 0.1, policy=far))["samples"]
    assert samples[0]["prompt_id"] == "p5"
    texts = [s["completion"] for s in samples[0]["runs"]["b"]["samples"]]
    assert texts == ["far 0", "far 1"]
    ranges = [s["score_range"] for s in samples]
    assert ranges == sorted(ranges, reverse=True)


def test_the_page_escapes_texts_and_loads_nothing():
    policy = [replace(s, completion=HOSTILE, prompt=HOSTILE) for s in make_samples(0.7, seed=1)]
    runs = [make_run(HOSTILE, 0, 0.1, policy=policy), make_run("b", 0, 0.2, policy=policy)]
    found = compared(*runs)
    page = render_comparison(found, draw_comparison(found, runs))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count('<img src="data:image/png;base64,') == 5
    assert "http" not in page.replace("http-equiv", "")


def test_curves_of_trainings_without_a_metric_are_left_out():
    exploded = [
        {"step": 1, "loss": 0.7},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "epoch": 1},
    ]
    runs = [make_run("a", 0.7, 0.1, training=[]), make_run("b", 0.5, 0.2, training=exploded)]
    found = compared(*runs)
    assert found["curves"]["b"]["loss"] == [0.7, None]
    assert found["curves"]["a"] == {"step": []}
    assert found["curves"]["b"]["step"] == [1, 2]
    assert len(draw_comparison(found, runs)) == 5
    runs = [replace(run, training=[]) for run in runs]
    assert len(draw_comparison(compared(*runs), runs)) == 4
