"""Compute how long a sequence a model takes, with one answer for all stages.

From the content of a config.json the module computes a number of tokens, and says which keys
determine it. Scaled rotary positions allow more than `max_position_embeddings`, or fewer. `dynamic`
and `longrope` scale every sequence of a batch by the longest one. A log-prob above their first
limit would depend on the rest of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raydpo.core.errors import ConfigError

_POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_seq_len")
_ORIGINAL: Final = "original_max_position_embeddings"
#: Types with a fixed stretch: `factor` times the original positions.
_YARN: Final = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")
_LONGROPE: Final = ("longrope", "su")
_BY_THE_BATCH: Final = "above, rope type `{}` turns all sequences of a batch by the longest one"


@dataclass(frozen=True)
class Context:
    """The maximum length of a model's sequences.

    Attributes:
        tokens: the number of tokens.
        because: the part of its config.json that determines the number, in words.
        depends_on_batch: whether longer sequences would change those beside them and must be
            refused.
    """

    tokens: int
    because: str
    depends_on_batch: bool = False


def model_context(config_values: dict[str, Any]) -> Context | None:
    """Return what a model's config.json allows; None if it sets no limit.

    Args:
        config_values: the content of config.json, or `to_dict()` of a transformers configuration.
    """
    values = _text_values(config_values)
    found = next(((n, values[n]) for n in _POSITIONS if _is_length(values.get(n))), None)
    if found is None:
        return None
    name, positions = found
    plain = Context(positions, f"{name} {positions}")
    contexts = [_stretched(rope, plain, values) for rope in _ropes(values)]
    return min((c for c in contexts if c is not None), key=lambda c: c.tokens, default=plain)


def check_context(what: str, tokens: int, config_values: dict[str, Any]) -> None:
    """Compare the longest possible sequence with the model's context.

    Args:
        what: the settings that add up to `tokens`, for the message.
        tokens: the longest sequence that they allow.
        config_values: the content of the model's config.json.

    Raises:
        ConfigError: the sequence does not fit.
    """
    context = model_context(config_values)
    if context is not None and tokens > context.tokens:
        raise ConfigError(
            f"{what} = {tokens} tokens",
            f"the longest sequence fits the model's context ({context.because})",
            f"lower them to {context.tokens} together, or take a model with a longer context",
        )


def engine_overrides(tokens: int, config_values: dict[str, Any]) -> dict[str, Any]:
    """Return changes of the config with which vLLM accepts sequences of this many tokens.

    vLLM takes `max_position_embeddings` of a YaRN model for the stretched length, but many configs
    leave that value unstretched. Its rotary table uses the original length and the factor.
    """
    values = _text_values(config_values)
    positions = values.get(_POSITIONS[0])
    if not isinstance(positions, int) or tokens <= positions:
        return {}
    if not any(_type_of(rope) in _YARN for rope in _ropes(values)):
        return {}
    override = {_POSITIONS[0]: tokens}
    return {"text_config": override} if "text_config" in config_values else override


def _stretched(rope: dict[str, Any], plain: Context, values: dict[str, Any]) -> Context | None:
    """Return the context by one set of rotary parameters; None if they stretch nothing."""
    kind, positions, factor = _type_of(rope), plain.tokens, rope.get("factor")
    original = values.get(_ORIGINAL) or rope.get(_ORIGINAL) or positions
    if kind == "dynamic":
        return Context(positions, f"{plain.because}; {_BY_THE_BATCH.format(kind)}", True)
    if kind in _LONGROPE:
        tokens = min(original, positions)
        return Context(tokens, f"{_ORIGINAL} {tokens}; {_BY_THE_BATCH.format(kind)}", True)
    if not isinstance(factor, int | float) or factor <= 0:
        return None
    if kind in _YARN:
        return Context(int(original * factor), f"{_ORIGINAL} {original} times {factor:g}, {kind}")
    if kind == "linear" and "gemma3" not in str(values.get("model_type")):  # gemma3 includes it
        return Context(int(positions * factor), f"{plain.because} times {factor:g}, {kind}")
    return None


def _text_values(config_values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a text model; values of a nested text model take precedence."""
    return {**config_values, **(config_values.get("text_config") or {})}


def _ropes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rotary parameters: one set, or one set for each kind of layer."""
    found = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(found, dict):
        return []
    nested = [rope for rope in found.values() if isinstance(rope, dict)]
    return nested or [found]


def _type_of(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and value > 0
