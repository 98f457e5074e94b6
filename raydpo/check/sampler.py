"""Check a sampler function that a user wrote, by its signature alone; see `job.py`."""

from __future__ import annotations

from raydpo.check.findings import Findings
from raydpo.config.job import Config
from raydpo.config.sampling import SamplerFunctionConfig
from raydpo.core.errors import ConfigError
from raydpo.sampling.function import check_sampler_takes, code_of_sampler, look_at_sampler


def check_sampler(config: Config, function: SamplerFunctionConfig, findings: Findings) -> None:
    """Look at a sampler's signature; it is not called, since it may load a model first.

    Raises:
        ConfigError: it cannot be imported or called, or the job needs more of it.
    """
    look = look_at_sampler(function)
    evaluation = config.evaluation
    if config.prompts is not None or config.online is not None:
        findings.attempt(check_sampler_takes, function, config.model, config.sampling)
    if evaluation is not None:
        settings = evaluation.sampling(config.sampling)
        findings.attempt(check_sampler_takes, function, config.model, settings, "evaluation")
    if "model" not in look.names:
        _refuse_other_policies(config, function)
    code = code_of_sampler(function)
    findings.facts.append(
        f"sampling: function {function.path}{look.call}; "
        f"samples are made again when these change: {code.covered}"
    )
    if code.undeclared:
        findings.facts.append(
            f"note: {function.path} names {', '.join(code.undeclared)}: a change there leaves old "
            "samples in place, unless sampling.function.depends_on lists it"
        )
    if "seeds" not in look.names:
        findings.facts.append(
            f"note: {function.path} takes no `seeds`: a part that is made again may differ"
        )


def _refuse_other_policies(config: Config, function: SamplerFunctionConfig) -> None:
    """Refuse sections that need samples of the trained policy, from a function without its folder."""
    sections = {"evaluation": config.evaluation, "online": config.online}
    for name in (name for name, section in sections.items() if section is not None):
        raise ConfigError(
            f"there is the section `{name}`, and sampler function {function.path!r} takes no `model`",
            f"`{name}` needs samples of the trained policy, whose folder is given as `model`",
            f"add the parameter `model` and sample from that folder, or take `{name}` out",
        )
