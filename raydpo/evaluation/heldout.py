"""Sample from held-out prompts, for the evaluation and for the rounds.

Held-out prompts and a model give a table of the model's completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raydpo.config.job import Config, ModelConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sample_candidates


def sample_heldout(
    config: Config,
    place: Place,
    prompts: Table,
    model: ModelConfig,
    pool: Callable[[], EnginePool] | None,
) -> Table:
    """Sample completions of held-out prompts; seeds depend on prompts only, not on model or round.

    Args:
        config: the job; its `evaluation` section is required.
        place: where the table goes.
        prompts: held-out prompts.
        model: the model that samples.
        pool: gives the engines if samples are missing; without it, engines start for this table.
    """
    evaluation = config.evaluation
    assert evaluation is not None
    return sample_candidates(
        replace(place, round_index=0),
        prompts,
        model=model,
        sampling=evaluation.sampling(config.sampling),
        max_prompt_tokens=evaluation.prompts.max_prompt_tokens,
        pool=pool,
    )
