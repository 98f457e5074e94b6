"""Real vLLM engines on this machine's CPUs; every test with a random and a real small model."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sampling_tables import (
    greedy_tokens,
    key_of,
    logps_of,
    make_prompts,
    rows_of,
    with_noise,
)

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core.errors import ConfigError, EngineError, ModelError, QuarantineBudgetError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_quarantine
from raydpo.core.storage import folder_of
from raydpo.models.loading import load_tokenizer, weights_fingerprint
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.desk import Desk
from raydpo.sampling.engine import Completion, Request
from raydpo.sampling.pool import EnginePool, Engines, engine_pool
from raydpo.sampling.probe import Probe, probe_engines
from raydpo.sampling.stage import prompt_seed, sample_candidates
from raydpo.sampling.weights import Weights, weights_of
from tests.conftest import ROOT, make_tiny_model
from tests.integration.runs import drive, rows, write_prompts

pytestmark = pytest.mark.slow

MAX_PROMPT_TOKENS = 16
PLAIN = SamplingConfig(candidates=3, max_completion_tokens=24)
#: For tests of the stage, to which all models are alike.
ONE_MODEL = pytest.mark.parametrize("policy", ["random"], indirect=True)


@dataclass(frozen=True)
class Policy:
    """A model, engines of it, and prompts as token ids."""

    model: ModelConfig
    pool: EnginePool
    prompts: list[list[int]]


@pytest.fixture(scope="module", params=["random", "stories260K"])
def policy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Iterator[Policy]:
    """Engines that together hold every CPU, so that workers must do without one.

    The random model has an output layer of its own, the real one shares its embedding.
    """
    import ray

    if request.param == "random":
        folder = tmp_path_factory.mktemp("models") / "untied"
        model = ModelConfig(path=str(make_tiny_model(folder, 0, tie_word_embeddings=False)))
        texts, count = ["the film was", " great acting but", "I", " very slow and boring plot"], 2
    else:
        path = str(request.getfixturevalue("stories260k"))
        model = ModelConfig(path=path, pad_token="<unk>")
        texts, count = ["Once upon a time", "The dog", "Lily", "One day, a big bear saw"], 1
    engines = EnginesConfig(count=count, cpus=ray.cluster_resources()["CPU"] / count)
    sampling = PLAIN.model_copy(update={"engines": engines})
    tokenizer = load_tokenizer(model)
    with engine_pool(model, sampling, MAX_PROMPT_TOKENS, "test") as pool:
        yield Policy(model, pool, [tokenizer(t)["input_ids"] for t in texts * 4])


def sample(
    policy: Policy,
    folder: Path,
    prompts: Table,
    sampling: SamplingConfig = PLAIN,
    pool: Callable[[], EnginePool] | None = None,
    **place: Any,
) -> Table:
    return sample_candidates(
        Place(folder_of(str(folder)), "test", **place),
        prompts,
        model=policy.model,
        sampling=sampling,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        pool=pool or (lambda: policy.pool),
    )


def complete(policy: Policy, **settings: Any) -> list[list[Completion]]:
    """Completions of the policy's first four prompts, straight from an engine."""
    sampling = PLAIN.model_copy(update=settings)
    requests = [
        Request(str(i), ids, prompt_seed(0, 0, str(i))) for i, ids in enumerate(policy.prompts[:4])
    ]
    pool = policy.pool
    _, given = pool.generate(pool.take(), requests, sampling, weights_of(policy.model))
    assert given.policy == weights_fingerprint(policy.model)
    assert all(isinstance(answer, list) for answer in given.answers)
    return given.answers  # type: ignore[return-value]


def one_engine_of(pool: EnginePool) -> EnginePool:
    """The same pool, whose first engine has all the work."""
    import ray

    desk: Any = ray.remote(Desk).options(num_cpus=0).remote()
    ray.get(desk.seat.remote(pool.seats()[0]))
    return replace(pool, count=1, desk=desk)


@ONE_MODEL
def test_tokens_do_not_depend_on_engines_order_or_part_size(policy: Policy, tmp_path: Path) -> None:
    rows = list(enumerate(policy.prompts))
    two = sample(policy, tmp_path / "two", make_prompts(tmp_path / "p", rows, rows_per_part=3))
    one = sample(
        policy,
        tmp_path / "one",
        make_prompts(tmp_path / "q", rows[::-1], rows_per_part=7),
        pool=lambda: one_engine_of(policy.pool),
    )
    first = {key_of(row): row for row in rows_of(two)}
    assert len(first) == len(policy.prompts) * PLAIN.candidates
    assert first == {key_of(row): row for row in rows_of(one)}


@ONE_MODEL
def test_candidates_are_neighbours_with_everything_a_later_stage_needs(
    policy: Policy, tmp_path: Path
) -> None:
    prompts = make_prompts(tmp_path / "p", list(enumerate(policy.prompts)), rows_per_part=5)
    table = sample(policy, tmp_path / "c", prompts)
    rows = rows_of(table)
    assert [key_of(row) for row in rows] == [
        (row["prompt_id"], k) for row in rows_of(prompts) for k in range(PLAIN.candidates)
    ]
    assert [row["prompt_ids"] for row in rows[::3]] == policy.prompts
    assert {row["policy"] for row in rows} == {weights_fingerprint(policy.model)}
    assert [row["seed"] for row in rows[:3]] == [prompt_seed(0, 0, "0") + k for k in range(3)]
    assert all(len(row["sampler_token_logps"]) == len(row["completion_ids"]) for row in rows)
    counts = table.manifest["counts"]
    assert (counts["input"], counts["output"], counts["quarantined"]) == (16, 48, 0)
    assert counts["completion_tokens"] == sum(len(row["completion_ids"]) for row in rows)


@ONE_MODEL
def test_the_same_text_under_two_ids_is_sampled_twice(policy: Policy, tmp_path: Path) -> None:
    rows = [("a", policy.prompts[0]), ("b", policy.prompts[0])]
    found = rows_of(sample(policy, tmp_path / "c", make_prompts(tmp_path / "p", rows, 1)))
    ids = [row["completion_ids"] for row in found]
    assert len({tuple(i) for i in ids}) == 2 * PLAIN.candidates


@ONE_MODEL
def test_another_seed_is_a_stale_stage_and_gives_other_tokens(
    policy: Policy, tmp_path: Path
) -> None:
    prompts = make_prompts(tmp_path / "p", list(enumerate(policy.prompts)), 16)
    tables = [
        sample(policy, tmp_path / "c", prompts, seed=seed, round_index=round_index)
        for seed, round_index in [(0, 0), (1, 0), (0, 1)]
    ]
    assert len({table.fingerprint for table in tables}) == 3


def test_greedy_tokens_are_those_of_transformers(policy: Policy) -> None:
    expected = [greedy_tokens(policy.model, prompt, 24) for prompt in policy.prompts[:4]]
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}):
        found = complete(policy, **settings)
        assert [[c.token_ids for c in group] for group in found] == [[e] * 3 for e in expected]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_p": 0.8}])
def test_sampled_logps_are_the_models_own(policy: Policy, settings: dict[str, Any]) -> None:
    groups = complete(policy, **settings)
    for prompt, group in zip(policy.prompts[:4], groups, strict=True):
        for completion in group:
            expected = logps_of(policy.model, prompt, completion.token_ids)
            assert completion.token_logps == pytest.approx(expected, abs=1e-3)


def test_eos_stays_in_the_ids_and_ends_them(policy: Policy) -> None:
    eos = load_tokenizer(policy.model).eos_token_id
    completions = [c for group in complete(policy, candidates=64) for c in group]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    for completion in stopped:
        assert completion.token_ids.index(eos) == len(completion.token_ids) - 1
        assert "</s>" not in completion.text
    for completion in completions:
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == 24
            assert eos not in completion.token_ids
    if "stories" not in policy.model.path:  # whose stories are longer than 24 tokens
        assert stopped


def test_eos_waits_for_min_completion_tokens(policy: Policy) -> None:
    groups = complete(policy, candidates=64, min_completion_tokens=20)
    assert all(len(c.token_ids) >= 20 for group in groups for c in group)


def test_a_stop_string_ends_text_and_ids(policy: Policy) -> None:
    stop = "e"
    free = [c for group in complete(policy) for c in group]
    held = [c for group in complete(policy, stop=(stop,)) for c in group]
    assert any(stop in c.text for c in free)
    for before, after in zip(free, held, strict=True):
        if stop not in before.text:
            assert after == before
            continue
        assert after.finish_reason == "stop"
        assert after.text == before.text[: before.text.index(stop)]
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert stop in load_tokenizer(policy.model).decode(after.token_ids)


@ONE_MODEL
def test_settings_that_vllm_refuses_are_an_error_and_the_engine_lives_on(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="min_tokens"):
        complete(policy, min_completion_tokens=25)
    assert complete(policy)


@ONE_MODEL
def test_prompts_that_the_engine_cannot_take_are_quarantined(
    policy: Policy, tmp_path: Path
) -> None:
    longest = MAX_PROMPT_TOKENS
    good, fits = policy.prompts[0], [5] * longest
    rows = [("0", good), ("long", [5] * (longest + 1)), ("word", [5, 10**6]), ("fits", fits)]
    prompts = make_prompts(tmp_path / "p", rows, rows_per_part=2)
    table = sample(policy, tmp_path / "c", prompts, max_quarantined_fraction=0.5)
    assert [row["prompt_id"] for row in rows_of(table)] == ["0"] * 3 + ["fits"] * 3
    refused = {r["id"]: r for r in read_quarantine(table.folder, table.manifest)}
    assert refused.keys() == {"long", "word"}
    assert "17 tokens" in refused["long"]["reason"]
    assert "1000000" in refused["word"]["reason"]
    assert '"prompt_id": "long"' in refused["long"]["row"]
    with pytest.raises(QuarantineBudgetError, match="2 of 4"):
        sample(policy, tmp_path / "d", prompts, max_quarantined_fraction=0.1)


@ONE_MODEL
def test_a_finished_stage_starts_no_engine(policy: Policy, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "p", list(enumerate(policy.prompts)), rows_per_part=8)
    before = sample(policy, tmp_path / "c", prompts)
    # These engines would never find a place; and how many there are is not part of the key.
    engines = EnginesConfig(count=3, cpus=10_000)
    again = PLAIN.model_copy(update={"engines": engines})
    with Engines(policy.model, again, MAX_PROMPT_TOKENS, "test") as shared:
        for pool in (None, shared.pool):
            after = sample(policy, tmp_path / "c", prompts, sampling=again, pool=pool)
            assert after.manifest == before.manifest
        assert shared.starts == 0


@ONE_MODEL
def test_engines_that_would_give_other_tokens_are_refused(policy: Policy, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "p", [("a", policy.prompts[0])], rows_per_part=1)
    coarse = replace(policy.pool, dtype="bfloat16")
    short = replace(policy.pool, max_sequence_tokens=39)
    for pool, says in ((coarse, "engines of bfloat16"), (short, "room for 39 tokens")):
        with pytest.raises(EngineError, match=says):
            sample(policy, tmp_path / "c", prompts, pool=lambda pool=pool: pool)


def test_pushed_weights_answer_as_transformers_does(policy: Policy, tmp_path: Path) -> None:
    """Weights of the same architecture go into the live engines, and back."""
    prompts = policy.prompts[:4]
    other = policy.model.model_copy(update={"path": str(with_noise(policy.model, tmp_path / "m"))})
    for model in (other, policy.model):
        pushed = replace(policy, model=model)
        policy.pool.push(weights_of(model), "test")
        expected = [greedy_tokens(model, prompt, 24) for prompt in prompts]
        for _ in policy.pool.seats():
            found = complete(pushed, temperature=0.0)
            assert [group[0].token_ids for group in found] == expected
    assert [greedy_tokens(other, prompt, 24) for prompt in prompts] != expected


def test_sent_weights_answer_as_transformers_does_and_no_engine_reads_a_file(
    policy: Policy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)

    prompts = policy.prompts[:4]
    folder = with_noise(policy.model, tmp_path / "m")
    sent = policy.model.model_copy(update={"path": str(folder)})
    weights, expected = weights_of(sent), [greedy_tokens(sent, prompt, 24) for prompt in prompts]
    assert Broadcast(policy.pool)(folder, torch.device("cpu"))
    shutil.rmtree(folder)
    with caplog.at_level(logging.INFO, "raydpo"):
        policy.pool.push(weights, "test")
    assert f"weights {weights.fingerprint[:12]}: sent by the train worker in" in caplog.text
    greedy = PLAIN.model_copy(update={"temperature": 0.0})
    requests = [Request(str(i), ids, 0) for i, ids in enumerate(prompts)]
    for seat in policy.pool.seats():
        _, given = policy.pool.generate(seat, requests, greedy, weights)
        assert [answer[0].token_ids for answer in given.answers] == expected  # type: ignore[index]
    assert complete(policy, temperature=0.0) != given.answers


def test_a_probe_sees_weights_that_are_not_the_trainers(policy: Policy, tmp_path: Path) -> None:
    held, prompts = weights_of(policy.model), policy.prompts[:3]
    longest = [5] * (MAX_PROMPT_TOKENS + PLAIN.max_completion_tokens + 5)  # it is cut to fit
    texts = [(prompts[0], longest), (prompts[1], [6, 7, 8]), (prompts[2], [9])]
    probes = [Probe(p, c, logps_of(policy.model, p, c)) for p, c in texts]
    assert probe_engines(policy.pool, held, probes, "test") < 1e-4
    other = policy.model.model_copy(update={"path": str(with_noise(policy.model, tmp_path / "m"))})
    with pytest.raises(EngineError, match=r"differs by .* nats from the trainer's"):
        probe_engines(policy.pool, weights_of(other), probes, "test")


@ONE_MODEL
def test_a_call_brings_its_engine_to_its_weights_while_others_work(
    policy: Policy, tmp_path: Path
) -> None:
    """Two callers of one engine, each for weights of its own: neither sees the other's."""
    import ray

    other = policy.model.model_copy(update={"path": str(with_noise(policy.model, tmp_path / "m"))})
    models = [policy.model, other] * 3
    requests = [Request("0", policy.prompts[0], 7)]
    engine = policy.pool.take().handle
    calls = [engine.generate.remote(requests, PLAIN, weights_of(model)) for model in models]
    answers = ray.get(calls)
    assert [given.policy for given in answers] == [weights_fingerprint(m) for m in models]
    assert len({repr(given.answers) for given in answers}) == 2
    assert answers[0] == answers[2] == answers[4] != answers[1] == answers[3] == answers[5]


@ONE_MODEL
def test_weights_that_an_engine_cannot_hold_are_refused_and_it_lives_on(
    policy: Policy, tmp_path: Path
) -> None:
    import torch

    deeper = make_tiny_model(tmp_path / "deeper", 0, tie_word_embeddings=False, num_hidden_layers=3)
    with pytest.raises(ModelError, match="another model: num_hidden_layers"):
        policy.pool.push(weights_of(ModelConfig(path=str(deeper))), "test")
    missing = with_noise(policy.model, tmp_path / "missing", without="model.norm.weight")
    with pytest.raises(ModelError, match=r"another model: model\.norm\.weight"):
        policy.pool.push(weights_of(ModelConfig(path=str(missing))), "test")
    assert not Broadcast(policy.pool)(missing, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"another model: model\.norm\.weight"):
        policy.pool.push(weights_of(ModelConfig(path=str(missing))), "test")
    changed = Weights(policy.model, "0" * 64)
    with pytest.raises(EngineError, match="the folder changed"):
        policy.pool.push(changed, "test")
    assert complete(policy)


def test_a_sampler_function_runs_the_whole_round(tmp_path: Path, tiny_model: Path) -> None:
    """transformers' `generate`, named in the configuration, samples to train on and to evaluate."""
    write_prompts(tmp_path, heldout=6)
    reward = {"function": "tests.integration.rewards:count_e"}
    prompts = {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 32}
    job = {
        "name": "run",
        "output": str(tmp_path),
        "seed": 5,
        "rows_per_part": 12,
        "model": str(tiny_model),
        "prompts": prompts,
        "sampling": {
            "function": {"path": "tests.integration.samplers:generate", "cpus_per_worker": 0.5},
            "candidates": 2,
            "max_completion_tokens": 8,
        },
        "labeling": {"reward": reward},
        "training": {"cpus_per_worker": 0.4, "global_batch_groups": 8, "learning_rate": 1e-3},
        "evaluation": {
            "prompts": {**prompts, "path": str(tmp_path / "heldout.jsonl")},
            "judge": reward,
            "samples_per_prompt": 2,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run, command = tmp_path / "run", ("run", str(tmp_path / "job.yaml"))
    done = drive("never", run, *command)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert "[plan] sampling.function: 1 worker(s) hold 0.5 CPUs" in output
    assert "engine(s)" not in output
    assert "sampler and reference agree" in output
    model, found = ModelConfig(path=str(tiny_model)), rows(run, "candidates")
    assert len(found) == 48
    for row in found[:4]:
        expected = logps_of(model, row["prompt_ids"], row["completion_ids"])
        assert row["sampler_token_logps"] == pytest.approx(expected, abs=1e-4)
    policies = {
        name: {row["policy"] for row in rows(run, f"evaluation/{name}_samples")}
        for name in ("reference", "policy")
    }
    trained = ModelConfig(path=str(run / "round-000/policy/model"))
    assert policies == {
        "reference": {weights_fingerprint(model)},
        "policy": {weights_fingerprint(trained)},
    }
    assert json.loads((run / "round-000/evaluation/metrics.json").read_text())


def test_the_sampler_of_the_docs_samples_each_round_from_the_newest_policy(
    tmp_path: Path, tiny_model: Path
) -> None:
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(# my_sampler.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_sampler.py").write_text(code)
    write_prompts(tmp_path)
    job = {
        "name": "run",
        "output": str(tmp_path),
        "model": str(tiny_model),
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {"function": "my_sampler:sample", "candidates": 2, "max_completion_tokens": 8},
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
        "training": {"cpus_per_worker": 0.4, "global_batch_groups": 8, "learning_rate": 1e-3},
        "online": {"rounds": 2, "prompts_per_round": 12},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run = tmp_path / "run"
    done = drive("never", run, "online", str(tmp_path / "job.yaml"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    first = ModelConfig(path=str(run / "round-000/policy/model"))
    newest = (ModelConfig(path=str(tiny_model)), first)
    for index, model in enumerate(newest):
        found = rows(run, "candidates", index)
        assert len(found) == 24
        assert {row["policy"] for row in found} == {weights_fingerprint(model)}
        assert all(row["sampler_token_logps"] is None for row in found)
