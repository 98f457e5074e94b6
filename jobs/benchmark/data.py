"""Preference groups of random tokens, the same for every contender.

A scenario gives group rows as the train loop reads them, and the same pairs as TRL reads them, in
the order of the train loop. The reference's log-probs are drawn, not computed: a loss on which
contenders must agree must not be log 2 at step 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raydpo.training.composition import Plan

from .spec import DataShape, Scenario

Row = dict[str, Any]

#: Train steps whose groups a scorer is given together.
STEPS_A_PART = 4
#: Spread of a token's reference log-prob, in nats, around that of a uniform model.
_REFERENCE_SPREAD = 0.3


def group_rows(scenario: Scenario) -> list[Row]:
    """All groups of a scenario: prompt, completions, pairs, reference log-probs."""
    data = scenario.data
    draw = np.random.default_rng(scenario.seed)
    count = data.groups_per_step * data.steps
    prompts = _lengths(draw, data, data.prompt_tokens, (count,))
    completions = _lengths(draw, data, data.completion_tokens, (count, data.completions))
    return [
        _group(draw, number, int(prompts[number]), completions[number].tolist(), scenario)
        for number in range(count)
    ]


def plan(scenario: Scenario) -> Plan:
    """Which groups each step takes."""
    data = scenario.data
    groups = data.groups_per_step * data.steps
    return Plan(groups, data.groups_per_step, epochs=1, max_steps=None, seed=scenario.seed)


def step_rows(scenario: Scenario, rows: list[Row], step: int) -> list[Row]:
    """The groups of a step (from 0)."""
    return [rows[number] for number in plan(scenario).step_groups(step)]


def pair_rows(scenario: Scenario, rows: list[Row]) -> list[Row]:
    """The pairs of all steps in order, each with its own copy of prompt and completions."""
    return [
        _pair(group, pair)
        for step in range(scenario.data.steps)
        for group in step_rows(scenario, rows, step)
        for pair in group["pairs"]
    ]


def part_rows(scenario: Scenario, rows: list[Row], part: int) -> list[Row]:
    """The groups of a part (from 0), which is what a scorer scores at one time."""
    steps = range(part * STEPS_A_PART, (part + 1) * STEPS_A_PART)
    return [row for step in steps for row in step_rows(scenario, rows, step)]


def _group(
    draw: np.random.Generator, number: int, prompt: int, completions: list[int], scenario: Scenario
) -> Row:
    vocabulary, uniform = scenario.model.vocabulary, -math.log(scenario.model.vocabulary)
    return {
        "group_id": f"group-{number:05d}",
        "prompt_ids": _tokens(draw, prompt, vocabulary),
        "completions": [_tokens(draw, length, vocabulary) for length in completions],
        "pairs": [
            {"chosen": chosen, "rejected": rejected, "weight": 1.0}
            for chosen in range(len(completions))
            for rejected in range(chosen + 1, len(completions))
        ],
        "reference_token_logps": [
            (uniform + _REFERENCE_SPREAD * draw.standard_normal(n)).astype(np.float32).tolist()
            for n in completions
        ],
    }


def _pair(group: Row, pair: Row) -> Row:
    chosen, rejected = pair["chosen"], pair["rejected"]
    return {
        "prompt_ids": group["prompt_ids"],
        "chosen_ids": group["completions"][chosen],
        "rejected_ids": group["completions"][rejected],
        "ref_chosen_logps": math.fsum(group["reference_token_logps"][chosen]),
        "ref_rejected_logps": math.fsum(group["reference_token_logps"][rejected]),
    }


def _lengths(
    draw: np.random.Generator, data: DataShape, median: int, shape: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    lengths = median * np.exp(data.sigma * draw.standard_normal(shape))
    return np.clip(np.rint(lengths), 2, data.longest * median).astype(np.int64)


def _tokens(draw: np.random.Generator, length: int, vocabulary: int) -> list[int]:
    """Tokens 0 to 2 are left to padding, start and end."""
    return draw.integers(3, vocabulary, length).tolist()
