"""Check the input data, reading it to the end; see `job.py`.

The results go to `Findings`: row counts, the reasons of refused rows, and one rendered example
with its mask. The check makes rows with the same functions as the stages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from raydpo.check.findings import Findings
from raydpo.config.fit import check_counts_fit
from raydpo.config.job import Config, SftConfig
from raydpo.core.cut_counts import cut_warnings
from raydpo.core.errors import DataError, QuarantineBudgetError
from raydpo.core.run import PartResult
from raydpo.core.tables import Row
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.columns import ColumnUses
from raydpo.prompts.end_tokens import describe_end, end_tokens
from raydpo.prompts.examples import example_parts
from raydpo.prompts.mixing import Make, S, Shared, passing_rows, source_parts
from raydpo.prompts.preferences import preference_parts
from raydpo.prompts.rows import add_counts, check_not_empty
from raydpo.prompts.sources import (
    SourceSection,
    bytes_hash,
    files_of_other_splits,
    location,
    source_rows,
)
from raydpo.prompts.stage import prompt_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Tokens of the example that are shown at most, at each end of prompt and completion.
_SHOWN: Final = 12


@dataclass(frozen=True)
class Example:
    """Token ids, how many of them are the prompt, and the texts that they encode."""

    token_ids: list[int]
    prompt_tokens: int
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Source:
    """A source of the job: its name, its parts, and how one of its rows is shown.

    `kind` is the name of its section; several sources of a section have names of their own.
    """

    name: str
    kind: str
    section: SourceSection
    parts: Iterable[PartResult]
    uses: ColumnUses
    example: Callable[[Row], Example]


def check_data(config: Config, rows: int | None, findings: Findings) -> None:
    """Read every source of the job to its end, or to `rows` rows."""
    tokenizer = findings.attempt(load_tokenizer, config.model)
    if tokenizer is None:
        for section in _sections(config):
            for one in (section,) if isinstance(section, SftConfig) else section.each:
                findings.attempt(bytes_hash, *location(one))
        findings.facts.append("data: not tokenized, because there is no tokenizer")
        return
    findings.facts += _end_of_completions(config, tokenizer)
    for source in _sources(config, rows, tokenizer):
        first = findings.attempt(_read, source, config, findings, rows)
        findings.facts += _unread_files(source.section)
        lines = source.uses.lines(str(tokenizer.chat_template or ""))
        findings.facts += [f"  {line}" for line in lines]
        if first is not None:
            lines = render_example(source.name, source.example(first), tokenizer)
            findings.example += lines if not findings.example else []


def render_example(name: str, example: Example, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts, and a table of position, token id, whether it is trained on, and token."""
    lines = [f"example of {name}:"]
    for title, text in example.texts:
        lines += [f"  {title}:", *(f"    | {line}" for line in text.split("\n"))]
    lines.append(f"  {'position':>8}  {'id':>8}  trained  token")
    ids, start = example.token_ids, example.prompt_tokens
    for begin, end, trained in ((0, start, "no"), (start, len(ids), "yes")):
        shown = _ends(begin, end)
        for before, position in zip([begin - 1, *shown], shown, strict=False):
            if position - before > 1:
                lines.append(f"  ... {position - before - 1} more")
            token = _token(ids[position], tokenizer)
            lines.append(f"  {position:8d}  {ids[position]:8d}  {trained:7}  {token!r}")
    return lines


def _token(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token's text, or its name in the vocabulary if it alone decodes to nothing."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return str(text or tokenizer.convert_ids_to_tokens(token_id))


def _ends(begin: int, end: int) -> list[int]:
    if end - begin <= 2 * _SHOWN:
        return list(range(begin, end))
    return [*range(begin, begin + _SHOWN), *range(end - _SHOWN, end)]


def _sections(config: Config) -> list[SourceSection]:
    evaluation = config.evaluation and config.evaluation.prompts
    sections = (config.preferences, config.prompts, evaluation, config.sft)
    return [section for section in sections if section is not None]


def _sources(
    config: Config, rows: int | None, tokenizer: PreTrainedTokenizerBase
) -> Iterator[_Source]:
    """The job's sources, the most informative example first."""
    size = config.rows_per_part
    if config.preferences is not None:
        of = "preferences", config.preferences, rows, tokenizer, size
        yield from _each(*of, preference_parts, _preference_example)
    if config.sft is not None:
        uses = ColumnUses()
        limits = [limit for limit in (config.sft.limit, rows) if limit is not None]
        given = source_rows(*location(config.sft), min(limits, default=None))
        parts = example_parts(config.sft, given, tokenizer, size, uses)
        yield _Source("sft", "sft", config.sft, parts, uses, _sft_example(tokenizer))
    evaluation = config.evaluation and config.evaluation.prompts
    for name, section in (("prompts", config.prompts), ("evaluation.prompts", evaluation)):
        if section is not None:
            yield from _each(name, section, rows, tokenizer, size, prompt_parts, _prompt_example)


def _each(
    kind: str,
    section: S,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    make: Make[S],
    example: Callable[[Row], Example],
) -> Iterator[_Source]:
    """Yield each source of a section, which is read with its filter; weights leave out no row here."""
    shared = Shared()
    for one, label in zip(section.each, section.labels, strict=True):
        uses, dropped = ColumnUses(), Counter[str]()
        rows = passing_rows(one, label, dropped, limit)
        parts = source_parts(one, label, rows, dropped, make, tokenizer, size, uses, shared)
        name = f"{kind}, {label}" if label else kind
        yield _Source(name, kind, one, parts, uses, example)


def _end_of_completions(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Facts about the end of completions in the data."""
    eos: Any = tokenizer.eos_token_id
    if eos is None or (config.preferences is None and config.sft is None):
        return []
    said = describe_end(tokenizer, end_tokens(tokenizer, int(eos)))
    return [said] if said is not None else []


def _read(source: _Source, config: Config, findings: Findings, rows: int | None) -> Row | None:
    """Read a source to its end, or to `rows` rows, note counts and reasons; the first table row.

    Raises:
        DataError, ModelError: the source cannot be read, or nothing of it is left.
        QuarantineBudgetError: more rows are refused than the run allows.
    """
    counts: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    first: Row | None = None
    for part in source.parts:
        add_counts(counts, part)
        reasons.update(row["reason"] for row in part.quarantined)
        first = first or next(iter(part.rows), None)
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    findings.facts.append(f"{source.name}: {said or 'no rows'}")
    findings.facts += [f"  refused {count}: {reason}" for reason, count in reasons.most_common()]
    findings.facts += [f"  warning: {line}" for line in cut_warnings(counts)]
    refused, read = counts.get("quarantined", 0), counts.get("input", 0)
    if refused > config.max_quarantined_fraction * read:
        findings.note(
            QuarantineBudgetError(
                f"{source.name}: {refused} of {read} rows are refused ({refused / read:.2%})",
                f"at most {config.max_quarantined_fraction:.2%} may be (max_quarantined_fraction)",
                "fix the input, change the section's limits and policies, or raise the share",
            )
        )
    check_not_empty(source.name, counts)
    if source.kind == "preferences":
        is_whole = rows is None or read < rows
        findings.attempt(check_counts_fit, config, counts, is_whole=is_whole)
    return first


def _unread_files(section: SourceSection) -> list[str]:
    """A line where the source holds files of other splits."""
    path, format, split = location(section)
    try:
        others = files_of_other_splits(path, format, split)
    except DataError:
        return []  # reading the source has said so
    shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return [f"  split {split!r}: not read: {shown}"] if others else []


def _preference_example(row: Row) -> Example:
    """The prompt with the chosen completion of the first pair, or with the judged one."""
    texts = row["completion_texts"]
    if row["desirable"]:
        word = "desirable" if row["desirable"][0] else "undesirable"
        shown, others = 0, ((f"{word} (in the table below)", texts[0]),)
    else:
        shown, rejected = row["pairs"][0]["chosen"], row["pairs"][0]["rejected"]
        others = (("chosen (in the table below)", texts[shown]), ("rejected", texts[rejected]))
    return Example(
        [*row["prompt_ids"], *row["completions"][shown]],
        len(row["prompt_ids"]),
        (("prompt", row["prompt"]), *others),
    )


def _sft_example(tokenizer: PreTrainedTokenizerBase) -> Callable[[Row], Example]:
    def example(row: Row) -> Example:
        ids, start = row["token_ids"], row["prompt_tokens"]
        prompt = tokenizer.decode(ids[:start], skip_special_tokens=False)
        completion = tokenizer.decode(ids[start:], skip_special_tokens=False)
        prompts = (("prompt", str(prompt)),) if start else ()
        return Example(ids, start, (*prompts, ("trained on", str(completion))))

    return example


def _prompt_example(row: Row) -> Example:
    """A prompt; its completion is sampled later, and all of that is trained on."""
    ids = row["prompt_ids"]
    return Example(ids, len(ids), (("prompt (its completion will be sampled)", row["prompt"]),))
