"""List the sampling settings that keep a mean log-ratio from being an estimate of KL."""

from __future__ import annotations

from raydpo.config.job import EvaluationConfig, SamplingConfig


def sampling_caveats(evaluation: EvaluationConfig, sampling: SamplingConfig) -> list[str]:
    """Return, in words, settings under which samples do not follow the policy's distribution."""
    settings = {
        f"temperature {evaluation.temperature:g}": evaluation.temperature != 1,
        f"top_p {sampling.top_p:g}": sampling.top_p < 1,
        f"top_k {sampling.top_k}": sampling.top_k > 0,
        f"min_completion_tokens {sampling.min_completion_tokens}": sampling.min_completion_tokens
        > 0,
    }
    return [name for name, differs in settings.items() if differs]
