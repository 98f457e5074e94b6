"""All tasks that compare numbers, ordered by value."""

from __future__ import annotations

from .right_attention import ATTENTION_TASKS
from .right_models import MODEL_TASKS
from .right_ranks import RANK_TASKS
from .right_training import TRAINING_TASKS
from .right_vllm import VLLM_TASKS
from .task import Task

RIGHT_TASKS: list[Task] = [
    *ATTENTION_TASKS,
    *MODEL_TASKS,
    *TRAINING_TASKS,
    *RANK_TASKS,
    *VLLM_TASKS,
]
