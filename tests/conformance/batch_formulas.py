"""The papers' formulas over a whole global batch: loss, gradient by every token, metrics.

From the mapping of `training.objective`, as YAML gives it, and rows with the tables of their
tokens, the module computes what a train step must compute from them. It uses nothing of raydpo.

A batch is a weighted sum over units: pairs, rankings or judged completions. The inputs of a
unit's formula are weighted sums of numbers in the tables (log-ratios, means of log-probs). So its
gradient by tokens is the formula's derivative times those weights. What no gradient may reach
enters the formula as a plain number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpmath import mp

from tests.conformance import formulas
from tests.conformance.batch_units import Batch, Input, Number, Place, Section, Unit
from tests.conformance.preference_data import Row
from tests.conformance.sampled_formulas import sampled_units

#: Digits of the numbers here: far more than float32 has, few enough to be quick.
DIGITS = 40


@dataclass(frozen=True)
class Expected:
    """What a train step gives: metrics with the loss, and the gradient by every place.

    `request` is what it asks the model for: how many top logits, and whether the reference's KL.
    """

    metrics: dict[str, Number]
    gradient: dict[Place, Number]
    request: tuple[int, bool]


def expected(section: Section, batch: Batch) -> Expected:
    """Loss, gradient and metrics of an objective on the global batch."""
    with mp.workdps(DIGITS):
        if section["name"] == "sum":
            return _sum_of_terms(section, batch)
        units = list(UNITS[section["name"]](section, batch))
        loss = Expected(*_mean(units), _request(section))
        return _with_anchor(section, batch, units, loss)


def _sum_of_terms(section: Section, batch: Batch) -> Expected:
    """Each term is the mean over its own units; metrics are those of the first that has them."""
    metrics: dict[str, Number] = {}
    gradient: dict[Place, Number] = defaultdict(mp.mpf)
    loss = mp.mpf(0)
    for term in section["terms"]:
        weight = mp.mpf(term["weight"])
        found = expected(term["objective"], batch)
        loss += weight * found.metrics["loss"]
        for place, slope in found.gradient.items():
            gradient[place] += weight * slope
        named = {f"loss/{term['objective']['name']}": found.metrics["loss"], **found.metrics}
        metrics = named | metrics
    asked = [_request(term["objective"]) for term in section["terms"]]
    request = (max(top_k for top_k, _ in asked), any(kl for _, kl in asked))
    return Expected({**metrics, "loss": loss}, gradient, request)


def _request(section: Section) -> tuple[int, bool]:
    return section.get("top_k", 0), section["name"].startswith("tdpo")


def _mean(units: list[Unit]) -> tuple[dict[str, Number], dict[Place, Number]]:
    """Weighted means over the units: of loss and metrics, and of the gradient."""
    total = sum(unit.weight for unit in units)
    metrics: dict[str, Number] = defaultdict(mp.mpf)
    gradient: dict[Place, Number] = defaultdict(mp.mpf)
    for unit in units:
        share = unit.weight / total
        values = [one.value for one in unit.inputs]
        metrics["loss"] += share * unit.formula(*values)
        for name, value in unit.metrics.items():
            metrics[name] += share * value
        for number, one in enumerate(unit.inputs):
            slope = share * _derivative(unit.formula, values, number)
            for place, weight in one.weights.items():
                gradient[place] += slope * weight
    return metrics, gradient


def _derivative(formula: Callable[..., Number], values: list[Number], number: int) -> Number:
    """Central difference; its error is 1e-20 of the third derivative."""
    step = mp.mpf(10) ** -10
    up, down = (
        [*values[:number], values[number] + s, *values[number + 1 :]] for s in (step, -step)
    )
    return (formula(*up) - formula(*down)) / (2 * step)


def _with_anchor(section: Section, batch: Batch, units: list[Unit], mean: Expected) -> Expected:
    """Plus `sft_weight` times the cross-entropy per token of each unit's preferred completion."""
    factor = section.get("sft_weight", 0)
    if not factor:
        return mean
    anchors = [
        Unit(unit.weight, lambda _: mp.mpf(0), [Input(mp.mpf(0), {})], None, {})
        if unit.preferred is None
        else Unit(
            unit.weight,
            lambda m: -m,
            [batch.tokens("logps", *unit.preferred, "mean")],
            None,
            {},
        )
        for unit in units
    ]
    values, slopes = _mean(anchors)
    gradient = defaultdict(mp.mpf, mean.gradient)
    for place, slope in slopes.items():
        gradient[place] += mp.mpf(factor) * slope
    loss, nll = mean.metrics["loss"], values["loss"]
    metrics = {**mean.metrics, "loss": loss + mp.mpf(factor) * nll, "nll_loss": nll}
    return Expected(metrics, gradient, mean.request)


def _pairs(batch: Batch) -> Iterator[tuple[int, Row, Row]]:
    """Number of the group, its row, the pair."""
    for number, row in batch.rows.items():
        for pair in row["pairs"]:
            yield number, row, pair


def _sides(batch: Batch, row: Row, pair: Row, length: Any) -> tuple[Input, Input]:
    """Log-ratios of chosen and rejected."""
    numbers = (pair["chosen"], pair["rejected"])
    shared = min(len(row["completions"][number]) for number in numbers)
    chosen, rejected = (batch.logratio(row, number, length, shared) for number in numbers)
    return chosen, rejected


def _pair_unit(
    batch: Batch,
    row: Row,
    pair: Row,
    formula: Callable[..., Number],
    inputs: list[Input],
    rewards: tuple[Number, Number],
    **more: Number,
) -> Unit:
    """`rewards` are what the metrics call the rewards of chosen and of rejected."""
    margin = rewards[0] - rewards[1]
    metrics = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": margin,
        "rewards/accuracies": mp.mpf(margin > 0),
        **_pair_logps(batch, row, pair),
        **more,
    }
    return Unit(mp.mpf(pair["weight"]), formula, inputs, (row, pair["chosen"]), metrics)


def _pair_logps(batch: Batch, row: Row, pair: Row) -> dict[str, Number]:
    return {
        f"logps/{side}": batch.tokens("logps", row, pair[side]).value
        for side in ("chosen", "rejected")
    }


def _knobs(section: Section, *names: str) -> dict[str, Number]:
    return {name: mp.mpf(section[name]) for name in names}


def _logratio_units(
    formula: Callable[..., Number], scale: str, *names: str
) -> Callable[[Section, Batch], Iterator[Unit]]:
    """Units of a formula of two log-ratios whose options have the names of the section's."""

    def units(section: Section, batch: Batch) -> Iterator[Unit]:
        bound = partial(formula, **_knobs(section, *names))
        factor = mp.mpf(section[scale])
        for _, row, pair in _pairs(batch):
            sides = _sides(batch, row, pair, section["length"])
            rewards = (factor * sides[0].value, factor * sides[1].value)
            yield _pair_unit(batch, row, pair, bound, list(sides), rewards)

    return units


def _with_probability(
    formula: Callable[[Section, Number], Callable[..., Number]],
) -> Callable[[Section, Batch], Iterator[Unit]]:
    """Units of a formula that reads the probability that chosen wins."""

    def units(section: Section, batch: Batch) -> Iterator[Unit]:
        beta = mp.mpf(section["beta"])
        for _, row, pair in _pairs(batch):
            sides = _sides(batch, row, pair, section["length"])
            rewards = (beta * sides[0].value, beta * sides[1].value)
            bound = formula(section, mp.mpf(pair["probability"]))
            yield _pair_unit(batch, row, pair, bound, list(sides), rewards)

    return units


def _soft_label(section: Section, probability: Number) -> Callable[..., Number]:
    return lambda c, r: formulas.soft_label(c, r, probability, mp.mpf(section["beta"]))


def _sppo(section: Section, probability: Number) -> Callable[..., Number]:
    wins = probability if section["win_rates"] == "soft" else mp.mpf(1)
    return lambda c, r: formulas.sppo(c, r, wins, 1 - wins, mp.mpf(section["beta"]))


def _f_dpo(section: Section, _: Number) -> Callable[..., Number]:
    scores = {
        "reverse_kl": formulas.reverse_kl,
        "forward_kl": formulas.forward_kl,
        "js": formulas.jensen_shannon,
        "alpha": lambda h: formulas.alpha_divergence(h, mp.mpf(section["alpha"])),
    }[section["divergence"]]
    return lambda c, r: formulas.sigmoid(scores(c), scores(r), mp.mpf(section["beta"]))


def _tdpo(section: Section, batch: Batch) -> Iterator[Unit]:
    """The gradient of tdpo2 stops at the chosen completion's KL."""
    beta = mp.mpf(section["beta"])
    for _, row, pair in _pairs(batch):
        sides = _sides(batch, row, pair, "sum")
        kls = [batch.tokens("kl", row, pair[side]) for side in ("chosen", "rejected")]
        rewards = (beta * sides[0].value, beta * sides[1].value)
        more = {"kl/chosen": kls[0].value, "kl/rejected": kls[1].value}
        if section["name"] == "tdpo1":
            bound = partial(formulas.tdpo1, beta=beta)
            inputs = [*sides, *kls]
        else:
            bound = _tdpo2(kls[0].value, _knobs(section, "beta", "alpha"))
            inputs = [*sides, kls[1]]
        yield _pair_unit(batch, row, pair, bound, inputs, rewards, **more)


def _tdpo2(chosen_kl: Number, knobs: dict[str, Number]) -> Callable[..., Number]:
    return lambda c, r, k_r: formulas.tdpo2(c, r, chosen_kl, k_r, **knobs)


def _mean_logp_units(
    formula: Callable[..., Number], scale: str, *names: str
) -> Callable[[Section, Batch], Iterator[Unit]]:
    """Units of a formula of two means of log-probs."""

    def units(section: Section, batch: Batch) -> Iterator[Unit]:
        bound = partial(formula, **_knobs(section, *names))
        factor = mp.mpf(section[scale])
        for _, row, pair in _pairs(batch):
            sides = [
                batch.tokens("logps", row, pair[side], "mean") for side in ("chosen", "rejected")
            ]
            rewards = (factor * sides[0].value, factor * sides[1].value)
            yield _pair_unit(batch, row, pair, bound, sides, rewards)

    return units


def _likelihoods(section: Section, batch: Batch) -> Iterator[Unit]:
    """Units of a formula of two log-probs, of which Preferred-FT reads the first."""
    for _, row, pair in _pairs(batch):
        c, r = (
            batch.tokens("logps", row, pair[side], section["length"])
            for side in ("chosen", "rejected")
        )
        logps = _pair_logps(batch, row, pair)
        margin = logps["logps/chosen"] - logps["logps/rejected"]
        metrics = {**logps, "logps/margins": margin, "logps/accuracies": mp.mpf(margin > 0)}
        if section["name"] == "preferred_sft":
            bound, inputs = formulas.preferred_sft, [c]
        else:
            bound, inputs = partial(formulas.unlikelihood, **_knobs(section, "alpha")), [c, r]
        yield Unit(mp.mpf(pair["weight"]), bound, inputs, (row, pair["chosen"]), metrics)


def _bco(section: Section, batch: Batch) -> Iterator[Unit]:
    """The shift is the mean reward of chosen and rejected in the global batch, as a number."""
    beta = mp.mpf(section["beta"])
    found = [(row, pair, *_sides(batch, row, pair, "sum")) for _, row, pair in _pairs(batch)]
    shift = mp.mpf(0)
    if section["reward_shift"] == "batch_mean":
        weights = [mp.mpf(pair["weight"]) for _, pair, _, _ in found]
        rewards = [beta * (c.value + r.value) / 2 for _, _, c, r in found]
        shift = sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)
    for row, pair, c, r in found:
        bound = partial(_bco_formula, shift, beta)
        rewards = (beta * c.value, beta * r.value)
        yield _pair_unit(batch, row, pair, bound, [c, r], rewards, **{"rewards/shift": shift})


def _bco_formula(shift: Number, beta: Number, c: Number, r: Number) -> Number:
    return formulas.bco(c, r, shift, beta)


def _aot(section: Section, batch: Batch) -> Iterator[Unit]:
    """Smallest against smallest, over the whole global batch; a loss has its left side's weight."""
    knobs = _knobs(section, "beta", "label_smoothing")
    found = [(row, pair, *_sides(batch, row, pair, "sum")) for _, row, pair in _pairs(batch)]
    if section["alignment"] == "paired":
        left = [
            batch.tokens("logps", row, pair["chosen"])
            - batch.tokens("logps", row, pair["rejected"])
            for row, pair, _, _ in found
        ]
        right = [
            Input(
                batch.tokens("reference", row, pair["chosen"]).value
                - batch.tokens("reference", row, pair["rejected"]).value,
                {},
            )
            for row, pair, _, _ in found
        ]
    else:
        left, right = [c for _, _, c, _ in found], [r for _, _, _, r in found]
    in_order = sorted(right, key=lambda one: one.value)
    for place, number in enumerate(sorted(range(len(left)), key=lambda n: left[n].value)):
        row, pair, c, r = found[number]
        rewards = (knobs["beta"] * c.value, knobs["beta"] * r.value)
        bound = partial(formulas.conservative, **knobs)
        yield _pair_unit(batch, row, pair, bound, [left[number], in_order[place]], rewards)


def _rankings(section: Section, batch: Batch) -> Iterator[Unit]:
    """Beyond the shortest completion of the ranking tokens count `ld_alpha`."""
    formula = {"plackett_luce": formulas.plackett_luce, "best_of_k": formulas.best_of_k}
    beta = mp.mpf(section["beta"])
    for row in batch.rows.values():
        shared = min(len(row["completions"][number]) for number in row["ranking"])
        inputs = [
            batch.logratio(row, number, section["length"], shared) for number in row["ranking"]
        ]
        bound = partial(_of_list, formula[section["name"]], beta)
        rewards = [beta * one.value for one in inputs]
        yield _ranking_unit(batch, row, bound, inputs, rewards, with_logps=True)


def _of_list(formula: Callable[..., Number], beta: Number, *values: Number) -> Number:
    return formula(values, beta)


def _ranking_unit(
    batch: Batch,
    row: Row,
    formula: Callable[..., Number],
    inputs: list[Input],
    rewards: Sequence[Number],
    with_logps: bool,
) -> Unit:
    ranking = row["ranking"]
    in_order = [a > b for k, a in enumerate(rewards) for b in rewards[k + 1 :]]
    metrics = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[-1],
        "rewards/margins": rewards[0] - rewards[-1],
        "rewards/accuracies": mp.mpf(sum(in_order)) / len(in_order),
    }
    if with_logps:
        best_and_last = {"chosen": ranking[0], "rejected": ranking[-1]}
        metrics |= _pair_logps(batch, row, best_and_last)
    return Unit(mp.mpf(1), formula, inputs, (row, ranking[0]), metrics)


def _reward_model(section: Section, batch: Batch) -> Iterator[Unit]:
    """A completion's token values sum to its reward."""
    if section["learns_from"] == "rankings":
        for row in batch.rows.values():
            inputs = [batch.tokens("logps", row, number) for number in row["ranking"]]
            bound = partial(_of_list, formulas.plackett_luce, mp.mpf(1))
            rewards = [one.value for one in inputs]
            yield _ranking_unit(batch, row, bound, inputs, rewards, with_logps=False)
        return
    bound = partial(formulas.centered_bradley_terry, **_knobs(section, "centering_weight"))
    for _, row, pair in _pairs(batch):
        sides = [batch.tokens("logps", row, pair[side]) for side in ("chosen", "rejected")]
        unit = _pair_unit(batch, row, pair, bound, sides, (sides[0].value, sides[1].value))
        metrics = {name: v for name, v in unit.metrics.items() if name.startswith("rewards/")}
        yield Unit(unit.weight, unit.formula, unit.inputs, None, metrics)


def _kto(section: Section, batch: Batch) -> Iterator[Unit]:
    """z0 is of the mismatched completions of the whole global batch, as a number."""
    judged = [
        (row, number, judgement, batch.logratio(row, number, "sum", 0))
        for row in batch.rows.values()
        for number, judgement in enumerate(row["desirable"])
    ]
    mismatched = [h.value for _, _, judgement, h in judged if judgement is None]
    z0 = max(mp.mpf(0), sum(mismatched) / len(mismatched))
    judged = [one for one in judged if one[2] is not None]
    knobs = _knobs(section, "beta", "desirable_weight", "undesirable_weight")
    for row, number, judgement, h in judged:
        # The mean over all that are judged of a side's value is the mean over that side.
        share = mp.mpf(len(judged)) / sum(other[2] == judgement for other in judged)
        reward, logp = knobs["beta"] * h.value, batch.tokens("logps", row, number).value
        good, bad = share * judgement, share * (not judgement)
        metrics = {
            "rewards/chosen": good * reward,
            "rewards/rejected": bad * reward,
            "rewards/margins": (good - bad) * reward,
            "logps/chosen": good * logp,
            "logps/rejected": bad * logp,
            "kl": z0,
        }
        preferred = (row, number) if judgement else None
        bound = partial(_kto_formula, judgement, z0, knobs)
        yield Unit(mp.mpf(1), bound, [h], preferred, metrics)


def _kto_formula(desirable: bool, z0: Number, knobs: dict[str, Number], h: Number) -> Number:
    return formulas.kto(h, desirable, z0, **knobs)


def _fine_tuning(_: Section, batch: Batch) -> Iterator[Unit]:
    """Every token weighs the same, whatever completion it is in."""
    for row in batch.rows.values():
        for number, tokens in enumerate(row["completions"]):
            mean = batch.tokens("logps", row, number, "mean")
            yield Unit(mp.mpf(len(tokens)), lambda m: -m, [mean], None, {})


def _cringe(section: Section, batch: Batch) -> Iterator[Unit]:
    """Inputs: log-probs of chosen and rejected, then a target's and an alternative's logit by token."""
    for number, row, pair in _pairs(batch):
        sides = [batch.tokens("logps", row, pair[side]) for side in ("chosen", "rejected")]
        logits: list[Input] = []
        for place, token in enumerate(row["completions"][pair["rejected"]]):
            target = ("target_logits", token, 0)
            column = _drawn(section, batch, number, pair["rejected"], place, token)
            alternative = ("top_logits", token, column)
            logits += [Input(mp.mpf(batch.tables.target_logits[token]), {target: mp.mpf(1)})]
            value = mp.mpf(batch.tables.top_logits[token][column])
            logits += [Input(value, {alternative: mp.mpf(1)})]
        margin = sides[0].value - sides[1].value
        metrics = {
            **_pair_logps(batch, row, pair),
            "logps/margins": margin,
            "logps/accuracies": mp.mpf(margin > 0),
        }
        bound = partial(_cringe_formula, section, margin)
        preferred = (row, pair["chosen"])
        yield Unit(mp.mpf(pair["weight"]), bound, [*sides, *logits], preferred, metrics)


def _cringe_formula(
    section: Section, margin: Number, chosen: Number, rejected: Number, *logits: Number
) -> Number:
    contrast = sum(
        formulas.cringe_token(target, alternative)
        for target, alternative in zip(logits[::2], logits[1::2], strict=True)
    )
    binary = formulas.binary_cringe(chosen, contrast, mp.mpf(section["alpha"]))
    if section["name"] == "binary_cringe":
        return binary
    live = chosen - rejected if section["gate_gradient"] else margin
    knobs = _knobs(section, "gate_bias", "gate_temperature")
    return formulas.gate(live, mp.mpf(0), **knobs) * binary


def _drawn(
    section: Section, batch: Batch, group: int, completion: int, place: int, token: int
) -> int:
    """The column of the alternative: where the softmax over the top k passes the token's uniform."""
    weights = [mp.exp(logit) for logit in batch.tables.top_logits[token][: section["top_k"]]]
    uniform = token_uniform(batch.seed, batch.step, group, completion, place)
    shares = [sum(weights[: k + 1]) / sum(weights) for k in range(len(weights))]
    return next(k for k, share in enumerate(shares) if share > uniform)


def token_uniform(*parts: int) -> float:
    """In [0, 1): the finalizer of SplitMix64 (Steele, Lea and Flood 2014) over the parts in turn."""
    key = 0
    for part in parts:
        key = ((key ^ part) + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return (key >> 40) / 2**24


UNITS: dict[str, Callable[[Section, Batch], Iterator[Unit]]] = {
    "dpo": _logratio_units(formulas.sigmoid, "beta", "beta"),
    "cdpo": _logratio_units(formulas.conservative, "beta", "beta", "label_smoothing"),
    "robust": _logratio_units(formulas.robust, "beta", "beta", "flip_rate"),
    "outlier_mixture": _logratio_units(formulas.outlier_mixture, "beta", "beta", "outlier_rate"),
    "soft_label": _with_probability(_soft_label),
    "ipo": _logratio_units(formulas.ipo, "tau", "tau"),
    "hinge": _logratio_units(formulas.hinge, "beta", "beta"),
    "f_dpo": _with_probability(_f_dpo),
    "dpop": _logratio_units(formulas.dpop, "beta", "beta", "penalty"),
    "exo": _logratio_units(formulas.exo, "beta", "beta", "label_smoothing"),
    "nca": _logratio_units(formulas.nca, "beta", "beta"),
    "apo_zero": _logratio_units(formulas.apo_zero, "beta", "beta"),
    "apo_down": _logratio_units(formulas.apo_down, "beta", "beta"),
    "sppo": _with_probability(_sppo),
    "discopop": _logratio_units(formulas.discopop, "beta", "beta", "temperature"),
    "aot": _aot,
    "bco": _bco,
    "plackett_luce": _rankings,
    "best_of_k": _rankings,
    "tdpo1": _tdpo,
    "tdpo2": _tdpo,
    "binary_cringe": _cringe,
    "pairwise_cringe": _cringe,
    "simpo": _mean_logp_units(formulas.simpo, "beta", "beta", "gamma"),
    "orpo": _mean_logp_units(formulas.orpo, "odds_weight", "odds_weight"),
    "preferred_sft": _likelihoods,
    "unlikelihood": _likelihoods,
    "kto": _kto,
    "reward_model": _reward_model,
    "policy_gradient": sampled_units,
    "sft": _fine_tuning,
}
