"""Inspect a sampler function of the user's own from the driver, without calling it.

`sampling.function: package.module:name` names it. The module returns how it is called and what its
samples depend on, and refuses settings that it would ignore. `function_worker.py` calls it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from raydpo.config.base import FunctionLimits
from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.config.sampling import SAMPLER_SETTINGS, SamplerFunctionConfig
from raydpo.core.errors import ConfigError, ModelError
from raydpo.core.own_code import OwnCode
from raydpo.core.own_looks import code_at, look_at
from raydpo.core.own_process import Look, OwnProcess
from raydpo.models.loading import adapter_base
from raydpo.sampling import sampler_child
from raydpo.sampling.own_sampler import OWED, WHAT


class SamplerProcess(OwnProcess):
    """The process of one sampler function."""

    what: ClassVar[str] = WHAT
    owed: ClassVar[str] = OWED
    child: ClassVar[str] = sampler_child.__name__


def look_at_sampler(function: SamplerFunctionConfig) -> Look:
    """Return a sampler function's signature and file; nothing is sampled.

    Raises:
        ConfigError: it cannot be imported or called as samplers are.
    """
    options = tuple(function.options)
    return look_at(SamplerProcess, function.path, function.import_seconds, options)


def code_of_sampler(function: SamplerFunctionConfig) -> OwnCode:
    """Return what the samples of a function depend on, with hashes.

    Raises:
        ConfigError: the function cannot be used, or a file that it depends on is not there.
    """
    return code_at(function.path, look_at_sampler(function), function.depends_on)


def samples_the_model(function: SamplerFunctionConfig) -> bool:
    """Return whether the function is given the model's folder; others sample from something else."""
    return "model" in look_at_sampler(function).names


def sampler_name(sampling: SamplingConfig) -> str | None:
    """Return the path of a function that samples from something else than the model, else None."""
    function = sampling.function
    return function.path if function is not None and not samples_the_model(function) else None


def sampler_inputs(sampling: SamplingConfig) -> dict[str, str]:
    """Return hashes of the sampler function's code, by what each is; none where engines sample."""
    if sampling.function is None:
        return {}
    hashes = code_of_sampler(sampling.function).hashes
    return {f"{name or 'source'} of the sampler": value for name, value in hashes.items()}


def sampler_settings(sampling: SamplingConfig) -> dict[str, Any]:
    """Return what else the function's samples depend on; nothing where engines sample."""
    function = sampling.function
    if function is None:
        return {}
    content = content_of(function, without=FunctionLimits)
    return {"sampler": {"function": function.path, **content}}


def check_sampler_takes(
    function: SamplerFunctionConfig,
    model: ModelConfig,
    sampling: SamplingConfig,
    section: str = "sampling",
) -> None:
    """Refuse settings and models that the function would ignore or could not read.

    Args:
        function: the function.
        model: the policy that is to sample.
        sampling: the settings.
        section: where the settings are from, for the message.

    Raises:
        ConfigError: a setting differs from its default, and the function does not take it.
        ModelError: the model is an adapter.
    """
    names = look_at_sampler(function).names
    for name in SAMPLER_SETTINGS:
        value = getattr(sampling, name)
        plain = SamplingConfig.model_fields[name].default
        if name not in names and name != "candidates" and value != plain:
            raise ConfigError(
                f"{section}.{name} is {value!r}, and {WHAT} {function.path!r} takes no `{name}`",
                "what the configuration asks for reaches the function that samples",
                f"add the parameter, or leave {section}.{name} at {plain!r}",
            )
    if "model" in names and adapter_base(model) is not None:
        raise ModelError(
            f"{model.path!r} is a LoRA adapter, and {WHAT} {function.path!r} takes `model`",
            "a sampler function is given the folder of a whole model",
            "merge the adapter into its base and name that folder, or let vLLM sample",
        )
