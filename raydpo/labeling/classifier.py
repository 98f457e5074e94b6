"""Rewards by a Hugging Face sequence-classification model.

For each prompt and completion, given as text, the scorer returns one number from the model's
logits, in float32 arithmetic of the model, or a refusal. A reward does not depend on the other
texts of its batch. Texts longer than the model accepts are cut and counted: a completion alone loses
its end, and a prompt with its completion loses its start.

For a decoder, the module reads the logits at the last token of each text, found by its length.
transformers looks for the padding token's id instead, which may differ from the tokenizer's, or
occur in a text.

Shapes: B texts, L tokens of the longest text, H hidden, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from raydpo.config.job import ModelConfig, RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.progress import logger
from raydpo.labeling.rewards import Judged, Refusal, reward_or_refusal
from raydpo.labeling.signature import NO_LISTS, Lists
from raydpo.models.context import model_context
from raydpo.models.loading import (
    CLASSIFIER,
    load_model,
    load_tokenizer,
    load_with,
    model_config_values,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


#: transformers expresses "no limit" by a very large model_max_length.
_NO_LIMIT = 10**9
#: Texts of different lengths, which a new classifier reads both together and one by one.
_TRIED_TEXTS: Final = (
    "a",
    "It was good.",
    "The film was not very good, and I did not like the plot.",
)

#: The quantity that is used as the reward.
Output = Literal["probability", "log_odds", "logit"]


@dataclass(frozen=True)
class Classifier:
    """A loaded model with what it needs to score texts.

    Attributes:
        batch_size: texts in one forward pass; 1 if their logits would differ when computed
            together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: RewardConfig
    label: int
    max_tokens: int | None
    batch_size: int


def load_classifier(reward: RewardConfig) -> Classifier:
    """Load the model and its tokenizer, on CUDA if this process can use it.

    Raises:
        ConfigError: `label` is missing, or not one of the model's labels.
        ModelError: see `models.load_model`.
    """
    import torch

    source = ModelConfig(path=str(reward.classifier))
    tokenizer = load_tokenizer(source)
    tokenizer.truncation_side = "right" if reward.input == "completion" else "left"
    model: Any = load_model(source, CLASSIFIER)
    without_padding_id(model, _pad_id(tokenizer))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    label = label_index(reward)
    longest = _max_tokens(model, tokenizer)
    loaded = Classifier(model.to(device), tokenizer, reward, label, longest, batch_size=1)
    return replace(loaded, batch_size=_batch_size(loaded))


def _batch_size(classifier: Classifier) -> int:
    """Return the configured batch size if logits do not depend on batching, otherwise 1."""
    token_ids, _ = encode(classifier, list(_TRIED_TEXTS))
    pad_id = _pad_id(classifier.tokenizer)
    difference = batch_difference(classifier.model, [ids for ids in token_ids if ids], pad_id)
    if takes_batches(difference):
        return classifier.reward.batch_size
    logger.warning(
        "%s: in a batch its logits differ by %.2g from those of single texts: it reads one at a time",
        classifier.reward.scorer,
        difference,
    )
    return 1


def label_index(reward: RewardConfig) -> int:
    """Return the index of the class whose score is the reward.

    Raises:
        ConfigError: `label` is missing, or not one of the model's labels; the error lists them.
    """
    names = _label_names(ModelConfig(path=str(reward.classifier)))
    if reward.label is None and len(names) == 1:
        return 0
    for index, name in names.items():
        if reward.label == index or reward.label == name:
            return index
    raise ConfigError(
        f"label {reward.label!r} of classifier {reward.classifier!r}",
        "`label` is the name or the index of one of the model's labels: "
        + ", ".join(f"{index} ({name})" for index, name in sorted(names.items())),
        "set labeling.reward.label (or evaluation.judge.label) to one of them",
    )


def read_otherwise_before(source: ModelConfig) -> dict[str, str]:
    """Return settings that version 0.1 interpreted differently, for scores' keys; usually none.

    That version used the config's padding token, and positions that are not stretched.
    """
    values = model_config_values(source)
    changed: dict[str, str] = {}
    if values.get("pad_token_id") not in (None, load_tokenizer(source).pad_token_id):
        changed["last token"] = "by length"
    context, positions = model_context(values), values.get("max_position_embeddings")
    if context is not None and positions is not None and context.tokens != positions:
        changed["context"] = context.because
    return changed


def judge_with_classifier(
    classifier: Classifier, prompts: list[str], completions: list[str], _: Lists = NO_LISTS
) -> Judged:
    """Return the completions' rewards in their order; texts of similar length share a batch.

    A classifier reads the texts alone, and no other list.
    """
    match classifier.reward.input:
        case "completion":
            texts = completions
        case "prompt_and_completion":
            texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        case _:
            assert_never(classifier.reward.input)
    token_ids, truncated = encode(classifier, texts)
    values: list[float | Refusal] = [Refusal("the text has no tokens")] * len(texts)
    order = sorted((i for i, ids in enumerate(token_ids) if ids), key=lambda i: len(token_ids[i]))
    for start in range(0, len(order), classifier.batch_size):
        chosen = order[start : start + classifier.batch_size]
        rewards = _forward(classifier, [token_ids[i] for i in chosen])
        for index, reward in zip(chosen, rewards, strict=True):
            values[index] = reward_or_refusal(reward)
    return Judged(values, truncated)


def encode(classifier: Classifier, texts: list[str]) -> tuple[list[list[int]], int]:
    """Return token ids of the texts with the model's special tokens, and how many were cut."""
    tokenizer, longest = classifier.tokenizer, classifier.max_tokens
    if not texts:
        return [], 0
    token_ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    cut = [i for i, ids in enumerate(token_ids) if longest is not None and len(ids) > longest]
    for i in cut:
        token_ids[i] = tokenizer(texts[i], truncation=True, max_length=longest)["input_ids"]
    return [_one_bos(ids, tokenizer) for ids in token_ids], len(cut)


def rewards_from_logits(
    logits: torch.Tensor, label: int, output: Output, independent: bool
) -> torch.Tensor:
    """Return one reward for each text, as the configuration asks.

    Args:
        logits: [B, C], the model's own logits.
        label: the class that counts.
        output: `probability`, `log_odds` or `logit`.
        independent: whether each class has its own sigmoid (a model with one output, or a
            multi-label one), rather than one softmax over all of them.

    Returns:
        [B], float64. log p/(1-p) is z - logsumexp(the other z), which is exact even if p rounds to
        1.
    """
    import torch

    logits = logits.double()
    own = logits[:, label]
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    log_odds = own if independent else own - others.logsumexp(dim=1)
    match output:
        case "logit":
            return own
        case "log_odds":
            return log_odds
        case "probability":
            return torch.sigmoid(log_odds)
        case _:
            assert_never(output)


def _forward(classifier: Classifier, token_ids: list[list[int]]) -> list[float]:
    """Compute rewards of texts in one forward pass."""
    import torch

    model: Any = classifier.model
    with torch.inference_mode():
        if len(token_ids) == 1:
            logits = single_logits(model, token_ids)
        else:
            logits = batch_logits(model, token_ids, _pad_id(classifier.tokenizer))
    independent = logits.shape[1] == 1 or model.config.problem_type == "multi_label_classification"
    rewards = rewards_from_logits(logits, classifier.label, classifier.reward.output, independent)
    return rewards.tolist()


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills short rows; no token attends to it, and nothing reads it."""
    found: Any = tokenizer.pad_token_id
    return int(found)


def _one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode without a second BOS if a rendered prompt already starts with one."""
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _label_names(source: ModelConfig) -> dict[int, str]:
    from transformers import AutoConfig

    model_config_values(source)  # raises if there is no config.json
    config = load_with(AutoConfig, source)
    return {int(index): str(name) for index, name in config.id2label.items()}


def _max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest text that the model accepts, in tokens, or None if it sets no limit."""
    context = model_context(model.config.to_dict())
    limits = [tokenizer.model_max_length, context and context.tokens]
    known = [limit for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    return min(known, default=None)


#: Largest difference of a logit from that of the text alone, relative to 1 + its size.
_TOLERANCE: Final = 1e-3


def without_padding_id(model: PreTrainedModel, pad_id: int) -> None:
    """Make the model's own forward pass independent of the padding token.

    Args:
        model: modified in place; a decoder without a padding id reads a single text's last token.
        pad_id: the id for other models that name no padding token.
    """
    config: Any = model.config.get_text_config()
    if is_decoder(model):
        config.pad_token_id = None
    elif config.pad_token_id is None:
        config.pad_token_id = pad_id


def is_decoder(model: PreTrainedModel) -> bool:
    """Return whether the model is a decoder with transformers' layer `score` on top."""
    from torch import nn

    head: Any = getattr(model, "score", None)
    return isinstance(head, nn.Module) and not model.config.is_encoder_decoder


def batch_logits(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> torch.Tensor:
    """Compute logits of texts padded on the right: [B, C]."""
    import torch

    lengths = torch.tensor([len(ids) for ids in token_ids], device=model.device)
    longest = int(lengths.max())
    ids_BL = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids_BL, device=model.device),
        "attention_mask": (torch.arange(longest, device=model.device) < lengths[:, None]).long(),
    }
    if not is_decoder(model):
        return model(**inputs).logits
    hidden_BLH = model.base_model(**inputs).last_hidden_state
    last_BH = hidden_BLH[torch.arange(len(token_ids), device=model.device), lengths - 1]
    head: Any = model.score
    return head(last_BH)


def single_logits(model: PreTrainedModel, token_ids: list[list[int]]) -> torch.Tensor:
    """Compute logits with the model's own forward pass, text by text, without padding: [B, C]."""
    import torch

    rows = [model(input_ids=torch.tensor([ids], device=model.device)).logits for ids in token_ids]
    return torch.cat(rows)


def batch_difference(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> float:
    """Return the largest difference of batched from single logits, relative to 1 + their size."""
    import torch

    with torch.inference_mode():
        alone = single_logits(model, token_ids)
        together = batch_logits(model, token_ids, pad_id)
    return float(((together - alone).abs() / (1 + alone.abs())).max())


def takes_batches(difference: float) -> bool:
    """Return whether texts can be computed together given such a `batch_difference`."""
    return difference <= _TOLERANCE  # false for NaN
