"""Turn people's votes into preferences.

From the table of candidates the module writes a JSONL file of blinded pairs for people to choose
from. From their votes it makes the tables of votes and of preferences. A pair's id is a hash of the
candidates table and the two candidates, so an import needs only the file and the run directory. The
run directory keeps every file of votes, in the order of the imports, and every vote in it. If an
annotator votes twice on a pair, the latest vote counts; `withdrawn` takes a vote back.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from raydpo.config.content import content_of
from raydpo.config.job import PeopleConfig
from raydpo.core.errors import DataError, QuarantineBudgetError
from raydpo.core.on_driver import map_on_driver, write_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, read_rows
from raydpo.core.storage import Folder, fingerprint, folder_of, sha256
from raydpo.core.tables import Row
from raydpo.labeling.groups import by_prompt, preference_row, refuse_zero_pairs
from raydpo.labeling.kept_votes import votes_files

CHOICES: Final = ("a", "b", "tie", "withdrawn")
#: The side chosen by more than half of a pair's annotators wins; otherwise the pair is a tie.
CONFLICT_POLICY: Final = "majority"


@dataclass(frozen=True)
class BlindPair:
    """Two candidates of a prompt as people see them; a hash decides which one is `a`."""

    pair_id: str
    a: Row
    b: Row


@dataclass(frozen=True)
class _Line:
    """A line of a file of votes, with its file and line number."""

    id: str
    position: int
    content: bytes


def export_pairs(candidates: Table, path: str, pairs_per_prompt: int, seed: int) -> int:
    """Write blinded pairs to a JSONL file, for people to fill in `choice` and `annotator`.

    Args:
        candidates: the completions.
        path: the file to write; it must not exist yet.
        pairs_per_prompt: maximum number of pairs of a prompt.
        seed: the seed that chooses these pairs.

    Returns:
        The number of pairs.

    Raises:
        DataError: the file exists already, or no prompt has two different completions.
    """
    folder, name = _split_path(path)
    if folder.exists(name):
        raise DataError(
            f"{path} exists already",
            "an export does not overwrite a file that may hold people's votes",
            "choose another name, or delete the file",
        )
    lines: list[str] = []
    for rows in _prompts(candidates):
        pairs = sorted(
            blind_pairs(rows, candidates.fingerprint), key=lambda p: fingerprint([seed, p.pair_id])
        )
        lines += [_export_line(pair) for pair in pairs[:pairs_per_prompt]]
    if not lines:
        raise DataError(
            f"{candidates.folder.uri}: no prompt has two different completions",
            "people choose between two different completions of a prompt",
            "sample more candidates (sampling.candidates), or at a higher temperature",
        )
    folder.write_bytes(name, "".join(lines).encode())
    return len(lines)


def import_votes(
    candidates: Table,
    path: str,
    folder: Folder,
    max_quarantined_fraction: float = 0.01,
    people: PeopleConfig | None = None,
) -> Table:
    """Add a file of votes to the run, and build the preferences from all votes so far.

    Args:
        candidates: the completions that the pairs were exported from.
        path: a JSONL file of exported lines, one per vote, with `choice` (a, b, tie or withdrawn)
            and `annotator` filled in; lines with neither are unanswered.
        folder: the round's folder, which contains `votes`, `preferences` and `votes-files`.
        max_quarantined_fraction: share of the lines that may be refused.
        people: how votes become pairs.

    Returns:
        The preferences table, with one group per prompt that has a pair; its rewards are null.

    Raises:
        DataError: the file cannot be read, or no pair resulted.
        QuarantineBudgetError: too many lines were refused.
    """
    content = _read_file(path)
    _check_budget(
        path, read_votes(_lines(content, 1), _pairs_by_id(candidates)), max_quarantined_fraction
    )
    _keep_file(content, votes_files(folder, candidates.fingerprint))
    preferences = preferences_of_people(candidates, folder, people or PeopleConfig())
    assert preferences is not None
    return preferences


def preferences_of_people(candidates: Table, folder: Folder, people: PeopleConfig) -> Table | None:
    """Build preferences from all the round's votes on these candidates; None without votes.

    Args:
        candidates: the completions that people chose from.
        folder: the round's folder.
        people: how votes become pairs.

    Raises:
        DataError: no pair resulted.
    """
    files = votes_files(folder, candidates.fingerprint)
    if not files.files():
        return None
    votes = _votes_table(candidates, files, folder.child("votes"))
    preferences = _preferences_table(candidates, votes, folder.child("preferences"), people)
    return refuse_zero_pairs(
        preferences,
        "collect more votes: a pair needs a choice by more than half of its annotators, and "
        f"labeling.people.min_votes of them ({people.min_votes})",
    )


def _pairs_by_id(candidates: Table) -> dict[str, BlindPair]:
    return {
        pair.pair_id: pair
        for rows in _prompts(candidates)
        for pair in blind_pairs(rows, candidates.fingerprint)
    }


def blind_pairs(rows: list[Row], candidates_fingerprint: str) -> list[BlindPair]:
    """Return all pairs of different, non-empty completions of one prompt."""
    filled = [row for row in rows if row["completion_ids"]]
    pairs: list[BlindPair] = []
    for one, other in itertools.combinations(filled, 2):
        if one["completion_ids"] == other["completion_ids"]:
            continue
        key = [candidates_fingerprint, one["prompt_id"], one["candidate"], other["candidate"]]
        swap = fingerprint(["order", *key])[0] in "01234567"
        a, b = (other, one) if swap else (one, other)
        pairs.append(BlindPair(fingerprint(key)[:24], a, b))
    return pairs


def counted_votes(votes: list[Row]) -> dict[str, Counter[str]]:
    """Count votes by pair: the latest of each annotator, unless it was withdrawn.

    Args:
        votes: rows of the votes table, in the order in which they were given.
    """
    latest = {(vote["pair_id"], vote["annotator"]): vote["choice"] for vote in votes}
    counted: dict[str, Counter[str]] = {}
    for (pair_id, _), choice in latest.items():
        if choice != "withdrawn":
            counted.setdefault(pair_id, Counter())[choice] += 1
    return counted


def majority(choices: Counter[str]) -> str:
    """Return `a` or `b` if more than half chose it, otherwise `tie`."""
    choice, count = choices.most_common(1)[0]
    return choice if 2 * count > choices.total() else "tie"


def share_of_votes(choices: Counter[str], side: str) -> float:
    """Return the share of votes for `side`, with ties as half votes: the pair's soft label."""
    return (choices[side] + choices["tie"] / 2) / choices.total()


def _votes_table(candidates: Table, files: Folder, folder: Folder) -> Table:
    """Make the table of all votes in all kept files, in the order of their imports."""
    names = sorted(files.files())
    stage = Stage(
        # Each file of votes was held to the budget of refused lines when it was imported.
        Place(folder, "votes", max_quarantined_fraction=1.0),
        "votes",
        "votes",
        inputs={"candidates": candidates.fingerprint, "files": fingerprint(names)},
        settings={},
    )

    def parts() -> Iterator[PartResult]:
        contents = [_lines(files.read_bytes(name), i) for i, name in enumerate(names, 1)]
        yield read_votes(itertools.chain(*contents), _pairs_by_id(candidates))

    return write_on_driver(stage, parts)


def read_votes(lines: Iterable[_Line], known: dict[str, BlindPair]) -> PartResult:
    """Return votes, refused lines and counts; `known` are the pairs by id."""
    rows: list[Row] = []
    refused: list[Row] = []
    total = unanswered = 0
    for line in lines:
        total += 1
        vote, reason = _vote(line, known)
        if reason is not None:
            text = line.content.decode("utf-8", "backslashreplace")
            refused.append({"stage": "votes", "id": line.id, "reason": reason, "row": text})
        elif vote is None:
            unanswered += 1
        else:
            rows.append(vote)
    return PartResult(rows, refused, {"input": total, "unanswered": unanswered})


def people_stage(place: Place, candidates: Table, votes: Table, people: PeopleConfig) -> Stage:
    """Describe what preferences by people are made from."""
    return Stage(
        place,
        "preferences",
        "preferences",
        inputs={"candidates": candidates.fingerprint, "votes": votes.fingerprint},
        settings={"conflicts": CONFLICT_POLICY, **content_of(people)},
    )


def _preferences_table(
    candidates: Table, votes: Table, folder: Folder, people: PeopleConfig
) -> Table:
    stage = people_stage(Place(folder, "preferences"), candidates, votes, people)

    @functools.cache
    def counted() -> dict[str, Counter[str]]:
        return counted_votes(list(read_rows(votes.folder, votes.manifest)))

    def part(rows: list[Row]) -> PartResult:
        return people_part(rows, counted(), candidates.fingerprint, people.min_votes)

    return map_on_driver(stage, part, candidates)


def people_part(
    candidates: list[Row],
    counted: dict[str, Counter[str]],
    candidates_fingerprint: str,
    min_votes: int = 1,
) -> PartResult:
    """Build the preferences of one part of the candidates from the votes that count."""
    rows: list[Row] = []
    names = ("pairs", "soft_labels", "ties", "too_few_votes", "groups_without_pairs")
    counts = {"input": len(candidates), **dict.fromkeys(names, 0)}
    for group in by_prompt(candidates):
        pairs: list[tuple[int, int]] = []
        shares: list[float] = []
        for pair in blind_pairs(group, candidates_fingerprint):
            if pair.pair_id not in counted:
                continue
            if counted[pair.pair_id].total() < min_votes:
                counts["too_few_votes"] += 1
                continue
            winner = majority(counted[pair.pair_id])
            if winner == "tie":
                counts["ties"] += 1
                continue
            chosen, rejected = (pair.a, pair.b) if winner == "a" else (pair.b, pair.a)
            pairs.append((chosen["candidate"], rejected["candidate"]))
            shares.append(share_of_votes(counted[pair.pair_id], winner))
        counts["pairs"] += len(pairs)
        counts["soft_labels"] += len(pairs)
        counts["groups_without_pairs"] += not pairs
        if pairs:
            filled = [row for row in group if row["completion_ids"]]
            rows.append(preference_row(filled, pairs, shares))
    return PartResult(rows, counts=counts)


def _vote(line: _Line, known: dict[str, BlindPair]) -> tuple[Row | None, str | None]:
    """Return a line's vote, or the reason to refuse it; neither if it is unanswered."""
    try:
        values: Any = json.loads(line.content.decode("utf-8"))
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        return None, "not UTF-8"
    except ValueError as error:
        return None, f"not JSON: {error}"
    if not isinstance(values, dict):
        return None, f"a {type(values).__name__}, not an object"
    pair = known.get(str(values.get("pair_id")))
    if pair is None:
        return None, f"unknown pair_id {values.get('pair_id')!r}"
    choice, annotator = values.get("choice"), values.get("annotator")
    if not choice:
        return None, None
    if choice not in CHOICES:
        return None, f"choice {choice!r} is not one of {', '.join(CHOICES)}"
    if not isinstance(annotator, str) or not annotator.strip():
        return None, "no annotator"
    if reason := _changed(values, pair):
        return None, reason
    note = values.get("note")
    vote: Row = {
        "pair_id": pair.pair_id,
        "prompt_id": pair.a["prompt_id"],
        "candidate_a": pair.a["candidate"],
        "candidate_b": pair.b["candidate"],
        "annotator": annotator.strip(),
        "choice": choice,
        "position": line.position,
        "note": str(note) if note else None,
    }
    return vote, None


def _changed(values: dict[str, Any], pair: BlindPair) -> str | None:
    """Return a reason to refuse a vote whose texts differ from the exported ones."""
    shown = {"completion_a": pair.a["completion"], "completion_b": pair.b["completion"]}
    for name, text in shown.items():
        if values.get(name, text) != text:
            return f"{name} is not the text that was exported"
    return None


def _export_line(pair: BlindPair) -> str:
    line = {
        "pair_id": pair.pair_id,
        "prompt": pair.a["prompt"],
        "completion_a": pair.a["completion"],
        "completion_b": pair.b["completion"],
        "choice": "",
        "annotator": "",
        "note": "",
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _read_file(path: str) -> bytes:
    folder, name = _split_path(path)
    try:
        return folder.read_bytes(name)
    except OSError as error:
        raise DataError(
            f"{path}: {error}",
            "votes are imported from a JSONL file",
            "check the path",
        ) from error


def _keep_file(content: bytes, files: Folder) -> None:
    """Keep a file of votes in the run; the same content is kept once."""
    names = files.files()
    if not any(name.endswith(f"-{sha256(content)}.jsonl") for name in names):
        files.write_bytes(f"{len(names):05d}-{sha256(content)}.jsonl", content)


def _check_budget(path: str, read: PartResult, max_quarantined_fraction: float) -> None:
    """Refuse a file before it is kept, so that a corrected one can take its place."""
    lines, refused = read.counts["input"], read.quarantined
    if len(refused) > max_quarantined_fraction * lines:
        reasons = "; ".join(f"{row['id']}: {row['reason']}" for row in refused[:5])
        raise QuarantineBudgetError(
            f"{path}: {len(refused)} of {lines} lines are refused, among them {reasons}",
            f"at most {max_quarantined_fraction:.2%} may be refused (max_quarantined_fraction)",
            "fix these lines and import the file again; nothing of it was imported",
        )


def _lines(content: bytes, number: int) -> Iterator[_Line]:
    """Yield the lines of file `number`, without blank ones."""
    for position, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield _Line(f"file {number}, line {position}", position, line)


def _prompts(candidates: Table) -> Iterator[list[Row]]:
    for index in range(candidates.manifest["parts"]):
        yield from by_prompt(candidates.part(index))


def _split_path(path: str) -> tuple[Folder, str]:
    parent, _, name = folder_of(path).uri.rpartition("/")
    return Folder(parent), name
