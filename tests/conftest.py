"""What tests share: a tiny model made here, real data if it is installed, one Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Nothing in the tests reaches for a hub, and no Ray of this machine is met by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RAY_ADDRESS", None)
# Test processes side by side share the cores: with a thread a core each, all of them wait.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
#: How long the processes of a test may take to end.
SECONDS_TO_END = 60.0
SHARED_DATA = ROOT.parent / "shared" / "data"

WORDS = [
    "the",
    "a",
    "film",
    "movie",
    "story",
    "was",
    "is",
    "good",
    "bad",
    "great",
    "awful",
    "acting",
    "plot",
    "and",
    "but",
    "very",
    "really",
    "not",
    "I",
    "it",
    "we",
    "loved",
    "hated",
    "enjoyed",
    "boring",
    "funny",
    "sad",
    "slow",
    "fast",
    "end",
    "start",
    "scene",
    "actor",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files beside the project; tests that need them skip where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """A real pretrained Llama of 260 thousand parameters; it has no padding token."""
    return shared_data / "stories260K"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads of 32 and a byte-level tokenizer, as a Hugging Face folder."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


def make_tiny_model(folder: Path, seed: int, **overrides: object) -> Path:
    """Save a random Llama and its tokenizer; `overrides` change the LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    values: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**values, **overrides}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose config says tied, and whose file holds an output layer of its own."""
    folder = tmp_path_factory.mktemp("models") / "liar"
    make_tiny_model(folder, seed=3, tie_word_embeddings=False)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    return folder


def make_tokenizer():
    """A byte-level BPE tokenizer with a few words, BOS put first, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + word for word in WORDS] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return fast


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for all tests of this process, on loopback, with this machine's CPUs.

    A cluster takes seconds to start. Whatever a test starts on it, it ends; a test that needs a
    cluster of its own, or other environment variables in it, runs in a process of its own.
    """
    import ray

    from raydpo.core.cluster import start

    start()
    yield
    ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_on_the_cluster() -> Iterator[None]:
    """After each file all CPUs are free: whoever kept one would let another file's work wait for it."""
    yield
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    total, end = ray.cluster_resources()["CPU"], time.monotonic() + SECONDS_TO_END
    while ray.available_resources().get("CPU", 0) < total:
        if time.monotonic() > end:
            free = ray.available_resources().get("CPU", 0)
            pytest.fail(f"{free:g} of {total:g} CPUs are free; these still run: {_actors_alive()}")
        time.sleep(0.2)


def _actors_alive() -> list[str]:
    from ray._private import state

    found = state.actors().values()
    return [f"{of['ActorClassName']} {of['Name']}".strip() for of in found if of["State"] != "DEAD"]


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test file's SOURCE as a module in the working directory, of a name never imported."""
    name = f"own_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(request.module.SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture(autouse=True)
def raydpo_logs_as_if_just_imported() -> Iterator[None]:
    """A command sends the log to its own stderr, which is closed when the next test begins."""
    yield
    log = logging.getLogger("raydpo")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.fixture(autouse=True)
def ray_is_started_by_slow_tests_only(request: pytest.FixtureRequest) -> Iterator[None]:
    """Many of Ray's functions start a cluster where there is none, open to other machines."""
    before = _has_ray_node()
    yield
    if request.node.get_closest_marker("slow") is None:
        assert _has_ray_node() == before, "this test started Ray in its own process"


def _has_ray_node() -> bool:
    worker = sys.modules.get("ray._private.worker")
    return worker is not None and worker._global_node is not None
