"""`raydpo check` reports every problem before any cluster work, all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.check.job import check, run_check
from raydpo.check.resources import training_bytes
from raydpo.cli import main
from raydpo.config.file import config_from_values
from raydpo.config.job import Config, LoraSettings, ModelConfig, TrainerConfig
from raydpo.core.errors import (
    ConfigError,
    DataError,
    ModelError,
    QuarantineBudgetError,
    RunLockedError,
)
from raydpo.core.lock import locked
from raydpo.core.run import run_folder
from raydpo.models.loading import parameter_count
from raydpo.pipeline.dry_run import outlook_of_round
from tests.conftest import make_tiny_model, make_tokenizer

Job = Callable[..., Config]
LENGTHS = {"max_prompt_tokens": 64, "max_completion_tokens": 64}


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the film {i}"}) + "\n" for i in range(10)))
    return str(path)


@pytest.fixture
def pairs_file(tmp_path: Path) -> str:
    row = {"prompt": "the film was", "chosen": " good", "rejected": " bad"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(10)))
    return str(path)


@pytest.fixture
def pairs_job(tiny_model: Path, pairs_file: str, tmp_path: Path) -> Job:
    """A job on preference data that exists; sections may be replaced or added."""

    def make(**changes: Any) -> Config:
        values = {
            "name": "job",
            "output": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "preferences": {"path": pairs_file, **LENGTHS},
            "training": {},
        }
        return config_from_values({**values, **changes}, "test")

    return make


@pytest.fixture
def sampling_job(tiny_model: Path, prompts_file: str, tmp_path: Path) -> Job:
    """A job that samples and labels; sections may be replaced or added."""

    def make(**changes: Any) -> Config:
        values = {
            "name": "job",
            "output": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "prompts": {"path": prompts_file, "max_prompt_tokens": 32},
            "sampling": {"max_completion_tokens": 32},
            "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
            "training": {},
        }
        return config_from_values({**values, **changes}, "test")

    return make


def _only_problem(config: Config) -> Any:
    (problem,) = check(config).problems
    return problem


def test_good_jobs_have_no_problems(pairs_job: Job, sampling_job: Job) -> None:
    for job in (pairs_job(), sampling_job()):
        report = check(job)
        assert report.problems == ()
        assert report.lines[-1] == "no problems found"


BEST_OF: dict[str, Any] = {
    "labeling": {"reward": {"function": "tests.integration.rewards:count_e", "name": "e"}},
    "evaluation": {
        "judge": {"function": "tests.integration.rewards:length"},
        "best_of": {"n": [1, 8], "samples_per_prompt": 16},
    },
}


@pytest.fixture
def best_of_job(tiny_model: Path, prompts_file: str, tmp_path: Path) -> Job:
    """A job that measures Best-of-N of a model alone; keys of `best_of` may be given."""

    def make(**changes: Any) -> Config:
        best_of = {**BEST_OF["evaluation"]["best_of"], **changes}
        prompts = {"path": prompts_file, "max_prompt_tokens": 32}
        values = {
            "name": "job",
            "output": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "sampling": {"max_completion_tokens": 32},
            **BEST_OF,
            "evaluation": {**BEST_OF["evaluation"], "prompts": prompts, "best_of": best_of},
        }
        return config_from_values(values, "test")

    return make


def test_best_of_n_needs_neither_prompts_nor_training(best_of_job: Job) -> None:
    report = check(best_of_job(), None)
    assert not report.problems
    lines = "\n".join(report.lines)
    assert "N = 1, 8 of 16 samples a held-out prompt of the reference, chosen by e" in lines
    assert "judged by tests.integration.rewards:length" in lines
    assert "measures Best-of-N of the reference alone" in lines


def test_a_dry_run_of_best_of_n_alone_has_the_evaluation_and_no_other_stage(
    best_of_job: Job,
) -> None:
    found = outlook_of_round(best_of_job(), "evaluation")
    assert [one.stage for one in found] == ["evaluation-prompts", "evaluation"]
    with pytest.raises(ConfigError, match="no `prompts` section"):
        outlook_of_round(best_of_job(), "labeling")
    with pytest.raises(ConfigError, match="has the stage `evaluation` alone"):
        outlook_of_round(best_of_job(), "evaluation", ["labeling"])


def test_best_of_n_beside_training_is_checked_too(sampling_job: Job, prompts_file: str) -> None:
    evaluation = {**BEST_OF["evaluation"], "prompts": prompts_file}
    report = check(sampling_job(evaluation=evaluation), None)
    assert not report.problems
    assert any(line.startswith("evaluation.best_of: N = 1, 8") for line in report.lines)


def test_nothing_is_written(pairs_job: Job, tmp_path: Path) -> None:
    check(pairs_job())
    assert not (tmp_path / "runs").exists()


def test_the_example_shows_the_mask(pairs_job: Job) -> None:
    lines = list(check(pairs_job()).example)
    table = [line.split(maxsplit=3) for line in lines if line.split()[:1] and line[7:10].strip()]
    rows = [(int(row[1]), row[2], row[3]) for row in table if row[0].isdigit()]
    prompt = [token for _, trained, token in rows if trained == "no"]
    completion = [token for _, trained, token in rows if trained == "yes"]
    assert "".join(eval(token) for token in prompt) == "<s>the film was"
    assert "".join(eval(token) for token in completion) == " good</s>"
    ids = [token_id for token_id, _, _ in rows]
    assert ids == [*make_tokenizer()("the film was good")["input_ids"], 2]


def test_the_counts_and_reasons_of_the_data_are_shown(pairs_job: Job, pairs_file: str) -> None:
    with open(pairs_file, "ab") as file:
        file.write(b"\xff\n")
    report = check(pairs_job(max_quarantined_fraction=0.2))
    assert report.problems == ()
    (counts,) = (fact for fact in report.facts if fact.startswith("preferences: "))
    for count in ("input 11", "without_pairs 0", "pairs 10", "output 10", "quarantined 1"):
        assert count in counts.removeprefix("preferences: ").split(", ")
    assert "  refused 1: not UTF-8" in report.facts
    problem = _only_problem(pairs_job())
    assert isinstance(problem, QuarantineBudgetError)
    assert problem.value == "preferences: 1 of 11 rows are refused (9.09%)"


def test_every_column_is_named_with_what_becomes_of_it(
    pairs_job: Job, sampling_job: Job, pairs_file: str
) -> None:
    facts = check(pairs_job(sft={"data": pairs_file, "max_sequence_tokens": 8})).facts
    for line in (
        "  column 'prompt': used as the prompt",
        "  column 'rejected': used as rejected",
        "  column 'n': ignored",
    ):
        assert line in facts
    assert "  column 'prompt': used as the prompt" in check(sampling_job()).facts


def test_files_of_other_splits_are_named(pairs_job: Job, pairs_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-1.jsonl", "test-1.jsonl"):
        shutil.copy(pairs_file, folder / name)
    report = check(pairs_job(preferences={"path": str(folder), "split": "test", **LENGTHS}))
    assert "  split 'test': not read: train-1.jsonl" in report.facts
    missing = pairs_job(preferences={"path": str(folder), "split": "dev", **LENGTHS})
    assert "its files are of split test, train" in str(_only_problem(missing))


def test_rows_limits_what_is_read(pairs_job: Job) -> None:
    lines, problems = run_check(pairs_job(), rows=3)
    assert problems == []
    assert any(line.startswith("preferences: input 3,") for line in lines)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"preferences": {"path": "missing.jsonl", **LENGTHS}}, DataError, "no such file"),
        ({"model": "./missing"}, ModelError, "no such folder"),
        ({"training": {"device": "cuda"}}, ConfigError, "device 'cuda'"),
        ({"training": {"num_workers": 4096}}, ConfigError, "training asks for 4096 CPUs"),
        (
            {"training": {"strategy": "fsdp", "cpu_offload": True}},
            ConfigError,
            "training.cpu_offload",
        ),
        ({"training": {"cpus_per_worker": 4096}}, ConfigError, "training asks for 4096 CPUs"),
        ({"reference": {"workers": 4096}}, ConfigError, "reference asks for 4096 CPUs"),
        ({"sft": {"data": "missing.jsonl", "max_sequence_tokens": 8}}, DataError, "missing.jsonl"),
    ],
)
def test_a_wrong_value_is_the_one_problem(
    pairs_job: Job, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    config = pairs_job(**changes)
    problems = [p for p in check(config).problems if message in str(p)]
    assert [type(problem) for problem in problems] == [kind]
    assert problems[0].rule
    assert problems[0].way_out


def test_mlflow_without_a_place_to_write(pairs_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = pairs_job(training={"trackers": ["mlflow"]})
    assert "MLFLOW_TRACKING_URI is not set" in str(_only_problem(config))


def test_lengths_that_leave_nothing(pairs_job: Job, pairs_file: str) -> None:
    long = {"path": pairs_file, "max_prompt_tokens": 250, "max_completion_tokens": 250}
    assert "= 500 tokens" in str(_only_problem(pairs_job(preferences=long)))


def test_wrong_columns(sampling_job: Job, prompts_file: str) -> None:
    config = sampling_job(prompts={"path": prompts_file, "column": "x", "max_prompt_tokens": 32})
    assert "has the columns prompt" in str(_only_problem(config))


SLEEPING = {"max_completion_tokens": 32, "engines": {"sleep": True, "gpu_share": 0.6}}
TWO_HALVES = {"num_workers": 2, "gpus_per_worker": 0.5, "trackers": []}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"candidates": 1, "max_completion_tokens": 32}}, "zero pairs"),
        ({"sampling": {"temperature": 0, "max_completion_tokens": 32}}, "zero pairs"),
        (
            {"sampling": {"min_completion_tokens": 32, "max_completion_tokens": 32}},
            "min_completion_tokens 32",
        ),
        ({"sampling": {"max_completion_tokens": 250}}, "need sequences of 282"),
        (
            {"sampling": {"max_completion_tokens": 32, "engines": {"tensor_parallel": 3}}},
            "tensor_parallel 3",
        ),
        (
            {"sampling": {"max_completion_tokens": 32, "engines": {"count": 4096}}},
            "sampling.engines asks for 4096 CPUs",
        ),
        ({"sampling": SLEEPING, "training": {}}, "a worker of reference holds 1 of a GPU"),
        ({"training": TWO_HALVES}, "NCCL takes a GPU for each"),
        ({"labeling": {"reward": {"function": "nothing.here:f"}}}, "no module 'nothing'"),
        (
            {"labeling": {"reward": {"function": "tests.integration.rewards:nothing"}}},
            "has no 'nothing'",
        ),
        ({"labeling": {"reward": {"classifier": "./missing"}}}, "no such folder"),
    ],
)
def test_sampling_and_labelling_that_cannot_work(
    sampling_job: Job, changes: dict[str, Any], message: str
) -> None:
    assert message in str(_only_problem(sampling_job(**changes)))


def test_resources_of_a_cluster_are_not_looked_at(sampling_job: Job) -> None:
    engines = {"count": 4096, "tensor_parallel": 2, "device": "cuda"}
    sampling = {"max_completion_tokens": 32, "engines": engines}
    config = sampling_job(sampling=sampling, ray_address="127.0.0.1:6379")
    assert check(config).problems == ()


def _changed_model(source: Path, target: Path, **values: Any) -> str:
    shutil.copytree(source, target)
    path = target / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return str(target)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "auto_map"),
        ({"model_type": "martian"}, "model_type 'martian'"),
        ({"model_type": "t5"}, "model_type 't5'"),
        ({"head_dim": 8}, "heads of dimension 8"),
        ({"head_dim": None, "num_attention_heads": 8}, "heads of dimension 8"),
        ({"vocab_size": 3}, "3 embeddings"),
    ],
)
def test_models_that_cannot_be_used(
    tiny_model: Path, tmp_path: Path, sampling_job: Job, values: dict[str, Any], message: str
) -> None:
    model = _changed_model(tiny_model, tmp_path / "model", **values)
    problems = [str(problem) for problem in check(sampling_job(model=model)).problems]
    assert [message in problem for problem in problems].count(True) == 1, problems


def test_weights_that_are_missing_or_cut_short(
    tiny_model: Path, tmp_path: Path, pairs_job: Job
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 9, 0):
        weights.write_bytes(content[:size])
        assert "is damaged" in str(_only_problem(pairs_job(model=str(folder)))), size
    weights.unlink()
    assert "has no *.safetensors file" in str(_only_problem(pairs_job(model=str(folder))))


def test_a_model_without_a_pad_token_gets_one_and_it_is_said(
    stories260k: Path, pairs_job: Job
) -> None:
    report = check(pairs_job(model=str(stories260k)))
    assert report.problems == ()
    assert "model: its files name no padding token: '<unk>' is taken" in report.facts


def test_a_template_that_is_missing_for_a_conversation(
    stories260k: Path, pairs_job: Job, tmp_path: Path
) -> None:
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    data = {"path": str(tmp_path / "chat.jsonl"), **LENGTHS}
    model = {"path": str(stories260k), "pad_token": "<unk>"}
    problem = _only_problem(pairs_job(model=model, preferences=data))
    assert "no chat template" in problem.value
    missing = pairs_job(model={**model, "chat_template": "missing.jinja"}, preferences=data)
    assert "missing.jinja': No such file" in str(_only_problem(missing))


def test_zero_pairs_and_zero_prompts(pairs_job: Job, sampling_job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = {"path": str(tmp_path / "empty.jsonl"), "max_prompt_tokens": 32}
    assert "none is left" in str(_only_problem(sampling_job(prompts=empty)))
    row = {"prompt": "a", "completions": ["b", "c"], "ratings": [1, 1]}
    (tmp_path / "ties.jsonl").write_text(json.dumps(row))
    ties = {"path": str(tmp_path / "ties.jsonl"), **LENGTHS}
    assert "none is left" in str(_only_problem(pairs_job(preferences=ties)))


def test_a_directory_in_use_names_its_holder(pairs_job: Job) -> None:
    config = pairs_job()
    with locked(run_folder(config.output, config.name)):
        problem = _only_problem(config)
    assert isinstance(problem, RunLockedError)
    assert "in use by process" in problem.value
    assert check(config).problems == ()


def test_a_reference_with_another_vocabulary(
    tmp_path: Path, pairs_job: Job, stories260k: Path
) -> None:
    same = make_tiny_model(tmp_path / "same", seed=1)
    assert check(pairs_job(reference={"model": str(same)})).problems == ()
    other = {"path": str(stories260k), "pad_token": "<unk>"}
    assert "different vocabularies" in str(_only_problem(pairs_job(reference={"model": other})))


def test_a_classifiers_label_is_one_of_its_own(
    tmp_path: Path, sampling_job: Job, tiny_model: Path
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(
        tiny_model, num_labels=2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    make_tokenizer().save_pretrained(tmp_path / "judge")
    reward = {"classifier": str(tmp_path / "judge"), "label": "good"}
    assert check(sampling_job(labeling={"reward": reward})).problems == ()
    wrong = sampling_job(labeling={"reward": {**reward, "label": "great"}})
    assert "0 (bad), 1 (good)" in _only_problem(wrong).rule


def test_all_problems_are_found_together(sampling_job: Job) -> None:
    config = sampling_job(
        prompts={"path": "missing.jsonl", "max_prompt_tokens": 999},
        sampling={"candidates": 1, "max_completion_tokens": 32},
        labeling={"reward": {"function": "nothing.here:f"}},
        training={"num_workers": 4096},
    )
    assert len(check(config).problems) == 5


def test_parameters_are_counted_from_the_headers(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(ModelConfig(path=str(tiny_model))) == expected


def test_memory_is_for_each_worker_in_ddp_and_shared_in_fsdp(pairs_job: Job) -> None:
    ddp, fsdp = (TrainerConfig(strategy=s, num_workers=4) for s in ("ddp", "fsdp"))
    assert training_bytes(ddp, 100) == (1600, 6400)
    assert training_bytes(fsdp, 100) == (400, 1600)
    hybrid = TrainerConfig(strategy="fsdp", num_workers=4, replicas=2)
    assert training_bytes(hybrid, 100) == (800, 3200)
    adapter = TrainerConfig(strategy="fsdp", num_workers=(2, 4), lora=LoraSettings())
    assert training_bytes(adapter, 100) == (200, 400)  # frozen weights, of the fewest workers


def test_a_reference_that_runs_beside_the_policy_takes_memory_too(
    pairs_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydpo.check import resources as check_resources

    def job(name: str) -> Config:
        return pairs_job(training={"num_workers": 2, "objective": name})

    parameters = parameter_count(job("dpo").model)
    with_policy_alone = 2 * 16 * parameters
    monkeypatch.setattr(check_resources, "memory_bytes", lambda: with_policy_alone)
    assert check(job("dpo")).problems == ()
    assert "GiB for weights, gradients" in str(_only_problem(job("tdpo2")))
    sum_of_both = {"name": "sum", "terms": [{"objective": "dpo"}, {"objective": "tdpo1"}]}
    assert "GiB for weights" in str(
        _only_problem(pairs_job(training={"num_workers": 2, "objective": sum_of_both}))
    )
    monkeypatch.setattr(
        check_resources, "memory_bytes", lambda: with_policy_alone + 2 * 4 * parameters
    )
    report = check(job("tdpo2"))
    assert report.problems == ()
    assert any("of the reference beside the policy" in fact for fact in report.facts)


def test_training_that_does_not_fit_the_memory(
    pairs_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydpo.check import resources as check_resources

    monkeypatch.setattr(check_resources, "memory_bytes", lambda: 1 << 20)
    assert "GiB for weights, gradients and optimizer" in str(_only_problem(pairs_job()))


def test_the_command_exits_with_1_and_says_why(
    tmp_path: Path, tiny_model: Path, pairs_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(
        f"name: job\noutput: {tmp_path}/runs\nmodel: {tiny_model}\ntraining: {{}}\n"
        f"preferences: {{path: {pairs_file}, max_prompt_tokens: 64, max_completion_tokens: 64}}\n"
    )
    assert main(["check", str(config)]) == 0
    assert "no problems found" in capsys.readouterr().out
    assert main(["check", str(config), "--set", "preferences.path=missing.jsonl"]) == 1
    out, err = capsys.readouterr()
    assert "1 problem(s) found" in out
    assert "DataError: missing.jsonl" in err
    assert "way out:" in err
