"""Engines that are killed while they work: nothing is lost, and no token changes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sampling_tables import greedy_tokens, make_prompts, process_id, rows_of, with_noise

from raydpo.config import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.errors import EngineError, ModelError
from raydpo.parts import Table
from raydpo.sampling import transfer
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.engine import Engine, Request
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.stage import PARTS_IN_FLIGHT, sample_candidates
from raydpo.sampling.weights import weights_of
from raydpo.storage import folder_of

pytestmark = pytest.mark.slow

#: More than the 128 tokens of a block of keys and values on CPU.
MAX_PROMPT_TOKENS = 200
ROWS_PER_PART = 4
PARTS = 6
CANDIDATES = 2


def killable_engine(orders: Path) -> type[Engine]:
    """An engine that SIGKILLs itself at its k-th finished prompt, once `kill_at` ordered it."""

    class KillableEngine(Engine):
        def __init__(self, model: ModelConfig, arguments: dict[str, Any]) -> None:
            own = {"enable_prefix_caching": True}  # as on CUDA: it must not outlive the weights
            if (orders / "do not load").exists():
                (orders / "do not load").unlink()
                own = {"max_model_len": -1}
            super().__init__(model, {**arguments, **own})

        def receive(self, delivery: Any) -> None:
            import os
            import signal

            if (orders / "die when weights come").exists():
                (orders / "die when weights come").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            super().receive(delivery)

        def _start(self, engine: Any, held: Any, job: Any) -> None:
            super()._start(engine, held, job)
            (orders / "asleep").write_text(str(engine.is_sleeping()))

        def _deliver(self, output: Any) -> None:
            import os
            import signal

            order = orders / str(os.getpid())  # each engine has its own: none reads another's
            if output.finished and order.exists():
                left = int(order.read_text()) - 1
                order.write_text(str(left))
                if left == 0:
                    order.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            super()._deliver(output)

    return KillableEngine


def kill_at(orders: Path, pool: EnginePool, engine: int, finished_prompts: int) -> Path:
    """Order an engine's death; the file is gone when it has died."""
    order = orders / str(process_id(pool, engine))
    order.write_text(str(finished_prompts))
    return order


def pool_of(
    model: Path, orders: Path, max_restarts: int, count: int = 1
) -> AbstractContextManager[EnginePool]:
    sampling = settings(max_restarts, count)
    config = ModelConfig(path=str(model))
    engine_class = killable_engine(orders)
    return engine_pool(config, sampling, MAX_PROMPT_TOKENS, "test", engine_class=engine_class)


def settings(max_restarts: int, count: int = 1) -> SamplingConfig:
    return SamplingConfig(
        candidates=CANDIDATES,
        max_completion_tokens=16,
        engines=EnginesConfig(count=count, cpus=0.5, max_restarts=max_restarts),
    )


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def pool(ray_cluster: None, tiny_model: Path, orders: Path) -> Iterator[EnginePool]:
    """One engine that may be started again, as often as these tests kill it."""
    with pool_of(tiny_model, orders, max_restarts=6) as engines:
        yield engines


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = [(f"prompt-{i}", [1, 5 + i, 9, 11]) for i in range(PARTS * ROWS_PER_PART)]
    return make_prompts(tmp_path_factory.mktemp("prompts"), rows, ROWS_PER_PART)


def sample(
    folder: Path, prompts: Table, model: Path, pool: EnginePool, max_restarts: int = 2
) -> Table:
    return sample_candidates(
        folder=folder_of(str(folder)),
        prompts=prompts,
        model=ModelConfig(path=str(model)),
        sampling=settings(max_restarts),
        seed=0,
        round_index=0,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        what="test",
        max_quarantined_fraction=0.0,
        pool=lambda: pool,
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, prompts: Table, tiny_model: Path, pool: EnginePool
) -> Table:
    return sample(tmp_path_factory.mktemp("undisturbed"), prompts, tiny_model, pool)


def test_a_killed_engine_whose_first_restart_cannot_load_changes_no_token(
    undisturbed: Table,
    prompts: Table,
    tiny_model: Path,
    pool: EnginePool,
    orders: Path,
    tmp_path: Path,
) -> None:
    before = process_id(pool)
    order = kill_at(orders, pool, 0, finished_prompts=10)
    (orders / "do not load").touch()
    table = sample(tmp_path, prompts, tiny_model, pool)
    assert not order.exists()
    assert not (orders / "do not load").exists()
    assert process_id(pool) != before
    assert table.fingerprint == undisturbed.fingerprint
    expected = [(row["prompt_id"], k) for row in rows_of(prompts) for k in range(CANDIDATES)]
    assert [(row["prompt_id"], row["candidate"]) for row in rows_of(table)] == expected


def test_dead_engines_leave_their_work_to_the_others_and_the_stage_goes_on_later(
    undisturbed: Table, prompts: Table, tiny_model: Path, pool: EnginePool, tmp_path: Path
) -> None:
    orders, folder = tmp_path / "orders", tmp_path / "candidates"
    orders.mkdir()
    with pool_of(tiny_model, orders, max_restarts=0, count=2) as fragile:
        order = kill_at(orders, fragile, 0, finished_prompts=5)
        table = sample(tmp_path / "survived", prompts, tiny_model, fragile, max_restarts=0)
        assert not order.exists()
        assert table.fingerprint == undisturbed.fingerprint
        # All parts but the last prompt: the workers, PARTS_IN_FLIGHT for each of two engines,
        # have written what they had before the parts that are open.
        kill_at(orders, fragile, 1, finished_prompts=PARTS * ROWS_PER_PART - 1)
        with pytest.raises(EngineError, match="every engine died"):
            sample(folder, prompts, tiny_model, fragile, max_restarts=0)
    written = {f.name: f.stat().st_mtime_ns for f in folder.glob("part-*.parquet")}
    assert PARTS - 2 * PARTS_IN_FLIGHT <= len(written) < PARTS

    completions_before, _ = pool.made()
    table = sample(folder, prompts, tiny_model, pool)
    expected = (PARTS - len(written)) * ROWS_PER_PART * CANDIDATES
    deadline = time.monotonic() + 30  # workers count without waiting
    while pool.made()[0] - completions_before < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.made()[0] - completions_before == expected
    assert all((folder / name).stat().st_mtime_ns == time for name, time in written.items())
    assert table.fingerprint == undisturbed.fingerprint


def test_pushed_weights_forget_what_was_cached_and_outlive_the_engine(
    tiny_model: Path, pool: EnginePool, orders: Path, tmp_path: Path
) -> None:
    """Greedy tokens are those of the pushed weights, after a push and after a kill."""
    base = ModelConfig(path=str(tiny_model))
    pushed = ModelConfig(path=str(with_noise(base, tmp_path / "pushed")))
    greedy = settings(2).model_copy(update={"temperature": 0.0, "candidates": 1})
    prompts = [[1, 5, 9, 11], [1, *range(3, 160)]]  # the second fills a block of 128 tokens
    requests = [Request(str(number), ids, 0) for number, ids in enumerate(prompts)]
    before = process_id(pool)
    for model, die_at in [(base, 0), (pushed, 0), (pushed, 2), (base, 0)]:
        weights = weights_of(model)
        pool.push(weights, "test")
        order = kill_at(orders, pool, 0, finished_prompts=die_at) if die_at else None
        _, given = pool.generate(0, requests, greedy, weights)
        expected = [greedy_tokens(model, ids, 16) for ids in prompts]
        assert [answer[0].token_ids for answer in given.answers] == expected  # type: ignore[index]
        assert given.policy == weights.fingerprint
        assert order is None or not order.exists()
    assert process_id(pool) != before


def test_an_engine_that_dies_while_weights_are_sent_reads_the_files(
    tiny_model: Path, pool: EnginePool, orders: Path, tmp_path: Path
) -> None:
    import ray
    import torch

    folder = with_noise(ModelConfig(path=str(tiny_model)), tmp_path / "sent")
    model, before = ModelConfig(path=str(folder)), process_id(pool)
    order = orders / "die when weights come"
    order.touch()
    assert not Broadcast(pool)(folder, torch.device("cpu"))
    assert not order.exists()
    assert process_id(pool) != before
    weights = weights_of(model)
    assert "not sent" in ray.get(pool.desk.reported.remote(weights.fingerprint))
    greedy = settings(2).model_copy(update={"temperature": 0.0, "candidates": 1})
    _, given = pool.generate(0, [Request("0", [1, 5, 9, 11], 0)], greedy, weights)
    assert given.answers[0][0].token_ids == greedy_tokens(model, [1, 5, 9, 11], 16)  # type: ignore[index]


def test_an_engine_that_got_half_of_the_weights_reads_the_files_anew(
    tiny_model: Path, pool: EnginePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM counts what it loaded of a layer of several tensors, and goes on from there."""
    import torch

    whole = transfer.tensors_of

    def half(folder: Path, device: torch.device) -> Iterator[torch.Tensor]:
        for spec, tensor in zip(transfer.specs_of(folder), whole(folder, device), strict=True):
            yield tensor
            if spec.name.endswith("k_proj.weight"):
                raise ConnectionError("the sender dies after k, before q and v")

    model = ModelConfig(path=str(with_noise(ModelConfig(path=str(tiny_model)), tmp_path / "sent")))
    monkeypatch.setattr(transfer, "tensors_of", half)
    assert not Broadcast(pool)(Path(model.path), torch.device("cpu"))
    weights = weights_of(model)
    pool.push(weights, "test")
    greedy = settings(2).model_copy(update={"temperature": 0.0, "candidates": 1})
    _, given = pool.generate(0, [Request("0", [1, 5, 9, 11], 0)], greedy, weights)
    assert given.answers[0][0].token_ids == greedy_tokens(model, [1, 5, 9, 11], 16)  # type: ignore[index]


def test_an_engine_that_sleeps_wakes_with_its_next_call_and_answers_as_before(
    undisturbed: Table,
    prompts: Table,
    tiny_model: Path,
    pool: EnginePool,
    orders: Path,
    tmp_path: Path,
) -> None:
    engines = pool.settings.model_copy(update={"sleep": True, "gpu_share": 0.6})
    sleeping = replace(pool, settings=engines)
    assert comes_to_be(orders / "asleep", "False")
    for name in ("first", "second"):
        table = sample(tmp_path / name, prompts, tiny_model, sleeping)
        assert table.fingerprint == undisturbed.fingerprint
        assert comes_to_be(orders / "asleep", "True")
    pool.push(weights_of(ModelConfig(path=str(tiny_model))), "test")
    assert comes_to_be(orders / "asleep", "False")


def comes_to_be(file: Path, text: str) -> bool:
    """The engine's thread writes it after it has answered."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if file.read_text() == text:
            return True
        time.sleep(0.01)
    return False


def test_a_model_that_vllm_cannot_load_is_an_error_that_says_so(
    ray_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "architectures": ["NoSuchModel"]}))
    with (
        pytest.raises(ModelError, match="vLLM cannot load it"),
        engine_pool(ModelConfig(path=str(folder)), settings(0), MAX_PROMPT_TOKENS, "test"),
    ):
        pass
