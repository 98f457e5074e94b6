"""The classifier job trains what transformers loads, and the shipped classifiers are good ones."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[3]
SHIPPED = [ROOT / "assets" / name for name in ("sentiment-reward", "sentiment-judge")]
FILLING = [
    "the",
    "a",
    "film",
    "was",
    "it",
    "in",
    "of",
    "and",
    "this",
    "plot",
    "scene",
    "with",
    "for",
    "on",
    "that",
]
TELLING = {"neg": ["awful", "boring", "waste"], "pos": ["superb", "moving", "joy"]}


@pytest.fixture(scope="module")
def jobs() -> tuple[object, object]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    sys.path.insert(0, str(ROOT / "jobs"))
    try:
        import text_classifier
        import train_classifier
    finally:
        sys.path.remove(str(ROOT / "jobs"))
    return text_classifier, train_classifier


@pytest.fixture(scope="module")
def reviews() -> list[dict[str, str]]:
    """Four hundred made-up reviews, in each some words that tell its label."""
    draw = random.Random(0)
    rows = []
    for i in range(400):
        label = ("neg", "pos")[i % 2]
        words = draw.choices(FILLING, k=draw.randint(20, 80))
        for _ in range(len(words) // 5):
            words[draw.randrange(len(words))] = draw.choice(TELLING[label])
        rows.append(
            {"id": f"train/{label}/{i}", "label": label, "text": " ".join(words) + "<br />"}
        )
    return rows


def train(data: Path, output: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "jobs" / "train_classifier.py"), "--data", str(data)]
    command += ["--label", "neg=negative", "--label", "pos=positive", "--output", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log_odds(folder: Path, texts: list[str]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits.diff(dim=-1).squeeze(-1).tolist()


@pytest.mark.slow
def test_the_job_trains_a_folder_and_does_the_same_again(tmp_path, reviews):
    data = write_jsonl(tmp_path / "reviews.jsonl", [*reviews, reviews[0] | {"id": "repeated"}])
    said = train(data, tmp_path / "one", "--half", "0", "--epochs", "60")
    assert "1 repeated texts" in said
    train(data, tmp_path / "two", "--half", "0", "--epochs", "60")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        one, two = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest(), name
    good, bad = log_odds(tmp_path / "one", ["a superb film with joy", "the awful boring plot"])
    assert good > 1
    assert bad < -1
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").config
    assert config.id2label == {0: "negative", 1: "positive"}
    readme = (tmp_path / "one" / "README.md").read_text()
    accuracy = float(said.split("accuracy_whole: ")[1].split()[0])
    assert accuracy > 0.9
    assert f"| whole texts | {accuracy:.4f} |" in readme
    assert "--data reviews.jsonl" in readme
    assert str(tmp_path / "reviews.jsonl") not in readme


def test_a_folder_of_texts_is_read_like_the_lines_of_a_file(tmp_path, reviews, jobs):
    _, job = jobs
    for row in reviews:
        file = tmp_path / f"{row['id']}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row["text"])
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0.txt").write_text("no label")
    names = {"neg": "negative", "pos": "positive"}
    options = ["--output", "x", "--label", "neg=negative", "--label", "pos=positive"]
    lines = write_jsonl(tmp_path / "reviews.jsonl", reviews)
    from_lines, from_folder = (
        job.read_examples(job.parse_arguments(["--data", str(data), *options]), names)
        for data in (lines, tmp_path / "train")
    )
    assert from_lines == from_folder
    assert len(from_lines) == 400
    assert "<br" not in from_lines[0].text


def test_the_halves_have_no_example_in_common_and_none_is_lost(jobs):
    _, job = jobs
    examples = [job.Example(f"id{i}", "text", 0) for i in range(1000)]
    (first, second), (second_again, first_again) = (job.split(examples, half) for half in (0, 1))
    assert (first, second) == (first_again, second_again)
    assert len(first) + len(second) == 1000
    assert 400 < len(first) < 600
    training, heldout = job.split(examples, None)
    assert 50 < len(heldout) < 150
    assert len(training) + len(heldout) == 1000


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_training_through_the_first_position_is_the_model_itself(jobs, pooling):
    classifier, _ = jobs
    torch.manual_seed(0)
    model = classifier.new_model(50, ["a", "b", "c"], pooling).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.4)
    texts = [np.array([2, *range(5, 5 + n)]) for n in (1, 30, 7)]
    ids, mask = classifier.padded(texts)
    expected = model(input_ids=ids, attention_mask=mask.long()).logits
    found = classifier.first_position_logits(model, ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_mean_pooling_stays_a_mean(jobs):
    classifier, _ = jobs
    model = classifier.new_model(100, ["a", "b"], "mean")
    data = classifier.Encoded([np.array([2, *range(3, 30)])] * 64, np.array([0, 1] * 32))
    classifier.fit(model, data, epochs=2, seed=0)
    attention = model.distilbert.transformer.layer[0].attention
    for part in (attention.q_lin, attention.k_lin):
        assert not any(parameter.any() for parameter in part.parameters())
    assert model.distilbert.embeddings.word_embeddings.weight.any()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "label": "neg"}, "no column 'text'"),
        ({"id": "1", "label": "other", "text": "t"}, "no example has the label 'neg'"),
    ],
)
def test_data_that_does_not_fit_is_explained(tmp_path, jobs, row, said):
    from raydpo.core.errors import DataError

    _, job = jobs
    data = write_jsonl(tmp_path / "x.jsonl", [row])
    options = ["--data", str(data), "--output", "x", "--label", "neg=a", "--label", "pos=b"]
    with pytest.raises(DataError, match=said):
        job.read_examples(job.parse_arguments(options), {"neg": "a", "pos": "b"})


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_shipped_classifiers_tell_praise_from_blame(folder):
    praise = ["The acting was superb and I loved every minute.", "A wonderful, moving story."]
    blame = ["The acting was awful, a total waste of time.", "Boring and badly written."]
    assert min(log_odds(folder, praise)) > 1
    assert max(log_odds(folder, blame)) < -1
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_200_000


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_shipped_classifiers_are_as_good_as_their_readme_says(folder, shared_data, jobs):
    """On 1,000 reviews of the half that the folder's classifier was not trained on."""
    classifier, job = jobs
    options = ["--data", str(shared_data / "imdb" / "train.jsonl.gz"), "--output", "x"]
    options += ["--label", "neg=negative", "--label", "pos=positive"]
    arguments = job.parse_arguments(options)
    examples = job.read_examples(arguments, {"neg": "negative", "pos": "positive"})
    _, heldout = job.split(examples, half=SHIPPED.index(folder))
    chosen = random.Random(0).sample(heldout, 1000)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = classifier.encode(tokenizer, *job.texts_and_labels(chosen))
    claimed = float((folder / "README.md").read_text().split("| whole texts | ")[1].split()[0])
    assert claimed > 0.84
    assert classifier.accuracy(model, data) == pytest.approx(claimed, abs=4 * 0.0103)
