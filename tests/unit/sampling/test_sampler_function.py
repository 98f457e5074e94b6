"""A sampler function through the configuration: refusals, the stage's key, and its process."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from raydpo.check.findings import Findings
from raydpo.check.own_functions import check_own_functions
from raydpo.config.file import config_from_values
from raydpo.config.job import Config, ModelConfig, SamplingConfig
from raydpo.core.errors import DataError, ModelError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.resources import Resources
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_part, write_part
from raydpo.core.storage import Folder
from raydpo.core.tables import CANDIDATES, check_table
from raydpo.plan import stage_needs, stages_can_stream
from raydpo.reference.agreement import comparable
from raydpo.sampling.function import check_sampler_takes
from raydpo.sampling.stage import prompt_seed, sampling_work

SOURCE = """
import os, time

def one(ids): return {"token_ids": ids, "finish_reason": "length"}
def seeded(prompt_ids, seeds, model, max_completion_tokens, offset=3):
    return [[one([offset + s % 200]) for s in k] for k in seeds]
def elsewhere(prompts, candidates, max_completion_tokens):
    return [[{"text": " was good", "finish_reason": "stop"}] * candidates for _ in prompts]
def hangs(prompt_ids, candidates):
    while [4] in prompt_ids: time.sleep(0.01)
    return [[one([5])] * candidates for _ in prompt_ids]
def ends(prompt_ids, candidates):
    if [4] in prompt_ids: os._exit(3)
    return [[one([5])] * candidates for _ in prompt_ids]
def echoes(prompt_ids, candidates):
    return [[one([*ids, 5])] * candidates for ids in prompt_ids]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, of a name that was never imported."""
    name = f"samplers_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


def sampling_of(path: str, limits: dict[str, Any] | None = None, **values: Any) -> SamplingConfig:
    function = {"path": path, **(limits or {})}
    return SamplingConfig.model_validate({"candidates": 2, "function": function, **values})


def stage_of(model: Path, sampling: SamplingConfig) -> Stage:
    work = sampling_work(
        Place(Folder("/nothing/is/written/here"), "sample"),
        Table(Folder("/nothing"), {"fingerprint": "prompts"}),
        model=ModelConfig(path=str(model)),
        sampling=sampling.model_copy(update={"max_completion_tokens": 6}),
        max_prompt_tokens=8,
    )
    return work.stages[0].stage


def test_a_plain_string_is_its_path_and_engines_are_not_its(module: str) -> None:
    given = SamplingConfig.model_validate({"function": "a.b:c"})
    assert given.function is not None
    assert given.function.path == "a.b:c"
    tolerant = {"function": "a.b:c", "engines": {"probe_tolerance": 0.1}}
    assert SamplingConfig.model_validate(tolerant).engines.probe_tolerance == 0.1
    with pytest.raises(ValidationError, match=r"`engines.count`, `engines.cpus` is for vLLM"):
        SamplingConfig.model_validate({"function": "a.b:c", "engines": {"count": 2, "cpus": 0.5}})
    with pytest.raises(ValidationError, match="`seeds` is given anyway"):
        sampling_of("a.b:c", {"options": {"seeds": 1}})


@pytest.mark.thorough
def test_its_code_and_options_are_in_the_key_and_its_workers_are_not(
    module: str, tiny_model: Path, tmp_path: Path
) -> None:
    def key(**limits: Any) -> str:
        return stage_of(tiny_model, sampling_of(f"{module}:seeded", limits)).key

    first = key()
    assert key(workers=3, timeout_seconds=9, cpus_per_worker=2) == first
    assert key(options={"offset": 4}) != first
    (tmp_path / "table.txt").write_text("1")
    assert key(depends_on="table.txt") != first
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n# another\n")
    assert key() != first


@pytest.mark.thorough
def test_a_function_without_the_model_s_folder_names_itself(module: str, tiny_model: Path) -> None:
    with_model = stage_of(tiny_model, sampling_of(f"{module}:seeded"))
    without = stage_of(tiny_model, sampling_of(f"{module}:elsewhere"))
    assert "policy" in with_model.inputs
    assert "policy" not in without.inputs


def problems(config: Config) -> list[str]:
    findings = Findings()
    check_own_functions(config, findings)
    return [str(problem) for problem in findings.problems]


def job(tiny_model: Path, sampling: dict[str, Any], **sections: Any) -> Config:
    values = {"name": "j", "model": str(tiny_model), "prompts": "p.jsonl", "sampling": sampling}
    return config_from_values({**values, **sections}, "a test")


@pytest.mark.thorough
def test_check_refuses_what_a_run_could_not_do(module: str, tiny_model: Path) -> None:
    (Path.cwd() / "p.jsonl").write_text('{"prompt": "x"}\n')
    judge = {"prompts": "p.jsonl", "judge": {"function": f"{module}:seeded"}}
    assert problems(job(tiny_model, {"function": f"{module}:seeded"}, evaluation=judge)) == []
    assert problems(job(tiny_model, {"function": f"{module}:elsewhere"})) == []
    [said] = problems(job(tiny_model, {"function": f"{module}:elsewhere"}, evaluation=judge))
    assert "the section `evaluation`" in said
    assert "takes no `model`" in said
    [said] = problems(job(tiny_model, {"function": f"{module}:seeded", "top_p": 0.5}))
    assert "sampling.top_p is 0.5" in said
    [said] = problems(job(tiny_model, {"function": f"{module}:absent"}))
    assert "has no 'absent'" in said
    [said] = problems(job(tiny_model, {"function": "os:system"}))
    assert "of Python's own library" in said
    hot = {**judge, "temperature": 0.5}
    [said] = problems(job(tiny_model, {"function": f"{module}:seeded"}, evaluation=hot))
    assert "evaluation.temperature is 0.5" in said


@pytest.mark.thorough
def test_an_adapter_is_refused(module: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    text = f'{{"base_model_name_or_path": "{tiny_model}"}}'
    (adapter / "adapter_config.json").write_text(text)
    sampling = sampling_of(f"{module}:seeded")
    assert sampling.function is not None
    with pytest.raises(ModelError, match="is a LoRA adapter"):
        check_sampler_takes(sampling.function, ModelConfig(path=str(adapter)), sampling)


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt_id": str(n), "prompt": f"p{n}", "messages": None, "prompt_ids": [n]}
        for n in range(count)
    ]


def part(tiny_model: Path, sampling: SamplingConfig, count: int = 6) -> PartResult:
    """One part, as a worker makes it."""
    from raydpo.sampling.stage import _FunctionWorker, _Task
    from raydpo.sampling.weights import weights_of

    weights = weights_of(ModelConfig(path=str(tiny_model)))
    task = _Task(sampling, weights, 7, 1, 8, str(weights.fingerprint))
    return _FunctionWorker(task, ())(rows(count))


@pytest.mark.thorough
def test_a_part_has_the_run_s_seeds_and_no_log_probs(module: str, tiny_model: Path) -> None:
    found = part(tiny_model, sampling_of(f"{module}:seeded", {"options": {"offset": 30}}))
    assert found.quarantined == []
    for row in found.rows:
        seed = prompt_seed(7, 1, row["prompt_id"]) + row["candidate"]
        assert row["seed"] == seed
        assert row["completion_ids"] == [30 + seed % 200]
        assert row["sampler_token_logps"] is None
    assert found.counts["without_logps"] == len(found.rows) == 12
    assert comparable(found.rows, found.rows[0]["policy"]) == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "said"),
    [("ends", "ended its process with status 3"), ("hangs", "did not answer in 2 s")],
)
def test_a_prompt_that_ends_or_hangs_it_is_refused_alone(
    module: str, tiny_model: Path, name: str, said: str
) -> None:
    limits = {"timeout_seconds": 2, "max_attempts": 1}
    found = part(tiny_model, sampling_of(f"{module}:{name}", limits))
    [refused] = found.quarantined
    assert refused["id"] == "4"
    assert said in refused["reason"]
    assert {row["prompt_id"] for row in found.rows} == set("01235")


@pytest.mark.thorough
def test_completions_that_all_begin_with_their_prompts_are_an_error(
    module: str, tiny_model: Path
) -> None:
    with pytest.raises(DataError, match="each begins with its prompt's tokens"):
        part(tiny_model, sampling_of(f"{module}:echoes"))


def test_the_plan_holds_its_workers_in_place_of_engines(tiny_model: Path) -> None:
    function = {"path": "a.b:c", "workers": 2, "cpus_per_worker": 1.5}
    labels = {"reward": {"function": "a.b:c"}}
    config = job(tiny_model, {"function": function}, labeling=labels, training={})
    first, *others = stage_needs(config)
    assert (first.stage, first.total(cuda=True)) == ("sampling.function", Resources(3.0, 0))
    assert all(needs.stage != "sampling.engines" for needs in others)
    assert stages_can_stream(config, Resources(4, 0))


def test_candidates_of_an_older_version_are_read_and_looser_ones_are_not(tmp_path: Path) -> None:
    row = {
        "prompt_id": "p",
        "candidate": 0,
        "prompt": "a",
        "prompt_ids": [1],
        "completion": "b",
        "completion_ids": [2],
        "sampler_token_logps": [-1.0],
        "finish_reason": "stop",
        "seed": 1,
        "policy": "w",
    }
    stage = Stage(Place(Folder(str(tmp_path)), "sample"), "sampling", "candidates", {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult([row, {**row, "sampler_token_logps": None}]))
    table = read_part(stage.folder, commit(stage, {"input": 2}), 0)
    assert [row["sampler_token_logps"] for row in table.to_pylist()] == [[-1.0], None]
    place = CANDIDATES.get_field_index("sampler_token_logps")
    strict = CANDIDATES.set(place, CANDIDATES.field(place).with_nullable(False))
    check_table(pa.Table.from_pylist([row], schema=strict), CANDIDATES, "an older part")
    loose = CANDIDATES.set(0, CANDIDATES.field(0).with_nullable(True))
    with pytest.raises(DataError, match="has the schema"):
        check_table(pa.Table.from_pylist([row], schema=loose), CANDIDATES, "a part")
