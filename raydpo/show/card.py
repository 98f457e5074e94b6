"""Write the model card of a published model: front matter that the hub reads, and text for people.

Everything in it is from the run's manifests and reports. What the run did not measure is said under
`Limits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCardData

from raydpo.config.job import Config, RewardConfig, SftConfig, TrainingConfig
from raydpo.config.objectives import SumObjective, single_objectives
from raydpo.evaluation.report import number
from raydpo.labeling.kept_votes import is_of_people
from raydpo.show.card_numbers import Number, numbers_of
from raydpo.show.public_config import is_private, public_name
from raydpo.show.trained import Kind, TrainedModel

Json = dict[str, Any]

_TASKS: Final[dict[Kind, str]] = {"reward model": "text-classification"}
_TEMPLATE: Final = "card.md.j2"
#: Characters of a fingerprint that the card shows.
_SHORT: Final = 16
#: What the numbers beside the model's are of, where it is not the reference.
_BEFORE: Final = {"training report": "before training", "rounds": "original model"}
_HARNESS_URL: Final = "https://github.com/EleutherAI/lm-evaluation-harness"
_DPO_PAPER: Final = "2305.18290"
_NO_LICENCE: Final = (
    "No licence was stated when this model was published. Without one, nobody but its owner may "
    "use it; the licences of the base model and of the data hold in any case."
)
_USAGE: Final[dict[Kind, str]] = {
    "policy": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")""",
    "adapter": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")""",
    "reward model": """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{here}")  # one logit: the reward
tokenizer = AutoTokenizer.from_pretrained("{here}")""",
}


@dataclass(frozen=True)
class CardOptions:
    """What a run does not know of the model that it trained.

    Attributes:
        license: an id of the hub's list of licences, such as apache-2.0.
        base_model: the name on the hub of the model that training started from.
        repository: where the model is published, `owner/name`; None in a folder alone.
    """

    license: str | None = None
    base_model: str | None = None
    repository: str | None = None


def base_name(model: TrainedModel, options: CardOptions) -> str | None:
    """Return the base model's name on the hub, or None if it has none that is known."""
    path = model.config.model.path
    return options.base_model or (None if is_private(path) else path)


def model_card(model: TrainedModel, options: CardOptions) -> str:
    """Return the content of README.md."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown, whose values are in code spans
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = resources.files("raydpo.show").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(_values(model, options))


def _values(model: TrainedModel, options: CardOptions) -> Json:
    """Return what the template reads."""
    measured, numbers = model.measured, numbers_of(model)
    objective, parts = _objective(model)
    here = options.repository or "PATH-OF-THIS-FOLDER"
    usage = _USAGE.get(model.kind, _USAGE["policy"])
    return {
        "metadata": _metadata(model, options, numbers).to_yaml(),
        "name": model.config.name,
        "summary": _summary(model, options),
        "verdict": measured.numbers.get("verdict"),
        "objections": _objections(model),
        "before": _BEFORE.get(measured.source, "reference"),
        "numbers": [_row(number) for number in numbers],
        "measured_how": _measured_how(model),
        "figures": sorted(measured.figures),
        "sources": [*_sources(model.config, model)],
        "stages": [*_stage_rows(model)],
        "objective": objective,
        "options": parts,
        "training": [*_training_rows(model)],
        "limits": [*_limits(model)],
        "usage": usage.format(here=here, base=base_name(model, options)),
        "command": _command(model),
        "fingerprint": model.manifest["fingerprint"],
        "base_fingerprint": model.manifest["inputs"]["model"],
        "also": _also_cite(objective),
        "platform": [*model.manifest.get("platform", {}).items()],
        "licence": (options.license and f"`{options.license}`") or _NO_LICENCE,
    }


def _metadata(model: TrainedModel, options: CardOptions, numbers: list[Number]) -> ModelCardData:
    """Return the front matter; keys without a value are left out."""
    base = base_name(model, options)
    relation = "adapter" if model.kind == "adapter" else "finetune"
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=_hub_datasets(model) or None,
        license=options.license,
        library_name="peft" if model.kind == "adapter" else "transformers",
        pipeline_tag=_task(model),
        tags=_tags(model),
        model_name=model.config.name,
        eval_results=[_result(model, number) for number in numbers] or None,
    )


def _result(model: TrainedModel, found: Number) -> EvalResult:
    return EvalResult(
        task_type=_task(model),
        dataset_type=found.data.type,
        dataset_name=found.data.name,
        dataset_split=found.data.split,
        metric_type=found.type,
        metric_name=found.name,
        metric_value=found.value,
        source_name=found.program,
        source_url=_HARNESS_URL if found.program else None,
    )


def _task(model: TrainedModel) -> str:
    return _TASKS.get(model.kind, "text-generation")


def _tags(model: TrainedModel) -> list[str]:
    section = model.section
    tags = ["raydpo"]
    if isinstance(section, TrainingConfig):
        tags += ["preference-optimization", *_names(section)]
    else:
        tags.append("sft")
    tags += ["lora"] if section.lora is not None else []
    return [*tags, "online"] if _is_online(model) else tags


def _names(section: TrainingConfig) -> list[str]:
    """Return the names of the objectives, each once, in order."""
    return list(dict.fromkeys(one.name for one in single_objectives(section.objective)))


def _is_online(model: TrainedModel) -> bool:
    return model.config.online is not None and model.round_index is not None


def _hub_datasets(model: TrainedModel) -> list[str]:
    """Return the names on the hub of the data that the model was trained on."""
    paths = [path for _, path, _ in _data(model.config, model)]
    return list(dict.fromkeys(path for path in paths if not is_private(path)))


def _data(config: Config, model: TrainedModel) -> Iterator[tuple[str, str, str]]:
    """Yield what each source is for, its path and its split."""
    if model.round_index is None or (config.online is not None and config.prompts is None):
        sections = {"examples": config.sft}
    else:
        sections = {"prompts": config.prompts, "preferences": config.preferences}
    for what, section in sections.items():
        if section is not None:
            each = (section,) if isinstance(section, SftConfig) else section.each
            for one in each:
                path = one.data if isinstance(one, SftConfig) else one.path
                yield what, path, one.split


def _summary(model: TrainedModel, options: CardOptions) -> str:
    base = base_name(model, options)
    of = f"[{base}](https://huggingface.co/{base})" if base else f"`{_base_path(model)}`"
    words = {
        "policy": f"A language model trained from {of} by preference optimization",
        "adapter": f"A low-rank adapter for {of}, trained by preference optimization",
        "reward model": f"A reward model (a sequence classifier with one output), trained from {of}",
        "fine-tuned model": f"A language model fine-tuned from {of} with supervision",
    }[model.kind]
    after = f", after {(model.round_index or 0) + 1} online round(s)" if _is_online(model) else ""
    return f"{words}{after}. It was trained with raydpo {model.manifest['raydpo']}."


def _base_path(model: TrainedModel) -> str:
    return public_name(model.config.model.path)


def _objections(model: TrainedModel) -> list[str]:
    found = model.measured.numbers.get("speaks_against_it")
    if found is None:
        return ["The run gave no verdict on this model, so nothing was checked that could."]
    return found or ["Nothing that the run checked; read the limits below."]


def _row(found: Number) -> tuple[str, ...]:
    ends = found.interval
    interval = "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"
    return (
        found.name,
        number(found.before),
        number(found.value),
        interval,
        f"`{found.data.name}`",
    )


def _measured_how(model: TrainedModel) -> str:
    programs = ", ".join(dict.fromkeys(result.program for result in model.suites))
    by_suites = f"Numbers of other tasks are by {programs}." if programs else ""
    return " ".join(filter(None, [_measured_by_run(model), by_suites]))


def _measured_by_run(model: TrainedModel) -> str:
    found, config = model.measured, model.config
    if found.source == "nothing":
        return ""
    if found.source == "training report":
        groups, prompts = found.numbers["groups"], found.numbers["prompts"]
        return (
            f"The numbers are of {groups} groups of {prompts} prompts that were kept out of "
            "training. Nothing was sampled from the model."
        )
    assert config.evaluation is not None
    evaluation, sampling = config.evaluation, config.sampling
    judges = ", ".join(map(_scorer, evaluation.judge))
    return (
        f"The judge is {judges}. Each model wrote {evaluation.samples_per_prompt} completions for "
        f"each held-out prompt at temperature {evaluation.temperature:g} and top_p "
        f"{sampling.top_p:g}, of at most {sampling.max_completion_tokens} tokens. Prompts are the "
        "units of the intervals."
    )


def _sources(config: Config, model: TrainedModel) -> Iterator[str]:
    for what, path, split in _data(config, model):
        named = f"`{public_name(path)}`" + ("" if is_private(path) else f", split `{split}`")
        yield f"{what.capitalize()}: {named}."
    labels = model.stages.get("labeling")
    if model.round_index is None:
        return
    counts = labels["counts"] if labels is not None else {}
    if pairs := counts.get("pairs"):
        yield f"Preferences: {pairs:,} pairs in {counts['output']:,} groups."
    if labels is not None and is_of_people(labels):
        yield "Labels: votes of people."
    elif config.labeling is not None and config.labeling.reward:
        names = ", ".join(map(_scorer, config.labeling.reward))
        yield f"Labels: rewards by {names}; pairs by `{config.labeling.pairs.builder}`."
    elif config.preferences is not None:
        yield "Labels: those of the data, which existed before the run."
    else:
        yield "Labels: the data's completions are preferred to the model's own (self-play)."


def _scorer(reward: RewardConfig) -> str:
    """Return how the card names a reward or judge: a service without its address."""
    if reward.http is not None:
        return f"`{reward.name}` over HTTP" if reward.name else "a service over HTTP"
    if reward.judge is not None:
        return f"the judge `{reward.name or reward.judge.model}`"
    return f"`{reward.name or public_name(reward.source)}`"


def _stage_rows(model: TrainedModel) -> Iterator[tuple[str, ...]]:
    for label, manifest in model.stages.items():
        counts = manifest.get("counts")
        if counts is not None:
            numbers = (f"{counts.get(k, 0):,}" for k in ("input", "output", "quarantined"))
            yield label, *numbers, f"`{manifest['fingerprint'][:_SHORT]}`"


def _objective(model: TrainedModel) -> tuple[str, list[tuple[str, Any]]]:
    """Return a sentence with the paper and equation of the loss, and its options."""
    section = model.section
    if not isinstance(section, TrainingConfig):
        covers = model.config.sft.loss_on if model.config.sft else ""
        return "The next-token cross-entropy.", [("loss_on", covers)]
    objective = section.objective
    if isinstance(objective, SumObjective):
        terms = [f"{term.weight:g} x `{term.objective.name}`" for term in objective.terms]
        return f"A weighted sum: {' + '.join(terms)}.", _options(objective.model_dump(mode="json"))
    said = " ".join((type(objective).__doc__ or "").split("\n\n")[0].split())
    values = objective.model_dump(mode="json")
    return f"`{values['name']}`: {said}", _options(values)


def _also_cite(objective: str) -> str:
    """Return the papers of the objective that are not the one that the card cites anyway."""
    papers = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", objective))
    links = [f"[arXiv:{p}](https://arxiv.org/abs/{p})" for p in papers if p != _DPO_PAPER]
    return f"; the objective is from {', '.join(links)}" if links else ""


def _options(values: Json) -> list[tuple[str, Any]]:
    return [(name, f"`{value}`") for name, value in values.items() if name != "name"]


def _training_rows(model: TrainedModel) -> Iterator[tuple[str, str]]:
    section, manifest, steps = model.section, model.manifest, model.steps
    exported = manifest.get("exported_step", manifest["steps"])
    yield "steps", f"{manifest['steps']:,} (exported: step {exported:,})"
    batch = (
        f"{section.global_batch_groups} preference groups"
        if isinstance(section, TrainingConfig)
        else f"{getattr(section, 'global_batch_sequences', '')} sequences"
    )
    yield "batch", batch
    yield (
        "learning rate",
        (
            f"{section.learning_rate:g}, {section.schedule}, warm-up {section.warmup_fraction:g} of the steps"
        ),
    )
    yield (
        "optimizer",
        (
            f"AdamW, betas {section.adam_betas[0]:g} and {section.adam_betas[1]:g}, weight decay "
            f"{section.weight_decay:g}, gradient norm at most {section.max_grad_norm}"
        ),
    )
    yield (
        "precision",
        f"computes in {model.config.model.precision}; parameters and optimizer states in float32",
    )
    yield "workers", f"{section.num_workers} ({section.strategy})"
    if section.lora is not None:
        yield "adapter", f"LoRA of rank {section.lora.rank}, alpha {section.lora.alpha:g}"
    yield "seed", str(model.config.seed)
    first, last = steps[0]["loss"], steps[-1]["loss"]
    yield "loss of the first and the last batch", f"{first:.4f}, {last:.4f}"
    yield "tokens", f"{sum(step.get('num_tokens', 0) for step in steps):,.0f}"


def _limits(model: TrainedModel) -> Iterator[str]:
    measured = model.measured
    if measured.source == "nothing":
        yield "The run measured nothing on held-out data."
    elif measured.source == "training report":
        yield "Nothing was sampled: the numbers say how well it tells given data apart, not how well it writes."
    made = measured.numbers.get("judge", {}).get("made_the_labels")
    if made is not None:
        yield (
            "The judge also made the labels: its score says how well training followed it."
            if made
            else "The judge is another one than the reward that made the labels."
        )
    yield from measured.numbers.get("notes", [])
    for label, manifest in model.stages.items():
        if refused := manifest.get("counts", {}).get("quarantined", 0):
            yield f"The stage `{label}` refused {refused:,} row(s), which the model never saw."
    yield (
        "Not evaluated by the run: truth of statements, safety, bias, other languages and tasks than "
        "those of the held-out data, and any standard benchmark that is not in the table above."
    )


def _command(model: TrainedModel) -> str:
    if model.round_index is None:
        return "sft"
    return "online" if model.config.online is not None else "run"
