"""People see blinded pairs; every vote is kept, and the latest of each annotator counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from raydpo.core.errors import DataError, QuarantineBudgetError
from raydpo.core.run import read_quarantine, read_rows
from raydpo.core.storage import Folder
from raydpo.labeling.people import export_pairs, import_votes, majority, share_of_votes


@pytest.fixture
def candidates(make_candidate, make_table):
    """Two parts, three prompts of three candidates; two completions of p2 are identical."""
    rows = [[make_candidate(f"p{i}", k) for k in range(3)] for i in range(3)]
    rows[2][1]["completion_ids"] = rows[2][0]["completion_ids"]
    return make_table("candidates", [rows[0] + rows[1], rows[2]])


@pytest.fixture
def exported(candidates, tmp_path) -> list[dict]:
    export_pairs(candidates, str(tmp_path / "pairs.jsonl"), pairs_per_prompt=3, seed=0)
    return [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]


def write(path: Path, lines: list[object]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def vote(pair: dict, choice: str, annotator: str, **changes) -> dict:
    return {**pair, "choice": choice, "annotator": annotator, **changes}


def preferred(table) -> dict[str, set[tuple[str, str]]]:
    """Group -> (chosen, rejected) texts."""
    return {
        row["group_id"]: {
            (row["completion_texts"][p["chosen"]], row["completion_texts"][p["rejected"]])
            for p in row["pairs"]
        }
        for row in read_rows(table.folder, table.manifest)
    }


def test_the_export_shows_texts_and_nothing_that_tells_them_apart(exported):
    assert len(exported) == 3 + 3 + 2
    for line in exported:
        assert set(line) == {
            "pair_id", "prompt", "completion_a", "completion_b", "choice", "annotator", "note",
        }  # fmt: skip
        assert (line["choice"], line["annotator"], line["note"]) == ("", "", "")
        assert line["completion_a"] != line["completion_b"]
    assert len({line["pair_id"] for line in exported}) == len(exported)


def test_which_completion_is_a_is_drawn(make_candidate, make_table, tmp_path):
    table = make_table(
        "candidates", [[make_candidate(f"p{i}", k) for i in range(200) for k in (0, 1)]]
    )
    assert export_pairs(table, str(tmp_path / "o.jsonl"), 1, seed=0) == 200
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    first = sum(line["completion_a"] == " completion 0" for line in lines)
    assert 70 < first < 130


def test_the_seed_draws_which_pairs_of_a_prompt_are_shown(candidates, tmp_path):
    def ids(seed: int, name: str) -> list[str]:
        assert export_pairs(candidates, str(tmp_path / name), 1, seed) == 3
        return [json.loads(line)["pair_id"] for line in (tmp_path / name).read_text().splitlines()]

    assert ids(0, "a.jsonl") == ids(0, "b.jsonl")
    assert len({tuple(ids(seed, f"{seed}.jsonl")) for seed in range(6)}) > 1


def test_an_export_never_overwrites_peoples_work(candidates, tmp_path):
    path = tmp_path / "pairs.jsonl"
    export_pairs(candidates, str(path), 1, seed=0)
    path.write_text("votes")
    with pytest.raises(DataError, match="exists already"):
        export_pairs(candidates, str(path), 1, seed=0)
    assert path.read_text() == "votes"


def test_nothing_to_choose_between_is_an_error(make_candidate, make_table, tmp_path):
    with pytest.raises(DataError, match="two different completions"):
        export_pairs(
            make_table("candidates", [[make_candidate("p", 0)]]), str(tmp_path / "x"), 1, 0
        )


def test_votes_become_pairs_between_the_texts_that_were_shown(candidates, exported, tmp_path):
    votes = [vote(exported[0], "a", "ann"), vote(exported[4], "b", "ann")]
    table = import_votes(
        candidates, write(tmp_path / "v.jsonl", votes), Folder(str(tmp_path / "r"))
    )
    shown = exported[0], exported[4]
    assert preferred(table) == {
        "p0": {(shown[0]["completion_a"], shown[0]["completion_b"])},
        "p1": {(shown[1]["completion_b"], shown[1]["completion_a"])},
    }
    assert table.manifest["settings"] == {"conflicts": "majority", "min_votes": 1}
    counts = table.manifest["counts"]
    assert (counts["pairs"], counts["output"], counts["groups_without_pairs"]) == (2, 2, 1)
    row = next(read_rows(table.folder, table.manifest))
    assert (row["rewards"], len(row["completions"])) == (None, 3)
    assert [pair["weight"] for pair in row["pairs"]] == [1.0]


def test_three_annotators_who_disagree_vote_twice_and_withdraw(candidates, exported, tmp_path):
    one, two, three, four = exported[:4]
    votes = [
        vote(one, "a", "ann"), vote(one, "b", "ben"), vote(one, "b", "cy"),  # majority: b
        vote(two, "a", "ann"), vote(two, "b", "ben"),  # no majority: a tie
        vote(three, "a", "ann"), vote(three, "a", "ann"), vote(three, "b", "ann"),  # latest: b
        vote(four, "a", "ann"), vote(four, "b", "ben"), vote(four, "withdrawn", "ben"),  # a
    ]  # fmt: skip
    folder = Folder(str(tmp_path / "round"))
    table = import_votes(candidates, write(tmp_path / "v.jsonl", votes), folder)
    assert preferred(table) == {
        "p0": {
            (one["completion_b"], one["completion_a"]),
            (three["completion_b"], three["completion_a"]),
        },
        "p1": {(four["completion_a"], four["completion_b"])},
    }
    assert table.manifest["counts"]["ties"] == 1
    probabilities = {
        (row["completion_texts"][pair["chosen"]], row["completion_texts"][pair["rejected"]]): pair[
            "probability"
        ]
        for row in read_rows(table.folder, table.manifest)
        for pair in row["pairs"]
    }
    share = probabilities[one["completion_b"], one["completion_a"]]
    assert share == pytest.approx(2 / 3)  # soft label: two of three chose it
    kept = folder.child("votes")
    rows = list(read_rows(kept, kept.read_json("manifest.json")))
    assert [(r["pair_id"], r["annotator"], r["choice"]) for r in rows] == [
        (v["pair_id"], v["annotator"], v["choice"]) for v in votes
    ]
    assert [row["position"] for row in rows] == list(range(1, 12))


@pytest.mark.parametrize(
    ("choices", "winner"),
    [
        ({"a": 1}, "a"),
        ({"a": 2, "b": 1}, "a"),
        ({"a": 1, "b": 1}, "tie"),
        ({"b": 2, "tie": 1}, "b"),
        ({"b": 1, "tie": 1}, "tie"),
        ({"a": 2, "b": 1, "tie": 1}, "tie"),
        ({"tie": 3}, "tie"),
    ],
)
def test_a_majority_is_more_than_half(choices, winner):
    assert majority(Counter(choices)) == winner


def test_the_share_of_votes_counts_a_tie_half():
    assert share_of_votes(Counter(a=3, b=1), "a") == 0.75
    assert share_of_votes(Counter(a=2, tie=1), "a") == pytest.approx(2.5 / 3)


def test_a_second_file_adds_to_the_first_and_the_same_file_adds_nothing(
    candidates, exported, tmp_path
):
    folder = Folder(str(tmp_path / "round"))
    first = write(tmp_path / "1.jsonl", [vote(exported[0], "a", "ann")])
    second = write(
        tmp_path / "2.jsonl", [vote(exported[0], "b", "ben"), vote(exported[0], "b", "cy")]
    )
    shown = exported[0]["completion_a"], exported[0]["completion_b"]
    assert preferred(import_votes(candidates, first, folder)) == {"p0": {shown}}
    once = import_votes(candidates, second, folder)
    assert preferred(once) == {"p0": {shown[::-1]}}
    assert import_votes(candidates, first, folder).manifest == once.manifest
    assert folder.child("votes").read_json("manifest.json")["counts"]["output"] == 3


def test_lines_that_are_no_votes_are_refused_with_a_reason_and_counted(
    candidates, exported, tmp_path
):
    pair = exported[0]
    path = tmp_path / "v.jsonl"
    good = [json.dumps(vote(pair, "a", "ann")).encode(), json.dumps(exported[1]).encode()]
    bad = {
        b"{not json": "not JSON",
        b'"\xff"': "not UTF-8",
        b"[1]": "not an object",
        json.dumps(vote(pair, "a", "ann", pair_id="nope")).encode(): "unknown pair_id 'nope'",
        json.dumps(vote(pair, "c", "ann")).encode(): "choice 'c' is not one of",
        json.dumps(vote(pair, ["a"], "ann")).encode(): "is not one of",
        json.dumps(vote(pair, "a", " ")).encode(): "no annotator",
        json.dumps(vote(pair, "a", "ann", completion_b="mine")).encode(): "completion_b is not",
    }
    path.write_bytes(b"\n".join([*good, *bad, b"", b""]))
    folder = Folder(str(tmp_path / "round"))
    import_votes(candidates, str(path), folder, max_quarantined_fraction=0.9)
    votes = folder.child("votes")
    manifest = votes.read_json("manifest.json")
    refused = list(read_quarantine(votes, manifest))
    assert len(refused) == len(bad)
    for row, (line, reason) in zip(refused, bad.items(), strict=True):
        assert reason in row["reason"]
        assert row["row"] == line.decode("utf-8", "backslashreplace")
    assert [row["id"] for row in refused[:2]] == ["file 1, line 3", "file 1, line 4"]
    counts = manifest["counts"]
    assert counts["input"] == 10 == counts["output"] + counts["quarantined"] + counts["unanswered"]
    assert (counts["output"], counts["unanswered"]) == (1, 1)


def test_a_file_with_too_many_bad_lines_is_not_kept(candidates, exported, tmp_path):
    folder = Folder(str(tmp_path / "round"))
    bad = write(tmp_path / "bad.jsonl", [vote(exported[0], "a", ""), vote(exported[0], "b", "ben")])
    with pytest.raises(QuarantineBudgetError, match=r"1 of 2 lines .*line 1: no annotator"):
        import_votes(candidates, bad, folder)
    corrected = write(tmp_path / "corrected.jsonl", [vote(exported[0], "a", "ann")])
    table = import_votes(candidates, corrected, folder)
    assert preferred(table) == {"p0": {(exported[0]["completion_a"], exported[0]["completion_b"])}}


def test_votes_on_other_candidates_are_unknown(
    candidates, exported, make_candidate, make_table, tmp_path
):
    path = write(tmp_path / "v.jsonl", [vote(exported[0], "a", "ann")])
    candidates.folder.delete()
    rows = [make_candidate(f"p{i}", k, seed=8) for i in range(3) for k in range(3)]
    sampled_again = make_table("candidates", [rows])
    with pytest.raises(QuarantineBudgetError, match="unknown pair_id"):
        import_votes(sampled_again, path, Folder(str(tmp_path / "round")))


def test_only_ties_are_no_preferences(candidates, exported, tmp_path):
    folder = Folder(str(tmp_path / "round"))
    path = write(tmp_path / "v.jsonl", [vote(exported[0], "tie", "ann")])
    with pytest.raises(DataError, match=r"no pair at all .*ties 1"):
        import_votes(candidates, path, folder)
    assert not folder.child("preferences").exists("manifest.json")
    assert folder.child("votes").exists("manifest.json")


def test_a_file_that_is_not_there_is_named(candidates, tmp_path):
    with pytest.raises(DataError, match="check the path"):
        import_votes(candidates, str(tmp_path / "none.jsonl"), Folder(str(tmp_path / "round")))
