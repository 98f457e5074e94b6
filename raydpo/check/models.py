"""Check models, tokenizers, scorers and lengths; see `job.py`.

Facts and problems go to `Findings`.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any, Final, assert_never

from raydpo.check.findings import Findings
from raydpo.check.machine import is_remote, uses_cuda_here
from raydpo.check.vllm_arguments import check_extra
from raydpo.config.job import Config, ModelConfig, RewardConfig
from raydpo.core.credentials import without_credentials
from raydpo.core.errors import ConfigError, ModelError
from raydpo.core.progress import logger
from raydpo.models.context import check_context
from raydpo.models.files import refuse_unusable_files
from raydpo.models.loading import (
    CAUSAL_LM,
    CLASSIFIER,
    SCALAR_HEAD,
    Kind,
    check_weights,
    load_tokenizer,
    local_folder,
    model_config_values,
    parameter_count,
    tokenizer_fingerprint,
)
from raydpo.models.padding import describe_chosen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: What vLLM's attention on CPU takes.
_CPU_HEAD_DIMS: Final = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_models(config: Config, findings: Findings) -> None:
    """The policy's model, and the reference's where it is another."""
    own = findings.attempt(_check_model, "model", config.model, _kinds(config), findings)
    if config.reference.model is None:
        return
    other = findings.attempt(
        _check_model, "reference.model", config.reference.model, [CAUSAL_LM], findings
    )
    if own is not None and other is not None and own.get_vocab() != other.get_vocab():
        findings.note(
            ModelError(
                f"model {config.model.path!r} and reference {config.reference.model.path!r} have "
                "different vocabularies",
                "the reference scores the very token ids that the policy is trained on",
                "take a reference with the same tokenizer",
            )
        )


def check_sections(config: Config, findings: Findings) -> None:
    """Compare what the sections ask for with the model and with each other."""
    if config.sft is not None:
        longest = config.sft.max_sequence_tokens
        findings.attempt(_check_context, config, "sft.max_sequence_tokens", longest)
    if config.preferences is not None:
        section = config.preferences
        longest = section.max_prompt_tokens + section.max_completion_tokens
        name = "preferences.max_prompt_tokens + max_completion_tokens"
        findings.attempt(_check_context, config, name, longest)
    if config.prompts is not None or config.evaluation is not None or _plays(config):
        _check_sampling(config, findings)
    if config.labeling is not None:
        if not config.evaluates_reference_alone:
            findings.attempt(_check_candidates, config)
        for reward in config.labeling.reward:
            findings.attempt(_check_reward, "labeling.reward", reward, findings, config)
    if config.evaluation is not None:
        for reward in config.evaluation.judge:
            findings.attempt(_check_reward, "evaluation.judge", reward, findings, config)
    _say_what_is_missing(config, findings)
    findings.attempt(_check_trackers, config)
    findings.attempt(_check_peft, config)


def _kinds(config: Config) -> list[Kind]:
    """What the policy's folder is loaded as in the stages of the job."""
    trained = config.training is not None and config.training.objective.scalar_head
    if not trained:
        return [CAUSAL_LM]
    samples = config.prompts is not None or config.sft is not None
    return [CAUSAL_LM, SCALAR_HEAD] if samples else [SCALAR_HEAD]


def _check_model(
    what: str, model: ModelConfig, kinds: list[Kind], findings: Findings
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that can be used."""
    refuse_unusable_files(local_folder(model))
    values = model_config_values(model)
    findings.attempt(_check_architecture, model, values)
    count = findings.attempt(parameter_count, model)
    for kind in kinds if count is not None else []:
        findings.attempt(check_weights, model, kind)
    findings.attempt(tokenizer_fingerprint, model)  # reads model.chat_template
    tokenizer = load_tokenizer(model)
    embeddings = _value(values, "vocab_size")
    if isinstance(embeddings, int) and len(tokenizer) > embeddings:
        raise ModelError(
            f"{what} {model.path!r}: the tokenizer has {len(tokenizer)} tokens",
            f"each has a row among the model's {embeddings} embeddings (vocab_size)",
            "use the tokenizer that the model was trained with",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{what} {model.path!r}: the tokenizer has no end-of-sequence token",
            "a completion ends with EOS, in training as in sampling",
            "set `eos_token` in its tokenizer_config.json",
        )
    parameters = f"{count:,} parameters" if count is not None else "parameters unknown"
    template = "with" if tokenizer.chat_template else "without"
    findings.facts.append(
        f"{what}: {model.path}, {values.get('model_type')}, {parameters}, "
        f"{len(tokenizer):,} tokens, {template} a chat template"
    )
    if (padding := describe_chosen(tokenizer)) is not None:
        findings.facts.append(f"{what}: {padding}")
        logger.info("%s: %s", what, padding)
    return tokenizer


def _check_architecture(model: ModelConfig, values: dict[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = values.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"model {model.path!r} has model_type {kind!r} in its config.json",
            "it is a causal language model whose architecture is part of transformers",
            "use another model, or a newer transformers",
        )


def _check_context(config: Config, what: str, tokens: int) -> None:
    check_context(what, tokens, model_config_values(config.model))
    if config.reference.model is not None and not what.startswith("sft."):
        check_context(what, tokens, model_config_values(config.reference.model))


def _check_sampling(config: Config, findings: Findings) -> None:
    """Lengths of sampling, and vLLM on CPU."""
    from raydpo.sampling.arguments import engine_arguments, max_sequence_tokens

    model, sampling = config.model, config.sampling
    remote = is_remote(config)
    cuda = remote or uses_cuda_here(sampling.engines.device)  # a cluster is not looked at
    sources = [config.prompts, config.evaluation and config.evaluation.prompts]
    longest = {source.max_prompt_tokens for source in sources if source is not None}
    if config.sft is not None and _plays(config):
        longest.add(config.sft.max_sequence_tokens)
    findings.attempt(_check_min_tokens, config)
    if sampling.function is not None:  # vLLM is not needed: see own_functions.py
        for tokens in sorted(longest):
            findings.attempt(max_sequence_tokens, model, sampling, tokens)
        return
    for tokens in sorted(longest):
        findings.attempt(engine_arguments, model, sampling, tokens, cuda)
    if not remote and findings.attempt(_check_vllm_is_here):
        findings.attempt(check_extra, sampling)
    if not cuda:
        findings.attempt(_check_heads, config)


def _plays(config: Config) -> bool:
    """Whether prompts are those of the `sft` section's data."""
    return config.online is not None and config.online.pairs == "self_play"


def _check_min_tokens(config: Config) -> None:
    sampling = config.sampling
    if sampling.min_completion_tokens >= sampling.max_completion_tokens:
        raise ConfigError(
            f"sampling.min_completion_tokens {sampling.min_completion_tokens}",
            f"it is less than sampling.max_completion_tokens {sampling.max_completion_tokens}: "
            "no completion could end by itself otherwise",
            "lower the first, or raise the second",
        )


def _check_vllm_is_here() -> bool:
    """Return true.

    Raises:
        ConfigError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vllm is not installed",
            "sampling runs on vLLM",
            "install raydpo[cpu] or raydpo[cuda]; `make demo` does it",
        )
    return True


def _check_heads(config: Config) -> None:
    values = model_config_values(config.model)
    heads, hidden = _value(values, "num_attention_heads"), _value(values, "hidden_size")
    dimension = _value(values, "head_dim")
    if not isinstance(dimension, int) and isinstance(heads, int) and isinstance(hidden, int):
        dimension = hidden // heads
    if isinstance(dimension, int) and dimension not in _CPU_HEAD_DIMS:
        raise ModelError(
            f"model {config.model.path!r} has attention heads of dimension {dimension}",
            f"on CPU, vLLM takes heads of {', '.join(map(str, _CPU_HEAD_DIMS))}",
            "sample on a GPU, or use a model with heads of 32 or 64",
        )


def _check_candidates(config: Config) -> None:
    sampling = config.sampling
    if sampling.candidates < 2:
        raise ConfigError(
            f"sampling.candidates {sampling.candidates}: there would be zero pairs",
            "a pair needs two candidates of the same prompt",
            "set sampling.candidates to 2 or more; 4 is usual",
        )
    if sampling.temperature == 0:
        raise ConfigError(
            "sampling.temperature 0: all candidates of a prompt would be equal, with zero pairs",
            "pairs need candidates that differ",
            "set sampling.temperature to 1.0",
        )


def _check_reward(what: str, reward: RewardConfig, findings: Findings, config: Config) -> None:
    match reward.kind:
        case "implicit":
            from raydpo.labeling.implicit import refuse_equal_models

            refuse_equal_models(config.model, config.reference_model)
            ratio = "times the log-ratio to reference.model"
            findings.facts.append(f"{what}: {reward.weight:g} {ratio}")
        case "function":
            from raydpo.labeling.reward_process import look_of

            look = look_of(reward)
            findings.facts.append(f"{what}: function {reward.function}{look.call}")
        case "classifier":
            _check_classifier(what, reward, findings)
        case "judge":
            findings.facts.append(f"{what}: judge {reward.source}")
        case "http":  # it is asked for two rows later on: see check_rewards.py
            findings.facts.append(f"{what}: a service at {without_credentials(reward.source)}")
        case _:
            assert_never(reward.kind)


def _check_classifier(what: str, reward: RewardConfig, findings: Findings) -> None:
    from raydpo.labeling.classifier import label_index

    source = ModelConfig(path=str(reward.classifier))
    values = model_config_values(source)
    label = findings.attempt(label_index, reward)
    findings.attempt(check_weights, source, CLASSIFIER)
    load_tokenizer(source)
    if label is not None:
        findings.facts.append(
            f"{what}: {reward.output} of class {label} of {reward.classifier} "
            f"({values.get('model_type')})"
        )


def _check_trackers(config: Config) -> None:
    asked = {t for section in (config.training, config.sft) if section for t in section.trackers}
    missing = sorted(name for name in asked if importlib.util.find_spec(name) is None)
    if "mlflow" in asked and "MLFLOW_TRACKING_URI" not in os.environ:
        raise ConfigError(
            "tracker 'mlflow': MLFLOW_TRACKING_URI is not set",
            "workers run in folders of their own, so mlflow is told where to write",
            "set it in the environment, or remove mlflow from `trackers`",
        )
    if missing:
        raise ConfigError(
            f"trackers {', '.join(missing)}: not installed here",
            "a tracker is an installed package",
            "install raydpo[trackers], or remove it from `trackers`",
        )


def _check_peft(config: Config) -> None:
    asked = any(section.lora for section in (config.training, config.sft) if section)
    if asked and importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "lora: peft is not installed here",
            "adapters are made, saved and merged by peft",
            "install raydpo[lora], or remove `lora`",
        )


def _say_what_is_missing(config: Config, findings: Findings) -> None:
    if config.prompts is not None and config.labeling is None:
        findings.facts.append("no `labeling` section: the job ends with sampled candidates")
    elif config.labeling is not None and config.labeling.people is not None:
        findings.facts.append(
            "people label: the job stops after sampling, until `raydpo annotate import`"
        )
    elif config.evaluates_reference_alone:
        findings.facts.append(
            "no `training` section: `raydpo run` measures Best-of-N of the reference alone"
        )
    elif config.training is None and config.sft is None:
        findings.facts.append("no `training` section: the job ends before the policy")
    if config.labeling is None or config.evaluation is None:
        return
    if (best_of := config.evaluation.best_of) is not None:
        findings.facts.append(
            f"evaluation.best_of: N = {', '.join(map(str, best_of.n))} of "
            f"{best_of.samples_per_prompt} samples a held-out prompt of the "
            f"{' and the '.join(best_of.models)}, chosen by "
            f"{', '.join(reward.scorer for reward in config.labeling.reward)}, judged by "
            f"{', '.join(judge.scorer for judge in config.evaluation.judge)}"
        )
    scorers = {(reward.kind, reward.source) for reward in config.labeling.reward}
    if any((judge.kind, judge.source) in scorers for judge in config.evaluation.judge):
        findings.facts.append(
            "note: the judge of the report also made the labels; another one would tell more"
        )


def _value(values: dict[str, Any], name: str) -> Any:
    inner = values.get("text_config") or {}
    return values.get(name, inner.get(name))
