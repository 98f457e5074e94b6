r"""Train a small, fast text classifier from scratch, such as the demo's reward model and judge.

Texts with labels are JSON lines (`.jsonl`, `.jsonl.gz`), or a folder with one sub-folder of .txt
files for each label, the layout of aclImdb/train. The job writes a Hugging Face folder of about a
megabyte that `AutoModelForSequenceClassification` loads in float32. Its README.md says how good
the classifier is and how to make it again.

    python jobs/train_classifier.py --data aclImdb/train \
        --label neg=negative --label pos=positive --half 0 --output assets/sentiment-reward
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from text_classifier import (
    BATCH,
    LAYER_WIDTH,
    MAX_TOKENS,
    VOCABULARY,
    accuracy,
    encode,
    fit,
    new_model,
    save,
    train_tokenizer,
)

from raydpo.core.errors import DataError, RaydpoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELDOUT_WINDOW_WORDS = 40


@dataclass(frozen=True)
class Example:
    """A text with the index of its label."""

    id: str
    text: str
    label: int


def main() -> None:
    """Read, split, train, measure, save."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    names = dict(pair.split("=", 1) for pair in arguments.label)
    try:
        examples = read_examples(arguments, names)
        training, heldout = split(examples, arguments.half)
    except RaydpoError as error:
        sys.exit(str(error))
    tokenizer = train_tokenizer([example.text for example in training])
    model = new_model(tokenizer.vocab_size, list(names.values()), arguments.pooling)
    fit(model, encode(tokenizer, *texts_and_labels(training)), arguments.epochs, arguments.seed)
    save(model, tokenizer, arguments.output)
    measured = measure(arguments.output, tokenizer, heldout, arguments.seed)
    text = readme(arguments, list(names.values()), len(training), len(heldout), measured)
    (arguments.output / "README.md").write_text(text, encoding="utf-8")
    for name, value in measured.items():
        print(f"{name}: {value:.4f}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small text classifier from scratch.")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines, or label folders")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--id-column", default="id", help="without it, ids are hashes of the text")
    parser.add_argument(
        "--label",
        action="append",
        required=True,
        metavar="VALUE=NAME",
        help="a label's value in the data and its name in the model; once for each label",
    )
    parser.add_argument("--half", type=int, choices=(0, 1), help="train on this half by hashed id")
    parser.add_argument(
        "--pooling",
        choices=("attention", "mean"),
        default="attention",
        help="whether words get learned weights, or all the same",
    )
    parser.add_argument("--data-note", type=Path, help="a file put at the end of the README.md")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if len(arguments.label) < 2 or not all("=" in pair for pair in arguments.label):
        parser.error("give --label VALUE=NAME at least twice, as in --label neg=negative")
    return arguments


def read_examples(arguments: argparse.Namespace, names: dict[str, str]) -> list[Example]:
    """The examples with a known label, by id, texts that stood before left out (counted).

    Raises:
        DataError: a column is missing, or a label has no examples.
    """
    index = {value: i for i, value in enumerate(names)}
    rows = _folder_rows(arguments) if arguments.data.is_dir() else _json_rows(arguments)
    seen: set[str] = set()
    examples: list[Example] = []
    other = repeated = 0
    for identity, text, label in sorted(rows):
        text = " ".join(text.replace("<br />", " ").split())
        if label not in index:
            other += 1
        elif text in seen:
            repeated += 1
        else:
            seen.add(text)
            examples.append(Example(identity, text, index[label]))
    for value, i in index.items():
        if not any(example.label == i for example in examples):
            raise DataError(
                f"{arguments.data}: no example has the label {value!r}",
                "every --label VALUE=NAME names a value that the data holds",
                f"look at the values of {arguments.label_column!r}",
            )
    print(f"{len(examples)} examples, {repeated} repeated texts and {other} other labels left out")
    return examples


def _json_rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    opener = gzip.open if arguments.data.suffix == ".gz" else open
    with opener(arguments.data, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            for column in (arguments.text_column, arguments.label_column):
                if column not in row:
                    raise DataError(
                        f"{arguments.data}, line {number}: no column {column!r}",
                        f"the columns are {sorted(row)}",
                        "name them with --text-column and --label-column",
                    )
            text = str(row[arguments.text_column])
            identity = row.get(arguments.id_column) or _hash(text).hex()
            yield str(identity), text, str(row[arguments.label_column])


def _folder_rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for file in arguments.data.glob("*/*.txt"):
        label = file.parent.name
        text = file.read_text(encoding="utf-8")
        yield f"{arguments.data.name}/{label}/{file.stem}", text, label


def split(examples: list[Example], half: int | None) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples: a half against the other, or nine tenths against one.

    Raises:
        DataError: there are too few of them to train on a batch and to hold one out.
    """

    def is_heldout(example: Example) -> bool:
        first = _hash(example.id)[0]
        return first % 10 == 0 if half is None else first % 2 != half

    heldout = [example for example in examples if is_heldout(example)]
    training = [example for example in examples if not is_heldout(example)]
    if len(training) < BATCH or not heldout:
        raise DataError(
            f"{len(examples)} examples",
            f"training takes at least {BATCH} of them, and some are held out",
            "give more data",
        )
    return training, heldout


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def measure(
    folder: Path, tokenizer: PreTrainedTokenizerFast, heldout: list[Example], seed: int
) -> dict[str, float]:
    """Accuracy of the saved model on held-out texts, whole and as windows of 40 words."""
    from transformers import DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification.from_pretrained(folder).eval()
    assert model.dtype == torch.float32, model.dtype
    rng = np.random.default_rng(seed)
    texts, labels = texts_and_labels(heldout)
    windows: list[str] = []
    for text in texts:
        words = text.split()
        start = rng.integers(0, max(1, len(words) - HELDOUT_WINDOW_WORDS + 1))
        windows.append(" ".join(words[start : start + HELDOUT_WINDOW_WORDS]))
    return {
        "accuracy_whole": accuracy(model, encode(tokenizer, texts, labels)),
        "accuracy_40_words": accuracy(model, encode(tokenizer, windows, labels)),
    }


def texts_and_labels(examples: list[Example]) -> tuple[list[str], list[int]]:
    """The two columns of the examples."""
    return [example.text for example in examples], [example.label for example in examples]


def readme(
    arguments: argparse.Namespace,
    labels: list[str],
    trained: int,
    heldout: int,
    measured: dict[str, float],
) -> str:
    """What the model is, how good, from what data, and how to make it again."""
    command = shlex.join(["python", *sys.argv]).replace(str(arguments.data), arguments.data.name)
    note = "" if arguments.data_note is None else "\n" + arguments.data_note.read_text("utf-8")
    part = "" if arguments.half is None else f" (half {arguments.half} by the hash of the id)"
    return f"""# {arguments.output.name}

A text classifier ({" / ".join(labels)}): a DistilBERT of one layer, width {LAYER_WIDTH}, over
{VOCABULARY} lower-case words, {arguments.pooling} pooling. It reads at most {MAX_TOKENS} tokens, and loads with
`AutoModelForSequenceClassification` in float32.

Trained from scratch on {trained} texts{part}; measured on the {heldout} others:

| accuracy | |
| --- | --- |
| whole texts | {measured["accuracy_whole"]:.4f} |
| windows of {HELDOUT_WINDOW_WORDS} words | {measured["accuracy_40_words"]:.4f} |

Made by

```
{command}
```
{note}"""


if __name__ == "__main__":
    main()
