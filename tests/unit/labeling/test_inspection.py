"""An inspection finds the faults that were planted, and none in clean data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from preference_texts import clean_groups, planted

from raydpo.labeling.inspection.duplicates import OtherPrompts
from raydpo.labeling.inspection.groups import Group, group_of_row, paired_judgements
from raydpo.labeling.inspection.inspect import Inspected, inspect_preferences

Json = dict[str, Any]
ROWS = 1500


def inspected(groups: list[Group], **given: Any) -> Json:
    return inspect_preferences(Inspected("made up", groups, **given))


def items(groups: list[Group], **given: Any) -> dict[str, Json]:
    return {item["name"]: item for item in inspected(groups, **given)["items"]}


def number(item: Json, name: str) -> float:
    [found] = [one["value"] for one in item["numbers"] if one["name"] == name]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_clean_data_gets_a_clean_bill(seed: int) -> None:
    found = inspected(clean_groups(ROWS, seed), others=[OtherPrompts("others", ["What is it?"])])
    assert found["verdict"] == "clean", found["headline"]
    assert found["headline"] == "7 items clean; 5 not measured."
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("term", "side"), [("certainly", "chosen"), ("of course", "chosen"), ("hmm", "rejected")]
)
def test_a_planted_word_is_found_on_its_side(term: str, side: str) -> None:
    def plant(chosen: str, rejected: str) -> tuple[str, str]:
        is_chosen = side == "chosen"
        return (f"{term} {chosen}", rejected) if is_chosen else (chosen, f"{rejected} {term}")

    words = items(planted(clean_groups(ROWS), 0.1, plant))["words"]
    assert words["verdict"] == "bad"
    [table] = [t for t in words["tables"] if side in t["title"]]
    row = next(row for row in table["rows"] if row[0] == term)
    assert 0.07 * ROWS < max(row[1], row[2]) < 0.13 * ROWS
    assert min(row[1], row[2]) == 0
    [other] = [t for t in words["tables"] if side not in t["title"]]
    assert other["rows"] == []


def test_words_that_decide_most_pairs_give_the_rule_its_accuracy() -> None:
    def plant(chosen: str, rejected: str) -> tuple[str, str]:
        return f"Certainly. {chosen}", rejected

    words = items(planted(clean_groups(ROWS), 0.6, plant))["words"]
    # Six of ten pairs are decided, and the others are a coin's.
    assert words["measured"]["word_rule_accuracy"] == pytest.approx(0.8, abs=0.07)


def test_a_word_of_the_prompt_that_both_completions_repeat_is_no_sign() -> None:
    def plant(chosen: str, rejected: str) -> tuple[str, str]:
        return f"certainly {chosen}", f"certainly {rejected}"

    assert items(planted(clean_groups(ROWS), 0.5, plant))["words"]["verdict"] == "clean"


def test_pairs_of_one_prompt_count_as_one() -> None:
    """A word in the best of six completions makes five pairs, and one observation."""
    draws = clean_groups(60)
    groups = []
    for one in draws:
        texts = tuple(f"{one.completions[0]} {n}" for n in range(6))
        groups.append(
            Group(one.prompt, (f"yes {texts[0]}", *texts[1:]), tuple((0, n) for n in range(1, 6)))
        )
    words = items(groups)["words"]
    row = next(row for row in words["tables"][0]["rows"] if row[0] == "yes")
    assert row[1:3] == [60, 0]


def test_length_bias_is_found_and_is_no_lexical_short_cut() -> None:
    def swap(chosen: str, rejected: str) -> tuple[str, str]:
        return (chosen, rejected) if len(chosen) > len(rejected) else (rejected, chosen)

    found = items(planted(clean_groups(ROWS), 0.7, swap))
    length = found["length"]
    assert length["verdict"] == "bad"
    assert length["measured"]["longer_chosen"] == pytest.approx(0.85, abs=0.03)
    assert length["measured"]["length_rule_accuracy"] > 0.78
    assert number(length, "correlation of length difference and label") > 0.4
    assert found["words"]["verdict"] != "bad"


def test_a_bias_to_short_completions_is_found_too() -> None:
    def swap(chosen: str, rejected: str) -> tuple[str, str]:
        return (chosen, rejected) if len(chosen) < len(rejected) else (rejected, chosen)

    assert items(planted(clean_groups(ROWS), 1.0, swap))["length"]["verdict"] == "bad"


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("list", "{}\n- one thing\n- another"),
        ("bold", "{} **important**"),
        ("heading", "# Answer\n{}"),
        ("code", "{}\n```python\nx = 1\n```"),
        ("link", "{} See https://example.com/a"),
        ("emoji", "{} \U0001f600"),
        ("refusal", "I'm sorry, but I cannot help with that. {}"),
        ("calls itself an AI", "As an AI language model, I see it so. {}"),
        ("begins with white space", " {}"),
        ("ends inside a sentence", "{} and then"),
    ],
)
def test_formatting_on_one_side_is_found(name: str, mark: str) -> None:
    groups = planted(clean_groups(400), 0.2, lambda one, other: (one, mark.format(other)))
    formatting = items(groups)["formatting"]
    assert formatting["verdict"] == "bad"
    assert name in formatting["says"]
    row = next(row for row in formatting["tables"][0]["rows"] if row[0] == name)
    assert row[-1].startswith("0.0 % [0.0 %, ")


def test_copies_of_rows_are_counted_exact_and_near() -> None:
    groups = clean_groups(1000)
    exact = [replace(g, prompt=f" {g.prompt.upper()} ") for g in groups[:50]]
    near = [replace(g, completions=(f"{g.completions[0]} so", g.completions[1])) for g in groups[50:90]
            if len(g.completions[0].split()) > 15]  # fmt: skip
    duplicates = items([*groups, *exact, *near])["duplicates"]
    rows = len(groups) + len(exact) + len(near)
    assert number(duplicates, "rows that repeat an earlier row exactly") == 50 / rows
    assert duplicates["measured"]["duplicates"] == pytest.approx((50 + len(near)) / rows)
    assert duplicates["verdict"] == "bad"
    assert duplicates["examples"]


def test_the_same_pair_with_both_labels_is_a_conflict() -> None:
    groups = clean_groups(1000)
    reversed_ = [replace(g, completions=g.completions[::-1]) for g in groups[:8]]
    duplicates = items([*groups, *reversed_])["duplicates"]
    assert duplicates["measured"]["conflicts"] == 16 / 1008
    assert duplicates["verdict"] == "bad"


def test_leaked_prompts_are_found_exact_and_near() -> None:
    groups = clean_groups(600)
    others = [g.prompt for g in clean_groups(96, seed=9)]
    long = next(g.prompt for g in groups if len(g.prompt.split()) > 25)
    leaked = [groups[3].prompt.lower(), groups[500].prompt, f"{long} Indeed.", "Nothing like it."]
    found = items(groups, others=[OtherPrompts("test", [*others, *leaked])])["overlap"]
    assert found["measured"]["overlap"] == 0.03
    assert found["verdict"] == "bad"
    assert found["tables"][0]["rows"] == [["test", "100", "2.0 %", "3.0 %"]]
    assert any(one["in the training data"] == long[:160] for one in found["examples"])


def test_held_out_rows_are_compared_with_the_others() -> None:
    groups = clean_groups(300)
    long = max((g for g in groups[:200]), key=lambda g: len(g.prompt))
    heldout = [replace(g, heldout=True) for g in groups[200:]]
    near = replace(long, prompt=f"{long.prompt} Indeed.", heldout=True)
    found = items([*groups[:200], *heldout, near])["overlap"]
    assert found["measured"]["overlap"] == 1 / 101


@pytest.mark.parametrize(
    ("kind", "trace"),
    [
        ("special token", "{}<|im_end|>"),
        ("special token", "{} [/INST]"),
        ("role marker", "{}\n\nHuman: And then?"),
        ("role marker", "### Response:\n{}"),
        ("HTML", "{}<br /><br />So it is."),
        ("damaged letters", "{} It\ufffds so."),
        ("unclosed code", "{}\n```\nx = 1"),
        ("unclosed thoughts", "<think>Well. {}"),
    ],
)
def test_traces_of_templates_are_found(kind: str, trace: str) -> None:
    groups = planted(clean_groups(500), 0.1, lambda one, other: (trace.format(one), other))
    template = items(groups)["template"]
    assert template["verdict"] == "bad"
    assert template["measured"]["anomalies"] == pytest.approx(0.05, abs=0.015)
    assert f"{kind} " in template["says"]


def test_a_completion_that_repeats_its_prompt_and_an_empty_one_are_traces() -> None:
    groups = clean_groups(500)
    changed = [replace(g, completions=(f"{g.prompt} {g.completions[0]}", " ")) for g in groups[:20]]
    says = items([*changed, *groups[20:]])["template"]["says"]
    assert "empty 20" in says
    assert "begins with its prompt 20" in says


def test_html_and_roles_inside_code_are_no_traces() -> None:
    code = "{}\n```html\n<p>User: &amp;</p>\nUser: it\n```"
    groups = planted(clean_groups(500), 0.5, lambda one, other: (code.format(one), other))
    assert items(groups)["template"]["verdict"] == "clean"


GERMAN = "Das ist nicht die Antwort, und ich bin auf der Suche mit den anderen."
ENGLISH = "That is not the answer, and I am looking for it with the others."


def test_completions_in_another_language_are_found() -> None:
    groups = clean_groups(300)
    asked = [replace(g, prompt=f"{ENGLISH} {g.prompt}", completions=(f"{ENGLISH} {g.completions[0]}", f"{ENGLISH} {g.completions[1]}")) for g in groups]  # fmt: skip
    found = items(planted(asked, 0.5, lambda one, _: (one, GERMAN)))["language"]
    assert found["verdict"] == "bad"
    assert found["numbers"][0]["value"] == pytest.approx(0.25, abs=0.04)
    scripts = items(
        planted(asked, 0.5, lambda one, _: (one, "Это совсем другой язык, на котором нет ответа."))
    )
    assert scripts["language"]["verdict"] == "bad"
    assert items(asked)["language"]["verdict"] == "clean"


def with_rewards(groups: list[Group], rewards: list[tuple[float, ...]]) -> list[Group]:
    return [replace(g, rewards=r) for g, r in zip(groups, itertools.cycle(rewards), strict=False)]


def test_ties_and_reversed_margins_are_counted() -> None:
    groups = with_rewards(clean_groups(400), [(1.0, 0.0), (0.5, 0.5), (1.0, 0.2), (0.0, 1.0)])
    margins = items(groups)["margins"]
    assert margins["measured"]["ties"] == 0.25
    assert number(margins, "pairs whose rejected completion has the higher reward") == 0.25
    assert margins["verdict"] == "bad"
    assert (
        items(with_rewards(clean_groups(400), [(1.0, 0.0), (0.9, 0.4)]))["margins"]["verdict"]
        == "clean"
    )


def test_rewards_that_differ_between_prompts_alone_are_found() -> None:
    draws = np.random.default_rng(0).normal(size=400)
    groups = [
        replace(g, rewards=(d + 0.01, d))
        for g, d in zip(clean_groups(400), draws.tolist(), strict=True)
    ]
    assert items(groups)["rewards"]["verdict"] == "bad"
    within = [replace(g, rewards=(d + 1.0, d)) for g, d in zip(groups, draws.tolist(), strict=True)]
    assert items(within)["rewards"]["verdict"] == "clean"


def test_completions_at_the_token_limit_are_counted() -> None:
    groups = [
        replace(g, tokens=(8 if i % 4 == 0 else 5, 6)) for i, g in enumerate(clean_groups(400))
    ]
    found = items(groups, max_completion_tokens=8)
    assert found["truncation"]["measured"]["truncated"] == 0.125
    assert found["truncation"]["verdict"] == "bad"  # chosen alone is cut
    assert found["length"]["plot"]["unit"] == "tokens"
    assert items(groups)["truncation"]["verdict"] == "not measured"


def scores(rows: int, agree: float) -> list[Json]:
    draws = np.random.default_rng(0).random(rows)
    found: list[Json] = []
    for index, draw in enumerate(draws):
        for candidate in range(2):
            other = candidate if draw < agree else 1 - candidate
            shared = {"prompt_id": f"p{index}", "candidate": candidate, "rationale": None}
            found.append({**shared, "scorer": "one", "value": float(candidate)})
            found.append({**shared, "scorer": "two", "value": float(other)})
    return found


def test_rewards_that_agree_by_chance_alone_are_bad() -> None:
    assert items(clean_groups(50), scores=scores(400, 0.5))["agreement"]["verdict"] == "bad"
    good = items(clean_groups(50), scores=scores(400, 0.9))["agreement"]
    assert good["verdict"] == "clean"
    assert good["numbers"][0]["value"] == pytest.approx(0.9, abs=0.03)


def vote(pair: str, annotator: str, choice: str) -> Json:
    return {"pair_id": pair, "annotator": annotator, "choice": choice}


def test_alpha_is_that_of_krippendorffs_example() -> None:
    """Two observers and ten nominal units with two values: alpha is 0.095 (Krippendorff 2011, A)."""
    one, two = "0100000010", "1110010000"
    names = {"0": "a", "1": "b"}
    votes = [
        vote(f"u{unit}", who, names[value])
        for who, values in (("Meg", one), ("Owen", two))
        for unit, value in enumerate(values)
    ]
    agreement = items(clean_groups(20), votes=votes)["agreement"]
    assert agreement["numbers"][0]["value"] == pytest.approx(0.095, abs=0.0005)


def test_a_place_that_people_prefer_is_found_and_latest_votes_count() -> None:
    draws = np.random.default_rng(0).random(800)
    votes = [vote(f"u{n}", "Ann", "a" if draw < 0.7 else "b") for n, draw in enumerate(draws)]
    found = items(clean_groups(20), votes=votes)["position"]
    assert found["verdict"] == "bad"
    assert found["numbers"][0]["value"] == pytest.approx(0.7, abs=0.04)
    withdrawn = [vote(f"u{n}", "Ann", "withdrawn") for n in range(800)]
    assert (
        items(clean_groups(20), votes=[*votes, *withdrawn])["position"]["verdict"] == "not measured"
    )


def test_a_judge_that_prefers_a_place_is_found_by_its_counts() -> None:
    biased = {
        "consistent_for_j": 700,
        "first_in_both_orders_for_j": 250,
        "second_in_both_orders_for_j": 50,
    }
    found = items(clean_groups(20), score_counts=biased)["position"]
    assert found["verdict"] == "look"
    assert found["numbers"][0]["value"] == pytest.approx(0.6)
    even = {**biased, "second_in_both_orders_for_j": 250}
    assert items(clean_groups(20), score_counts=even)["position"]["verdict"] == "clean"


def test_a_place_in_the_columns_of_the_data_is_found() -> None:
    groups = [replace(g, position=0 if n % 4 else 1) for n, g in enumerate(clean_groups(400))]
    assert items(groups)["position"]["verdict"] == "bad"


def test_single_judgements_are_paired_and_none_is_lost_while_partners_are_there() -> None:
    groups = [replace(g, completions=g.completions[:1], pairs=()) for g in clean_groups(6)]
    judged = [True, True, False, False, False, True]
    pairs = list(paired_judgements(zip(groups, judged, strict=True)))
    assert [(p.prompt, p.rejected_prompt) for p in pairs] == [
        (groups[0].prompt, groups[2].prompt),
        (groups[1].prompt, groups[3].prompt),
        (groups[5].prompt, groups[4].prompt),
    ]


def test_a_row_of_the_table_becomes_a_group() -> None:
    row = {
        "prompt": "q",
        "completion_texts": ["one", "two", "three"],
        "completions": [[1], [1, 2], [1, 2, 3]],
        "rewards": [0.1, 0.2, None],
        "pairs": [{"chosen": 1, "rejected": 0, "weight": 1.0, "probability": None}],
    }
    assert group_of_row(row) == Group("q", ("one", "two", "three"), ((1, 0),), tokens=(1, 2, 3))


def test_data_without_a_pair_is_not_measured() -> None:
    groups = [replace(g, pairs=()) for g in clean_groups(5)]
    assert items(groups)["length"]["verdict"] == "not measured"
    assert inspected([])["pairs"] == 0
