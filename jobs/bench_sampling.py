"""Measure how fast the engine pool samples, its overhead, and whether memory stays flat.

It takes a model (the demo's) and how much of each to do. It prints a table, writes
`bench_sampling.json` to the output folder, and prints one JSON object as the last line. Each
measurement is in `unfinished.jsonl` there as soon as it is made, and the same command goes on where
it was stopped:

    python jobs/bench_sampling.py --quick
    python jobs/bench_sampling.py --prompts 4000 --flat-prompts 1000000

It measures one thing after the other on one machine, and engines idle while others work. It
measures tokens/s of one engine behind the pool and its Ray Data stage, of a bare `vllm.LLM` with
the same arguments, and of `transformers.generate`. It measures the seconds that an engine's start
and a weight push take, and those that a round spends in sampling apart from the tokens. It
measures the memory of the driver and of Ray's object store while a stand-in engine that costs
nothing answers a great many short prompts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ray
import torch
from sampling_peers import BareLLM, MemoryWatch, NoOpEngine, Transformers

from benchmark.kept import Kept, source_hash
from benchmark.machine import Noise, Watch, processor, said_of
from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core.cluster import start, uses_cuda
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger, start_logging
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder, fingerprint
from raydpo.models.loading import load_tokenizer, local_folder
from raydpo.sampling.arguments import engine_arguments, engine_environment
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.engine import Request
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.stage import prompt_seed, sample_candidates
from raydpo.sampling.weights import weights_of

ROOT = Path(__file__).parents[1]
MAX_PROMPT_TOKENS = 16
ROWS_PER_PART = 256


@dataclass(frozen=True)
class Work:
    """What is measured, and where its tables go."""

    model: ModelConfig
    sampling: SamplingConfig
    prompts: list[list[int]]
    repeats: int
    folder: Path

    def requests(self) -> list[Request]:
        """The prompts with the seeds that the pipeline gives them."""
        return [
            Request(str(i), ids, prompt_seed(0, 0, str(i))) for i, ids in enumerate(self.prompts)
        ]

    def stage(
        self, name: str, prompts: Table, pool: EnginePool, **changes: Any
    ) -> tuple[dict[str, int], float]:
        """Run the sampling stage; its counts, and the seconds it took."""
        arguments: dict[str, Any] = {"model": self.model, "sampling": self.sampling, **changes}
        started = time.perf_counter()
        table = sample_candidates(
            Place(Folder(str(self.folder / name)), name),
            prompts,
            max_prompt_tokens=MAX_PROMPT_TOKENS,
            pool=lambda: pool,
            **arguments,
        )
        return table.manifest["counts"], time.perf_counter() - started


def main(arguments: list[str] | None = None) -> int:
    """Measure everything, print the table, write the JSON."""
    options = _parser().parse_args(arguments)
    _apply_quick(options)
    start_logging()
    logger.setLevel(logging.WARNING)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    kept = Kept(output / "unfinished.jsonl", _made_with(options))
    if (earlier := kept.found()) is not None:
        print(earlier, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="raydpo-bench-", dir=options.scratch))
    start()
    try:
        _measure(_work(options, folder), options, kept)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    found = _joined(kept) | _machine()
    (output / "bench_sampling.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / "bench_sampling.md").write_text(table := _table(found))
    print(table)
    print(json.dumps(found))
    kept.finish()
    return 0


def _made_with(options: argparse.Namespace) -> dict[str, Any]:
    """What a kept measurement depends on."""
    sources = ("raydpo", "jobs/bench_sampling.py", "jobs/sampling_peers.py")
    names = ("model", "prompts", "repeats", "candidates", "completion_tokens", "generate_prompts")
    asked = {name: getattr(options, name) for name in (*names, "flat_prompts")}
    return {**asked, **_machine(), "processor_name": processor(), "source": source_hash(sources)}


def _joined(kept: Kept) -> dict[str, Any]:
    """All measurements, and how busy the machine was."""
    found: dict[str, Any] = {}
    for result in kept.results.values():
        found |= result["found"]
    noises = [Noise(**result["noise"]) for result in kept.results.values()]
    seconds = sum(
        # the speeds contain the rates
        result["noise"]["seconds"] * (name != "rates")
        for name, result in kept.results.items()
    )
    return {
        **found,
        "seconds": round(seconds, 1),
        "machine": said_of(noises),
        "noise": [noise.as_json() for noise in noises],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within five minutes")
    parser.add_argument("--model", default=str(ROOT / "assets/review-lm"))
    parser.add_argument("--prompts", type=int, default=4096, help="prompts of a speed measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of each, interleaved")
    parser.add_argument("--candidates", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--completion-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--generate-prompts", type=int, default=256, help="for transformers")
    parser.add_argument("--flat-prompts", type=int, default=1_000_000, help="of the stand-in")
    parser.add_argument("--output", default="runs/bench-sampling", help="folder of the results")
    parser.add_argument("--scratch", default=None, help="folder of the tables, deleted at the end")
    return parser


def _apply_quick(options: argparse.Namespace) -> None:
    if options.quick:
        options.prompts = min(options.prompts, 768)
        options.repeats = min(options.repeats, 2)
        options.generate_prompts = min(options.generate_prompts, 64)
        options.flat_prompts = min(options.flat_prompts, 20_000)


def _work(options: argparse.Namespace, folder: Path) -> Work:
    model = ModelConfig(path=options.model)
    tokenizer: Any = load_tokenizer(model)
    lines = (ROOT / "assets/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    sampling = SamplingConfig(
        candidates=options.candidates,
        max_completion_tokens=options.completion_tokens,
        engines=EnginesConfig(cpus=1.0, gpu_memory_fraction=0.4),  # of two on one GPU, in turn
    )
    prompts = [ids[i % len(ids)] for i in range(options.prompts)]
    return Work(model, sampling, prompts, options.repeats, folder)


def _measure(work: Work, options: argparse.Namespace, kept: Kept) -> None:
    """Make the measurements that are missing; each is kept when it is made."""
    pieces: dict[str, Callable[[], dict[str, Any]]] = {
        "speeds": lambda: _speeds(work, kept),
        "transformers": lambda: _plain(work, options.generate_prompts, kept),
        "flat memory": lambda: _flat_memory(work, options.flat_prompts),
    }
    for number, (name, measure) in enumerate(pieces.items(), 1):
        if name not in kept.results:
            _keep(kept, name, measure)
        noise = Noise(**kept.results[name]["noise"])
        print(f"[{number}/{len(pieces)}] {name}: {noise.seconds:.0f} s, {noise}", flush=True)


def _keep(kept: Kept, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    with Watch() as watch:
        found = measure()
    kept.add(name, {"found": found, "noise": watch.noise().as_json()})


def _speeds(work: Work, kept: Kept) -> dict[str, Any]:
    """Tokens per second of the pool and of bare vLLM, interleaved; start-up, push, overhead.

    The rates, which take longest, are kept before the rest is measured.
    """
    prompts = _prompts_table(work.folder / "prompts", work.prompts)
    started = time.perf_counter()
    with engine_pool(work.model, work.sampling, MAX_PROMPT_TOKENS, "bench") as pool:
        startup = round(time.perf_counter() - started, 2)
        if "rates" not in kept.results:
            _keep(kept, "rates", lambda: _rates(_against_bare(work, prompts, pool)))
        rates = kept.results["rates"]["found"]
        found = _push(work, pool) | _round_overhead(work, pool, rates)
    return {"startup_seconds": startup, **found}


def _against_bare(work: Work, prompts: Table, pool: EnginePool) -> _Runs:
    bare = _peer(work, BareLLM, work.model, _engine_arguments(work))
    try:
        return _interleaved(work, prompts, pool, bare)
    finally:
        cast(Any, ray).kill(bare)


def _plain(work: Work, prompts: int, kept: Kept) -> dict[str, Any]:
    """Tokens per second of `transformers.generate`, and of the stage over it."""
    plain = _peer(work, Transformers, work.model)
    tokens, seconds = ray.get(plain.generate.remote(work.requests()[:prompts], work.sampling))
    cast(Any, ray).kill(plain)
    rate = tokens / seconds
    stage = kept.results["rates"]["found"]["stage_tokens_per_second"]
    return {
        "transformers_tokens_per_second": round(rate, 1),
        "stage_vs_transformers": round(stage / rate, 3),
    }


def _engine_arguments(work: Work) -> dict[str, Any]:
    cuda = uses_cuda(work.sampling.engines.device)
    return engine_arguments(work.model, work.sampling, MAX_PROMPT_TOKENS, cuda)


def _peer(work: Work, peer: type[Any], *arguments: Any) -> Any:
    """A peer in an actor with the engines' environment; it holds no CPU, as it works alone."""
    cuda = uses_cuda(work.sampling.engines.device)
    environment = {"env_vars": engine_environment(work.sampling, cuda)}
    # Nor a GPU: raydpo lets Ray hide none from it, and it takes the first, beside the engine.
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "runtime_env": environment}
    handle = ray.remote(peer).options(**options).remote(*arguments)
    ray.get(handle.ready.remote())
    return handle


@dataclass
class _Runs:
    """Tokens and seconds of each repeat, and of the cluster's first stage."""

    first: tuple[int, float]
    stage: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    engine: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    bare: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


def _interleaved(work: Work, prompts: Table, pool: EnginePool, bare: Any) -> _Runs:
    """The stage, the pool's engine called directly, and the bare LLM, in turn."""
    requests, weights = work.requests(), weights_of(work.model)
    pool.generate(pool.take(), requests[:64], work.sampling, weights)  # the first call warms up
    ray.get(bare.generate.remote(requests[:64], work.sampling))
    few = _prompts_table(work.folder / "warm-up-prompts", work.prompts[:64])
    counts, seconds = work.stage("warm-up", few, pool)  # workers start and import once a cluster
    runs = _Runs(first=(counts["completion_tokens"], seconds))

    def by_stage() -> None:
        counts, seconds = work.stage(f"candidates-{len(runs.stage)}", prompts, pool)
        runs.stage.append((counts["completion_tokens"], seconds))

    def by_engine() -> None:
        started = time.perf_counter()
        _, given = pool.generate(pool.take(), requests, work.sampling, weights)
        seconds = time.perf_counter() - started
        completions = [c for answer in given.answers if isinstance(answer, list) for c in answer]
        runs.engine.append((sum(len(c.token_ids) for c in completions), seconds))

    def by_bare() -> None:
        runs.bare.append(ray.get(bare.generate.remote(requests, work.sampling)))

    turns = [by_stage, by_engine, by_bare]
    for repeat in range(work.repeats):  # there and back, so that a drift of the machine cancels
        for turn in turns if repeat % 2 == 0 else reversed(turns):
            started = time.perf_counter()
            turn()
            took = time.perf_counter() - started
            print(f"repeat {repeat + 1}/{work.repeats}, {turn.__name__}: {took:.1f} s", flush=True)
    return runs


def _rates(runs: _Runs) -> dict[str, Any]:
    rates = {
        name: statistics.median(tokens / seconds for tokens, seconds in values)
        for name, values in (("stage", runs.stage), ("engine", runs.engine), ("bare", runs.bare))
    }
    ratios = [(a / s) / (b / t) for (a, s), (b, t) in zip(runs.stage, runs.bare, strict=True)]
    return {
        "stage_tokens_per_second": round(rates["stage"], 1),
        "engine_tokens_per_second": round(rates["engine"], 1),
        "bare_tokens_per_second": round(rates["bare"], 1),
        "stage_vs_bare": round(statistics.median(ratios), 3),
        "stage_vs_bare_each": [round(ratio, 3) for ratio in ratios],
        "first_stage_seconds": round(runs.first[1] - runs.first[0] / rates["engine"], 2),
        "tokens": runs.stage[0][0],
        "same_tokens_as_bare": runs.stage[0][0] == runs.bare[0][0],
    }


def _push(work: Work, pool: EnginePool) -> dict[str, Any]:
    """Seconds of a weight push: a copy of the model with one number changed, and back.

    By files, and, in turn with it, sent by this process as a train worker would.
    """
    other = work.folder / "other-weights"
    shutil.copytree(local_folder(work.model), other)
    for path in other.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    versions = [weights_of(model) for model in (ModelConfig(path=str(other)), work.model)]
    seconds: list[float] = []
    sent: list[float] = []
    for turn in range(10):
        seconds.append(pool.push(versions[turn % 2], "bench"))
        started = time.monotonic()
        if not Broadcast(pool)(local_folder(versions[(turn + 1) % 2].model), torch.device("cpu")):
            raise SystemExit("the engines did not take what was sent")
        sent.append(time.monotonic() - started)
        pool.push(versions[turn % 2], "bench")
    return {
        "push_seconds": round(statistics.median(seconds), 4),
        "push_seconds_longest": round(max(seconds), 4),
        "broadcast_seconds": round(statistics.median(sent), 4),
        "files_vs_broadcast": round(
            statistics.median(f / s for f, s in zip(seconds, sent, strict=True)), 3
        ),
    }


def _round_overhead(work: Work, pool: EnginePool, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a round's sampling stage, push and all, beyond the making of its tokens."""
    prompts = _prompts_table(work.folder / "few", work.prompts[:32])
    spent: list[float] = []
    for repeat in range(3):
        counts, seconds = work.stage(f"few-{repeat}", prompts, pool)
        made_in = counts["completion_tokens"] / found["engine_tokens_per_second"]
        spent.append(seconds - made_in)
    return {"between_rounds_seconds": round(statistics.median(spent), 2)}


def _flat_memory(work: Work, count: int) -> dict[str, Any]:
    """Driver and object store while the stand-in answers many short prompts."""
    prompts = _prompts_table(work.folder / "many", [[1, 5, 9, 11]] * count)
    sampling = work.sampling.model_copy(update={"candidates": 1})
    watch: Any = ray.remote(MemoryWatch).options(num_cpus=0, max_concurrency=2).remote(os.getpid())
    with engine_pool(
        work.model, sampling, MAX_PROMPT_TOKENS, "flat", engine_class=NoOpEngine
    ) as pool:
        growth = watch.watch.remote()
        counts, seconds = work.stage("flat", prompts, pool, sampling=sampling)
        ray.get(watch.stop.remote())
    assert counts["output"] == count
    values = {
        "prompts": count,
        "prompts_per_second": round(count / seconds),
        **cast("dict[str, Any]", ray.get(growth)),
    }
    return {f"flat_{name}": value for name, value in values.items()}


def _prompts_table(folder: Path, prompts: list[list[int]]) -> Table:
    """A prompts table, written part by part."""
    stage = Stage(
        Place(Folder(str(folder)), "test"),
        "prompts",
        "prompts",
        {"n": fingerprint(len(prompts))},
        {},
    )
    open_stage(stage)
    for index, first in enumerate(range(0, len(prompts), ROWS_PER_PART)):
        rows = [
            {"prompt_id": str(first + i), "prompt": "", "messages": None, "prompt_ids": ids}
            for i, ids in enumerate(prompts[first : first + ROWS_PER_PART])
        ]
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {"input": len(prompts)}))


def _machine() -> dict[str, Any]:
    import torch
    import transformers
    import vllm

    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": {
            "ray": ray.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "vllm": vllm.__version__,
        },
    }


def _table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    text: Callable[[str], str] = lambda name: f"{found[name]:,}"  # noqa: E731
    rows = [
        ("pipeline: pool and Ray Data stage", f"{text('stage_tokens_per_second')} tokens/s"),
        ("the pool's engine, called directly", f"{text('engine_tokens_per_second')} tokens/s"),
        ("bare `vllm.LLM`", f"{text('bare_tokens_per_second')} tokens/s"),
        ("`transformers.generate`", f"{text('transformers_tokens_per_second')} tokens/s"),
        (
            "pipeline / bare (target 0.95), median; each",
            f"{text('stage_vs_bare')}; {', '.join(map(str, found['stage_vs_bare_each']))}",
        ),
        ("pipeline / transformers", text("stage_vs_transformers")),
        ("start of an engine", f"{text('startup_seconds')} s"),
        ("weight push by files, median of 10", f"{text('push_seconds')} s"),
        ("the same, sent over gloo", f"{text('broadcast_seconds')} s"),
        ("a round's sampling beside its tokens", f"{text('between_rounds_seconds')} s"),
        ("the same of a cluster's first stage", f"{text('first_stage_seconds')} s"),
        (
            f"stand-in, {text('flat_prompts')} prompts",
            f"{text('flat_prompts_per_second')} prompts/s",
        ),
        (
            "driver memory, second and last quarter of the time",
            f"{text('flat_driver_second_quarter_mib')} → {text('flat_driver_last_quarter_mib')} MiB",
        ),
        (
            "object store, the same, and its peak",
            f"{text('flat_object_store_second_quarter_mib')} → "
            f"{text('flat_object_store_last_quarter_mib')}, {text('flat_object_store_peak_mib')} MiB",
        ),
    ]
    lines = ["| what | measured |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join([*lines, "", found["machine"]]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
