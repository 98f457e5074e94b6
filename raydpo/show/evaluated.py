"""Read a run's finished evaluation, for `raydpo compare`.

The policy is that of the last round that was evaluated: of `raydpo run` by its report, of
`raydpo online` by the numbers after that round. Everything is read from tables whose content is
compared with its hashes. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from raydpo.config.content import content_of
from raydpo.config.job import Config, EvaluationConfig
from raydpo.core.differences import changes
from raydpo.core.errors import RunError
from raydpo.core.parts import Table
from raydpo.core.run import read_manifest, read_rows, round_folder
from raydpo.core.storage import Folder
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.evaluation.comparable import EvaluatedRun
from raydpo.evaluation.measure import are_shares, score_unit
from raydpo.evaluation.metrics import sequence_logratios
from raydpo.evaluation.samples import Sample, collect_logps, collect_samples
from raydpo.pipeline.results import Run, open_run
from raydpo.training.metrics_log import read_metrics

Json = dict[str, Any]
_Kl = tuple[list[str], list[float]]

#: The table of a round's evaluation by `raydpo online` that is finished last.
_LAST_OF_ROUND: Final = "original-logps"
#: Inputs of samples that have names of their own, or that differ between any two policies.
_NAMED_INPUTS: Final = ("prompts", "tokenizer", "policy")
#: Settings of samples that change no distribution: the draws themselves, and room for prompts.
_OF_NO_ACCOUNT: Final = ("seed", "round", "longest_prompt_tokens", "candidates")


def read_evaluated(paths: Sequence[str]) -> list[EvaluatedRun]:
    """Read runs by their paths or URIs, with labels that differ.

    Raises:
        RunError: a path is no run, or no round of it has a finished evaluation that is of its
            policy and of its job.
        DataError: a file is damaged.
    """
    runs = [open_run(path) for path in paths]
    names = [run.config.name for run in runs]
    return [
        _read(run, label, _last_evaluated(run))
        for run, label in zip(runs, _labels(names), strict=True)
    ]


def read_evaluated_round(path: str, round_index: int, label: str) -> EvaluatedRun:
    """Read one evaluated round of a run, which need not be its last; errors as `read_evaluated`."""
    return _read(open_run(path), label, round_index)


def _labels(names: list[str]) -> Iterator[str]:
    """Yield each name; a name that was given before gets a number."""
    given: set[str] = set()
    for name in names:
        label, number = name, 1
        while label in given:
            number += 1
            label = f"{name} ({number})"
        given.add(label)
        yield label


def _read(run: Run, label: str, index: int) -> EvaluatedRun:
    config = run.config
    folder = round_folder(run.folder, index).child("evaluation")
    online = read_manifest(folder) is None
    evaluation = _section(config, run.folder, folder)
    _refuse_without_policy(config, folder)
    refuse_other_policy(folder, online, round_folder(run.folder, index).child("policy"))
    original = run.folder.child("original") if online else folder
    ours, theirs = ("", "") if online else ("policy_", "reference_")
    samples, scores = _table(folder, f"{ours}samples"), _table(folder, f"{ours}scores")
    _refuse_other_judges(evaluation, folder, scores)
    _refuse_later_job(config, evaluation, folder, samples)
    reference = _table(original, f"{theirs}samples"), _table(original, f"{theirs}scores")
    kl_prompts, kl_nats = _online_kl(folder, samples) if online else _kl(folder)
    measured_from = _table(folder, _LAST_OF_ROUND if online else "kl_reference")
    return EvaluatedRun(
        label=label,
        run=run.folder.uri,
        round_index=index,
        online=online,
        policy=_judged(samples, scores, evaluation),
        reference=_judged(*reference, evaluation),
        kl_prompts=kl_prompts,
        kl_nats=kl_nats,
        kl_not_exact_because=sampling_caveats(evaluation, config.sampling),
        judge=_judge(evaluation, scores),
        evaluated_with=_evaluated_with(samples, measured_from),
        shares=are_shares(evaluation.judge),
        unit=score_unit(evaluation.judge),
        beta=_beta(config),
        settings=_dotted(config.model_dump(mode="json")),
        training=_training(run, index, online),
    )


def _last_evaluated(run: Run) -> int:
    """Return the last round with a finished evaluation.

    Raises:
        RunError: none has one.
    """
    for index in reversed(run.rounds):
        folder = round_folder(run.folder, index).child("evaluation")
        if any(read_manifest(f) is not None for f in (folder, folder.child(_LAST_OF_ROUND))):
            return index
    raise RunError(
        f"{run.folder.uri} has no finished evaluation; it has rounds {run.rounds}",
        "a comparison reads the samples and scores of finished evaluations; runs of `raydpo sft`, "
        "`raydpo score` and of reward models sample nothing",
        "give the run's command again with an `evaluation` section, and wait for its end",
    )


def _section(config: Config, run: Folder, folder: Folder) -> EvaluationConfig:
    if config.evaluation is None:
        raise RunError(
            f"{run.uri}/config.yaml has no `evaluation` section, and {folder.uri} is there",
            "the job of a run's last command says how its samples were judged",
            "give the command again whose job has the section",
        )
    return config.evaluation


def _table(folder: Folder, name: str) -> Table:
    manifest = read_manifest(folder.child(name))
    if manifest is None:
        raise RunError(
            f"{folder.uri}/{name} is not there, or not finished",
            "a comparison reads it of each run",
            "give the command of the run again: it makes what is missing",
        )
    return Table(folder.child(name), manifest)


def _refuse_without_policy(config: Config, folder: Folder) -> None:
    if config.evaluates_reference_alone:
        raise RunError(
            f"{folder.uri} is of a job without `training`: it measured Best-of-N of the reference",
            "a comparison puts policies side by side",
            "read its report, or give runs that trained a policy",
        )


def refuse_other_policy(folder: Folder, online: bool, policy: Folder) -> None:
    """Raise if the round's policy was trained again after it was evaluated, or is being trained."""
    trained = read_manifest(policy)
    if trained is None and policy.exists():
        raise RunError(
            f"{policy.uri} is not finished, and {folder.uri} is of an earlier policy",
            "the evaluation of a run is that of its policy",
            "give the command of the run again, and wait for its end",
        )
    found = read_manifest(folder.child("samples") if online else folder)
    evaluated = (found or {}).get("inputs", {}).get("policy" if online else "policy_weights")
    if trained is not None and evaluated is not None and evaluated != trained["fingerprint"]:
        raise RunError(
            f"{folder.uri} is of the policy {evaluated[:12]}, and {policy.uri} is now "
            f"{trained['fingerprint'][:12]}",
            "the evaluation of a run is that of its policy",
            "give the command of the run again: it evaluates the new policy",
        )


def _refuse_other_judges(evaluation: EvaluationConfig, folder: Folder, scores: Table) -> None:
    """Raise if config.yaml is of a later command with another judge than the evaluation's."""
    manifest = read_manifest(folder)
    names = {scorer["name"] for scorer in scores.manifest["settings"]["scorers"]}
    expected = {judge.scorer: judge.weight for judge in evaluation.judge}
    found = {j["name"]: j["weight"] for j in manifest["settings"]["judges"]} if manifest else None
    if names != expected.keys() or (found is not None and found != expected):
        raise RunError(
            f"{folder.uri} was judged by {found or sorted(names)}, and config.yaml has {expected}",
            "the job of a run's last command says how its samples were judged",
            "give the command of the run again: it evaluates with the judge of its job",
        )


def _refuse_later_job(
    config: Config, evaluation: EvaluationConfig, folder: Folder, samples: Table
) -> None:
    """Raise if config.yaml is of a later command that samples otherwise, or has another beta."""
    sampling = evaluation.sampling(config.sampling)
    wanted = content_of(sampling) | sampling.later_content
    wanted["candidates"] = evaluation.samples_per_prompt
    found = {name: samples.manifest["settings"].get(name) for name in wanted}
    if (manifest := read_manifest(folder)) is not None:
        wanted["beta"], found["beta"] = _beta(config), manifest["settings"]["beta"]
    if differ := changes(found, wanted):
        raise RunError(
            f"{folder.uri} was made by another job than {folder.uri.partition('/round-')[0]}/"
            f"config.yaml, which is of a later command: {', '.join(differ)}",
            "a comparison names the settings of the job that made the policy and its samples",
            "give the command of the run again: it does again what is stale",
        )


def _beta(config: Config) -> float | None:
    return config.training.objective.kl_beta if config.training else None


def _judged(samples: Table, scores: Table, evaluation: EvaluationConfig) -> list[Sample]:
    return collect_samples(samples, scores, evaluation.judge)


def _judge(evaluation: EvaluationConfig, scores: Table) -> Json:
    """Return all that a score depends on: scorers with their settings, content and weights."""
    inputs = {k: v for k, v in scores.manifest["inputs"].items() if k != "candidates"}
    return {
        "scorers": scores.manifest["settings"]["scorers"],
        "weights": {judge.scorer: judge.weight for judge in evaluation.judge},
        **inputs,
    }


def _evaluated_with(samples: Table, measured_from: Table) -> Json:
    """Return what else samples and KL depend on, by name."""
    inputs, settings = samples.manifest["inputs"], samples.manifest["settings"]
    return {
        "prompts": inputs["prompts"],
        "reference weights": measured_from.manifest["inputs"]["model"],
        "tokenizer": inputs["tokenizer"],
        "samples_per_prompt": settings["candidates"],
        **{k: v for k, v in inputs.items() if k not in _NAMED_INPUTS},
        **{k: v for k, v in settings.items() if k not in _OF_NO_ACCOUNT},
    }


def _kl(folder: Folder) -> _Kl:
    """Return the log-ratio of each sample in the report of `raydpo run`, in nats."""
    names = ("policy_groups", "kl_policy", "kl_reference")
    logps = collect_logps(*(_table(folder, name) for name in names))
    return logps.prompts, sequence_logratios(logps.policy, logps.reference)


def _online_kl(folder: Folder, samples: Table) -> _Kl:
    """Return the same of a round, whose engines gave the policy's log-probs with the samples."""
    own = folder.child("policy-logps")
    if read_manifest(own) is not None:  # a sampler function gave none, so the policy scored them
        policy = _logps_by_prompt(_table(folder, "policy-logps"))
    else:
        policy: dict[str, list[list[float]]] = {}
        for row in read_rows(samples.folder, samples.manifest):
            policy.setdefault(row["prompt_id"], []).append(row["sampler_token_logps"])
    original = _logps_by_prompt(_table(folder, _LAST_OF_ROUND))
    prompts: list[str] = []
    nats: list[float] = []
    for prompt, theirs in original.items():
        prompts += [prompt] * len(theirs)
        nats += sequence_logratios(policy[prompt], theirs)
    return prompts, nats


def _logps_by_prompt(table: Table) -> dict[str, list[list[float]]]:
    """Return log-probs by prompt: a group of samples has the id of its prompt."""
    rows = read_rows(table.folder, table.manifest)
    return {row["group_id"]: row["reference_token_logps"] for row in rows}


def _training(run: Run, index: int, online: bool) -> list[Json]:
    """Return the metrics of each training step; steps of later rounds go on counting."""
    rows: list[Json] = []
    for number in range(index + 1) if online else (index,):
        done = rows[-1]["step"] if rows else 0
        policy = round_folder(run.folder, number).child("policy")
        rows += [{**row, "step": done + row["step"]} for row in read_metrics(policy)]
    return rows


def _dotted(value: Json, prefix: str = "") -> Json:
    """Flatten sections into dotted keys; lists stay values."""
    found: Json = {}
    for name, item in value.items():
        if isinstance(item, dict) and item:
            found |= _dotted(item, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            found[prefix + name] = item
    return found
