"""Prompts and preference data that the job reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from raydpo.config.base import (
    NonNegativeFloat,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceFormat,
    path_shorthand,
)
from raydpo.config.content import Resolved

Chat = Literal["auto", "always", "never"]


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    path: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split of a `datasets` dataset, or of files whose names contain it, such as train-* and test-*."""
    column: str | None = None
    """The column with text or messages; without it the first of `prompt`, `messages` and `text` that exists."""
    id_column: str | None = None
    """The column with unique ids; without it raydpo makes ids as hashes of the content."""
    system_prompt: str | None = None
    """A system message that raydpo puts before conversations that have none."""
    chat: Chat = "auto"
    """Whether plain text becomes a user message of the chat template; `auto` leaves plain text as it is."""
    max_prompt_tokens: PositiveInt = 512
    """Maximum prompt length in tokens, including BOS and template."""
    too_long: Literal["quarantine", "keep_start", "keep_end", "error"] = "quarantine"
    """What happens to a longer prompt; cutting a conversation shortens words and turns, and leaves it asking for an answer."""
    deduplicate: bool = False
    """Drop and count prompts whose token ids occurred before; if false, duplicates stay as separate rows."""
    metadata: Resolved[Literal["all", "none"] | tuple[str, ...]] = "all"
    """Columns that travel with each prompt for rewards and judges to read: `all` that raydpo itself does not use, `none`, or a list of names."""
    limit: PositiveInt | None = None
    """Maximum number of rows that raydpo reads from the source."""


Prompts = Annotated[
    PromptsConfig, BeforeValidator(path_shorthand, json_schema_input_type=str | PromptsConfig)
]


class PreferencesConfig(Section):
    """Preference data that already exists and replaces sampling and labelling."""

    path: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split of a `datasets` dataset, or of files whose names contain it, such as train-* and test-*."""
    layout: Literal[
        "auto", "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired"
    ] = "auto"
    """How the rows are laid out: explicit prompt; prompt inside chosen and rejected; `Human:/Assistant:` transcripts; ShareGPT turns; rated K-wise lists; single completions with a `label`."""
    id_column: str | None = None
    """The column with unique ids; without it raydpo makes ids as hashes of the content."""
    system_prompt: str | None = None
    """A system message that raydpo puts before conversations that have none."""
    max_prompt_tokens: PositiveInt = 512
    """Maximum prompt length in tokens, including BOS and template."""
    max_completion_tokens: PositiveInt = 512
    """Maximum completion length in tokens, including EOS."""
    too_long_prompt: Literal["quarantine", "keep_start", "keep_end", "error"] = "quarantine"
    """What happens to a longer prompt; cutting a conversation shortens words and turns, and leaves it asking for an answer."""
    too_long_completion: Literal["quarantine", "keep_start", "error"] = "quarantine"
    """What happens to a longer completion; `keep_start` cuts off its end and adds no end token."""
    min_margin: NonNegativeFloat = 0.0
    """For ranked lists: raydpo builds a pair if the ratings differ by more than this."""
    weighting: Literal["pair", "group"] = "pair"
    """For ranked lists: either each pair has weight 1, or the pairs of a list have weight 1 together."""
    ranking_ties: Literal["drop", "by_candidate"] = "drop"
    """For ranked lists: either equal ratings leave a list without a ranking, or the completion listed first ranks higher; both are counted."""
    rating_temperature: PositiveFloat = 1.0
    """For ranked lists: the soft label of a pair is sigmoid(difference of ratings / temperature)."""
    limit: PositiveInt | None = None
    """Maximum number of rows that raydpo reads from the source."""


Preferences = Annotated[
    PreferencesConfig,
    BeforeValidator(path_shorthand, json_schema_input_type=str | PreferencesConfig),
]
