"""Held-out samples, as the evaluation and the rounds draw them.

What comes in: held-out prompts and a model. What goes out: a table of its completions.
"""

from __future__ import annotations

from collections.abc import Callable

from raydpo.config import Config, ModelConfig
from raydpo.parts import Table
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import sample_candidates
from raydpo.storage import Folder


def sample_heldout(
    config: Config,
    folder: Folder,
    prompts: Table,
    model: ModelConfig,
    pool: Callable[[], EnginePool] | None,
    what: str,
) -> Table:
    """Completions of held-out prompts; their seeds depend on the prompts alone, not on model or round.

    Args:
        config: the job; its `evaluation` section is required.
        folder: where the table goes.
        prompts: held-out prompts.
        model: what is sampled.
        pool: gives the engines, if samples are missing; without it some start for this table.
        what: the stage and round, for the log.
    """
    evaluation = config.evaluation
    assert evaluation is not None
    asked = {"candidates": evaluation.samples_per_prompt, "temperature": evaluation.temperature}
    return sample_candidates(
        folder=folder,
        prompts=prompts,
        model=model,
        sampling=config.sampling.model_copy(update=asked),
        seed=config.seed,
        round_index=0,
        max_prompt_tokens=evaluation.prompts.max_prompt_tokens,
        what=what,
        max_quarantined_fraction=config.max_quarantined_fraction,
        pool=pool,
    )
