"""Preferences by people.

What comes in: the table of candidates, and files of votes. What goes out: a JSONL file of
blinded pairs for people to choose from, and from their votes the tables of votes and of
preferences. A pair's id is a hash of the candidates table and the two candidates, so the
file and the run directory are all that an import needs. Every file of votes is kept in
the run directory, in the order of the imports, and so is every vote in it: of the votes of
one annotator on one pair the latest counts, `withdrawn` takes it back.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from raydpo.config import PeopleConfig
from raydpo.config_content import content_of
from raydpo.errors import DataError, QuarantineBudgetError
from raydpo.labeling.groups import by_prompt, preference_row, refuse_zero_pairs
from raydpo.labeling.kept_votes import votes_files
from raydpo.parts import Table, describe_counts
from raydpo.progress import logger
from raydpo.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.storage import Folder, fingerprint, folder_of, sha256
from raydpo.tables import Row

CHOICES: Final = ("a", "b", "tie", "withdrawn")
#: The side that more than half of a pair's annotators chose wins; else it is a tie.
CONFLICT_POLICY: Final = "majority"


@dataclass(frozen=True)
class BlindPair:
    """Two candidates of a prompt as people see them; which is `a` is drawn by hash."""

    pair_id: str
    a: Row
    b: Row


@dataclass(frozen=True)
class _Line:
    """A line of a file of votes, and which file and line it is."""

    id: str
    position: int
    content: bytes


def export_pairs(candidates: Table, path: str, pairs_per_prompt: int, seed: int) -> int:
    """Write blinded pairs to a JSONL file, for people to fill in `choice` and `annotator`.

    Args:
        candidates: the completions.
        path: the file to write; it must not be there.
        pairs_per_prompt: at most so many pairs of a prompt.
        seed: it draws which pairs of a prompt these are.

    Returns:
        The number of pairs.

    Raises:
        DataError: the file is there already, or no prompt has two different completions.
    """
    folder, name = _split_path(path)
    if folder.exists(name):
        raise DataError(
            f"{path} is there already",
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
    """Add a file of votes to the run, and build the preferences of all votes so far.

    Args:
        candidates: the completions that the pairs were exported from.
        path: a JSONL file: exported lines with `choice` (a, b, tie or withdrawn) and
            `annotator` filled in, a line a vote; lines with neither are unanswered.
        folder: the round's folder; `votes`, `preferences` and `votes-files` are in it.
        max_quarantined_fraction: share of the lines that may be refused.
        people: how votes become pairs.

    Returns:
        The preferences table, a group a prompt that has a pair; its rewards are null.

    Raises:
        DataError: the file cannot be read, or not a single pair came out.
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
    """The preferences of all votes on these candidates that the round holds; None without any.

    Args:
        candidates: the completions that people chose from.
        folder: the round's folder.
        people: how votes become pairs.

    Raises:
        DataError: not a single pair came out.
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
    """All pairs of different, non-empty completions of one prompt."""
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
    """Votes that count, by pair: the latest of each annotator, unless it was withdrawn.

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
    """`a` or `b` where more than half chose it, else `tie`."""
    choice, count = choices.most_common(1)[0]
    return choice if 2 * count > choices.total() else "tie"


def share_of_votes(choices: Counter[str], side: str) -> float:
    """Share of the votes that chose `side`, a tie counting half: the pair's soft label."""
    return (choices[side] + choices["tie"] / 2) / choices.total()


def _votes_table(candidates: Table, files: Folder, folder: Folder) -> Table:
    """All votes of all kept files, in the order of their imports."""
    names = sorted(files.files())
    stage = Stage(
        folder,
        "votes",
        "votes",
        inputs={"candidates": candidates.fingerprint, "files": fingerprint(names)},
        settings={},
    )
    manifest = open_stage(stage)
    if manifest is None:
        known = _pairs_by_id(candidates)
        contents = [_lines(files.read_bytes(name), i) for i, name in enumerate(names, 1)]
        write_part(stage, 0, read_votes(itertools.chain(*contents), known))
        manifest = commit(stage, {}, parts=1)
        logger.info("[votes] done: %s", describe_counts(manifest))
    return Table(folder, manifest)


def read_votes(lines: Iterable[_Line], known: dict[str, BlindPair]) -> PartResult:
    """Votes, refused lines and counts; `known` are the pairs by id."""
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


def people_stage(folder: Folder, candidates: Table, votes: Table, people: PeopleConfig) -> Stage:
    """What preferences by people are made from."""
    return Stage(
        folder,
        "preferences",
        "preferences",
        inputs={"candidates": candidates.fingerprint, "votes": votes.fingerprint},
        settings={"conflicts": CONFLICT_POLICY, **content_of(people)},
    )


def _preferences_table(
    candidates: Table, votes: Table, folder: Folder, people: PeopleConfig
) -> Table:
    stage = people_stage(folder, candidates, votes, people)
    manifest = open_stage(stage)
    if manifest is None:
        counted = counted_votes(list(read_rows(votes.folder, votes.manifest)))
        parts = candidates.manifest["parts"]
        for index in range(parts):
            rows = candidates.part(index)
            part = people_part(rows, counted, candidates.fingerprint, people.min_votes)
            write_part(stage, index, part)
        manifest = commit(stage, {}, parts=parts)
        logger.info("[preferences] done: %s", describe_counts(manifest))
    return Table(folder, manifest)


def people_part(
    candidates: list[Row],
    counted: dict[str, Counter[str]],
    candidates_fingerprint: str,
    min_votes: int = 1,
) -> PartResult:
    """The preferences of one part of the candidates, from the votes that count."""
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
    """A line's vote, or the reason why it is refused; neither where nobody answered."""
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
    """A reason to refuse a vote on other texts than those that were exported."""
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
    """Refuse a file before it is kept, so that a mended one can take its place."""
    lines, refused = read.counts["input"], read.quarantined
    if len(refused) > max_quarantined_fraction * lines:
        reasons = "; ".join(f"{row['id']}: {row['reason']}" for row in refused[:5])
        raise QuarantineBudgetError(
            f"{path}: {len(refused)} of {lines} lines are refused, among them {reasons}",
            f"at most {max_quarantined_fraction:.2%} may be refused (max_quarantined_fraction)",
            "mend these lines and import the file again; nothing of it was imported",
        )


def _lines(content: bytes, number: int) -> Iterator[_Line]:
    """The lines of file `number`; blank ones are left out."""
    for position, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield _Line(f"file {number}, line {position}", position, line)


def _prompts(candidates: Table) -> Iterator[list[Row]]:
    for index in range(candidates.manifest["parts"]):
        yield from by_prompt(candidates.part(index))


def _split_path(path: str) -> tuple[Folder, str]:
    parent, _, name = folder_of(path).uri.rpartition("/")
    return Folder(parent), name
