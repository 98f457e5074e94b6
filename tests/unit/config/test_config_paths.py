"""Paths of a configuration are the same places for processes in other folders."""

from typing import Any

import pytest
from pydantic import BaseModel

from raydpo.config.base import ModelConfig
from raydpo.config.file import config_from_values, config_to_yaml, load_config
from raydpo.core.errors import ConfigError

JUDGE = {"classifier": "models/judge", "label": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with everything that the configurations below name."""
    for name in ("models/policy", "models/reference", "models/judge", "data"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("data/prompts.jsonl", "data/a", "template.jinja"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled() -> dict[str, Any]:
    return {
        "name": "job",
        "output": "runs",
        "model": {"path": "models/policy", "chat_template": "template.jinja"},
        "prompts": "data/*.jsonl",
        "labeling": {"reward": JUDGE},
        "reference": {"model": "./models/reference"},
        "evaluation": {"prompts": "data/prompts.jsonl", "judge": JUDGE},
        "sft": {"data": "data/a"},
    }


def strings(value: Any) -> list[str]:
    """All strings in a configuration that name something here."""
    if isinstance(value, BaseModel):
        return [text for name in type(value).model_fields for text in strings(getattr(value, name))]
    if isinstance(value, tuple):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("existing", [False, True])
def test_no_path_depends_on_the_working_directory(here, monkeypatch, existing) -> None:
    values = sampled()
    if existing:
        del values["prompts"], values["labeling"]
        values["preferences"] = "data/a"
    config = config_from_values(values, "here")
    assert [text for text in strings(config) if "data" in text or "models" in text]
    for text in strings(config):
        assert not any(part in text for part in ("data/", "models/", "template.", "runs")) or (
            text.startswith(f"{here}/")
        ), text
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    again = here / "again.yaml"
    again.write_text(config_to_yaml(config))
    assert load_config(again) == config


def test_uris_and_names_of_a_hub_stay(here) -> None:
    for name in ("org/name", "name", "s3://bucket/model", "hf://org/name"):
        assert ModelConfig(path=name).path == name
    assert ModelConfig(path="models/policy").path == f"{here}/models/policy"
    assert ModelConfig(path="~nobody-here/m").path == f"{here}/~nobody-here/m"
    assert ModelConfig(path="a b#1%20/m").path == f"{here}/a b#1%20/m"


def test_the_default_output_is_named_from_the_root_too(here) -> None:
    values = sampled()
    del values["output"]
    assert config_from_values(values, "here").output == f"{here}/runs"


@pytest.mark.parametrize(
    ("path", "rule"),
    [("", "a path has at least one character"), ("a\0b", "a text holds no NUL")],
)
def test_what_is_no_path_is_refused(here, path, rule) -> None:
    for key, value in {"model": path, "output": path}.items():
        with pytest.raises(ConfigError, match=f"{key}.*{rule}"):
            config_from_values({**sampled(), key: value}, "here")


@pytest.mark.parametrize(
    "path", ["x" * 300, "é" * 130, "/".join(["folder"] * 700), "a/" + "b" * 256]
)
def test_paths_that_no_disk_takes_are_refused(here, path: str) -> None:
    for changed in ({"model": path}, {"output": path}, {"prompts": path}):
        with pytest.raises(ConfigError, match="each name in it at most 255"):
            config_from_values({**sampled(), **changed}, "test")


def test_a_name_of_a_run_that_no_disk_takes_is_refused(here) -> None:
    with pytest.raises(ConfigError, match="at most 200 characters"):
        config_from_values({**sampled(), "name": "x" * 300}, "test")
