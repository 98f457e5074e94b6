"""What all sections of the configuration share: their base, number types, the model.

What comes in: values of one section. What goes out: frozen pydantic models.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raydpo.config_paths import LocalPath, PathOrName

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
#: Of a GPU.
GpuShare = Annotated[float, Field(gt=0, le=1)]


def _not_almost_greedy(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError("must be 0 (greedy) or at least 0.01: vLLM samples no colder than that")
    return value


Temperature = Annotated[NonNegativeFloat, AfterValidator(_not_almost_greedy)]


#: Nats that a token's log-prob may differ by from one way to compute it to another. In half
#: precision both round, differently: products of other shapes are computed otherwise.
ROUNDING_NATS: Final = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.25}
#: Attention over the shared layout, by name.
SHARED_ATTENTIONS = ("segments", "varlen", "flex", "mask")


class Section(BaseModel):
    """Base of all sections: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def path_shorthand(value: Any) -> Any:
    """A plain string stands for `{path: ...}`."""
    return {"path": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """A causal language model with its tokenizer. A plain string stands for `path`."""

    path: PathOrName
    """A local folder, a URI (`s3://...`) or a hub name such as `org/name`."""
    revision: str | None = None
    """The hub revision (branch, tag or commit)."""
    pad_token: str | None = None
    """The padding token, where the tokenizer has none of its own."""
    chat_template: LocalPath | None = None
    """A file with a Jinja chat template, used instead of the tokenizer's own."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of training and of the reference; parameters stay float32 in training."""
    layout: Literal["auto", "shared", "padded"] = "auto"
    """Whether training and reference compute a prompt once for all its completions: `auto` does where the model is seen to allow it, `shared` stops where not."""
    attention: str = "auto"
    """`segments` (CPU), `varlen`, `flex` (CUDA), `mask` for shared prompts; any other name is an `attn_implementation` of transformers, padded."""

    @model_validator(mode="after")
    def _attention_fits_layout(self) -> ModelConfig:
        shares = self.attention in ("auto", *SHARED_ATTENTIONS)
        if self.layout == "shared" and not shares:
            raise ValueError(
                f"layout `shared` needs attention `auto` or one of {SHARED_ATTENTIONS}, "
                f"not {self.attention!r}"
            )
        if self.layout == "padded" and self.attention in SHARED_ATTENTIONS:
            raise ValueError(
                f"layout `padded` takes attention `auto` or a name of transformers, "
                f"not {self.attention!r}"
            )
        return self

    @property
    def attn_implementation(self) -> str | None:
        """What transformers is asked for when it loads the model; None for its default."""
        return None if self.attention in ("auto", *SHARED_ATTENTIONS) else self.attention


Model = Annotated[ModelConfig, BeforeValidator(path_shorthand)]

SourceFormat = Literal["auto", "jsonl", "json", "parquet", "csv", "text", "dataset"]
