"""What keeps a mean log-ratio of samples from being an estimate of KL.

What comes in: how the samples are drawn. What goes out: the settings that matter, in words.
"""

from __future__ import annotations

from raydpo.config import EvaluationConfig, SamplingConfig


def sampling_caveats(evaluation: EvaluationConfig, sampling: SamplingConfig) -> list[str]:
    """Settings under which the samples are not the policy's own distribution, in words."""
    settings = {
        f"temperature {evaluation.temperature:g}": evaluation.temperature != 1,
        f"top_p {sampling.top_p:g}": sampling.top_p < 1,
        f"top_k {sampling.top_k}": sampling.top_k > 0,
        f"min_completion_tokens {sampling.min_completion_tokens}": sampling.min_completion_tokens
        > 0,
    }
    return [name for name, differs in settings.items() if differs]
