"""Existing preference data: turn rows of a source into preference groups.

The `preferences` section names the source. A group has the token ids of its prompt and
completions, and its pairs and ranking, or in unpaired data its judgement. A group is counted as
`without_pairs` if its ratings make no difference between two completions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from raydpo.config.content import content_of
from raydpo.config.job import Config, PreferencesConfig
from raydpo.core.errors import DataError
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.rankings import pair_weight, preference_probability, ranking_of
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.models.context import check_context
from raydpo.models.loading import model_config_values
from raydpo.prompts import layouts
from raydpo.prompts.beside import context_in, with_context
from raydpo.prompts.columns import Columns, ColumnUses
from raydpo.prompts.cuts import cut_counts, fit_completion, fit_prompt, later_cuts
from raydpo.prompts.dialogue import Dialogue, Rendered, render
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.layouts import Judged
from raydpo.prompts.mixing import Shared, mixed_parts
from raydpo.prompts.reading import (
    Reading,
    columns_of,
    later_readings,
    most_frequent_layout,
    plain_because,
    repeats_prompt,
    with_head,
    without_repeated_prompt,
)
from raydpo.prompts.rows import (
    Ids,
    RefusedRow,
    chunks,
    content_hash,
    quarantine_row,
    row_name,
    run_source_stage,
    source_stage,
    usable_row,
)
from raydpo.prompts.sources import SourceRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.core.parts import Table


T = TypeVar("T")

NO_OTHER_PROMPT: Final = "no completion of another prompt is near, for KTO's reference point"


@dataclass
class Mismatches:
    """Pairs each row with the completion of the next row that has another prompt.

    The last row of a part takes the first row's completion. `spare` is a row of an earlier part,
    for a part that has only one prompt.
    """

    spare: Row | None = None

    def added(self, rows: list[tuple[T, Row]]) -> tuple[list[tuple[T, Row]], list[T]]:
        """Return the rows with their mismatched completions, and whose rows found none."""
        near = [row for _, row in rows]
        near += [self.spare] if self.spare is not None else []
        found: list[tuple[T, Row]] = []
        without: list[T] = []
        for index, (owner, row) in enumerate(rows):
            around = near[index + 1 :] + near[:index]
            other = next((r for r in around if r["prompt_id"] != row["prompt_id"]), None)
            if other is None:
                without.append(owner)
            else:
                found.append((owner, _with_completion_of(row, other)))
        self.spare = rows[-1][1] if rows else self.spare
        return found, without


def _with_completion_of(row: Row, other: Row) -> Row:
    return {
        **row,
        "completions": [*row["completions"], other["completions"][0]],
        "completion_texts": [*row["completion_texts"], other["completion_texts"][0]],
        "desirable": [*row["desirable"], None],
    }


_STAGE: Final = "preferences"


@dataclass(frozen=True)
class _Draft:
    """A row being processed: its id, and its group and texts or the reason to refuse it."""

    source: SourceRow
    name: str
    group: Judged | None = None
    rendered: Rendered | None = None
    refused: str | None = None


@dataclass
class _State:
    """State between parts: how rows are read, hashes of ids, and a spare completion."""

    reading: Reading
    uses: ColumnUses
    ids: Ids
    mismatches: Mismatches = field(default_factory=Mismatches)


def run_preferences_stage(config: Config, place: Place) -> Table:
    """Read and tokenize preference data into a table, in parts of `rows_per_part` source rows.

    Raises:
        ConfigError: the longest prompt and completion together do not fit the model.
        DataError: the source cannot be read, has no known layout, or leaves no group.
        ModelError: a row is a conversation, and the chat template is missing or not prefix-stable.
        QuarantineBudgetError: too many rows were refused.
    """
    assert config.preferences is not None
    preferences = config.preferences
    check_context(
        "preferences.max_prompt_tokens + max_completion_tokens",
        preferences.max_prompt_tokens + preferences.max_completion_tokens,
        model_config_values(config.model),
    )
    parts = partial(mixed_parts, preferences, config.seed, preference_parts)
    stage = existing_preferences_stage(config, preferences, place)
    return run_source_stage(stage, config, preferences, parts)


def existing_preferences_stage(
    config: Config, preferences: PreferencesConfig, place: Place
) -> Stage:
    """Describe what the table of this preference data is made from."""
    readings = later_readings(preferences, preferences.system_prompt)
    cuts = later_cuts(preferences.too_long_prompt)
    content = {**content_of(preferences), **readings, **cuts}
    return source_stage(config, preferences, place, _STAGE, content, config.rows_per_part)


def preference_parts(
    preferences: PreferencesConfig,
    rows: Iterable[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    rows_per_part: int,
    uses: ColumnUses | None = None,
    shared: Shared | None = None,
) -> Iterator[PartResult]:
    """Yield the table of preferences and its quarantine, part by part.

    Args:
        preferences: how rows become groups.
        rows: the source.
        tokenizer: the model's tokenizer.
        rows_per_part: number of source rows in one part.
        uses: records what becomes of each column.
        shared: what the other sources of a mixture have; its own without one.

    Raises:
        DataError: none of the first rows has a known layout.
        ModelError: a row is a conversation, and the chat template is missing or not prefix-stable.
    """
    head, rows = with_head(rows)
    reading = reading_of(preferences, head, bool(tokenizer.chat_template))
    shared = shared or Shared()
    encoder, state = make_encoder(tokenizer), _State(reading, uses or ColumnUses(), shared.ids)
    for chunk in chunks(rows, rows_per_part):
        drafts = [_draft(preferences, source, tokenizer, state) for source in chunk]
        yield _encode_part(preferences, drafts, encoder, state)


def reading_of(preferences: PreferencesConfig, head: list[Row], has_template: bool) -> Reading:
    """Decide the layout (configured, or that of most first rows) and how else to read the rows."""
    if not head:
        return Reading(None)
    found = columns_of(head)
    if preferences.id_column is not None and preferences.id_column not in found:
        raise DataError(
            f"{preferences.path} has the columns {', '.join(found)}",
            f"ids stand in column {preferences.id_column!r} (preferences.id_column)",
            "set it to the column that holds them, or remove it: ids are hashes then",
        )
    layout = _layout(preferences, head)
    plain = plain_because(head, "auto", has_template, preferences.system_prompt)
    if layout in ("transcript", "implicit"):
        plain = "the prompt is a part of the texts of chosen and rejected"
    strips = layout != "transcript" and repeats_prompt(_dialogues(head, layout))
    if strips:
        logger.info("[preferences] completions begin with their prompts: raydpo removes these")
    return Reading(layout, plain, strips)


def _layout(preferences: PreferencesConfig, head: list[Row]) -> str:
    if preferences.layout != "auto":
        return preferences.layout
    found = most_frequent_layout(_STAGE, head, layouts.detect)
    if found is None:
        raise DataError(
            f"{preferences.path} has the columns {', '.join(columns_of(head))}",
            "preference data has `chosen` and `rejected` (with a prompt, or with the prompt "
            "inside them), a prompt, `completions` and `ratings`, or a prompt, `completion` and "
            "`label`; docs/data.md lists the names",
            "rename the columns, or set preferences.layout",
        )
    logger.info("[preferences] layout: %s (found by columns and values)", found)
    return found


def _dialogues(head: list[Row], layout: str) -> Iterator[Dialogue]:
    """Yield the dialogues of those first rows that can be read."""
    for row in head:
        try:
            yield layouts.judged(Columns(row), layout).dialogue
        except RefusedRow:
            continue


def _draft(
    preferences: PreferencesConfig,
    source: SourceRow,
    tokenizer: PreTrainedTokenizerBase,
    state: _State,
) -> _Draft:
    name = row_name(source)
    try:
        columns = Columns(usable_row(source))
    except RefusedRow as error:
        return _Draft(source, name, refused=str(error))
    try:
        if preferences.id_column is not None:
            columns.get("the id", preferences.id_column)
            name = state.ids.given(columns.row, preferences.id_column)
        group = judged_in(columns, state.reading, bool(tokenizer.chat_template))
        if preferences.id_column is None:
            name = state.ids.hashed([group.dialogue.asked, group.dialogue.completions])
        rendered = render(group.dialogue, tokenizer, preferences.system_prompt)
        return _Draft(source, name, group, rendered)
    except RefusedRow as error:
        return _Draft(source, name, refused=str(error))
    finally:
        state.uses.add(columns)


def judged_in(columns: Columns, reading: Reading, has_template: bool) -> Judged:
    """Return the row as a group, with the context of its prompt."""
    if reading.layout is None:
        raise RefusedRow("none of the layouts' columns")
    group = layouts.judged(columns, reading.layout, has_template)
    dialogue = group.dialogue
    if reading.strips_prompt:
        dialogue = without_repeated_prompt(dialogue)
    return replace(
        group, dialogue=with_context(dialogue, context_in(columns), reading.plain_because)
    )


def _encode_part(
    preferences: PreferencesConfig, drafts: list[_Draft], encoder: Encoder, state: _State
) -> PartResult:
    texts = [draft.rendered for draft in drafts if draft.rendered is not None]
    prompts = iter(encoder.prompts([text.prompt for text in texts]))
    completions = iter(encoder.continuations([c for text in texts for c in text.completions]))
    good: list[tuple[_Draft, Row]] = []
    refused: list[Row] = []
    cut_prompts = 0
    for draft in drafts:
        try:
            if draft.group is None or draft.rendered is None:
                raise RefusedRow(draft.refused or "not readable")
            count = len(draft.rendered.completions)
            ids = next(prompts), list(itertools.islice(completions, count))
            row = _row(preferences, draft.name, draft.group, draft.rendered, ids, encoder)
            good.append((draft, row))
            cut_prompts += row["prompt_ids"] != ids[0]
        except RefusedRow as error:
            refused.append(quarantine_row(_STAGE, draft.name, str(error), draft.source))
    policies = preferences.too_long_prompt, preferences.too_long_completion
    given = [completion for _, row in good for completion in row["completions"]]
    cuts = cut_counts(
        policies,
        cut_prompts=cut_prompts,
        completions=len(given),
        cut_completions=sum(not encoder.is_finished(completion) for completion in given),
    )
    if state.reading.layout == "unpaired":
        good, without = state.mismatches.added(good)
        refused += [quarantine_row(_STAGE, d.name, NO_OTHER_PROMPT, d.source) for d in without]
    rows = [row for _, row in good]
    kept = [row for row in rows if row["pairs"] or row["desirable"]]
    return PartResult(kept, refused, {**_counts(len(drafts), rows), **cuts})


def _counts(read: int, rows: list[Row]) -> dict[str, int]:
    """Count what can be learned from; `check_fit` compares the counts with the objective."""
    judged = [judgement for row in rows for judgement in row["desirable"] or ()]
    if judged:
        return {
            "input": read,
            "desirable": judged.count(True),
            "undesirable": judged.count(False),
        }
    pairs = [pair for row in rows for pair in row["pairs"]]
    rated = [(row["rewards"], row["completions"]) for row in rows if row["rewards"]]
    return {
        "input": read,
        "without_pairs": sum(not row["pairs"] for row in rows),
        "pairs": len(pairs),
        "soft_labels": sum(pair["probability"] is not None for pair in pairs),
        "rankings": sum(row["ranking"] is not None for row in rows if row["pairs"]),
        "rankings_with_ties": sum(ranking_of(*values, "drop")[1] for values in rated),
    }


def _row(
    preferences: PreferencesConfig,
    name: str,
    group: Judged,
    rendered: Rendered,
    ids: tuple[list[int], list[list[int]]],
    encoder: Encoder,
) -> Row:
    limit, policy = preferences.max_prompt_tokens, preferences.too_long_prompt
    prompt = fit_prompt(rendered.prompt, ids[0], encoder, limit, policy)
    whole = [encoder.finished(completion) for completion in ids[1]]
    limit, policy = preferences.max_completion_tokens, preferences.too_long_completion
    completions = [fit_completion(completion, limit, policy) for completion in whole]
    is_pair = group.ratings is None and group.desirable is None
    if is_pair and completions[0] == completions[1]:
        raise RefusedRow("chosen equals rejected, as tokens")
    words = zip(group.dialogue.completions, whole, completions, strict=True)
    return {
        "group_id": name,
        "prompt_id": content_hash(group.dialogue.asked),
        "prompt": prompt.text,
        "prompt_ids": prompt.ids,
        "completion_texts": [
            w if isinstance(w, str) and a == b else encoder.decode(b) for w, a, b in words
        ],
        "completions": completions,
        "rewards": None if group.ratings is None else list(group.ratings),
        **_judgement(preferences, group, completions),
    }


def _judgement(
    preferences: PreferencesConfig, group: Judged, completions: list[list[int]]
) -> dict[str, Any]:
    """Return the columns that rank the completions, or judge a single one as good or bad."""
    if group.desirable is not None:
        return {"pairs": [], "ranking": None, "desirable": [group.desirable]}
    if group.ratings is None:
        return {"pairs": [_pair(0, 1, None)], "ranking": [0, 1], "desirable": None}
    ratings, temperature = group.ratings, preferences.rating_temperature
    order = sorted(range(len(ratings)), key=lambda index: -ratings[index])
    pairs = [
        _pair(i, j, preference_probability(ratings[i], ratings[j], temperature))
        for i, j in itertools.combinations(order, 2)
        if ratings[i] - ratings[j] > preferences.min_margin and completions[i] != completions[j]
    ]
    for pair in pairs:
        pair["weight"] = pair_weight(len(pairs), preferences.weighting)
    ranking, _ = ranking_of(ratings, completions, preferences.ranking_ties)
    return {"pairs": pairs, "ranking": ranking, "desirable": None}


def _pair(chosen: int, rejected: int, probability: float | None) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, "weight": 1.0, "probability": probability}
