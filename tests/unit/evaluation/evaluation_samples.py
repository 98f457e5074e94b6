"""Hand-made samples of two models, and what is measured on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from raydpo.config.job import Config
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import measure
from raydpo.evaluation.samples import HeldoutPairs, Sample, ScoredCompletions


def make_config(**evaluation: Any) -> Config:
    return Config.model_validate(
        {
            "name": "reviews",
            "model": "models/base",
            "prompts": "prompts.jsonl",
            "training": {"objective": {"beta": 0.25}},
            "sampling": {"max_completion_tokens": 12},
            "evaluation": {
                "prompts": "heldout.jsonl",
                "judge": {"classifier": "judge", "label": "positive", "output": "probability"},
                **evaluation,
            },
        }
    )


def make_samples(mean: float, seed: int, text: str = " fine") -> list[Sample]:
    """Two completions of each of eight prompts."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            prompt_id=f"p{prompt}",
            candidate=candidate,
            prompt="The film was",
            completion=text,
            completion_ids=tuple(int(i) for i in rng.integers(0, 90, int(rng.integers(3, 13)))),
            finish_reason="stop" if candidate else "length",
            score=float(mean + rng.normal(0, 0.1)),
            values={"judge": 0.0},
        )
        for prompt in range(8)
        for candidate in range(2)
    ]


def make_logps(samples: list[Sample], gap: float) -> ScoredCompletions:
    """The policy's log-probs lie `gap` nats a token above the reference's."""
    policy = [[-1.0] * len(sample.completion_ids) for sample in samples]
    reference = [[-1.0 - gap] * len(sample.completion_ids) for sample in samples]
    return ScoredCompletions([sample.prompt_id for sample in samples], policy, reference)


def make_metrics(**evaluation: Any) -> dict[str, Any]:
    """Metrics of a policy that gained about 0.3 at 0.125 nats a token."""
    config = make_config(**evaluation)
    assert config.evaluation is not None
    reference, policy = make_samples(0.4, seed=0), make_samples(0.7, seed=1)
    pairs = HeldoutPairs(["q", "q", "r"], [2.0, -1.0, 3.0], [1.0, 1.0, 1.0])
    logps = make_logps(policy, gap=0.125)
    values = measure(config, config.evaluation, reference, policy, logps, pairs)
    return {**values, **examine(values, reference, policy, {})}
