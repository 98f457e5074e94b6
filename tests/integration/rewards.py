"""Rewards that tests name by import path."""

from typing import Any


def count_e(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of letters e: cheap, and different for different completions."""
    return [c.count("e") / (len(c) + 1) for c in completions]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    """Longer is better; many completions are equally long."""
    return [float(len(completion)) for completion in completions]


async def count_letter(completions: list[str], letter: list[str], **columns: Any) -> list[float]:
    """The share of the letter that the data names for each prompt; the same as `count_e` for e."""
    assert all(len(values) == len(completions) for values in columns.values())
    assert columns.keys() >= {"completion_ids", "finish_reasons", "messages", "prompts"}
    pairs = zip(completions, letter, strict=True)
    return [text.count(wanted) / (len(text) + 1) for text, wanted in pairs]


def scaled(completions: list[str], letter: list[str], factor: float) -> list[float]:
    """How often a letter that the data names is there, times an option."""
    pairs = zip(completions, letter, strict=True)
    return [factor * text.count(wanted) for text, wanted in pairs]


def constant(prompts: list[str], completions: list[str]) -> list[float]:
    """Every completion is as good as every other."""
    return [1.0 for _ in completions]


def count_e_of_some(prompts: list[str], completions: list[str]) -> list[float]:
    """`count_e`, but all completions of prompts that end with 0 or 1 are rewarded alike."""
    values = count_e(prompts, completions)
    return [
        0.25 if prompt.endswith(("0", "1")) else value
        for prompt, value in zip(prompts, values, strict=True)
    ]
