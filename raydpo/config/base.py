"""What all sections of the configuration share: base class, numbers, paths, functions, the model.

A person writes a path relative to the folder where the command runs. Ray's workers run in other
folders, so raydpo makes each path absolute. URIs and hub names stay unchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raydpo.config.content import Placement, Resolved
from raydpo.core.credentials import credential_in

#: `org/name`, or a name alone.
_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Bytes that Linux allows for a path, and for each name in it.
_LONGEST_PATH: Final = 4095
_LONGEST_NAME: Final = 255


def _absolute(path: str) -> str:
    if not path:
        raise ValueError("a path has at least one character")
    if "://" in path:
        return path
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(
            f"a path has at most {_LONGEST_PATH} bytes, and each name in it at most "
            f"{_LONGEST_NAME}: this one has {len(os.fsencode(path))}, with a name of {longest}"
        )
    # Unlike pathlib's function, this one leaves `~nobody` unchanged if there is no such user.
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111


def _absolute_or_name(path: str) -> str:
    """Treat a possible hub name as a path if a file or folder of that name exists here."""
    here = _absolute(path)
    return path if _HUB_NAME.fullmatch(path) and not os.path.lexists(here) else here


#: A file or folder on this machine, or a URI.
LocalPath = Annotated[str, AfterValidator(_absolute)]
#: A file, folder, glob or URI, or the name of a model or dataset on a hub.
PathOrName = Annotated[str, AfterValidator(_absolute_or_name)]

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
#: Share of a GPU.
GpuShare = Annotated[float, Field(gt=0, le=1)]


def _not_almost_greedy(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError("must be 0 (greedy) or at least 0.01: vLLM samples no colder than that")
    return value


Temperature = Annotated[NonNegativeFloat, AfterValidator(_not_almost_greedy)]


#: Nats by which a token's log-prob may differ between two ways to compute it. In half precision,
#: results round differently if the shapes of the products differ.
ROUNDING_NATS: Final = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.25}
#: Attention over the shared layout, by name.
SHARED_ATTENTIONS = ("segments", "varlen", "flex", "mask")


def _misread(value: Any, annotation: Any) -> str | None:
    """Return why a field's value cannot be what its author meant, or None."""
    scalars = list(_scalars(value))
    if any(isinstance(scalar, bool) for scalar in scalars) and not _takes_booleans(annotation):
        return (
            "a boolean means nothing here. YAML reads yes, no, on, off, true and false as "
            'booleans: put a word in quotes, as in "no"'
        )
    if any(isinstance(scalar, str) and not _is_text(scalar) for scalar in scalars):
        return "a text holds no NUL and no lone surrogate"
    for scalar in scalars:
        if isinstance(scalar, str) and (kind := credential_in(scalar)):
            return (
                f"a text here holds {kind}, and the configuration is printed and saved: give it "
                "in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...)"
            )
    if any(isinstance(scalar, int) and scalar.bit_length() > 63 for scalar in scalars):
        return "an integer has at most 63 bits"
    return None


def _scalars(value: Any) -> Iterator[Any]:
    """Yield a value, or the values in a list of them; nested sections check their own."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _scalars(inner)
    elif not isinstance(value, dict | BaseModel):
        yield value


def _takes_booleans(annotation: Any) -> bool:
    """Return whether a field takes booleans directly; booleans inside a mapping do not count."""
    if get_origin(annotation) is dict:
        return False
    return annotation is bool or any(_takes_booleans(inner) for inner in get_args(annotation))


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


class Section(BaseModel):
    """Base of all sections: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _values_are_what_was_written(cls, values: Any) -> Any:
        """Refuse values that pydantic, or a library later on, would misread."""
        if not isinstance(values, dict):
            return values
        problems: list[InitErrorDetails] = []
        for name, value in values.items():
            field = cls.model_fields.get(name) if isinstance(name, str) else None
            problem = _misread(value, field.annotation) if field is not None else None
            if problem is not None:
                kind = PydanticCustomError("misread", "{problem}", {"problem": problem})
                problems.append({"type": kind, "loc": (name,), "input": value})
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values


#: `package.module:name` of a function of the user's own.
OwnFunction = Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+(\.\w+)*$")]


def path_shorthand(value: Any) -> Any:
    """Turn a plain string into `{path: ...}`."""
    return {"path": value} if isinstance(value, str) else value


class ForwardConfig(Section):
    """How training and the reference compute a model; sampling and text reading ignore these fields."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of training and of the reference; parameters stay float32 in training."""
    attention: str = "auto"
    """`segments` (CPU), `varlen`, `flex` (CUDA) or `mask` attend over shared prompts; any other name is an `attn_implementation` of transformers and uses the padded layout."""
    layout: Literal["auto", "shared", "padded"] = "auto"
    """Whether training and reference compute a prompt once for all its completions: `auto` does so if a check shows that the model allows it; `shared` stops the run if not."""

    @model_validator(mode="after")
    def _attention_fits_layout(self) -> Self:
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
        """The `attn_implementation` that transformers is asked for when it loads the model; None for its default."""
        return None if self.attention in ("auto", *SHARED_ATTENTIONS) else self.attention


class ModelConfig(ForwardConfig):
    """A causal language model with its tokenizer. A plain string stands for `path`."""

    path: Resolved[PathOrName]
    """A local folder, a URI (`s3://...`) or a hub name such as `org/name`."""
    revision: Resolved[str | None] = None
    """The hub revision (branch, tag or commit)."""
    pad_token: Resolved[str | None] = None
    """The padding token; without it the tokenizer's own, or, if the tokenizer has none, a safe one that `raydpo check` names."""
    chat_template: Resolved[LocalPath | None] = None
    """A file with a Jinja chat template, used instead of the tokenizer's own."""


Model = Annotated[
    ModelConfig, BeforeValidator(path_shorthand, json_schema_input_type=str | ModelConfig)
]

SourceFormat = Literal["auto", "jsonl", "json", "parquet", "csv", "text", "dataset"]


def _one_path_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


#: Files and folders that a function reads.
OneOrMorePaths = Annotated[
    tuple[LocalPath, ...],
    BeforeValidator(_one_path_or_many, json_schema_input_type=str | tuple[str, ...]),
]
#: A time limit for calls says little about how long Python takes to start on busy cores.
LEAST_IMPORT_SECONDS: Final = 60.0


class FunctionLimits(Section):
    """Limits for a function's process; a reward of another kind ignores these fields."""

    timeout_seconds: Placement[PositiveFloat] = 600.0
    """Maximum time for one part; a function that takes longer is ended, and the rows that it hangs on are refused. The import may take as long, and at least a minute."""
    max_attempts: Placement[PositiveInt] = 2
    """How many times raydpo tries a part whose function ends its process or hangs, and then each of its rows alone."""
    max_memory_gib: Placement[PositiveFloat | None] = None
    """Maximum memory, in GiB, of the function's process and the processes that it starts; without it there is no limit."""

    @property
    def import_seconds(self) -> float:
        """Seconds that starting the process and importing the function may take; busy cores need a minimum."""
        return max(self.timeout_seconds, LEAST_IMPORT_SECONDS)
