"""Sections of the configuration, as YAML gives them: every objective, every option at two values.

`SECTIONS` maps a name, which says what is special in the section, to a mapping
`training.objective`.
"""

from __future__ import annotations

from typing import Any

Section = dict[str, Any]

SFT: dict[str, list[Any]] = {"sft_weight": [0.0, 0.6, 1.3]}
BETA: dict[str, list[Any]] = {"beta": [0.3, 0.8]}
LENGTH: dict[str, list[Any]] = {"length": ["sum", "mean", {"ld_alpha": 0.3}, {"ld_alpha": 0.7}]}
SCALED = LENGTH | BETA | SFT
CRINGE: dict[str, list[Any]] = {"alpha": [0.4, 1.7], "top_k": [4, 7], **SFT}

#: Of each objective every option and its values; the first are those that all the others are tried with.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "dpo": SCALED,
    "cdpo": {"label_smoothing": [0.2, 0.4], **SCALED},
    "robust": {"flip_rate": [0.2, 0.35], **SCALED},
    "outlier_mixture": {"outlier_rate": [0.2, 0.7], **SCALED},
    "soft_label": SCALED,
    "ipo": {"tau": [0.4, 0.15], **LENGTH, **SFT},
    "hinge": SCALED,
    "f_dpo": {"divergence": ["forward_kl", "reverse_kl", "js"], "alpha": [None], **SCALED},
    "dpop": {"penalty": [2.0, 7.0], **SCALED},
    "exo": {"label_smoothing": [0.1, 0.3], **SCALED},
    "nca": SCALED,
    "apo_zero": SCALED,
    "apo_down": SCALED,
    "sppo": {"win_rates": ["hard", "soft"], **SCALED},
    "discopop": {"temperature": [0.4, 0.8], **SCALED},
    "aot": {"alignment": ["paired", "unpaired"], "label_smoothing": [0.1, 0.3], **BETA, **SFT},
    "bco": {"reward_shift": ["batch_mean", "zero"], **BETA, **SFT},
    "plackett_luce": SCALED,
    "best_of_k": SCALED,
    "tdpo1": {**BETA, **SFT},
    "tdpo2": {"alpha": [0.5, 1.4], **BETA, **SFT},
    "binary_cringe": CRINGE,
    "pairwise_cringe": {
        "gate_bias": [1.0, -2.0],
        "gate_temperature": [3.0, 8.0],
        "gate_gradient": [False, True],
        **CRINGE,
    },
    "simpo": {"beta": [2.0, 0.7], "gamma": [0.5, 1.2], **SFT},
    "orpo": {"odds_weight": [0.4, 1.1], **SFT},
    "preferred_sft": {"length": ["sum", "mean"], **SFT},
    "unlikelihood": {"alpha": [0.5, 0.2], "length": ["sum", "mean"], **SFT},
    "kto": {"desirable_weight": [1.3, 0.6], "undesirable_weight": [0.8, 2.1], **BETA, **SFT},
    "reward_model": {
        "centering_weight": [0.0, 0.3],
        "learns_from": ["pairs", "rankings"],
        "sft_weight": [0.0],
    },
    "policy_gradient": {
        "beta": [0.3, 0.8, 0.0],
        "kl": ["reward", "loss", "weighted_loss"],
        "advantages": ["leave_one_out", "group_normalized", "batch_mean"],
        "clip_low": [0.1, 0.3, None],
        "clip_high": [0.2, 0.4, None],
        "loss_per": ["completion", "token", "completion_mean"],
        "sft_weight": [0.0],
    },
}


def base(name: str) -> Section:
    """The objective with the first value of every option."""
    return {"name": name} | {option: values[0] for option, values in OPTIONS[name].items()}


def _others(name: str) -> dict[str, Section]:
    """The same with one option at another value."""
    return {
        f"{name}, {option}: {value}": base(name) | {option: value}
        for option, values in OPTIONS[name].items()
        for value in values[1:]
    }


#: One option at another value needs a second one to go with it.
TOGETHER: dict[str, Section] = {
    **{
        f"f_dpo, alpha: {alpha}": base("f_dpo") | {"divergence": "alpha", "alpha": alpha}
        for alpha in (0.3, 0.8)
    },
    "aot, unpaired with label_smoothing: 0.3": base("aot")
    | {"alignment": "unpaired", "label_smoothing": 0.3},
    **{
        f"policy_gradient, kl: {kl} with beta: 0.8": base("policy_gradient")
        | {"kl": kl, "beta": 0.8}
        for kl in ("loss", "weighted_loss")
    },
    "policy_gradient, kl: loss with beta: 0": base("policy_gradient") | {"kl": "loss", "beta": 0.0},
    "policy_gradient, batch_mean without KL in the reward": base("policy_gradient")
    | {"advantages": "batch_mean", "kl": "weighted_loss"},
    "policy_gradient, batch_mean by token": base("policy_gradient")
    | {"advantages": "batch_mean", "loss_per": "token"},
    "policy_gradient, as GRPO": base("policy_gradient")
    | {"advantages": "group_normalized", "kl": "loss", "loss_per": "completion_mean"},
    "pairwise_cringe, gradient through another gate": base("pairwise_cringe")
    | {"gate_gradient": True, "gate_bias": -2.0, "gate_temperature": 8.0},
}


def _sum(*terms: tuple[float, Section]) -> Section:
    return {"name": "sum", "terms": [{"weight": w, "objective": s} for w, s in terms]}


SUMS: dict[str, Section] = {
    "sum of dpo and plackett_luce": _sum((2.0, base("dpo")), (0.5, base("plackett_luce"))),
    "sum of dpo and plackett_luce, other weights": _sum(
        (0.7, base("dpo")), (1.5, base("plackett_luce"))
    ),
    "sum of aot, bco and tdpo2": _sum(
        (1.0, base("aot")), (0.25, base("bco")), (3.0, base("tdpo2"))
    ),
    "sum of simpo with an anchor and of two Cringes": _sum(
        (1.0, base("simpo") | {"sft_weight": 0.4}),
        (0.5, base("binary_cringe") | {"top_k": 2}),
        (2.0, base("pairwise_cringe")),
    ),
    "sum of two weights of kto": _sum(
        (1.0, base("kto")), (0.5, base("kto") | {"undesirable_weight": 2.1})
    ),
}

#: What stands for `make_objective` where the stage is `sft`: it has no section `training.objective`.
FINE_TUNING: Section = {"name": "sft"}

#: Steps that sections are looked at in, where it is not the step `USUAL_STEP`.
USUAL_STEP = 1
STEPS = {
    "kto, where the policy is less likely than the reference": 0,
    "kto, without a bad completion": 2,
}

SECTIONS: dict[str, Section] = {
    **SUMS,
    "supervised fine-tuning": FINE_TUNING,
    **{name: base(name) for name in OPTIONS},
    **{key: section for name in OPTIONS for key, section in _others(name).items()},
    **TOGETHER,
    **{name: base("kto") for name in STEPS},
}
