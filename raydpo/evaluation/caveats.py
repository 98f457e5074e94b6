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
        f"min_p {sampling.min_p:g}": sampling.min_p > 0,
        f"presence_penalty {sampling.presence_penalty:g}": sampling.presence_penalty != 0,
        f"frequency_penalty {sampling.frequency_penalty:g}": sampling.frequency_penalty != 0,
        f"repetition_penalty {sampling.repetition_penalty:g}": sampling.repetition_penalty != 1,
        f"extra {', '.join(sorted(sampling.extra))}": bool(sampling.extra),
    }
    return [name for name, differs in settings.items() if differs]
