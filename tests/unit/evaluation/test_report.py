"""report.html says the right things, runs no script and loads nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from evaluation_samples import make_config, make_metrics, make_samples

from raydpo.config.file import config_to_yaml
from raydpo.evaluation.publish import draw_figures
from raydpo.evaluation.report import (
    Figure,
    ReportInputs,
    SamplePair,
    choose_samples,
    headline,
    most_changed,
    number,
    number_lines,
    render,
)

HOSTILE = "<script>alert('x')</script><img src=https://example.com/x.png onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The tags and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action")]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@cache
def make_figures() -> list[Figure]:
    """Drawn once: no test of the page looks into them."""
    log = [{"step": s, "loss": 0.7, "rewards/margins": 0.1 * s} for s in range(5)]
    reference, policy = make_samples(0.4, seed=0), make_samples(0.7, seed=1)
    return draw_figures(make_config(), make_metrics(), reference, policy, log)


def make_inputs(text: str = " fine") -> ReportInputs:
    config = make_config()
    metrics = make_metrics()
    reference, policy = make_samples(0.4, seed=0, text=text), make_samples(0.7, seed=1, text=text)
    return ReportInputs(
        title=config.name,
        metrics=metrics,
        figures=make_figures(),
        samples=choose_samples(reference, policy, 3),
        regressions=[],
        gains=[],
        counts={
            "prompts": {"input": 9, "output": 8, "quarantined": 1},
            "preferences": {"ties": 77},
        },
        refusals=[("policy_scores", text, 4)],
        facts=[("policy model", text)],
        config_yaml=config_to_yaml(config),
    )


def parsed(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    return parser


@pytest.mark.thorough
def test_text_of_models_and_people_is_escaped_everywhere():
    inputs = make_inputs(HOSTILE)
    pair = inputs.samples[0]
    inputs = replace(
        inputs,
        title=HOSTILE,
        samples=[SamplePair(HOSTILE, pair.reference, pair.policy)],
        config_yaml=HOSTILE,
    )
    page = parsed(render(inputs))
    assert "script" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    # title, h1, prompt, two completions, reason, fact, configuration: shown as they were written.
    assert sum(HOSTILE in text for text in page.text) == 8


def test_page_needs_nothing_but_itself():
    page = render(make_inputs())
    assert parsed(page).tags.count("img") == 5
    assert not re.search(r"(?:url\(|@import|<link|https?://)", page)


def test_page_says_the_numbers_the_counts_and_the_refusals():
    text = " ".join(" ".join(parsed(render(make_inputs(" odd reason"))).text).split())
    metrics = make_metrics()
    assert headline(metrics) in text
    assert number(metrics["policy"]["score"]["mean"]) in text
    assert "prompts 9 8 1" in text
    assert "ties 77" in text
    assert "policy_scores odd reason 4" in text
    assert "accuracy on 3 held-out pairs" in text


def test_headline_says_rose_only_where_chance_is_unlikely():
    metrics = make_metrics()
    difference = metrics["difference"]["score"]
    assert "rose from" in headline(metrics)
    difference |= {"mean": -0.3, "z": -6.0}
    assert "fell from" in headline(metrics)
    assert "(−0.300, 6.0 standard errors)" in headline(metrics)
    difference |= {"mean": 0.01, "z": 1.2}
    assert "did not change measurably" in headline(metrics)
    difference |= {"mean": 0.0, "z": None}
    assert "stayed the same" in headline(metrics)


def test_page_says_the_verdict_what_speaks_against_the_policy_and_the_notes():
    inputs = make_inputs()
    said: dict[str, object] = {"verdict": "Training helped.", "speaks_against_it": [], "notes": []}
    quiet = " ".join(parsed(render(replace(inputs, metrics={**inputs.metrics, **said}))).text)
    assert "Training helped." in quiet
    assert "Against it" not in quiet
    said = {
        "verdict": "Training helped, with reservations.",
        "speaks_against_it": ["it <loops>", "it is long"],
        "notes": ["Policy samples: 9 % were cut."],
    }
    text = " ".join(parsed(render(replace(inputs, metrics={**inputs.metrics, **said}))).text)
    assert "Against it: it <loops>." in text
    assert all(words in text for words in ("with reservations.", "it is long", "9 % were cut"))


def test_page_warns_where_the_kl_is_not_the_policys_own():
    inputs = replace(make_inputs(), metrics=make_metrics(temperature=0.5))
    assert "sampled with temperature 0.5" in render(inputs)


def test_unknown_errors_leave_no_none_on_the_page():
    metrics = make_metrics()
    for model in ("reference", "policy"):
        metrics[model]["score"] |= {"standard_error": None, "ci95": None}
        metrics[model]["repetition_share"] = metrics[model]["distinct_2"] = None
    metrics["difference"]["score"]["z"] = None
    metrics["heldout"] = None
    text = " ".join(parsed(render(replace(make_inputs(), metrics=metrics, config_yaml=""))).text)
    assert "None" not in text


def test_samples_are_drawn_by_hash_not_by_order_or_score():
    reference, policy = make_samples(0.4, seed=0), make_samples(0.7, seed=1)
    chosen = choose_samples(reference, policy, 3)
    again = choose_samples(reference[::-1], policy[::-1], 3)
    assert [p.policy.prompt_id for p in chosen] == [p.policy.prompt_id for p in again]
    assert [p.policy.prompt_id for p in chosen] != ["p0", "p1", "p2"]
    assert all(p.reference.prompt_id == p.policy.prompt_id for p in chosen)
    assert all(p.reference.candidate == 0 == p.policy.candidate for p in chosen)


def test_the_prompts_whose_mean_score_changed_most_are_found_in_order():
    reference = make_samples(0.5, seed=0)
    changes = {
        f"p{n}": change for n, change in enumerate((0.1, -0.2, 0, 0.3, -0.4, -0.1, 0.2, -0.6))
    }
    # Two candidates a prompt: the first alone would rise everywhere.
    policy = [
        replace(s, score=s.score + changes[s.prompt_id] + (1 if s.candidate == 0 else -1))
        for s in reference
    ]
    policy = [s if changes[s.prompt_id] else r for s, r in zip(policy, reference, strict=True)]
    fell, rose = most_changed(reference[::-1], policy[::-1])
    assert [c.reference[0].prompt_id for c in fell] == ["p7", "p4", "p1", "p5"]
    assert [c.policy[0].prompt_id for c in rose] == ["p3", "p6", "p0"]
    assert [c.change for c in fell] == pytest.approx([-0.6, -0.4, -0.2, -0.1])
    assert [s.candidate for s in fell[0].policy] == [0, 1] == [
        s.candidate for s in fell[0].reference
    ]  # fmt: skip


def test_page_shows_regressions_and_gains_with_the_texts_of_both_models():
    reference = make_samples(0.5, seed=0, text="was <dull>")
    policy = [replace(s, score=s.score - 0.2, completion="is <loud>") for s in reference]
    fell, rose = most_changed(reference, policy)
    text = " ".join(parsed(render(replace(make_inputs(), regressions=fell, gains=rose))).text)
    assert (len(fell), rose) == (5, [])
    # Five prompts, two completions of each model.
    assert (text.count("was <dull>"), text.count("is <loud>")) == (10, 10)
    assert "rose on no held-out prompt" in text
    assert "fell on no held-out prompt" not in text


def test_the_table_has_the_differences_of_what_the_text_is_like():
    lines = {line.name: line for line in number_lines(make_metrics())}
    for name in ("repetition", "distinct-2", "share at the token limit"):
        assert lines[name].difference.value.endswith(" points")
        assert lines[name].difference.detail.startswith("[")
    assert lines["share at the token limit"].policy.value == "50.0 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.42475, "0.425"), (5.786, "5.79"), (37.8, "37.8"), (120.4, "120"), (-0.00001, "0.000"),
     (-1.5, "−1.50"), (None, "–")],
)  # fmt: skip
def test_numbers_have_three_digits_that_mean_something(value: float | None, text: str):
    assert number(value) == text
