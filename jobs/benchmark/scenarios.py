"""Choose the scenarios to measure, their contenders and their duration.

The command line's choices and the installed packages determine the experiments, in the order of
the table.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Final

from .data import STEPS_A_PART
from .processes import Turns
from .spec import (
    OURS,
    OURS_COMPILED,
    OURS_FLEX,
    OURS_MALLOC,
    OURS_MASK,
    OURS_PADDED,
    SCORE_OURS,
    SCORE_PADDED,
    SCORE_SORTED,
    SCORE_TRL,
    SCORE_VLLM,
    TRAINERS,
    TRL_COMPACT,
    TRL_TUNED,
    Contender,
    DataShape,
    ModelShape,
    Precision,
    Scenario,
)

#: Shapes by name: the small one is for CPUs, the others are those of released models.
MODELS: Final = {
    "small": ModelShape("small", 6, 384, 6, 6, 1024, 8192),
    "1b": ModelShape("1b", 16, 2048, 32, 8, 8192, 128256),
    "8b": ModelShape("8b", 32, 4096, 32, 8, 14336, 128256),
}
#: Lengths vary less than people's do: in hh_rlhf (helpful-base, test) the logarithms of both
#: prompts and completions have a standard deviation of about 1.
_PAIRS: Final = {
    "cpu": DataShape(88, 48, 0.6, completions=2, groups_per_step=8),
    "cuda": DataShape(512, 256, 0.6, completions=2, groups_per_step=32),
}
#: What a contender needs beside torch and transformers.
_NEEDS: Final = {
    "raydpo": ("pyarrow", "pydantic"),
    "trl": ("trl",),
    "score_raydpo": ("pyarrow", "pydantic"),
    "score_trl": ("trl",),
    "score_vllm": ("vllm",),
}


@dataclass(frozen=True)
class Choices:
    """What the command line asked for.

    Attributes:
        device: `cpu` or `cuda`.
        precision: `bfloat16` or `float32`.
        model: a name of `MODELS`.
        quick: only what the last line's object needs.
        vllm: score with vLLM too.
        repeats: timed turns of each contender; None for the default.
    """

    device: str
    precision: Precision
    model: str
    quick: bool
    vllm: bool
    repeats: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A scenario with those who are measured on it.

    Attributes:
        fresh: whether every contender gets a new process, so that memory means something.
    """

    scenario: Scenario
    contenders: tuple[Contender, ...]
    turns: Turns
    fresh: bool = False

    @property
    def scores(self) -> bool:
        """Whether a reference is scored, and nothing trained."""
        return self.contenders[0].kind.startswith("score")

    @property
    def units_per_step(self) -> int:
        """Pairs of a train step, or completions of a part that is scored."""
        data = self.scenario.data
        if self.scores:
            return data.groups_per_step * data.completions * STEPS_A_PART
        return data.pairs_per_step


def experiments(choices: Choices) -> list[Experiment]:
    """All experiments of the choices, without contenders that this machine lacks."""
    chosen = _quick(choices) if choices.quick else _full(choices)
    present = [_with_present(experiment) for experiment in chosen]
    return [experiment for experiment in present if experiment.contenders]


def left_out(choices: Choices) -> list[str]:
    """A line for each contender that is left out, which says why."""
    asked = {
        c for e in (_quick(choices) if choices.quick else _full(choices)) for c in e.contenders
    }
    return sorted(
        f"{contender.name} is left out: {', '.join(missing)} not installed"
        for contender in asked
        if (missing := _missing(contender))
    )


def base(choices: Choices) -> Scenario:
    """The scenario that the others differ from: ordinary pairs."""
    return Scenario(
        "K = 2", MODELS[choices.model], _PAIRS[choices.device], choices.precision, choices.device
    )


def groups_of_four(choices: Choices) -> Scenario:
    """As many completions a step as in `base`, four to a prompt, with all six pairs."""
    pairs = base(choices)
    data = replace(pairs.data, completions=4, groups_per_step=pairs.data.groups_per_step // 2)
    return replace(pairs, name="K = 4, six pairs", data=data)


def our_contenders(choices: Choices) -> tuple[Contender, ...]:
    """Our train step, once for each attention backend of the device and precision."""
    both = choices.device == "cuda" and choices.precision == "bfloat16"
    return (OURS, OURS_FLEX) if both else (OURS,)


def _quick(choices: Choices) -> list[Experiment]:
    turns = _turns(choices, Turns(repeats=5, count=2))
    few = _turns(choices, Turns(warm_up=1, repeats=3, count=1))
    large = _vocabulary(choices, 32768)
    return [
        Experiment(base(choices), (*our_contenders(choices), *TRAINERS[1:]), turns),
        Experiment(groups_of_four(choices), (*our_contenders(choices), TRL_COMPACT), few),
        Experiment(large, (*our_contenders(choices), TRL_COMPACT), few, fresh=True),
        Experiment(_scoring(base(choices)), (SCORE_OURS, SCORE_PADDED), few),
    ]


def _full(choices: Choices) -> list[Experiment]:
    turns = _turns(choices, Turns(repeats=7, count=3))
    few = _turns(choices, Turns(repeats=5, count=2))
    everyone = (*our_contenders(choices), *TRAINERS[1:])
    against = (*our_contenders(choices), TRL_TUNED, TRL_COMPACT)
    pairs, fours = base(choices), groups_of_four(choices)
    vllm = (SCORE_VLLM,) if choices.vllm else ()
    scorers = (SCORE_OURS, SCORE_PADDED, SCORE_SORTED, SCORE_TRL, *vllm)
    return [
        # those in new processes first: what is kept for the others takes memory
        Experiment(pairs, everyone, turns, fresh=True),
        Experiment(_vocabulary(choices, 32768), everyone, replace(few, count=1), fresh=True),
        Experiment(_vocabulary(choices, 131072), against, replace(few, count=1), fresh=True),
        Experiment(fours, everyone, replace(few, count=1)),
        *(Experiment(s, against, few) for s in _ratios(choices)),
        *(Experiment(s, against, few) for s in _variances(choices)),
        Experiment(_parts_left_out(pairs), (*_ablations(choices), OURS_COMPILED), few),
        Experiment(_parts_left_out(fours), _ablations(choices), few),
        Experiment(_scoring(pairs), scorers, replace(few, warm_up=1, count=1)),
        Experiment(_scoring(fours), scorers, replace(few, warm_up=1, count=1)),
    ]


def _turns(choices: Choices, turns: Turns) -> Turns:
    peak = 2048 if choices.device == "cpu" else 8192
    return replace(turns, repeats=choices.repeats or turns.repeats, peak_size=peak)


def _ablations(choices: Choices) -> tuple[Contender, ...]:
    """Our step without one of its parts."""
    parts = (OURS, OURS_MASK, OURS_PADDED)
    return (*parts, OURS_MALLOC) if choices.device == "cpu" else parts


def _parts_left_out(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name.split(',')[0]}, a part left out")


def _ratios(choices: Choices) -> list[Scenario]:
    """Prompts against completions at a constant median length of both together."""
    pairs = base(choices)
    total = 2 * (pairs.data.prompt_tokens + pairs.data.completion_tokens)
    return [
        replace(
            pairs,
            name=f"prompt : completion {share} : 1",
            data=replace(
                pairs.data,
                prompt_tokens=total * share // (share + 1),
                completion_tokens=total // (share + 1),
            ),
        )
        for share in (1, 4, 16)
    ]


def _variances(choices: Choices) -> list[Scenario]:
    pairs = base(choices)
    return [
        replace(pairs, name=f"length sigma {sigma:g}", data=replace(pairs.data, sigma=sigma))
        for sigma in (0.0, 0.4, 1.0)
    ]


def _vocabulary(choices: Choices, vocabulary: int) -> Scenario:
    pairs = base(choices)
    name = f"vocabulary {vocabulary // 1024}k"
    return replace(pairs, name=name, model=replace(pairs.model, vocabulary=vocabulary))


def _scoring(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"reference, {scenario.name.split(',')[0]}")


def _with_present(experiment: Experiment) -> Experiment:
    present = tuple(c for c in experiment.contenders if not _missing(c))
    return replace(experiment, contenders=present)


def _missing(contender: Contender) -> list[str]:
    return [n for n in _NEEDS.get(contender.kind, ()) if importlib.util.find_spec(n) is None]
