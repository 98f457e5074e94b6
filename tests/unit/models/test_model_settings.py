"""raydpo finds model settings that it could not save again, before it trains."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.loading import meta_causal_lm, meta_scalar_head
from raydpo.models.settings import check_settings, save_settings

INLINE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def saved(folder: Path, target: Path, scalar_head: bool = False, **keys: Any) -> Path:
    source = ModelConfig(path=str(folder), **keys)
    empty = (meta_scalar_head if scalar_head else meta_causal_lm)(source)
    save_settings(source, empty, target, state_dict={})
    check_settings(source, empty, target)
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, "`temperature`.*do_sample"),
        ({"top_k": 3}, "top_k"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "not supported"),
    ],
)
def test_a_generation_config_that_is_not_saved_is_refused_by_file_and_setting(
    model, tmp_path, settings, message
) -> None:
    edit(model / "generation_config.json", **settings)
    with pytest.raises(ModelError, match=rf"model/generation_config\.json.*{message}"):
        saved(model, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_generation_config_that_is_none_is_refused(model, tmp_path, content) -> None:
    (model / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json (cannot be read|holds)"):
        saved(model, tmp_path / "out")


def test_generation_settings_that_agree_are_kept(model, tmp_path) -> None:
    edit(model / "generation_config.json", do_sample=True, temperature=0.9, eos_token_id=[2, 5])
    out = saved(model, tmp_path / "out")
    kept = json.loads((out / "generation_config.json").read_text())
    assert (kept["temperature"], kept["eos_token_id"]) == (0.9, [2, 5])


def test_a_classifier_has_no_generation_to_refuse(model, tmp_path) -> None:
    edit(model / "generation_config.json", temperature=0.9)
    out = saved(model, tmp_path / "out", scalar_head=True)
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 0


def test_saved_files_do_not_depend_on_the_environment(model, tmp_path, monkeypatch) -> None:
    source, contents = model, []
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        out = saved(source, tmp_path / f"out-{offline}")
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
        source = Path(
            shutil.copy(model / "model.safetensors", out)
        ).parent  # trained on in its turn
    assert contents[0] == contents[1]
    assert (
        not {"is_local", "local_files_only"}
        & json.loads(contents[0]["tokenizer_config.json"]).keys()
    )


@pytest.mark.parametrize("place", ["file", "tokenizer_config", "both", "several"])
def test_a_chat_template_is_read_back_wherever_it_stood(model, tmp_path, place) -> None:
    several = [{"name": n, "template": INLINE + n} for n in ("default", "tool_use")]
    if place in ("tokenizer_config", "several"):
        (model / "chat_template.jinja").unlink()
    if place != "file":
        given = several if place == "several" else INLINE
        edit(model / "tokenizer_config.json", chat_template=given)
    saved(model, tmp_path / "out")


def test_a_tokenizer_that_comes_back_otherwise_is_refused(model, tmp_path) -> None:
    source = ModelConfig(path=str(model))
    empty = meta_causal_lm(source)
    save_settings(source, empty, tmp_path / "out", state_dict={})
    edit(tmp_path / "out/tokenizer_config.json", pad_token="</s>")
    with pytest.raises(ModelError, match="the padding token changed"):
        check_settings(source, empty, tmp_path / "out")


def test_a_template_file_that_is_no_text_is_refused(model, tmp_path) -> None:
    (tmp_path / "t.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(ModelError, match=r"model\.chat_template.*can't decode"):
        saved(model, tmp_path / "out", chat_template=str(tmp_path / "t.jinja"))
