"""Every objective beside its formula: the function to call, its settings and its inputs.

`CASES` serves the golden checks, the mutation check, and the command that writes the errors into
docs/objectives.md.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raydpo.training.losses import dpo
from tests.conformance import formulas

#: Logratios that the grid takes all pairs of.
GRID = [-1e4, -60.0, -1.0, 0.0, 2.0, 1e4]
RANDOM_ROWS = 16
ROWS = len(GRID) ** 2 + RANDOM_ROWS


@dataclass(frozen=True)
class Case:
    """A function of raydpo.training.losses and the formula that it must equal.

    Attributes:
        name: the row of docs/objectives.md, then what is special about it.
        where: `module.function` under raydpo.training.losses.
        inputs: kind of each argument by position, see `make_inputs`.
        knobs: keyword arguments.
        formula: the same in mpmath, of one row.
        gradient: gradients by every differentiable input of one row, where they are not the
            derivatives of the formula.
        stopped: arguments by position that no gradient may reach.
        floor: what an error is measured against where the value is smaller: the size of
            the terms, where they cancel.
        call: how the function is called, where not with inputs and knobs.
    """

    name: str
    where: str
    inputs: tuple[str, ...]
    formula: Callable[..., Any]
    knobs: dict[str, Any] = field(default_factory=dict)
    gradient: Callable[..., list[Any]] | None = None
    stopped: tuple[int, ...] = ()
    floor: float = 1e-250
    call: Callable[..., Tensor] | None = None

    @property
    def row(self) -> str:
        """Its row in docs/objectives.md."""
        return self.name.split(",")[0]

    @property
    def module(self) -> str:
        return f"raydpo.training.losses.{self.where.split('.')[0]}"

    @property
    def function_name(self) -> str:
        return self.where.split(".")[1]

    def function(self) -> Callable[..., Tensor]:
        """What is shipped."""
        return getattr(importlib.import_module(self.module), self.function_name)

    def evaluate(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
        """Losses of all rows: [ROWS]."""
        if self.call is not None:
            return self.call(function, inputs, self.knobs)
        return function(*inputs, **self.knobs)


def group_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    """Groups of K = 5 that have two paddings: what stands there must not matter."""
    junk = torch.tensor([float("nan"), 1e30], dtype=inputs[0].dtype).expand(len(inputs[0]), 2)
    padded = torch.cat([inputs[0], junk], dim=1)
    mask = torch.arange(padded.shape[1]).expand(padded.shape) < inputs[0].shape[1]
    return function(padded, mask, **knobs)


def matched_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    """Each row is a batch of its own: its losses, each with what was matched to it, summed."""
    losses = [
        dpo.conservative_loss(values, function(values, others), **knobs).sum()
        for values, others in zip(*inputs, strict=True)
    ]
    return torch.stack(losses)


def desensitized_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    """Each row is a pair: three tokens of the chosen completion, five of the rejected."""
    sequences, lengths = torch.tensor([0] * 3 + [1] * 5), torch.tensor([3, 5])
    pairs = torch.tensor([[0, 1]])
    values = []
    for chosen, rejected in zip(*inputs, strict=True):
        tokens = torch.cat([chosen[:3], rejected])
        sums = function(tokens, sequences, lengths, pairs, **knobs)
        values.append((sums[0] - 2 * sums[1]).sum())
    return torch.stack(values)


def make_inputs(kinds: tuple[str, ...]) -> list[Tensor]:
    """Inputs of a case: a grid of extremes, then random rows of growing size.

    float64, of values that float32 has too, so that one expectation serves both.
    """
    generator = torch.Generator().manual_seed(20230529)
    grids = iter(torch.tensor(list(itertools.product(GRID, GRID)), dtype=torch.float64).unbind(1))
    return [_make(kind, generator, grids).float().double() for kind in kinds]


def _make(kind: str, generator: torch.Generator, grids: Any) -> Tensor:
    normal = torch.randn(RANDOM_ROWS, generator=generator, dtype=torch.float64)
    normal = normal * torch.logspace(-2, 2.5, RANDOM_ROWS, dtype=torch.float64)
    uniform = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    many = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    if kind in ("logratio", "nonzero"):
        values = torch.cat([next(grids), normal])
        return values if kind == "logratio" else values.masked_fill(values == 0, 0.5)
    made = {
        "group": many[:16] * torch.logspace(-2, 4, 16, dtype=torch.float64)[:, None],
        "batch": many[:8] * torch.logspace(-2, 2, 8, dtype=torch.float64)[:, None],
        "rewards": many[:8] * torch.logspace(-1, 2, 8, dtype=torch.float64)[:, None],
        "logits": 40 * (uniform - 0.5),
        "logps": -500 * uniform,
        "mean_logps": -(10 ** (6 * uniform - 4)),  # from -1e-4 to -100
        "kl": 50 * uniform,
        "probability": uniform,
        "lengths": (500 * uniform).ceil(),
        "flags": (uniform < 0.5).double(),
        "shift": 5 * uniform,
        "token_logp": 3 * (uniform - 1),
        "sampled": 3 * (uniform - 1),
        "advantage": 8 * (uniform - 0.5),
    }
    return made[kind]


#: Kinds of inputs that a loss does not differentiate by.
CONSTANT_KINDS = {"probability", "lengths", "flags", "shift", "advantage", "sampled"}

PAIR = ("logratio", "logratio")
BETA = {"beta": 0.1}


def kto_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    logratios, flags, reference_point = inputs
    return function(logratios, flags.bool(), reference_point.detach(), **knobs)


def scores(name: str, formula: Callable[..., Any], floor: float = 1e-250, **knobs: float) -> Case:
    where = f"f_divergence.{name}_scores"
    return Case(f"f_dpo, {name} scores", where, ("logratio",), formula, knobs, floor=floor)


def f_dpo(name: str, formula: Callable[..., Any], **knobs: float) -> Case:
    def loss(c: Any, r: Any, **knobs: Any) -> Any:
        return formulas.sigmoid(formula(c, **knobs), formula(r, **knobs), formulas.mp.mpf("0.1"))

    return Case(
        f"f_dpo, {name}",
        f"f_divergence.{name}_scores",
        PAIR,
        loss,
        knobs,
        floor=1,
        call=f_dpo_call,
    )


def f_dpo_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    chosen, rejected = (function(logratios, **knobs) for logratios in inputs)
    return dpo.sigmoid_loss(chosen, rejected, beta=0.1)


def advantages_call(
    function: Callable[..., Tensor], inputs: list[Tensor], knobs: dict[str, Any]
) -> Tensor:
    """Each row is a group; its advantages in one number, in which each has a factor of its own."""
    (rewards,) = inputs
    count, size = rewards.shape
    groups = torch.arange(count).repeat_interleave(size)
    factors = torch.arange(1, size + 1, dtype=rewards.dtype)
    return (function(rewards.flatten(), groups).view(count, size) * factors).sum(1)


def advantages(name: str, formula: Callable[..., Any]) -> Case:
    return Case(
        f"policy_gradient, {name}",
        f"policy_gradient.{name}_advantages",
        ("rewards",),
        partial(formulas.weighed, formula),
        floor=1,
        call=advantages_call,
    )


def ppo(what: str, clip_low: float | None, clip_high: float | None) -> Case:
    return Case(
        f"policy_gradient{what}",
        "policy_gradient.clipped_ratio_losses",
        ("token_logp", "sampled", "advantage"),
        partial(formulas.clipped_ratio, clip_low=clip_low, clip_high=clip_high),
        {"clip_low": clip_low, "clip_high": clip_high},
    )


GATE = {"alpha": 0.4, "gate_bias": -10.0, "gate_temperature": 30.0}
KTO = {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.7}

CASES = [
    Case("dpo", "dpo.sigmoid_loss", PAIR, formulas.sigmoid, BETA),
    Case(
        "cdpo",
        "dpo.conservative_loss",
        PAIR,
        formulas.conservative,
        {**BETA, "label_smoothing": 0.1},
    ),
    # Its terms cancel where the loss crosses zero.
    Case("robust", "dpo.robust_loss", PAIR, formulas.robust, {**BETA, "flip_rate": 0.2}, floor=1),
    Case(
        "outlier_mixture",
        "dpo.outlier_mixture_loss",
        PAIR,
        formulas.outlier_mixture,
        {**BETA, "outlier_rate": 0.1},
    ),
    Case("soft_label", "dpo.soft_label_loss", (*PAIR, "probability"), formulas.soft_label, BETA),
    Case("ipo", "ipo.ipo_loss", PAIR, formulas.ipo, {"tau": 0.1}),
    Case("sppo", "ipo.sppo_loss", (*PAIR, "probability", "probability"), formulas.sppo, BETA),
    Case("hinge", "hinge.hinge_loss", PAIR, formulas.hinge, BETA),
    scores("reverse_kl", formulas.reverse_kl),
    scores("forward_kl", formulas.forward_kl),
    scores("js", formulas.jensen_shannon, floor=1.0),
    scores("alpha", formulas.alpha_divergence, alpha=0.3),
    f_dpo("reverse_kl", formulas.reverse_kl),
    f_dpo("forward_kl", formulas.forward_kl),
    f_dpo("js", formulas.jensen_shannon),
    f_dpo("alpha", formulas.alpha_divergence, alpha=0.3),
    Case(
        "plackett_luce",
        "ranking.plackett_luce_loss",
        ("group",),
        formulas.plackett_luce,
        BETA,
        floor=1,
        call=group_call,
    ),
    Case(
        "best_of_k",
        "ranking.best_of_k_loss",
        ("group",),
        formulas.best_of_k,
        BETA,
        floor=1,
        call=group_call,
    ),
    Case(
        "binary_cringe, token",
        "cringe.cringe_token_losses",
        ("logits", "logits"),
        formulas.cringe_token,
    ),
    Case(
        "binary_cringe",
        "cringe.binary_cringe_loss",
        ("logps", "kl"),
        formulas.binary_cringe,
        {"alpha": 0.4},
    ),
    Case(
        "pairwise_cringe",
        "cringe.pairwise_cringe_loss",
        ("logps", "logps", "kl"),
        formulas.pairwise_cringe,
        {**GATE, "gate_passes_gradient": True},
        floor=1,
    ),
    Case(
        "pairwise_cringe, gate without gradient",
        "cringe.pairwise_cringe_loss",
        ("logps", "logps", "kl"),
        formulas.pairwise_cringe,
        {**GATE, "gate_passes_gradient": False},
        gradient=formulas.pairwise_cringe_gradient,
    ),
    Case("tdpo1", "tdpo.tdpo1_loss", (*PAIR, "kl", "kl"), formulas.tdpo1, BETA),
    Case(
        "tdpo2",
        "tdpo.tdpo2_loss",
        (*PAIR, "kl", "kl"),
        formulas.tdpo2,
        {**BETA, "alpha": 0.5},
        stopped=(2,),
    ),
    Case(
        "simpo",
        "reference_free.simpo_loss",
        ("mean_logps", "mean_logps"),
        formulas.simpo,
        {"beta": 2.0, "gamma": 1.6},
    ),
    Case(
        "orpo",
        "reference_free.orpo_loss",
        ("mean_logps", "mean_logps"),
        formulas.orpo,
        {"odds_weight": 0.1},
    ),
    Case(
        "preferred_sft",
        "likelihood.preferred_sft_loss",
        ("logps",),
        formulas.preferred_sft,
    ),
    Case(
        "unlikelihood",
        "likelihood.unlikelihood_loss",
        ("logps", "logps"),
        formulas.unlikelihood,
        {"alpha": 0.3},
        floor=1,
    ),
    Case(
        "kto",
        "kto.kto_loss",
        ("logratio", "flags", "shift"),
        formulas.kto,
        KTO,
        floor=1e-3,
        call=kto_call,
    ),
    Case(
        "exo",
        "contrastive.exo_loss",
        PAIR,
        formulas.exo,
        {**BETA, "label_smoothing": 1e-3},
        floor=1,
    ),
    Case("nca", "contrastive.nca_loss", PAIR, formulas.nca, BETA),
    Case("bco", "contrastive.bco_loss", (*PAIR, "shift"), formulas.bco, BETA),
    Case("apo_zero", "apo.apo_zero_loss", PAIR, formulas.apo_zero, BETA, floor=1),
    Case("apo_down", "apo.apo_down_loss", PAIR, formulas.apo_down, BETA, floor=1),
    Case(
        "aot",
        "aot.matched_by_rank",
        ("batch", "batch"),
        formulas.aot,
        {**BETA, "label_smoothing": 0.1},
        call=matched_call,
    ),
    Case(
        "discopop",
        "discopop.discopop_loss",
        PAIR,
        formulas.discopop,
        {**BETA, "temperature": 0.05},
    ),
    Case("sft_weight", "anchors.sft_term", ("logps", "lengths"), formulas.sft),
    Case(
        "dpop",
        "anchors.dpop_loss",
        ("nonzero", "logratio"),
        formulas.dpop,
        {**BETA, "penalty": 5.0},
    ),
    Case("length: mean", "length.per_token_means", ("logps", "lengths"), formulas.mean),
    Case(
        "length: ld_alpha",
        "length.length_desensitized_sums",
        ("batch", "batch"),
        formulas.length_desensitized,
        {"alpha": 0.4},
        floor=1,
        call=desensitized_call,
    ),
    Case("reward_model", "reward_model.bradley_terry_loss", PAIR, formulas.bradley_terry),
    Case("reward_model, centering", "reward_model.centering_term", PAIR, formulas.centering),
    ppo("", 0.25, 0.5),
    ppo(", no limit below", None, 0.5),
    ppo(", no limit above", 0.25, None),
    ppo(", no limits", None, None),
    Case(
        "policy_gradient, kl",
        "policy_gradient.kl_estimates",
        ("token_logp", "token_logp"),
        formulas.kl_estimate,
        floor=1,
    ),
    advantages("leave_one_out", formulas.leave_one_out),
    advantages("group_normalized", formulas.group_normalized),
]
