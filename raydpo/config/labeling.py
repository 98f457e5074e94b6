"""Rewards, people, and the pairs that raydpo builds from their judgements."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    JsonValue,
    WithJsonSchema,
    model_validator,
)

from raydpo.config.base import (
    FunctionLimits,
    GpuShare,
    NonNegativeFloat,
    OneOrMorePaths,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Section,
)
from raydpo.config.content import Placement, Resolved, content_of
from raydpo.config.http import Http
from raydpo.config.judges import JudgeConfig
from raydpo.config.pairs import PairsConfig
from raydpo.core.credentials import credential_in


class ClassifierReading(Section):
    """Which output of a classifier is the reward, and for which text; other rewards ignore these fields."""

    label: str | int | None = None
    """The class whose score counts (name or index); reward models with one output need none."""
    output: Literal["probability", "log_odds", "logit"] = "log_odds"
    """The quantity used as the reward: p, log p/(1-p), or the raw logit."""
    input: Literal["completion", "prompt_and_completion"] = "prompt_and_completion"
    """The text that the classifier reads."""


def _without_credentials(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse secrets in options at any depth, since the configuration is printed and saved."""
    waiting: list[JsonValue] = [options]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and (kind := credential_in(value)):
            raise ValueError(
                f"an option holds {kind}, and the configuration is printed and saved: let the "
                "function read it from the environment"
            )
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return options


#: Arguments of a function by name, as JSON.
Options = Annotated[
    dict[str, JsonValue],
    AfterValidator(_without_credentials),
    WithJsonSchema({"type": "object", "additionalProperties": True}),
]

#: The kinds of rewards.
RewardKind = Literal["function", "classifier", "http", "judge", "implicit"]


class RewardConfig(ClassifierReading, FunctionLimits):
    """One scorer of completions: a function, a sequence classifier, a service, a judge, or the run's own model."""

    function: Resolved[str | None] = None
    """`package.module:name` of a function that raydpo calls by name with lists of `prompts`, `completions` and columns of the data; it returns a list of numbers."""
    depends_on: Resolved[OneOrMorePaths] = ()
    """Files and folders that the function reads; if one changes, raydpo makes its scores again."""
    as_messages: Resolved[bool] = False
    """Pass `prompts` and `completions` to the function as lists of messages, as TRL does for conversations, and not as texts."""
    options: Resolved[Options] = Field(default_factory=dict[str, JsonValue])
    """Arguments of the function by name, the same in each call, such as `{tolerance: 0.01}`."""
    columns: Resolved[dict[str, str]] = Field(default_factory=dict[str, str])
    """Columns of the data under other names: for each parameter of the function, the column that it gets; a parameter that is not named here gets the column of its own name."""
    classifier: Resolved[PathOrName | None] = None
    """A sequence-classification model: folder, URI or hub name."""
    http: Resolved[Http | None] = None
    """A service that scores batches over HTTP, given as its URL or as a section with it."""
    judge: Resolved[JudgeConfig | None] = None
    """A language model that scores completions by a rubric, or compares two of them."""
    implicit: Resolved[bool] = False
    """The run's own model scores: log-prob under `model` minus log-prob under the reference, in nats; `weight` is its beta."""
    weight: Resolved[Annotated[float, Field(allow_inf_nan=False)]] = 1.0
    """Factor of this reward in the weighted sum of several rewards."""
    name: Resolved[str | None] = None
    """Name in the scores table; without it the name of the function, or the last part of the folder or URL."""
    batch_size: Placement[PositiveInt] = 64
    """Number of completions in one forward pass of a classifier, or in one request to a service."""
    workers: Placement[PositiveInt] = 1
    """Number of Ray Data actors that score."""
    answer_within_seconds: Placement[PositiveFloat] = 300.0
    """Seconds without a sign of life after which a worker is ended and its part begins again."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that an actor holds in Ray if a classifier runs on CUDA."""

    @model_validator(mode="after")
    def _one_source(self) -> RewardConfig:
        given = (self.function, self.classifier, self.http, self.judge, self.implicit or None)
        if len(given) - given.count(None) != 1:
            raise ValueError(
                "a reward takes exactly one of `function`, `classifier`, `http`, `judge` and "
                "`implicit`: give one"
            )
        return self

    @model_validator(mode="after")
    def _functions_read_files(self) -> RewardConfig:
        if self.depends_on and self.function is None:
            raise ValueError(
                "`depends_on` is for a `function`: a model's own files are looked at anyway, and "
                "a service has a `version`"
            )
        return self

    @model_validator(mode="after")
    def _functions_read_messages(self) -> RewardConfig:
        if self.as_messages and self.function is None:
            raise ValueError(
                "`as_messages` is for a `function`, which is called with them: take it out"
            )
        return self

    @model_validator(mode="after")
    def _functions_have_arguments(self) -> RewardConfig:
        for name, given in (("options", self.options), ("columns", self.columns)):
            if given and self.function is None:
                inside = "; a service has `http.columns`" if self.http is not None else ""
                raise ValueError(f"`{name}` is for a `function`: take it out{inside}")
        if twice := sorted(self.options.keys() & self.columns.keys()):
            raise ValueError(
                f"`{'`, `'.join(twice)}` is among `options` and `columns`: a parameter gets one "
                "value for all completions, or a column"
            )
        return self

    @model_validator(mode="after")
    def _functions_have_limits(self) -> RewardConfig:
        if self.function is None and (given := self._other_than_default(FunctionLimits)):
            service = self.kind if self.kind in ("http", "judge") else None
            inside = f", or into `{service}`" if service else ""
            raise ValueError(f"`{'`, `'.join(given)}` is for a `function`: take it out{inside}")
        return self

    @model_validator(mode="after")
    def _services_are_read_whole(self) -> RewardConfig:
        if self.kind in ("http", "judge") and (
            given := self._other_than_default(ClassifierReading)
        ):
            raise ValueError(f"`{'`, `'.join(given)}` is for a `classifier`: take it out")
        return self

    def _other_than_default(self, section: type[Section]) -> list[str]:
        given = sorted(section.model_fields.keys() & self.model_fields_set)
        return [name for name in given if getattr(self, name) != section.model_fields[name].default]

    @property
    def kind(self) -> RewardKind:
        """The kind of this reward."""
        if self.function is not None:
            return "function"
        if self.http is not None:
            return "http"
        if self.judge is not None:
            return "judge"
        return "classifier" if self.classifier is not None else "implicit"

    @property
    def is_relative(self) -> bool:
        """Whether its values compare only completions of the same prompt by the same model."""
        judge = self.judge
        return judge is not None and judge.mode == "pairwise" and judge.baseline_column is None

    @property
    def works_elsewhere(self) -> bool:
        """Whether the worker waits for an answer of another process; several such rewards work at once."""
        return self.kind in ("function", "http", "judge")

    @property
    def device(self) -> Literal["auto", "cpu"]:
        """Where the reward is computed: classifiers and judges that raydpo serves use CUDA if it is available; all others take no GPU."""
        serves = self.judge is not None and any(member.served for member in self.judge.members)
        return "auto" if self.kind == "classifier" or serves else "cpu"

    @property
    def source(self) -> str:
        """The function, the classifier's path, the service's URL or the judge's model; for an implicit reward, its kind."""
        if self.http is not None:
            return self.http.url
        return self.function or self.classifier or (self.judge.model if self.judge else "implicit")

    @property
    def scorer(self) -> str:
        """Name of this scorer in the scores table."""
        if self.http is not None:
            url = urlsplit(self.http.url)
            source = url.path.strip("/") or url.netloc
        else:
            source = self.source
        return self.name or source.rstrip("/").rsplit("/", 1)[-1]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, dict | RewardConfig) else value


_OneOrMany: Final = BeforeValidator(
    _one_or_many, json_schema_input_type=RewardConfig | tuple[RewardConfig, ...]
)
Rewards = Annotated[tuple[RewardConfig, ...], Field(min_length=1), _OneOrMany]


class CombineConfig(Section):
    """How the rewards of a list become one. Values are normalized, then clipped, then weighted, then put together."""

    method: Literal["sum", "mean_minus_spread"] = "sum"
    """The sum of the weighted values; or, for an ensemble, their mean minus `spread_coefficient` times their spread (arXiv:2310.02743)."""
    normalize: Literal["none", "z_score"] = "none"
    """Whether each reward's values become z-scores among the candidates of a prompt: minus their mean, divided by their standard deviation."""
    clip: tuple[FiniteFloat, FiniteFloat] | None = None
    """Smallest and largest value that a reward may have, before its weight."""
    spread: Literal["standard_deviation", "variance"] = "standard_deviation"
    """What `mean_minus_spread` takes for the spread of an ensemble; the paper takes the variance."""
    spread_coefficient: NonNegativeFloat = 1.0
    """Weight of the spread in `mean_minus_spread`."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> CombineConfig:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip {list(self.clip)}: the first bound is below the second")
        return self

    @model_validator(mode="after")
    def _spread_is_of_an_ensemble(self) -> CombineConfig:
        given = [
            name
            for name in ("spread", "spread_coefficient")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if given and self.method != "mean_minus_spread":
            raise ValueError(f"`{'`, `'.join(given)}` is for `method: mean_minus_spread`")
        return self

    @property
    def is_plain_sum(self) -> bool:
        """Whether this is the weighted sum of the values as they are."""
        return content_of(self) == content_of(CombineConfig())

    @property
    def across_models(self) -> CombineConfig:
        """The combination for completions of several models or prompts: without z-scores and their bounds.

        A z-score compares the candidates of one prompt that one model sampled, so that the means of
        any two models would be equal.
        """
        if self.normalize == "none":
            return self
        return self.model_copy(update={"normalize": "none", "clip": None})

    @property
    def unit(self) -> str:
        """What the combined reward is, in words for a table or an axis."""
        kind = "z-scores" if self.normalize == "z_score" else "rewards"
        kind = f"clipped {kind}" if self.clip is not None else kind
        return f"weighted sum of {kind}" if self.method == "sum" else f"mean minus spread of {kind}"


class PeopleConfig(Section):
    """People choose between two completions; `raydpo annotate` takes pairs out and votes in."""

    min_votes: PositiveInt = 1
    """Number of people whose votes a pair needs; a pair with fewer is left out and counted."""


class LabelingConfig(Section):
    """Rewards and the pairs built from them, or people's votes."""

    reward: Resolved[Annotated[tuple[RewardConfig, ...], _OneOrMany]] = ()
    """One scorer, or a list of scorers; `combine` says how their rewards become one."""
    combine: Resolved[CombineConfig] = CombineConfig()
    """How the rewards of a list become one: by default the weighted sum."""
    people: Resolved[PeopleConfig | None] = None
    """Labelling by people: `people: {}`. The run stops after sampling until votes are imported."""
    pairs: Resolved[PairsConfig] = PairsConfig()
    """How the scores of a prompt's candidates become pairs."""

    @property
    def is_implicit(self) -> bool:
        """Whether the run's own model labels."""
        return any(reward.implicit for reward in self.reward)

    @model_validator(mode="after")
    def _by_rewards_or_by_people(self) -> LabelingConfig:
        if bool(self.reward) == (self.people is not None):
            raise ValueError(
                "either rewards label or people do: give `reward`, or `people: {}`, and not both"
            )
        if self.people is not None and self.pairs != PairsConfig():
            raise ValueError("`pairs` are built from rewards, and people label: leave it out")
        return self

    @model_validator(mode="after")
    def _several_rewards_are_combined(self) -> LabelingConfig:
        if self.people is not None and not self.combine.is_plain_sum:
            raise ValueError("`combine` is for rewards, and people label: leave it out")
        if self.combine.method == "mean_minus_spread" and len(self.reward) < 2:
            raise ValueError("`mean_minus_spread` is for an ensemble: give `reward` a list")
        return self

    @property
    def combine_content(self) -> dict[str, Any]:
        """What keys of stages contain of `combine`; nothing for the sum, so that older tables stay."""
        return {} if self.combine.is_plain_sum else {"combine": content_of(self.combine)}

    @model_validator(mode="after")
    def _implicit_stands_alone(self) -> LabelingConfig:
        if len(self.reward) > 1 and any(reward.implicit for reward in self.reward):
            raise ValueError("an `implicit` reward stands alone: take out the others")
        return self

    @model_validator(mode="after")
    def _one_scorer_agrees_with_itself(self) -> LabelingConfig:
        if self.pairs.weight_by == "agreement" and len(self.reward) < 2:
            raise ValueError(
                "pairs.weight_by `agreement` is the share of several scorers that agree: give "
                "`reward` a list of them, or weigh by `margin` or `confidence`"
            )
        return self
