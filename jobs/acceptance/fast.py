"""All tasks that measure speed and memory, ordered by value.

A task gets a context and returns the numbers of one contender on one scenario. TRL and our step
are separate tasks, so that each result is written at once; the page compares them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmark.spec import (
    OURS,
    OURS_COMPILED,
    OURS_FLEX,
    OURS_PADDED,
    SCORE_OURS,
    SCORE_PADDED,
    TRL_STOCK,
    TRL_TUNED,
    Contender,
    DataShape,
    ModelShape,
)

from .speed import (
    MICRO_BATCH_TOKENS,
    MODELS,
    data,
    divided,
    measure,
    measure_fastest,
    measure_what_fits,
    scenario,
    scoring,
)
from .task import Context, LeftOut, Task, Values

#: Pairs of a forward pass among which TRL's best is looked for.
_TRL_BATCHES = (2, 4, 8, 16)
#: Memory of the card that a group of `GROUP_TOKENS` has to fit into.
CARD_BYTES = 80e9
#: Tokens of the longest group: a prompt of half of them, and two completions.
GROUP_TOKENS = 16384
LORA_RANK = 16

OURS_LORA = replace(
    OURS,
    name="raydpo_lora",
    says=f"an adapter of rank {LORA_RANK} on every linear layer, activations recomputed",
    lora_rank=LORA_RANK,
    gradient_checkpointing=True,
)
OURS_UNPACKED = replace(
    OURS, name="raydpo_unpacked", says="one group in each forward pass", max_tokens=1
)
OURS_CHECKPOINTED = replace(
    OURS,
    name="raydpo_checkpointed",
    says="activations of decoder blocks are recomputed",
    gradient_checkpointing=True,
)
OURS_UNFUSED = replace(
    OURS,
    name="raydpo_unfused_head",
    says="the output layer as for models that scale their logits, without the fused one",
)
TRL_BEST = replace(
    TRL_TUNED,
    name="trl_best",
    says="the fastest of batches of 2, 4, 8 and 16 pairs, activations kept; TRL 1.16 has switched "
    "off its padding-free mode",
)


def _ours(
    name: str,
    model: ModelShape,
    shape: DataShape,
    seconds: float,
    contender: Contender = OURS,
    profiled: int = 1,
) -> Task:
    def run(context: Context) -> Values:
        _refuse_what_cannot_run(context, contender)
        where = scenario(context, name, model, shape)
        return measure_what_fits(context, where, contender, profiled)

    return _task(name, contender, seconds, run)


def _unpacked(name: str, model: ModelShape, shape: DataShape, seconds: float) -> Task:
    def run(context: Context) -> Values:
        return measure(context, scenario(context, name, model, shape), OURS_UNPACKED)

    return _task(name, OURS_UNPACKED, seconds, run)


def _trl(name: str, model: ModelShape, shape: DataShape, seconds: float) -> list[Task]:
    """TRL as it comes, and at the best of some settings."""

    def run(context: Context, contenders: list[Contender]) -> Values:
        _refuse_without("trl", "accelerate", "datasets")
        if context.device == "cuda" and torch.cuda.device_count() > 1:
            raise LeftOut("TRL would use every card: set CUDA_VISIBLE_DEVICES to one of them")
        where = scenario(context, name, model, shape)
        found = {c.batch_pairs: c for c in (divided(one, where) for one in contenders)}
        return measure_fastest(context, where, list(found.values()))

    batches = [replace(TRL_BEST, batch_pairs=pairs) for pairs in _TRL_BATCHES]
    stock = functools.partial(run, contenders=[TRL_STOCK])
    best = functools.partial(run, contenders=batches)
    return [_task(name, TRL_STOCK, seconds, stock), _task(name, TRL_BEST, 2 * seconds, best)]


def _scoring(name: str, model: ModelShape, contender: Contender, seconds: float) -> Task:
    def run(context: Context) -> Values:
        where = scoring(scenario(context, name, model, data(2)))
        if contender.kind == "score_raydpo":
            return measure_what_fits(context, where, contender)
        return measure(context, where, contender)

    return _task(name, contender, seconds, run)


def _longest_group(context: Context) -> Values:
    """Train on groups of `GROUP_TOKENS` with no more memory than `CARD_BYTES`."""
    _refuse_what_cannot_run(context, OURS_LORA)
    shape = DataShape(GROUP_TOKENS // 2, GROUP_TOKENS // 4, 0.0, 2, groups_per_step=1, steps=6)
    where = scenario(context, LONGEST_GROUP, MODELS["8B"], shape)
    contender = replace(OURS_LORA, max_tokens=MICRO_BATCH_TOKENS)
    if context.device != "cuda":
        return measure(context, where, contender)
    held = min(1.0, CARD_BYTES / torch.cuda.get_device_properties().total_memory)
    torch.cuda.set_per_process_memory_fraction(held)
    try:
        return {**measure(context, where, contender), "fits": 1.0}
    except torch.OutOfMemoryError as error:
        named = {"scenario": where.name, "contender": contender.name, "says": contender.says}
        return {**named, "passed": False, "fits": 0.0, "out_of_memory": str(error)[:200]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _task(name: str, contender: Contender, seconds: float, run: Callable[..., Values]) -> Task:
    return Task(f"speed {name}: {contender.name}", "fast", seconds, run)


def _refuse_what_cannot_run(context: Context, contender: Contender) -> None:
    if contender.lora_rank is not None:
        _refuse_without("peft")
    if context.device == "cpu" and contender.attention == "flex":
        raise LeftOut("FlexAttention has no backward pass on CPU")
    if context.device == "cpu" and contender.compile:
        raise LeftOut("compiling takes longer on a CPU than all other tasks in small")


def _refuse_without(*packages: str) -> None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise LeftOut(f"not installed: {', '.join(absent)}")


LONGEST_GROUP = "8B LoRA, groups of 16,384 tokens"
_PARTS = "1B, K = 4"
_ONE, _EIGHT = MODELS["1B"], MODELS["8B"]
_UNSCALED = replace(_ONE, logits_scaling=1.0)
_SMALL_VOCABULARY = replace(_ONE, vocabulary=32768)

FAST_TASKS: list[Task] = [
    _ours("1B, K = 2", _ONE, data(2), 30),
    *_trl("1B, K = 2", _ONE, data(2), 45),
    _ours("8B LoRA, K = 2", _EIGHT, data(2), 60, OURS_LORA),
    _task(LONGEST_GROUP, OURS_LORA, 60, _longest_group),
    _scoring("1B, reference", _ONE, SCORE_OURS, 20),
    _ours(_PARTS, _ONE, data(4), 25),
    *_trl(_PARTS, _ONE, data(4), 60)[1:],
    _ours("0.5B, K = 2", MODELS["0.5B"], data(2), 20),
    _ours("3B, K = 2", MODELS["3B"], data(2), 40),
    *_trl("3B, K = 2", MODELS["3B"], data(2), 70),
    _ours(_PARTS, _ONE, data(4), 25, OURS_PADDED, 0),
    _unpacked(_PARTS, _ONE, data(4), 25),
    _ours(_PARTS, _ONE, data(4), 40, OURS_FLEX, 0),
    _ours(_PARTS, _UNSCALED, data(4), 25, OURS_UNFUSED, 0),
    _ours(_PARTS, _ONE, data(4), 25, OURS_CHECKPOINTED, 0),
    _ours(_PARTS, _ONE, data(4), 90, OURS_COMPILED, 0),
    _scoring("1B, reference", _ONE, SCORE_PADDED, 30),
    _scoring("8B, reference", _EIGHT, SCORE_OURS, 40),
    _ours("1B, K = 8", _ONE, data(8), 25, OURS, 0),
    *(
        _ours(f"1B, K = 4, prompt : completion {n} : 1", _ONE, data(4, n), 25, OURS, 0)
        for n in (1, 4, 16)
    ),
    *(
        _ours(f"1B, K = 4, length sigma {sigma:g}", _ONE, data(4, sigma=sigma), 25, OURS, 0)
        for sigma in (0.0, 1.0)
    ),
    _ours("1B, K = 2, vocabulary 32k", _SMALL_VOCABULARY, data(2), 20, OURS, 0),
    *_trl("0.5B, K = 2", MODELS["0.5B"], data(2), 45),
    *_trl("1B, K = 8", _ONE, data(8), 60)[1:],
    *_trl("1B, K = 2, vocabulary 32k", _SMALL_VOCABULARY, data(2), 40)[1:],
]
