"""Engines that are killed while they work: nothing is lost, and no token changes."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sampling_tables import greedy_tokens, make_prompts, process_id, rows_of, seat_of, with_noise

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core import waiting
from raydpo.core.errors import EngineError, ModelError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.storage import folder_of
from raydpo.sampling import transfer
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.engine import Engine, Request
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.stage import PARTS_IN_FLIGHT, sample_candidates
from raydpo.sampling.weights import weights_of

pytestmark = pytest.mark.slow

#: More than the 128 tokens of a block of keys and values on CPU.
MAX_PROMPT_TOKENS = 200
ROWS_PER_PART = 4
PARTS = 6
CANDIDATES = 2


def killable_engine(orders: Path) -> type[Engine]:
    """An engine that SIGKILLs or SIGSTOPs itself at its k-th finished prompt, once ordered to."""

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
                left, name = order.read_text().split()
                order.write_text(f"{int(left) - 1} {name}")
                if int(left) == 1:
                    order.unlink()
                    os.kill(os.getpid(), signal.Signals[name])
            super()._deliver(output)

    return KillableEngine


def kill_at(
    orders: Path, pool: EnginePool, engine: int, finished_prompts: int, by: str = "SIGKILL"
) -> Path:
    """Order an engine's death, or that it stops; the file is gone when it has."""
    order = orders / str(process_id(pool, engine))
    order.write_text(f"{finished_prompts} {by}")
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
        engines=EnginesConfig(
            count=count, cpus=0.5, max_restarts=max_restarts, answer_within_seconds=6.0
        ),
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
        Place(folder_of(str(folder)), "test"),
        prompts,
        model=ModelConfig(path=str(model)),
        sampling=settings(max_restarts),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
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
    deadline = time.monotonic() + 180  # workers count without waiting
    while pool.made()[0] - completions_before < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.made()[0] - completions_before == expected
    assert all((folder / name).stat().st_mtime_ns == time for name, time in written.items())
    assert table.fingerprint == undisturbed.fingerprint


def test_the_only_engine_that_is_stopped_is_spoken_of_ended_and_changes_no_token(
    undisturbed: Table,
    prompts: Table,
    tiny_model: Path,
    pool: EnginePool,
    orders: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 2.0)
    monkeypatch.setattr(waiting, "EVERY_SECONDS", 1.0)
    seat = seat_of(pool)
    process = process_id(pool)
    order = kill_at(orders, pool, 0, finished_prompts=5, by="SIGSTOP")
    with caplog.at_level(logging.INFO, "raydpo"):
        table = sample(tmp_path, prompts, tiny_model, pool)
    assert not order.exists()
    assert table.fingerprint == undisturbed.fingerprint
    assert seat_of(pool).start == seat.start + 1
    assert not Path(f"/proc/{process}").exists()
    silent = r"waits since \d+ s for an answer of engine 0; process (\d+) on node \w+ hangs"
    assert str(process) in re.findall(silent, caplog.text)
    assert re.search(r"waits since \d+ s for engine 0 to load the model; process \d+", caplog.text)
    assert "it is ended after 6 s (sampling.engines.answer_within_seconds)" in caplog.text
    assert "engine 0 is gone, and others do its work (death" in caplog.text
    assert "it has not answered for 6 s" in caplog.text
    assert "for the next part; at work: part-0" in caplog.text


def test_a_stopped_engine_is_used_again_and_one_that_is_given_up_frees_its_place(
    undisturbed: Table, prompts: Table, tiny_model: Path, tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    with pool_of(tiny_model, orders, max_restarts=1, count=2) as two:
        order = kill_at(orders, two, 1, finished_prompts=3, by="SIGSTOP")
        table = sample(tmp_path / "c", prompts, tiny_model, two)
        assert not order.exists()
        assert table.fingerprint == undisturbed.fingerprint
        assert seat_of(two, 1).start == 2
        assert {two.take().number for _ in range(2)} == {0, 1}
        process, free = process_id(two, 1), cpus_free()
        order = kill_at(orders, two, 1, finished_prompts=3, by="SIGSTOP")
        table = sample(tmp_path / "d", prompts, tiny_model, two)
        assert not order.exists()
        assert table.fingerprint == undisturbed.fingerprint
        assert [seat.number for seat in two.seats()] == [0]
        # The work is done before a task of Ray's has ended the process, and Ray counts later still.
        place, deadline = Path(f"/proc/{process}"), time.monotonic() + 180
        while (place.exists() or cpus_free() < free + 0.5) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not place.exists()
        assert cpus_free() == free + 0.5


def cpus_free() -> float:
    import ray

    return ray.available_resources().get("CPU", 0.0)


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
        _, given = pool.generate(pool.take(), requests, greedy, weights)
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
    _, given = pool.generate(pool.take(), [Request("0", [1, 5, 9, 11], 0)], greedy, weights)
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
    _, given = pool.generate(pool.take(), [Request("0", [1, 5, 9, 11], 0)], greedy, weights)
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
    deadline = time.monotonic() + 180
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
