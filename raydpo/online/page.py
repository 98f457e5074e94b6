"""Render online.html: the rounds of a run as one page for people, which loads nothing from elsewhere.

The records of the rounds, the comparison with the original model, figures and samples give the HTML
as text. Everything that a model or a person wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raydpo.core.storage import fingerprint
from raydpo.evaluation.page import render_page
from raydpo.evaluation.report import Cell, Figure, estimated, number, percent
from raydpo.evaluation.samples import Sample
from raydpo.online.record import RoundRecord, overhead_share
from raydpo.online.verdict import Verdict

Json = dict[str, Any]

_GLOSSARY: Final = (
    ("original model, round r", "the model that the rounds started from; the policy after the training of round r."),
    ("held-out reward", "the mean judge score of the policy's completions of the held-out prompts."),
    ("training reward", "what the rewards that made the labels give the same completions; if it rises and the held-out reward does not, the policy has found what its reward likes and nobody else does (over-optimization)."),
    ("win rate", "how often a completion of the policy scores above one of the original model for the same prompt; a tie counts half."),
    ("KL", "how far the policy has moved from the reference model of the job: the mean over its own completions of the sum over tokens of log policy − log reference, in nats."),
    ("updates behind", "how many optimizer updates lie between the policy that sampled and the one that is updated; 0 is on-policy."),
    ("replay", "the share of a round's groups that come from earlier rounds, whose samplers are older still."),
    ("fall of chosen", "how far the log-prob of chosen completions fell in the training (likelihood displacement), in nats, from the first to the last tenth of the steps."),
    ("[ ] and z", "95 % confidence interval; the difference in standard errors, paired by prompt: beyond ±2 it is hardly chance."),
)  # fmt: skip


@dataclass(frozen=True)
class RoundSamples:
    """A held-out prompt with the first completion of each policy, by the policy's name."""

    prompt: str
    completions: list[tuple[str, Sample]]


@dataclass(frozen=True)
class RoundsInputs:
    """Everything that the page shows.

    Args:
        title: the run's name.
        verdict: of all rounds.
        records: one for the original model and one for each round.
        compared: each policy against the original model; empty without an evaluation.
        progress: what `online/progress.py` collected of each round.
        seconds: the seconds of each round by activity.
        best: number of rounds after which the policy is best.
        figures: in the order of the page.
        samples: the same prompts by round.
        facts: (name, value) lines about models and seeds.
        config_yaml: the resolved configuration.
    """

    title: str
    verdict: Verdict
    records: Sequence[RoundRecord]
    compared: Sequence[Json | None]
    progress: Sequence[Json]
    seconds: Sequence[dict[str, float]]
    best: int
    figures: list[Figure]
    samples: list[RoundSamples]
    facts: list[tuple[str, str]]
    config_yaml: str


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[Cell]
    best: bool = False
    words: str | None = None
    links: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(frozen=True)
class _Table:
    header: list[str]
    rows: list[_Row]


def policy_name(rounds_done: int) -> str:
    """Return what the page calls the policy after so many rounds."""
    return f"round {rounds_done - 1}" if rounds_done else "original"


def choose_round_samples(policies: Sequence[Sequence[Sample]], count: int) -> list[RoundSamples]:
    """Return the first completion of each policy for `count` prompts, chosen by a hash of the id.

    Args:
        policies: the samples of each policy, with the original model first.
        count: number of prompts; only those that every policy answered are shown.
    """
    first = [{s.prompt_id: s for s in reversed(samples)} for samples in policies]
    shared = set(first[0]).intersection(*first[1:]) if first else set[str]()
    names = [policy_name(number) for number in range(len(first))]
    return [
        RoundSamples(
            first[0][prompt].prompt,
            list(zip(names, (of[prompt] for of in first), strict=True)),
        )
        for prompt in sorted(shared, key=fingerprint)[:count]
    ]


def render_rounds(inputs: RoundsInputs) -> str:
    """Render the page as one HTML document."""
    return render_page(
        "rounds.html.j2",
        inputs=inputs,
        tiles=_tiles(inputs),
        measured=_measured(inputs),
        trained=_trained(inputs),
        glossary=_GLOSSARY,
        number=number,
    )


def _tiles(inputs: RoundsInputs) -> list[tuple[str, str]]:
    rounds, best = len(inputs.records) - 1, inputs.best
    done = (str(rounds), "rounds done")
    if not inputs.compared:
        return [done]
    before, after = inputs.records[0], inputs.records[best]
    found = inputs.compared[best]
    tiles = [
        (
            f"{number(before.mean('reward'))} → {number(after.mean('reward'))}",
            f"held-out reward, original → best ({policy_name(best)})",
        ),
        (number(after.mean("kl_nats_per_completion")), "KL of the best, nats per completion"),
    ]
    if found is not None:
        z = found["difference"]["score"]["z"]
        errors = "–" if z is None else f"{z:.1f}".replace("-", "−")
        tiles.insert(1, (errors, "its gain in standard errors (z)"))
    return [*tiles, done]


def _measured(inputs: RoundsInputs) -> _Table:
    header = ["policy", "held-out reward", "gain over the original", "gain over the round before",
              "win rate against the original", "gain of the training reward", "KL (nats)", "length (tokens)",
              "speaks against it"]  # fmt: skip
    rows = [
        _Row(
            policy_name(record.rounds_done),
            _measured_cells(record, found),
            best=record.rounds_done == inputs.best,
            words=_flagged(found),
        )
        for record, found in zip(inputs.records, inputs.compared, strict=False)
    ]
    return _Table(header, rows)


def _measured_cells(record: RoundRecord, found: Json | None) -> list[Cell]:
    values = record.evaluation or {}
    changes = [Cell()] * 4
    if found is not None:
        summed = found["training_reward"]["sum"]
        changes = [
            _gain(found["difference"]["score"]),
            _gain(values["gain"]),
            estimated(found["win_rate"], percent),
            _gain(summed and summed["difference"]),
        ]
    kl, length = values["kl_nats_per_completion"], values["completion_tokens"]
    return [estimated(values["reward"]), *changes, estimated(kl), estimated(length)]


def _gain(difference: Json | None) -> Cell:
    if difference is None:
        return Cell("–")
    cell = estimated(difference, signed=True)
    z = difference["z"]
    return cell if z is None else Cell(f"{cell.value}, z {z:.1f}".replace("-", "−"), cell.detail)


def _flagged(found: Json | None) -> str:
    if found is None:
        return ""
    return ", ".join(check["name"] for check in found["checks"] if check["flagged"])


def _trained(inputs: RoundsInputs) -> _Table:
    header = ["round", "samples", "groups", "replayed", "updates", "updates behind",
              "reward of its samples", "fall of chosen (nats)", "seconds", "outside work",
              "files"]  # fmt: skip
    rows = [
        _Row(
            policy_name(record.rounds_done),
            _trained_cells(record, progress, seconds),
            best=record.rounds_done == inputs.best,
            links=_links(record.rounds_done - 1),
        )
        for record, progress, seconds in zip(
            inputs.records[1:], inputs.progress, inputs.seconds, strict=True
        )
    ]
    return _Table(header, rows)


def _trained_cells(record: RoundRecord, progress: Json, seconds: dict[str, float]) -> list[Cell]:
    behind = progress["updates_behind"]
    replayed = f"of {record.replayed} groups" if record.replayed else ""
    return [
        Cell(str(record.samples)),
        Cell(str(record.groups)),
        Cell(percent(progress["replay_share"]), replayed),
        Cell(str(progress["steps"])),
        Cell(f"{behind['first']} to {behind['last']}"),
        estimated(progress["sampled_reward"]),
        Cell(number(record.displacement_nats)),
        Cell(f"{seconds['total']:.1f}"),
        Cell(percent(overhead_share(seconds))),
    ]


def _links(index: int) -> list[tuple[str, str]]:
    """Return names and relative addresses of what the round's folder has for people."""
    folder = f"round-{index:03d}"
    return [
        ("result", f"{folder}/round.json"),
        ("steps", f"{folder}/policy/metrics.jsonl"),
        ("policy", f"{folder}/policy/model/"),
    ]
