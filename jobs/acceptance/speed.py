"""One speed measurement: a model's shape, the data, the duration, and the results.

From shapes and a device it returns plain numbers. It measures the benchmark's contender
(`jobs/benchmark/`) in this process.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any, Final

import torch

from benchmark.alone import release, run_alone
from benchmark.data import STEPS_A_PART, Row, group_rows, part_rows, step_rows
from benchmark.processes import Runs, Turns
from benchmark.results import Measured, measured
from benchmark.scenarios import Experiment
from benchmark.spec import Contender, DataShape, ModelShape, Scenario

from .task import Context, LeftOut, Values

#: Shapes of released models, all with a Llama's blocks: Qwen2.5-0.5B, Llama-3.2-1B and 3B, and
#: Llama-3.1-8B. Weights are random.
MODELS: Final = {
    "0.5B": ModelShape("0.5B", 24, 896, 14, 2, 4864, 151936),
    "1B": ModelShape("1B", 16, 2048, 32, 8, 8192, 128256),
    "3B": ModelShape("3B", 28, 3072, 24, 8, 8192, 128256),
    "8B": ModelShape("8B", 32, 4096, 32, 8, 14336, 128256, tied=False),
}
#: In their place where everything is small.
SMALL_MODEL: Final = ModelShape("small", 2, 64, 2, 1, 96, 128)
#: Flat tokens of one forward pass, of which each measurement takes half where memory ends.
MICRO_BATCH_TOKENS: Final = 16384
_LEAST_MICRO_BATCH_TOKENS: Final = 1024
#: Tokens of a prompt and a completion together, at the median.
SEQUENCE_TOKENS: Final = 768
#: Completions of one optimizer step.
STEP_COMPLETIONS: Final = 32
TURNS: Final = Turns(warm_up=2, repeats=3, count=1, peak_size=8192)
SCORING_TURNS: Final = replace(TURNS, warm_up=1)
#: Steps, or parts of a reference's scoring, that the data last for; one of them is profiled.
_STEPS: Final = 6
#: Median sequence length where everything is small.
_SMALL_SEQUENCE_TOKENS: Final = 24


def data(completions: int, ratio: int = 2, sigma: float = 0.6) -> DataShape:
    """`STEP_COMPLETIONS` a step, each with its prompt of `SEQUENCE_TOKENS` at the median.

    Args:
        completions: K of each group.
        ratio: median length of a prompt over that of a completion.
        sigma: standard deviation of the logarithm of lengths.
    """
    completion = SEQUENCE_TOKENS // (ratio + 1)
    groups = max(1, STEP_COMPLETIONS // completions)
    return DataShape(SEQUENCE_TOKENS - completion, completion, sigma, completions, groups, _STEPS)


def scenario(context: Context, name: str, model: ModelShape, shape: DataShape) -> Scenario:
    """A model on these data, or both in small."""
    if context.small:
        share = _SMALL_SEQUENCE_TOKENS / (shape.prompt_tokens + shape.completion_tokens)
        changed = {"tied": model.tied, "logits_scaling": model.logits_scaling}
        model = replace(SMALL_MODEL, **changed)
        shape = replace(
            shape,
            prompt_tokens=max(2, round(share * shape.prompt_tokens)),
            completion_tokens=max(2, round(share * shape.completion_tokens)),
            groups_per_step=min(2, shape.groups_per_step),
        )
    return Scenario(name, model, shape, "bfloat16", context.device, context.seed)


def scoring(where: Scenario) -> Scenario:
    """The same with data for parts, each of which is `STEPS_A_PART` steps long."""
    steps = _STEPS * STEPS_A_PART
    groups = max(1, where.data.groups_per_step // STEPS_A_PART)
    return replace(where, data=replace(where.data, steps=steps, groups_per_step=groups))


def divided(contender: Contender, where: Scenario) -> Contender:
    """TRL's contender with a batch that divides the step's pairs, as in small ones."""
    pairs = where.data.pairs_per_step
    return replace(contender, batch_pairs=math.gcd(contender.batch_pairs or pairs, pairs))


def measure(context: Context, where: Scenario, contender: Contender, profiled: int = 0) -> Values:
    """Run a contender in this process; its numbers.

    Args:
        context: device, and whether everything is small.
        where: model and data.
        contender: who trains or scores.
        profiled: steps under the profiler, after those that are timed.
    """
    turns = SCORING_TURNS if contender.kind.startswith("score") else TURNS
    if context.small:  # a matrix product that a CPU makes in a moment
        turns = replace(turns, warm_up=1, repeats=1, peak_size=256)
    runs, kernels = run_alone(where, contender, turns, profiled)
    experiment = Experiment(where, (contender,), turns, fresh=True)
    (row,) = measured(experiment, [runs])
    values: Values = {
        "scenario": where.name,
        "contender": contender.name,
        "says": contender.says,
    }
    values |= numbers(experiment, row, runs)
    if context.device == "cuda":
        values["reserved_gigabytes"] = torch.cuda.max_memory_reserved() / 1e9
    if contender.max_tokens is not None:
        values["micro_batch_tokens"] = contender.max_tokens
    if contender.batch_pairs is not None:
        values["batch_pairs"] = contender.batch_pairs
    if kernels is not None:
        values["kernels"] = shares(kernels)
    return values


def measure_what_fits(
    context: Context, where: Scenario, contender: Contender, profiled: int = 0
) -> Values:
    """Run a contender with the largest micro-batch, halved until it fits the memory."""
    tokens = contender.max_tokens or MICRO_BATCH_TOKENS
    while True:
        try:
            return measure(context, where, replace(contender, max_tokens=tokens), profiled)
        except torch.OutOfMemoryError:
            if tokens <= _LEAST_MICRO_BATCH_TOKENS:
                raise
        tokens //= 2
        release(context.device)  # the error's frames, which held tensors, are gone only now


def measure_fastest(context: Context, where: Scenario, contenders: list[Contender]) -> Values:
    """Run contenders, and return the numbers of the fastest among those that fit the memory.

    Raises:
        LeftOut: none fits.
    """
    found: list[Values] = []
    tried: dict[str, float | str] = {}
    for contender in contenders:
        label = f"{contender.batch_pairs} pairs"
        try:
            found.append(measure(context, where, contender))
            tried[label] = found[-1]["step_seconds"]
        except torch.OutOfMemoryError:
            tried[label] = "out of memory"
        release(context.device)
    if not found:
        raise LeftOut(f"out of memory with every setting: {', '.join(tried)}")
    return {**min(found, key=lambda values: values["step_seconds"]), "tried": tried}


def numbers(experiment: Experiment, row: Measured, runs: Runs) -> Values:
    """What a page shows of one contender."""
    values: Values = {
        "step_seconds": row.step_seconds,
        "tokens_per_second": tokens_per_second(experiment, runs),
        "mfu": row.flop_fraction,
        "peak_gigabytes": runs.peak_bytes / 1e9,
        "product_teraflops": statistics.median(runs.peak_flops) / 1e12,
        "losses": row.losses,
    }
    shape = experiment.scenario.data
    if experiment.scores:
        return {**values, "completions_per_second": row.pairs_per_second}
    values["groups_per_second"] = shape.groups_per_step / row.step_seconds
    values["pairs_per_second"] = row.pairs_per_second
    return values


def tokens_per_second(experiment: Experiment, runs: Runs) -> float:
    """Tokens of prompts, each counted once, and of completions; median over the turns."""
    turns, rows = experiment.turns, group_rows(experiment.scenario)
    rates: list[float] = []
    for turn, seconds in enumerate(runs.seconds):
        first = turns.warm_up + turn * turns.count
        units = range(first, first + turns.count)
        rates.append(sum(_tokens(experiment, rows, unit) for unit in units) / seconds)
    return statistics.median(rates)


def shares(kernels: dict[str, Any]) -> dict[str, float]:
    """Fractions of the profiled span: each family of kernels, and the time without any."""
    span = kernels["span_seconds"] or 1.0
    found = {name: seconds / span for name, seconds in kernels["families"].items()}
    found["not attributed"] = kernels["unattributed_seconds"] / span
    return {**found, "idle": 1 - kernels["busy_seconds"] / span}


def _tokens(experiment: Experiment, rows: list[Row], unit: int) -> int:
    where = experiment.scenario
    chosen = part_rows(where, rows, unit) if experiment.scores else step_rows(where, rows, unit)
    return sum(len(row["prompt_ids"]) + sum(map(len, row["completions"])) for row in chosen)
