"""A small, fast text classifier: a DistilBERT of one layer over whole words.

Texts and the indices of their labels give a trained model and its tokenizer, and the Hugging Face
folder that holds both.

One layer reads a text only through its first position, so training computes no other. That makes
an epoch over 12,500 reviews take seconds. The classifier sees texts whole and as windows of 12 to
120 words, so that it judges short ones as well.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerFast

PAD, UNKNOWN, FIRST = "[PAD]", "[UNK]", "[CLS]"  # ids 0, 1 and 2
MAX_TOKENS = 512
LAYER_WIDTH, HEADS = 48, 3
VOCABULARY = 8000
WHOLE_TEXT_SHARE = 0.3
SHORTEST_WINDOW, LONGEST_WINDOW = 12, 120
TOKEN_DROPOUT = 0.3
BATCH = 64


@dataclass(frozen=True)
class Encoded:
    """Token ids of texts, the first position's token included, and their labels."""

    ids: list[np.ndarray]
    labels: np.ndarray


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the most frequent lower-case words; a text starts with `[CLS]`.

    Whole words, and not pieces of them: at this size they classify better, and the same
    texts give the same vocabulary, in the same order.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words: Tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, UNKNOWN, FIRST], show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    words.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A", pair=f"{FIRST} $A $B", special_tokens=[(FIRST, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=FIRST,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(
    vocabulary: int, labels: list[str], pooling: str
) -> DistilBertForSequenceClassification:
    """A fresh model without positions; with mean pooling also without attention weights."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=vocabulary,
        dim=LAYER_WIDTH,
        hidden_dim=2 * LAYER_WIDTH,
        n_layers=1,
        n_heads=HEADS,
        max_position_embeddings=MAX_TOKENS,
        attention_dropout=0.0,
        seq_classif_dropout=0.1,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    model = DistilBertForSequenceClassification(config)
    attention: Any = model.distilbert.transformer.layer[0].attention
    frozen = [model.distilbert.embeddings.position_embeddings.weight]
    if pooling == "mean":
        frozen += [*attention.q_lin.parameters(), *attention.k_lin.parameters()]
    for parameter in frozen:
        torch.nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    return model


def first_position_logits(
    model: DistilBertForSequenceClassification, ids_BL: torch.Tensor, mask_BL: torch.Tensor
) -> torch.Tensor:
    """The model's own logits [B, labels] by way of its first position alone.

    Axes: B texts, L tokens, H heads, d width of a head, e width of the layer. A query's
    inner products with keys and its mean of values move the two matrices out of the sum
    over tokens: what is left for each token is its embedding and H inner products.
    """
    embeddings: Any = model.distilbert.embeddings
    layer: Any = model.distilbert.transformer.layer[0]
    attention = layer.attention
    heads, scale = attention.n_heads, attention.scaling
    positions_Le = embeddings.position_embeddings.weight[: ids_BL.shape[1]]
    x_BLe = embeddings.LayerNorm(embeddings.word_embeddings(ids_BL) + positions_Le)
    x_BLe = embeddings.dropout(x_BLe)
    first_Be = x_BLe[:, 0]
    batch, width = first_Be.shape
    query_BHd = attention.q_lin(first_Be).view(batch, heads, -1)
    key_BHe = torch.einsum("bhd,hde->bhe", query_BHd, attention.k_lin.weight.view(heads, -1, width))
    scores_BHL = torch.einsum("bhe,ble->bhl", key_BHe * scale, x_BLe)  # key bias: same for all L
    weights_BHL = scores_BHL.masked_fill(~mask_BL[:, None], -torch.inf).softmax(-1)
    mean_BHe = torch.einsum("bhl,ble->bhe", weights_BHL, x_BLe)
    value_Hde = attention.v_lin.weight.view(heads, -1, width)
    value_Be = torch.einsum("bhe,hde->bhd", mean_BHe, value_Hde).reshape(batch, width)
    attended_Be = attention.out_lin(value_Be + attention.v_lin.bias)
    hidden_Be = layer.sa_layer_norm(attended_Be + first_Be)
    hidden_Be = layer.output_layer_norm(layer.ffn(hidden_Be) + hidden_Be)
    return model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden_Be))))


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], labels: list[int]) -> Encoded:
    """Token ids of whole texts, cut at the model's length, with the indices of their labels."""
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return Encoded([np.array(text_ids) for text_ids in ids], np.array(labels))


def fit(model: DistilBertForSequenceClassification, data: Encoded, epochs: int, seed: int) -> None:
    """AdamW with a short warm-up and a linear decay; every draw of texts is by `seed`."""
    rng = np.random.default_rng(seed)
    words = model.distilbert.embeddings.word_embeddings.weight
    others = [p for p in model.parameters() if p.requires_grad and p is not words]
    optimizer = torch.optim.AdamW(
        [
            {"params": [words], "lr": 2e-3, "weight_decay": 0.1},
            {"params": others, "lr": 1e-3, "weight_decay": 0.01},
        ],
        betas=(0.9, 0.98),
    )
    batches = len(data.ids) // BATCH
    steps = epochs * batches
    warmup = min(100, 1 + steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * (1 - step / steps)
    )
    started = time.monotonic()
    model.train()
    for epoch in range(epochs):
        order = rng.permutation(len(data.ids))[: batches * BATCH].reshape(batches, BATCH)
        losses = [_train_step(model, data, chosen, rng, optimizer, schedule) for chosen in order]
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}, {seconds:.0f} s")
    model.eval()


def _train_step(
    model: DistilBertForSequenceClassification,
    data: Encoded,
    chosen: np.ndarray,
    rng: np.random.Generator,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    ids, mask = padded(_pieces([data.ids[i] for i in chosen], rng))
    keep = torch.from_numpy(rng.random(ids.shape) >= TOKEN_DROPOUT)
    keep[:, 0] = True
    logits = first_position_logits(model, ids, mask & keep)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[chosen]))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def _pieces(texts: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The texts whole, or one window of each, all of one length."""
    if rng.random() < WHOLE_TEXT_SHARE:
        return texts
    length = int(np.exp(rng.uniform(np.log(SHORTEST_WINDOW), np.log(LONGEST_WINDOW))))
    pieces: list[np.ndarray] = []
    for ids in texts:
        start = 1 + rng.integers(0, max(1, len(ids) - length))
        pieces.append(np.concatenate([ids[:1], ids[start : start + length]]))
    return pieces


def padded(texts: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, L], padded right with 0, and where they are real."""
    ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.from_numpy(text)
    return ids, ids != 0


def save(
    model: DistilBertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write the folder: float16 on disk, to be small; the config says to load float32."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, changes in (("config.json", {"dtype": "float32"}), ("tokenizer.json", {})):
        file = folder / name
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        compact = name == "tokenizer.json"  # one word a line would be a third of the file
        text = json.dumps(
            {**values, **changes},
            ensure_ascii=False,
            indent=None if compact else 2,
            separators=(",", ":") if compact else None,
        )
        file.write_text(text + "\n", encoding="utf-8")


@torch.inference_mode()
def accuracy(model: DistilBertForSequenceClassification, data: Encoded) -> float:
    """Share of the texts whose most probable label is their own."""
    order = np.argsort([len(ids) for ids in data.ids], kind="stable")
    right = 0
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        logits = first_position_logits(model, *padded([data.ids[i] for i in chosen]))
        right += int((logits.argmax(-1).numpy() == data.labels[chosen]).sum())
    return right / len(order)
