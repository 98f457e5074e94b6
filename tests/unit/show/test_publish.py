"""`raydpo publish` writes a folder that loads, with a card that says what the run knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.repocard import metadata_load
from trained_runs import SECRET_HOST, evaluated, job, write_evaluation, write_run, write_training
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

import raydpo
from raydpo.cli import main
from raydpo.config.file import load_config
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError, DataError, RunError, StorageError
from raydpo.show.hub import open_repository
from raydpo.show.publish import LIST_FILE, publish_run

TOKEN = "hf_canary0123456789abcdef"
IDS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    """An evaluated run of a policy."""
    run = write_run(job(tmp_path), tiny_model)
    write_evaluation(run)
    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_the_folder_loads_and_the_card_has_the_numbers_of_the_report(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    output = tmp_path / "public"
    arguments = ["--license", "apache-2.0", "--base-model", "org/base"]
    assert main(["publish", str(run), "--output", str(output), *arguments]) == 0
    assert f"in {output}; read its README.md" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    model = AutoModelForCausalLM.from_pretrained(output)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    text = "the film was"
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (output, tiny_model)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids

    card = card_of(output)
    data = card.data.to_dict()
    assert data["base_model"] == "org/base"
    assert (data["license"], data["library_name"]) == ("apache-2.0", "transformers")
    assert data["pipeline_tag"] == "text-generation"
    assert {"raydpo", "ipo"} <= set(data["tags"])
    results = {found.metric_type: found for found in card.data.eval_results or []}
    assert results["judge_score"].metric_value == 0.75
    assert results["judge_score"].dataset_name == "heldout.jsonl"
    assert results["heldout_accuracy"].metric_value == 0.5625
    assert results["length_controlled_win_rate"].metric_value == 0.5
    assert metadata_load(output / "README.md") == data


def test_the_card_says_what_was_trained_and_what_speaks_against_it(
    run: Path, tmp_path: Path
) -> None:
    publish_run(str(run), str(tmp_path / "public"))
    text = (tmp_path / "public/README.md").read_text()
    for said in (
        "**Verdict of the run:** Training helped, with reservations: a sentence.",
        "- completions grew longer",
        "| judge score (reward) | 0.250 | 0.750 | 0.550 to 0.950 | `heldout.jsonl` |",
        "`ipo`: Identity preference optimization (arXiv:2310.12036, eq. 17).",
        "[arXiv:2310.12036](https://arxiv.org/abs/2310.12036)",
        "- `tau`: `0.2`",
        "| prompts | 1 | 0 | 1 |",
        "refused 1 row(s)",
        "learning rate | 3e-06, linear",
        "The KL is not exact.",
        "The judge is another one than the reward",
        "No licence was stated",
        "![score against kl](plots/score_against_kl.png)",
        "rafailov2023direct",
        "raydpo run config.yaml",
    ):
        assert said in text, said
    assert (tmp_path / "public/plots/score_against_kl.png").read_bytes().startswith(b"\x89PNG")
    assert "base_model" not in card_of(tmp_path / "public").data.to_dict()


def test_a_judge_that_made_the_labels_is_a_limit(tiny_model: Path, tmp_path: Path) -> None:
    run = write_run(job(tmp_path), tiny_model)
    write_evaluation(run, made_the_labels=True)
    publish_run(str(run), str(tmp_path / "public"))
    assert "The judge also made the labels" in (tmp_path / "public/README.md").read_text()


def test_no_path_no_host_and_no_text_of_the_data_is_published(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "public"
    publish_run(str(run), str(output))
    assert not (output / "probe.json").exists()
    for file in output.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert str(tmp_path).encode() not in content, file
        assert SECRET_HOST.encode() not in content, file
    config = load_config(output / "config.yaml")
    original = load_config(run / "config.yaml")
    assert config.training == original.training
    assert Path(config.model.path).name == "base"


def test_names_of_the_hub_stay(tiny_model: Path, tmp_path: Path) -> None:
    data = {"path": "org/pairs", "format": "dataset", "split": "train_prefs"}
    values = job(tmp_path, model="org/base", preferences=data, training={})
    for section in ("prompts", "labeling", "evaluation"):
        del values[section]
    publish_run(str(write_run(values, tiny_model)), str(tmp_path / "public"))
    found = card_of(tmp_path / "public").data.to_dict()
    assert (found["base_model"], found["datasets"]) == ("org/base", ["org/pairs"])
    text = (tmp_path / "public/README.md").read_text()
    assert "Preferences: `org/pairs`, split `train_prefs`." in text
    assert "The run measured nothing on held-out data." in text
    assert "model-index" not in found
    assert load_config(tmp_path / "public/config.yaml").preferences == Config(**values).preferences


def test_only_what_an_earlier_call_wrote_is_replaced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "public"
    publish_run(str(run), str(output))
    (run / "round-000/evaluation/manifest.json").unlink()
    publish_run(str(run), str(output))
    assert not (output / "plots/score_against_kl.png").exists()
    card = output / "README.md"
    card.write_text(card.read_text() + "\nWords of my own.\n")
    with pytest.raises(ConfigError, match=r"did not write or that were changed since: README\.md"):
        publish_run(str(run), str(output))
    assert card.read_text().endswith("Words of my own.\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        publish_run(str(run), str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="is in the run directory"):
        publish_run(str(run), str(run / "public"))


def test_an_adapter_is_published_with_the_name_of_its_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, settings)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    training = {"lora": {"rank": 2, "target_modules": ["q_proj"]}}
    run = write_run(job(tmp_path, training=training), tiny_model, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="--base-model owner/name"):
        publish_run(str(run), str(tmp_path / "public"))
    output = tmp_path / "public"
    publish_run(str(run), str(output), base_model="org/base")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(output))
    assert torch.equal(again(IDS).logits, adapted(IDS).logits)
    AutoTokenizer.from_pretrained(output)
    assert not (output / "model.safetensors").exists()
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    found = card_of(output).data.to_dict()
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert 'PeftModel.from_pretrained(base, "' in (output / "README.md").read_text()

    publish_run(str(run), str(tmp_path / "merged"), merged=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged/adapter_config.json").exists()


def test_a_reward_model_is_a_sequence_classifier(tiny_model: Path, tmp_path: Path) -> None:
    model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "reward")
    values = job(tmp_path, training={"objective": "reward_model"}, evaluation=None)
    run = write_run(values, tmp_path / "reward")
    publish_run(str(run), str(tmp_path / "public"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "public")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert card_of(tmp_path / "public").data.pipeline_tag == "text-classification"


def test_the_best_round_is_published_unless_another_one_is_asked_for(
    tiny_model: Path, tmp_path: Path
) -> None:
    values = job(tmp_path, online={"rounds": 2})
    run = write_run(values, tiny_model)
    with pytest.raises(RunError, match="the rounds have not ended"):
        publish_run(str(run), str(tmp_path / "public"))
    config = Config.model_validate(values)
    first = json.loads((run / "round-000/policy/manifest.json").read_text())["fingerprint"]
    second = write_training(run / "round-001/policy", config, tiny_model)
    weights = ["o" * 64, first, second]
    _write_rounds(run, weights, best=1)
    published = raydpo.publish_run(str(run), str(tmp_path / "public"))
    assert json.loads((tmp_path / "public" / LIST_FILE).read_text())["round"] == 0
    assert published.files[0] == "README.md"
    text = (tmp_path / "public/README.md").read_text()
    assert "after 1 online round(s)" in text
    assert "| | original model | this model |" in text
    assert "| judge score (reward) | 0.250 | 0.400 | 0.200 to 0.600 | `heldout.jsonl` |" in text
    assert "**Verdict of the run:** All rounds." in text
    assert (tmp_path / "public/plots/rounds.png").is_file()
    publish_run(str(run), str(tmp_path / "second"), round_index=1)
    text = (tmp_path / "second/README.md").read_text()
    assert "| judge score (reward) | 0.250 | 0.300 |" in text
    assert "All rounds." not in text
    _write_rounds(run, weights, best=0)
    with pytest.raises(RunError, match="the best policy is the original model"):
        publish_run(str(run), str(tmp_path / "public"))


def _write_rounds(run: Path, weights: list[str], best: int) -> None:
    rows = [{"rounds_done": n, "policy_weights": one} for n, one in enumerate(weights)]
    value = {
        "verdict": "All rounds.",
        "speaks_against_it": [],
        "notes": [],
        "policies": rows,
        "against_original": [None, evaluated(score=0.4), evaluated(score=0.3)],
        "best": {"rounds_done": best, "policy": ""},
    }
    (run / "online.json").write_text(json.dumps(value))
    (run / "rounds.png").write_bytes(b"\x89PNG")


def test_rounds_of_an_earlier_version_are_told_how_to_become_new(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = write_run(job(tmp_path, online={"rounds": 1}), tiny_model)
    (run / "online.json").write_text(json.dumps({"policies": [], "best": {"rounds_done": 1}}))
    with pytest.raises(RunError, match="is of an earlier version of raydpo"):
        publish_run(str(run), str(tmp_path / "public"))


def test_what_is_unfinished_damaged_or_of_another_job_is_refused(run: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "public")
    with pytest.raises(RunError, match=r"round-007/policy is not there, or not finished"):
        publish_run(str(run), output, round_index=7)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["training"]["learning_rate"] = 1.0
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RunError, match=r"'learning_rate' changed: 3e-06 -> 1\.0"):
        publish_run(str(run), output)
    weights = run / "round-000/policy/model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"model\.safetensors was changed"):
        publish_run(str(run), output)
    assert not Path(output).exists()


def test_an_evaluation_of_an_earlier_policy_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = write_run(job(tmp_path), tiny_model)
    write_evaluation(run, policy_weights="e" * 64)
    with pytest.raises(RunError, match="is of the policy eeeeeeeeeeee"):
        publish_run(str(run), str(tmp_path / "public"))


class _Hub(huggingface_hub.HfApi):
    """A hub that keeps what it is given."""

    def __init__(self, there: list[str] | None) -> None:
        super().__init__(endpoint="https://hub.invalid")
        self.there, self.calls = there, dict[str, dict[str, Any]]()

    def whoami(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"name": "owner"}

    def list_repo_files(self, *args: Any, **kwargs: Any) -> list[str]:
        if self.there is None:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return self.there

    def create_repo(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["create_repo"] = kwargs

    def upload_folder(self, **kwargs: Any) -> Any:
        self.calls["upload_folder"] = kwargs


def test_exactly_the_published_files_are_handed_to_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    published = publish_run(str(run), str(tmp_path / "public"))
    hub = _Hub(there=None)
    repository = open_repository("owner/name", True, LIST_FILE, hub)
    url = repository.upload(Path(published.folder), published.files)
    assert url == "https://hub.invalid/owner/name"
    assert hub.calls["create_repo"] == {"private": True, "exist_ok": True}
    given = hub.calls["upload_folder"]
    there = {p.relative_to(tmp_path / "public").as_posix() for p in _files(given["folder_path"])}
    assert there == set(given["allow_patterns"])
    assert {"README.md", "model.safetensors", "tokenizer.json", LIST_FILE} <= there
    assert given["delete_patterns"] is None

    again = _Hub(there=[".gitattributes", LIST_FILE, "README.md", "plots/old.png"])
    open_repository("owner/name", False, LIST_FILE, again).upload(tmp_path, published.files)
    assert again.calls["upload_folder"]["delete_patterns"] == ["plots/old.png"]
    with pytest.raises(ConfigError, match=r"did not publish: README\.md"):
        open_repository("owner/name", False, LIST_FILE, _Hub(there=["README.md"]))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_without_token_or_network_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["publish", str(run), "--output", str(tmp_path / "public"), "--hub", "owner/name"]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert main(command) == 1
    assert "ConfigError: --hub owner/name, and there is no token" in capsys.readouterr().err

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(command) == 1
    said = capsys.readouterr()
    assert "StorageError: --hub owner/name:" in said.err
    assert "refused" in said.err
    assert TOKEN not in said.out + said.err
    assert not (tmp_path / "public").exists()


def test_a_name_that_the_hub_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    with pytest.raises((ConfigError, StorageError), match="--hub owner name"):
        open_repository("owner name", False, LIST_FILE, api)
