"""Write metrics.json, plots/ and report.html from the evaluation's finished tables.

The module also returns the content of metrics.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config, EvaluationConfig, ModelConfig
from raydpo.core.parts import Table
from raydpo.core.run import read_quarantine
from raydpo.core.storage import Folder
from raydpo.evaluation import plots
from raydpo.evaluation.best_of import measure_best_of
from raydpo.evaluation.best_of_page import BEST_OF_CAPTION, ReferencePage, render_reference
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import are_shares, best_of_values, measure, measure_reference
from raydpo.evaluation.report import Figure, ReportInputs, choose_samples, most_changed, render
from raydpo.evaluation.samples import (
    HeldoutJudgements,
    HeldoutPairs,
    Sample,
    collect_heldout,
    collect_logps,
    collect_samples,
    mean_scores,
)
from raydpo.evaluation.slices import measure_slices
from raydpo.evaluation.steps import BestOfTables
from raydpo.evaluation.training_rewards import (
    LabelRewards,
    describe_labels,
    reward_unit,
    training_reward,
)
from raydpo.models.loading import weights_fingerprint
from raydpo.reference.agreement import Agreement, agreement_in

Json = dict[str, Any]

_LABELS_CAPTION: Final = (
    "What the labels were made of: the rewards of the completions in the table of preferences, and "
    "the margin of each pair, the reward of chosen minus that of rejected; lines mark the means."
)


@dataclass(frozen=True)
class Tables:
    """The tables of the sub-folders, named like the folders."""

    reference_samples: Table
    policy_samples: Table
    reference_scores: Table
    policy_scores: Table
    reference_rewards: Table | None
    policy_rewards: Table | None
    policy_groups: Table
    kl_policy: Table
    kl_reference: Table
    heldout: Table | None
    heldout_policy: Table | None
    heldout_reference: Table | None
    best_of: dict[str, BestOfTables]

    def own(self) -> dict[str, Table]:
        """Return the tables that this stage made, in the order in which it made them."""
        apart = ("heldout", "best_of")
        found = {n: t for n, t in vars(self).items() if t is not None and n not in apart}
        return {**found, **_flat(self.best_of)}


def _flat(best_of: dict[str, BestOfTables]) -> dict[str, Table]:
    """Return the tables of Best-of-N, named like their folders."""
    return {
        f"best_of_{model}_{kind}": table
        for model, tables in best_of.items()
        for kind, table in vars(tables).items()
    }


def write_report(
    config: Config,
    evaluation: EvaluationConfig,
    folder: Folder,
    tables: Tables,
    models: dict[str, ModelConfig],
    training_log: list[Json],
    stage_counts: dict[str, dict[str, int]],
    agreement: Agreement | None,
    labels: LabelRewards | None,
    columns: dict[str, dict[str, str]],
) -> Json:
    """Measure, draw, and write metrics.json, plots/ and report.html.

    `columns` has labels of the prompts to slice by.

    Returns the numbers alone, by whose content the stage is known; the words are made of them.
    """
    reference = collect_samples(tables.reference_samples, tables.reference_scores, evaluation.judge)
    policy = collect_samples(tables.policy_samples, tables.policy_scores, evaluation.judge)
    logps = collect_logps(tables.policy_groups, tables.kl_policy, tables.kl_reference)
    pairs, judged = _heldout(tables)
    metrics = {
        **measure(config, evaluation, reference, policy, logps, pairs, judged),
        "training_reward": training_reward(config, *_rewarded(config, tables)),
        "labels": describe_labels(labels),
        **_best_of(config, evaluation, tables.best_of, reference),
        "slices": measure_slices(reference, policy, logps, columns, are_shares(evaluation.judge)),
    }
    agreements = {
        "training samples": agreement,
        "policy samples": agreement_in(tables.kl_policy.manifest),
    }
    figures = draw_figures(config, metrics, reference, policy, training_log, labels)
    counts = {name: table.manifest["counts"] for name, table in tables.own().items()}
    all_counts = {**stage_counts, **counts}
    judgement = examine(metrics, reference, policy, all_counts)
    regressions, gains = most_changed(reference, policy)
    page = render(
        ReportInputs(
            title=config.name,
            metrics={**metrics, **judgement},
            figures=figures,
            samples=choose_samples(reference, policy, evaluation.report_samples),
            regressions=regressions,
            gains=gains,
            counts=all_counts,
            refusals=_refusals(tables.own()),
            facts=[*_facts(config, evaluation, models), *_agreement_facts(agreements)],
            config_yaml=config_to_yaml(config),
        )
    )
    apart = {name: found and found.as_json() for name, found in agreements.items()}
    more = {**judgement, "sampler_difference": apart, "counts": counts}
    folder.write_json("metrics.json", {**metrics, **more})
    folder.child("plots").delete()
    for figure in figures:
        folder.write_bytes(f"plots/{figure.name}.png", figure.png)
    folder.write_bytes("report.html", page.encode("utf-8", "replace"))
    return metrics


def write_reference_report(
    config: Config,
    evaluation: EvaluationConfig,
    folder: Folder,
    reference_tables: tuple[Table, Table],
    best_of: dict[str, BestOfTables],
    models: dict[str, ModelConfig],
) -> Json:
    """Write metrics.json, plots/ and report.html of Best-of-N without a policy.

    `reference_tables` are the reference's samples and their judge scores, which Best-of-N meets;
    `best_of` has, by model, the samples that are chosen from. Returns the numbers alone, as
    `write_report`.
    """
    reference = collect_samples(*reference_tables, evaluation.judge)
    metrics = measure_reference(config, evaluation, reference)
    metrics |= _best_of(config, evaluation, best_of, reference)
    figures = best_of_figures(metrics)
    own = {"reference_samples": reference_tables[0], "reference_scores": reference_tables[1]}
    own |= _flat(best_of)
    counts = {name: table.manifest["counts"] for name, table in own.items()}
    page = render_reference(
        ReferencePage(
            title=config.name,
            metrics=metrics,
            figures=figures,
            counts=counts,
            refusals=_refusals(own),
            facts=_facts(config, evaluation, models),
            config_yaml=config_to_yaml(config),
        )
    )
    folder.write_json("metrics.json", {**metrics, "counts": counts})
    folder.child("plots").delete()
    for figure in figures:
        folder.write_bytes(f"plots/{figure.name}.png", figure.png)
    folder.write_bytes("report.html", page.encode("utf-8", "replace"))
    return metrics


def _best_of(
    config: Config,
    evaluation: EvaluationConfig,
    tables: dict[str, BestOfTables],
    reference: list[Sample],
) -> Json:
    """Return the part of metrics.json that Best-of-N fills; nothing if the job does not ask."""
    if evaluation.best_of is None or config.labeling is None:
        return {}
    rewards = config.labeling.reward
    shares = are_shares(evaluation.judge)
    found: Json = {}
    for model, of_model in tables.items():
        samples = collect_samples(of_model.samples, of_model.scores, evaluation.judge)
        chosen_by = {
            (sample.prompt_id, sample.candidate): sample.score
            for sample in collect_samples(
                of_model.samples, of_model.rewards, rewards, config.labeling.combine
            )
        }
        found[model] = measure_best_of(samples, chosen_by, reference, evaluation.best_of.n, shares)
    return {"best_of": best_of_values(config, evaluation, rewards, found)}


def best_of_figures(metrics: Json) -> list[Figure]:
    """Draw judge score against KL of the reference's Best-of-N, one figure or none.

    The KL of a policy's Best-of-N is from the policy, and has no place on this axis.
    """
    rows = metrics.get("best_of", {}).get("models", {}).get("reference")
    if rows is None:
        return []
    policy, kl = metrics.get("policy"), metrics.get("kl")
    png = plots.best_of_against_kl(
        rows,
        policy and policy["score"],
        kl and kl["nats_per_completion"],
        metrics["judge"]["unit"],
    )
    return [Figure("best_of", png, BEST_OF_CAPTION)]


def _heldout(tables: Tables) -> tuple[HeldoutPairs | None, HeldoutJudgements | None]:
    """Return both models' results on held-out groups; None without such groups."""
    if not (tables.heldout and tables.heldout_policy and tables.heldout_reference):
        return None, None
    return collect_heldout(tables.heldout, tables.heldout_policy, tables.heldout_reference)


def _rewarded(config: Config, tables: Tables) -> Iterator[list[Sample] | None]:
    """Yield the samples of the reference and of the policy with their training rewards.

    Rewards that are judges, too, have their values in the judges' tables.
    """
    scored = (
        (tables.reference_samples, tables.reference_rewards or tables.reference_scores),
        (tables.policy_samples, tables.policy_rewards or tables.policy_scores),
    )
    rewards = config.rewards_evaluated
    for samples, values in scored:
        combine = config.combine_evaluated
        yield collect_samples(samples, values, rewards, combine) if rewards else None


def draw_figures(
    config: Config,
    metrics: Json,
    reference: list[Sample],
    policy: list[Sample],
    training_log: list[Json],
    labels: LabelRewards | None = None,
) -> list[Figure]:
    """Draw the report's figures, in the order of the page."""
    unit = metrics["judge"]["unit"]
    curves = plots.training_curves(training_log)
    scores = plots.score_distributions(
        [s.score for s in reference], [s.score for s in policy], unit
    )
    kl = plots.score_against_kl(
        metrics["reference"]["score"],
        metrics["policy"]["score"],
        metrics["kl"]["nats_per_completion"],
        unit,
    )
    lengths = plots.lengths(
        [len(s.completion_ids) for s in reference],
        [len(s.completion_ids) for s in policy],
        config.sampling.max_completion_tokens,
    )
    by_prompt = plots.scores_by_prompt(*mean_scores(reference, policy), unit)
    training = [Figure("training", curves, "Training, step by step.", wide=True)] if curves else []
    training += heldout_figures(training_log)
    if labels is not None and config.labeling is not None:
        unit = reward_unit(config.labeling.reward, config.labeling.combine)
        png = plots.label_rewards(labels.rewards, labels.margins, unit)
        training.append(Figure("labels", png, _LABELS_CAPTION, wide=True))
    training += best_of_figures(metrics)
    return [
        Figure("scores", scores, "Judge scores of all completions; lines mark the means."),
        Figure("score_against_kl", kl, "What was gained, against how far the policy moved; bars are 95 % confidence intervals."),
        Figure("scores_by_prompt", by_prompt, "Each dot is a prompt; above the line the policy does better."),
        Figure("lengths", lengths, "Lengths of all completions, EOS included; lines mark the means."),
        *training,
    ]  # fmt: skip


def heldout_figures(rows: list[Json], exported: int | None = None) -> list[Figure]:
    """Draw the curves on held-out data, one figure or none; arguments as in `heldout_curves`."""
    curves = plots.heldout_curves(rows, exported)
    caption = "Training batches and held-out data, step by step."
    return [Figure("heldout", curves, caption, wide=True)] if curves else []


def _agreement_facts(agreements: dict[str, Agreement | None]) -> list[tuple[str, str]]:
    return [
        (f"sampler against trainer, {name}", str(found))
        for name, found in agreements.items()
        if found is not None
    ]


def _refusals(tables: dict[str, Table]) -> list[tuple[str, str, int]]:
    reasons = Counter(
        (name, row["reason"])
        for name, table in tables.items()
        for row in read_quarantine(table.folder, table.manifest)
    )
    return [(name, reason, rows) for (name, reason), rows in reasons.items()]


def _facts(
    config: Config, evaluation: EvaluationConfig, models: dict[str, ModelConfig]
) -> list[tuple[str, str]]:
    described = [
        (f"{name} model", f"{model.path} (weights {weights_fingerprint(model)[:12]})")
        for name, model in models.items()
    ]
    sampling = config.sampling
    return [
        *described,
        ("judge", ", ".join(j.source for j in evaluation.judge)),
        ("held-out prompts", evaluation.prompts.where),
        (
            "sampling",
            f"{evaluation.samples_per_prompt} completions a prompt, temperature "
            f"{evaluation.temperature:g}, top_p {sampling.top_p:g}, at most "
            f"{sampling.max_completion_tokens} tokens, the same seeds for both models",
        ),
        ("seed", str(config.seed)),
    ]
