"""An engine whose layers are split over two processes, on this machine's CPUs."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sampling_tables import greedy_tokens, logps_of, process_id, with_noise

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.engine import Completion, Request
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.probe import Probe, probe_engines
from raydpo.sampling.weights import Weights, weights_of
from tests.conftest import make_tiny_model

pytestmark = pytest.mark.slow

MAX_PROMPT_TOKENS = 200
#: The second fills a block of 128 tokens of the cache.
PROMPTS = [[1, 5, 9, 11], [1, *range(3, 160)]]
SPLIT = EnginesConfig(tensor_parallel=2, cpus=1)
GREEDY = SamplingConfig(candidates=1, temperature=0, max_completion_tokens=16, engines=SPLIT)


@dataclass(frozen=True)
class SplitEngine:
    """A model, and the pool of one engine over two ranks that serves it."""

    model: ModelConfig
    pool: EnginePool


@pytest.fixture(scope="module", params=["tied", "untied"])
def split(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Iterator[SplitEngine]:
    folder = tmp_path_factory.mktemp("models") / request.param
    tied = request.param == "tied"
    model = ModelConfig(path=str(make_tiny_model(folder, 0, tie_word_embeddings=tied)))
    with engine_pool(model, GREEDY, MAX_PROMPT_TOKENS, "test") as pool:
        yield SplitEngine(model, pool)


def ranks(pool: EnginePool) -> list[int]:
    """Process ids of the ranks, the actor's children that vLLM names so."""
    tasks = Path(f"/proc/{process_id(pool)}/task")  # a thread of the actor started them
    children = " ".join(file.read_text() for file in tasks.glob("*/children"))
    return [int(child) for child in children.split() if "Worker_TP" in title(int(child))]


def title(process: int) -> str:
    """What the process calls itself; empty where it is no more."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def complete(pool: EnginePool, weights: Weights) -> list[Completion]:
    requests = [Request(str(number), ids, 0) for number, ids in enumerate(PROMPTS)]
    _, given = pool.generate(pool.take(), requests, GREEDY, weights)
    assert given.policy == weights.fingerprint
    return [answer[0] for answer in given.answers]  # type: ignore[index]


def test_every_rank_takes_pushed_weights_and_greedy_tokens_are_those_of_transformers(
    split: SplitEngine, tmp_path: Path
) -> None:
    assert len(ranks(split.pool)) == 2
    noisy = with_noise(split.model, tmp_path / "pushed")
    pushed = split.model.model_copy(update={"path": str(noisy)})
    seen: list[list[list[int]]] = []
    for model in (split.model, pushed, split.model):
        weights = weights_of(model)
        split.pool.push(weights, "test")
        seen.append([completion.token_ids for completion in complete(split.pool, weights)])
        assert seen[-1] == [greedy_tokens(model, ids, 16) for ids in PROMPTS]
    assert seen[0] == seen[2] != seen[1]


def test_every_rank_takes_weights_that_are_sent(split: SplitEngine, tmp_path: Path) -> None:
    import torch

    folder = with_noise(split.model, tmp_path / "sent")
    sent = split.model.model_copy(update={"path": str(folder)})
    expected = [greedy_tokens(sent, ids, 16) for ids in PROMPTS]
    weights = weights_of(sent)
    assert Broadcast(split.pool)(folder, torch.device("cpu"))
    shutil.rmtree(folder)  # nobody reads it
    assert [completion.token_ids for completion in complete(split.pool, weights)] == expected


def test_its_log_probs_pass_the_probe(split: SplitEngine) -> None:
    completion = [6, 7, 8, 9]
    probes = [Probe(PROMPTS[0], completion, logps_of(split.model, PROMPTS[0], completion))]
    assert probe_engines(split.pool, weights_of(split.model), probes, "test") < 1e-4


@pytest.mark.parametrize("split", ["untied"], indirect=True)
@pytest.mark.parametrize("victim", ["actor", "rank"])
def test_a_killed_process_ends_the_whole_engine_and_the_next_one_answers_alike(
    split: SplitEngine, victim: str
) -> None:
    weights = weights_of(split.model)
    before = complete(split.pool, weights)
    actor, processes = process_id(split.pool), ranks(split.pool)
    os.kill(actor if victim == "actor" else processes[1], signal.SIGKILL)
    assert complete(split.pool, weights) == before
    assert process_id(split.pool) != actor
    deadline = time.monotonic() + 180
    while any(title(process) for process in processes):
        assert time.monotonic() < deadline, "a rank outlived its engine"
        time.sleep(0.1)
    assert len(ranks(split.pool)) == 2
