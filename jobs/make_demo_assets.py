"""Make the review-writing model that the demo starts from, out of the aclImdb reviews.

    python jobs/make_demo_assets.py --reviews train.jsonl.gz

The reviews are JSON lines with a `text`, or the aclImdb folder itself. The job makes
`assets/review-lm`, a Llama of 1.2 million parameters with its own BPE tokenizer, which `raydpo
sft` trains on short passages of the reviews. `jobs/train_classifier.py` makes the classifiers
beside it.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from raydpo.cli import main as raydpo

_BOS, _EOS, _PAD = "<|bos|>", "<|eos|>", "<|pad|>"
_WORDS_PER_PASSAGE: Final = 42
_LEAST_WORDS: Final = 8
_VOCABULARY: Final = 3072
_TEMPERATURE: Final = 0.8
_PLAIN: Final = re.compile(r"^[A-Za-z0-9 .,;:!?'\"()$%&-]+$")


def main() -> None:
    """Make passages, tokenizer and model, train, and put the result into `assets`."""
    options = _options()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    data = work / "passages.jsonl"
    if not data.exists():
        _write_passages(Path(options.reviews), data)
    start = work / "untrained"
    if not start.exists():
        _make_untrained(data, start, options.seed)
    overrides = [f"model={start}", f"sft.data={data}", f"output={work}", f"seed={options.seed}"]
    command = ["sft", "jobs/sft_reviews.yaml"]
    for override in overrides + options.set:
        command += ["--set", override]
    if raydpo(command):
        raise SystemExit(1)
    _ship(work / "review-lm" / "sft" / "policy" / "model", Path(options.output))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", required=True, help="JSON lines (.gz), or an aclImdb folder")
    parser.add_argument("--work", default="runs/review-lm-work", help="folder for what is between")
    parser.add_argument("--output", default="assets/review-lm", help="where the model goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="override of sft_reviews.yaml")
    return parser.parse_args()


def reviews(path: Path) -> Iterator[str]:
    """The texts of the reviews, in order."""
    if path.is_dir():
        for file in sorted(path.glob("train/[np]*/*.txt")):
            yield file.read_text(encoding="utf-8")
        return
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def passages(review: str) -> Iterator[str]:
    """Runs of whole sentences, up to about 42 words each, in plain characters."""
    text = html.unescape(re.sub(r"<br\s*/?>", " ", review)).replace("`", "'")
    text = re.sub(r"\.{2,}", ".", re.sub(r"\s+", " ", text)).strip()
    passage: list[str] = []
    for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", text):
        words = sentence.split()
        if len(passage) + len(words) > _WORDS_PER_PASSAGE:
            yield from _kept(passage)
            passage = []
        passage += words
    yield from _kept(passage)


def _kept(words: list[str]) -> Iterator[str]:
    passage = " ".join(words)
    shortish = _LEAST_WORDS <= len(words) <= _WORDS_PER_PASSAGE
    if shortish and _PLAIN.match(passage) and passage[0].isupper() and passage[-1] in ".!?":
        yield passage


def _write_passages(source: Path, target: Path) -> None:
    seen: set[str] = set()
    with open(target, "w", encoding="utf-8") as file:
        for review in reviews(source):
            for passage in passages(review):
                if passage not in seen:
                    seen.add(passage)
                    file.write(json.dumps({"text": passage}) + "\n")
    print(f"{len(seen)} passages in {target}")


def _make_untrained(data: Path, target: Path, seed: int) -> None:
    """A byte-level BPE tokenizer and a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(data)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer(data: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PAD, _BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with open(data, encoding="utf-8") as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, tokenizer.token_to_id(_BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD
    )


def _ship(trained: Path, target: Path) -> None:
    """Copy the trained folder, sharpened, the weights in float16 to keep the download small.

    The final norm's weights are divided by a temperature, and so are all logits: sampling
    what is shipped at temperature 1 is sampling what was trained at 0.8. So small a model
    reads better there, and an evaluation at temperature 1 measures the KL exactly.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight /= _TEMPERATURE
    model = model.half()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(trained).save_pretrained(target)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {target}")


if __name__ == "__main__":
    main()
