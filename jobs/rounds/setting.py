"""What both sides of the benchmark of rounds do, and how each is tuned.

Frozen descriptions that go to processes as JSON and come back the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T", bound="Setting | Tuning")


@dataclass(frozen=True)
class Setting:
    """The work, which is the same on both sides.

    Attributes:
        rounds: of sampling, labelling and training.
        prompts_per_round: the next of one shuffled circle of all prompts.
        candidates: K completions a prompt.
        min_margin: rewards of a pair differ by more than this; all other pairs of a prompt count.
        groups_per_step: prompts of one optimizer step, with all their pairs.
        epochs: passes over a round's pairs.
        learning_rate: peak of a cosine to 0 without warm-up; the two libraries count a warm-up
            differently, by one step.
        seed: of prompts, samples and the order of the data.
    """

    model: str = "assets/review-lm"
    prompts: str = "assets/prompts.jsonl"
    reward: str = "assets/sentiment-reward"
    judge: str = "assets/sentiment-judge"
    label: str = "positive"
    heldout: str = "assets/heldout-prompts.jsonl"
    heldout_samples: int = 8
    rounds: int = 3
    prompts_per_round: int = 139
    candidates: int = 4
    max_prompt_tokens: int = 16
    max_completion_tokens: int = 64
    min_margin: float = 0.5
    beta: float = 0.1
    groups_per_step: int = 16
    epochs: int = 2
    learning_rate: float = 2e-4
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Tuning:
    """How the usual loop is set up; the defaults are the best of the search (`search.py`).

    Attributes:
        sampling_threads, reward_threads, training_threads: OMP threads of each process.
        eager: vLLM without torch.compile, and its engine in the process of `LLM`; otherwise
            vLLM as it comes.
        reward_batch: texts of one forward pass of the pipeline.
        batch_pairs: pairs of one forward and backward pass.
        reference_batch_pairs: pairs of one forward pass of the reference.
        malloc: whether the training gets the allocator's variables that our workers have.
        bfloat16: whether the trainer computes under autocast.
    """

    sampling_threads: int = 2
    reward_threads: int = 2
    training_threads: int = 2
    eager: bool = True
    reward_batch: int = 64
    batch_pairs: int = 8
    reference_batch_pairs: int = 32
    malloc: bool = True
    bfloat16: bool = False

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def from_json(kind: type[_T], text: str) -> _T:
    """The inverse of `as_json`, from a command line or a file's text."""
    values: dict[str, Any] = json.loads(text)
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**values)


def prompts_file(folder: Path, round_index: int) -> Path:
    """Where the usual loop reads the prompts of a round."""
    return folder / f"prompts-{round_index}.jsonl"
