"""The configuration of judges: language models that score completions or compare two of them.

A judge is a service with OpenAI's chat completions. The section takes the mapping `judge` of a
reward. Like the section of a reward service, it contains no secrets.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator

from raydpo.config.base import (
    LocalPath,
    NonNegativeFloat,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Section,
    path_shorthand,
)
from raydpo.config.content import Placement, Resolved
from raydpo.config.http import ServiceConfig, ServiceUrl

#: The rubrics that raydpo ships.
SHIPPED_RUBRICS: Final = ("summary", "dialogue")
#: The schema lists all scores, so their number is bounded.
_MOST_SCORES: Final = 101
#: Fields that only one of the two modes reads.
_OF_PAIRS: Final = ("schedule", "baseline_column", "ties", "prior_strength")
_OF_POINTS: Final = ("lowest_score", "highest_score")


def _chat_url(url: str) -> str:
    if not url.split("?")[0].endswith("/chat/completions"):
        raise ValueError(
            "a judge's address ends with /chat/completions, such as "
            "https://host/v1/chat/completions"
        )
    return url


class ServedJudgeConfig(Section):
    """A model that each scoring worker serves by vLLM, for itself. A plain string stands for `path`."""

    path: Resolved[PathOrName]
    """A causal language model with a chat template: folder, URI or hub name."""
    chat_template: Resolved[LocalPath | None] = None
    """A file with a Jinja chat template, used instead of the tokenizer's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of weights and activations; `auto` takes that of the model's files."""
    max_sequence_tokens: PositiveInt | None = None
    """Maximum length of a question with its answer; without it the model's own."""
    gpu_memory_fraction: Placement[Annotated[float, Field(gt=0, le=1)]] = 0.85
    """Share of the GPU's memory that vLLM takes."""
    cpu_kv_cache_gib: Placement[PositiveFloat] = 1.0
    """Memory for keys and values on CPU, in GiB."""
    start_seconds: Placement[PositiveFloat] = 600.0
    """Maximum time for the model to load."""


#: Where a served judge seems to be in the configuration; its worker knows the port.
_OWN_URL: Final = "http://127.0.0.1/v1/chat/completions"


class JudgeMember(ServiceConfig):
    """A language model behind OpenAI's chat completions: at an address, or served by raydpo."""

    url: Annotated[ServiceUrl, AfterValidator(_chat_url)]
    """Address of the chat completions, such as `https://host/v1/chat/completions`; it is saved and printed, so it must contain no secret."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the model, as the service calls it."""
    served: Resolved[
        Annotated[
            ServedJudgeConfig,
            BeforeValidator(path_shorthand, json_schema_input_type=str | ServedJudgeConfig),
        ]
        | None
    ] = None
    """A model that raydpo serves by vLLM in the cluster, in place of `url` and `model`."""
    temperature: NonNegativeFloat | None = 0.0
    """Softmax temperature of the judge's answers; `null` leaves it out of the request, for models that refuse it."""
    max_completion_tokens: PositiveInt = 1024
    """Maximum length of an answer with its rationale; an answer that is cut is refused."""
    price_per_million_prompt_tokens: Placement[NonNegativeFloat | None] = None
    """Price of 1,000,000 tokens of the questions, in any currency; with both prices, the costs are counted."""
    price_per_million_completion_tokens: Placement[NonNegativeFloat | None] = None
    """Price of 1,000,000 tokens of the answers, in the same currency."""

    @model_validator(mode="before")
    @classmethod
    def _is_at_an_address_or_served(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("served") is None:
            return cast("Any", values)
        given = cast("dict[str, Any]", values)
        section = given["served"]
        path = section.get("path") if isinstance(section, dict) else section
        if isinstance(section, ServedJudgeConfig):
            path = section.path
        own = {"url": _OWN_URL, "model": str(path).rstrip("/").rsplit("/", 1)[-1][:200] or "judge"}
        for name in ("url", "model", "headers_from_environment"):
            if given.get(name) and given[name] != own.get(name):
                raise ValueError(
                    f"`{name}` is for a judge at an address, not for `served`: give one"
                )
        return {**given, **own}

    @property
    def is_priced(self) -> bool:
        """Whether both prices are known."""
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens)
        return None not in prices

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost; 0 without prices."""
        asked = self.price_per_million_prompt_tokens or 0.0
        answered = self.price_per_million_completion_tokens or 0.0
        return (asked * prompt_tokens + answered * completion_tokens) / 1e6


class BudgetConfig(Section):
    """What a judge may spend in this run, all processes and repeated commands together."""

    max_requests: PositiveInt | None = None
    """Maximum number of requests, failed ones included."""
    max_tokens: PositiveInt | None = None
    """Maximum number of tokens, those of questions and answers together, as the service counts them."""
    max_cost: PositiveFloat | None = None
    """Maximum cost by the judges' prices, in their currency."""

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if self.max_requests is self.max_tokens is self.max_cost is None:
            raise ValueError("a budget has a limit: give max_requests, max_tokens or max_cost")
        return self


_PATH: Final[TypeAdapter[str]] = TypeAdapter(LocalPath)


def _rubric(value: str) -> str:
    """Keep the names of shipped rubrics, and let everything else be a path."""
    return value if value in SHIPPED_RUBRICS else _PATH.validate_python(value)


class JudgeConfig(JudgeMember):
    """A language model that scores completions by a rubric, or compares two of them."""

    rubric: Resolved[Annotated[str, AfterValidator(_rubric)]]
    """`summary`, `dialogue`, or a file with a Jinja template of the question."""
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    """Whether the judge scores each completion alone, or compares two completions of a prompt, in both orders."""
    lowest_score: int = 1
    """The lowest score that a pointwise judge can give; scores are whole numbers."""
    highest_score: int = 10
    """The highest score that a pointwise judge can give."""
    max_rationale_characters: PositiveInt | None = None
    """Maximum length of a rationale, as the schema's `maxLength`, which some services refuse; without it there is no limit of its own."""
    schedule: Literal["round_robin", "knockout", "against_baseline"] = "round_robin"
    """Which completions of a prompt a pairwise judge compares: all with all, winners with winners, or each with the baseline."""
    baseline_column: Resolved[str | None] = None
    """Column of the prompts with the completion that `against_baseline` compares with; without it, candidate 0 is the baseline."""
    ties: bool = True
    """Whether a pairwise judge can call two completions equally good."""
    prior_strength: PositiveFloat = 1.0
    """Strength of the logistic prior on the scores of pairwise judges: so many wins and as many losses against a completion of score 0."""
    panel: tuple[JudgeMember, ...] = ()
    """Further judges; pointwise scores are averaged, and in comparisons each judge has a vote."""
    budget: Placement[BudgetConfig | None] = None
    """What the judge may spend; the run stops when it is spent, and the same command with a larger one resumes."""
    self_test: Placement[bool | LocalPath] = True
    """Whether the judge has to prefer planted better completions before the run asks it anything else; a JSONL file with `prompt`, `better` and `worse` replaces raydpo's own."""

    @property
    def members(self) -> tuple[JudgeMember, ...]:
        """All judges of the panel, this one first."""
        return (self, *self.panel)

    @model_validator(mode="after")
    def _scores_are_a_range(self) -> JudgeConfig:
        count = self.highest_score - self.lowest_score + 1
        if not 2 <= count <= _MOST_SCORES:
            raise ValueError(
                f"scores from {self.lowest_score} to {self.highest_score}: the lowest is below the "
                f"highest, and there are at most {_MOST_SCORES} of them"
            )
        return self

    @model_validator(mode="after")
    def _fields_are_of_the_mode(self) -> JudgeConfig:
        others = _OF_PAIRS if self.mode == "pointwise" else _OF_POINTS
        fields = type(self).model_fields
        given = [name for name in others if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(
                f"a {self.mode} judge does not read `{'`, `'.join(given)}`: take it out"
            )
        if self.baseline_column is not None and self.schedule != "against_baseline":
            raise ValueError("`baseline_column` is for `schedule: against_baseline`: take it out")
        return self

    @model_validator(mode="after")
    def _votes_are_of_different_judges(self) -> JudgeConfig:
        known = [(member.url, member.model, member.version) for member in self.members]
        for url, model, _ in {one for one in known if known.count(one) > 1}:
            raise ValueError(f"{model} at {url} is in the panel twice: one model has one vote")
        return self

    @model_validator(mode="after")
    def _costs_have_prices(self) -> JudgeConfig:
        if self.budget is not None and self.budget.max_cost is not None:
            unpriced = [member.model for member in self.members if not member.is_priced]
            if unpriced:
                raise ValueError(
                    f"budget.max_cost needs both prices of {', '.join(unpriced)}: give "
                    "price_per_million_prompt_tokens and price_per_million_completion_tokens"
                )
        return self
