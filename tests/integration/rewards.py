"""Rewards that tests name by import path."""


def count_e(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of letters e: cheap, and different for different completions."""
    return [c.count("e") / (len(c) + 1) for c in completions]


def constant(prompts: list[str], completions: list[str]) -> list[float]:
    """Every completion is as good as every other."""
    return [1.0 for _ in completions]
