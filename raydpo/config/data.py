"""Prompts and preference data that the job reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from raydpo.config.base import (
    NonNegativeFloat,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceFormat,
    path_shorthand,
)
from raydpo.config.content import Resolved, content_of
from raydpo.config.mixtures import (
    Layout,
    PreferencesSource,
    PromptsSource,
    RowFilter,
    as_sources,
    check_sources,
)

Chat = Literal["auto", "always", "never"]


class _Mixable(Section):
    """A section that reads one source, or several."""

    path: Resolved[PathOrName] = ""
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset; not with `sources`."""
    filter: Resolved[RowFilter | None] = None
    """A condition on columns, such as `score > 0.5`; rows for which it does not hold are dropped and counted."""

    def _own_sources(self) -> tuple[PromptsSource, ...] | tuple[PreferencesSource, ...]:
        return ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all sources."""
        return tuple(source.path for source in self._own_sources()) or (self.path,)

    @property
    def where(self) -> str:
        """The paths, for messages."""
        return ", ".join(self.paths)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the sources of a mixture; without one a single empty name."""
        return tuple(source.label for source in self._own_sources()) or ("",)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the sources; none if all rows are read."""
        given = (source.weight for source in self._own_sources())
        return tuple(weight for weight in given if weight is not None)

    @property
    def later_content(self) -> dict[str, Any]:
        """The settings of later versions that change the rows, for a stage's key."""
        sources = [content_of(source) for source in self._own_sources()]
        filtered = {"filter": self.filter} if self.filter is not None else {}
        return {**filtered, **({"sources": sources} if sources else {})}

    @property
    def each(self) -> tuple[Self, ...]:
        """The section for each of its sources alone."""
        changes = [{"sources": (), **one} for one in self.of_each]
        return tuple(self.model_copy(update=one) for one in changes) or (self,)

    @property
    def of_each(self) -> list[dict[str, Any]]:
        """The settings that each source has in place of the section's."""
        return []

    @model_validator(mode="after")
    def _one_source_or_several(self) -> _Mixable:
        check_sources(self, self._own_sources())
        return self


def _source_shorthand(value: Any) -> Any:
    return [path_shorthand(one) for one in value] if isinstance(value, list | tuple) else value


class PromptsConfig(_Mixable):
    """Where prompts come from and how they become token ids."""

    sources: Resolved[
        Annotated[
            tuple[PromptsSource, ...],
            BeforeValidator(
                _source_shorthand, json_schema_input_type=tuple[str | PromptsSource, ...]
            ),
        ]
    ] = ()
    """Several sources in place of `path`, in this order; a list in place of the section stands for them."""
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

    def _own_sources(self) -> tuple[PromptsSource, ...]:
        return self.sources

    @property
    def of_each(self) -> list[dict[str, Any]]:
        """The settings that each source has in place of the section's."""
        return [{**one.of_its_own, "column": one.column} for one in self.sources]


Prompts = Annotated[
    PromptsConfig,
    BeforeValidator(
        as_sources, json_schema_input_type=str | tuple[str | PromptsSource, ...] | PromptsConfig
    ),
]


class PreferencesConfig(_Mixable):
    """Preference data that already exists and replaces sampling and labelling."""

    sources: Resolved[
        Annotated[
            tuple[PreferencesSource, ...],
            BeforeValidator(
                _source_shorthand, json_schema_input_type=tuple[str | PreferencesSource, ...]
            ),
        ]
    ] = ()
    """Several sources in place of `path`, in this order; a list in place of the section stands for them."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split of a `datasets` dataset, or of files whose names contain it, such as train-* and test-*."""
    layout: Layout = "auto"
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

    def _own_sources(self) -> tuple[PreferencesSource, ...]:
        return self.sources

    @property
    def of_each(self) -> list[dict[str, Any]]:
        """The settings that each source has in place of the section's."""
        return [{**one.of_its_own, "layout": one.layout} for one in self.sources]


Preferences = Annotated[
    PreferencesConfig,
    BeforeValidator(
        as_sources,
        json_schema_input_type=str | tuple[str | PreferencesSource, ...] | PreferencesConfig,
    ),
]
