"""The jobs at the paper's scale: `raydpo check` on models of their true shapes, and the page's tables."""

from __future__ import annotations

import json
import re
import runpy
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from raydpo.cli import main
from raydpo.config.file import load_config
from raydpo.config.job import TrainingConfig
from tests.conftest import make_tokenizer

JOBS = Path(__file__).parents[3] / "jobs"
SCALE = SimpleNamespace(**runpy.run_path(str(JOBS / "paper_scale.py")))
TURN = {"role": "user", "content": "How was it?"}


def _neox(hidden: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )


#: Configurations of the models by their config.json on the hub.
MODELS = {
    "gpt2-large": lambda: GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "pythia-2.8b": lambda: _neox(2560, 50304),
    "pythia-6.9b": lambda: _neox(4096, 50432),
    "llama-3-8b": lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    ),
}


def _pair(chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **columns}


def _turns(words: str) -> list[dict[str, str]]:
    return [TURN, {"role": "assistant", "content": words}]


#: Each job's model, and a row of its data, with the columns of the data's card on the hub.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft_imdb_gpt2_large": ("gpt2-large", {"text": "A film.", "label": 0}),
    "sft_hh_pythia_2_8b": (
        "pythia-2.8b",
        _pair("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: No"),
    ),
    "hh_pythia_2_8b": (
        "pythia-2.8b",
        _pair("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: No"),
    ),
    "sft_tldr_pythia_6_9b": (
        "pythia-6.9b",
        {"prompt": "POST: A post.\n\nTL;DR:", "completion": " A summary."},
    ),
    "tldr_pythia_6_9b": (
        "pythia-6.9b",
        _pair(" A summary.", " Nothing.", prompt="POST: A post.\n\nTL;DR:"),
    ),
    "ultrafeedback_8b": (
        "llama-3-8b",
        {
            "prompt": TURN["content"],
            "prompt_id": "0",
            "chosen": _turns("Good."),
            "rejected": _turns("Bad."),
            "messages": _turns("Good."),
            "score_chosen": 8.0,
            "score_rejected": 4.0,
        },
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models of true shapes, whose weights are holes of sparse files."""
    folder = tmp_path_factory.mktemp("models")
    return {name: _write_hollow(folder / name, make()) for name, make in MODELS.items()}


def _write_hollow(folder: Path, config: Any) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, getattr(tokenizer, key))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tied = set(model.all_tied_weights_keys or ())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.state_dict().items():
        if name not in tied:
            start, end = end, end + 2 * tensor.numel()
            header[name] = {
                "dtype": "BF16",
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
    words = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + end)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_check_finds_no_problem_and_the_memory_of_the_page(
    name: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, row = CASES[name]
    config = load_config(JOBS / f"{name}.yaml")
    source = "sft" if config.sft else "preferences"
    split = config.sft.split if config.sft else config.preferences.split  # type: ignore[union-attr]
    rows = [{**row, "n": n} for n in range(4)]
    data = tmp_path / f"{split}-00000-of-00001.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in rows))
    overrides = {
        "output": tmp_path,
        "ray_address": "ray://cluster:10001",
        "model.path": models[model],
        f"{source}.{'data' if config.sft else 'path'}": data,
        f"{source}.format": "auto",
        **({"model.pad_token": "<pad>"} if config.model.pad_token else {}),
    }
    settings = [f"--set={key}={value}" for key, value in overrides.items()]
    assert main(["check", str(JOBS / f"{name}.yaml"), *settings]) == 0
    printed = capsys.readouterr().out
    found = re.search(r"each with at least ([\d.]+) GiB of weights", printed)
    assert found is not None
    [scale] = [one for one in SCALE.SCALES if one.job == f"{name}.yaml"]
    states, _ = SCALE.training_bytes(SCALE.section_of(scale.config), scale.parameters)
    # The page counts no norms and biases.
    assert float(found[1]) == pytest.approx(states / SCALE.GIB, rel=0.005)


def test_the_page_has_the_tables_of_the_command() -> None:
    written = SCALE.PAGE.read_text(encoding="utf-8")
    assert SCALE.page_with(SCALE.tables()) == written, "python jobs/paper_scale.py --write"


def test_useful_operations_agree_with_six_a_parameter_and_token() -> None:
    """They leave out embeddings, and the output layer on prompts; they have attention."""
    for scale in SCALE.SCALES:
        training, _ = SCALE.useful_flops(scale)
        rule = 6 * scale.parameters * scale.groups * scale.tokens
        assert 0.85 < training / rule < 1.1, scale.job


def test_steps_of_warm_up_are_those_of_the_paper() -> None:
    for name, groups in (("hh_pythia_2_8b", 160_800), ("tldr_pythia_6_9b", 92_858)):
        training = load_config(JOBS / f"{name}.yaml").training
        assert isinstance(training, TrainingConfig)
        steps = groups * (1 - (training.heldout_fraction or 0)) / training.global_batch_groups
        assert steps * training.warmup_fraction == pytest.approx(150, abs=1)
        assert (training.global_batch_groups, training.learning_rate) == (64, 1e-6)
        assert training.objective.kl_beta == (0.5 if name.startswith("tldr") else 0.1)


def test_jobs_start_from_what_their_references_make() -> None:
    for name, stage in (("hh_pythia_2_8b", "round-000"), ("tldr_pythia_6_9b", "sft")):
        before, job = (load_config(JOBS / f"{p}{name}.yaml") for p in ("sft_", ""))
        assert job.model.path.endswith(f"runs/{before.name}/{stage}/policy/model")
