"""Everything in a model's folder but the weights: config, generation config, tokenizer, chat
template.

The module saves these settings of a model, with weights or on `meta`, in another folder. It reads
them back and compares them with the intended ones. A training ends with this step, and the command
`raydpo check` tries it before anything starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError, RaydpoError, said_by
from raydpo.models.loading import load_tokenizer, local_folder
from raydpo.models.weights import without_reports

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GENERATION: Final = "generation_config.json"
#: Keys of a saved configuration that say who wrote it.
_WRITER: Final = {"transformers_version", "_name_or_path", "_from_model_config"}
#: Keys that transformers adds to a tokenizer's settings when it loads one. They say from where it
#: was loaded and whether HF_HUB_OFFLINE was set then. With them, its hash would change with the
#: environment.
_LOADED_FROM: Final = ("is_local", "local_files_only")
#: Texts for which two equal tokenizers must make the same ids.
_TEXTS: Final = ("The film was good.", "  two\nlines\t", "naïve 🎬 漢字", "12,345.6 == x[0]")
_CONVERSATION: Final = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A film."},
]


def save_settings(source: ModelConfig, model: PreTrainedModel, folder: Path, **save: Any) -> None:
    """Save a model made from `source`, with its tokenizer.

    Args:
        source: the model that training starts from, with its padding token and template.
        model: a model of the same architecture. If it classifies texts, its pad token becomes the
            tokenizer's, because the padding marks the last token of a text.
        folder: where to save it.
        save: further arguments of `save_pretrained`.

    Raises:
        ModelError: transformers cannot save it.
    """
    from safetensors import SafetensorError

    tokenizer = load_tokenizer(source)
    if model.can_generate():
        _check_generation(source, model)
    else:
        model.config.pad_token_id = tokenizer.pad_token_id
    try:
        with without_reports():
            model.save_pretrained(folder, **save)
        _save_tokenizer(tokenizer, folder)
    except OSError:  # an error of the disk
        raise
    except SafetensorError as error:  # also an error of the disk
        raise OSError(str(error)) from error
    except Exception as error:
        raise ModelError(
            f"model {source.path!r} cannot be saved again: {said_by(error)}",
            "what training makes is saved by transformers with the settings of its base",
            "fix its config.json or its tokenizer's files: `save_pretrained` of the model, or of "
            "its tokenizer, shows the same error",
        ) from error


def check_settings(source: ModelConfig, model: PreTrainedModel, folder: Path) -> None:
    """Read back what `save_settings` wrote, and compare it with the model and its tokenizer.

    Raises:
        ModelError: something cannot be read, or differs from what was saved.
    """
    try:
        differing = _differing(load_tokenizer(source), model, folder)
    except RaydpoError:
        raise
    except Exception as error:
        raise _not_read_back(source, said_by(error)) from error
    if differing:
        raise _not_read_back(source, f"{', '.join(differing)} changed")


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer as files that are the same on every machine and in every environment."""
    for key in _LOADED_FROM:
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def _differing(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path
) -> list[str]:
    """Return the names of settings that differ when a saved folder is loaded."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    found = {"config.json": _content(config) == _content(model.config.to_dict())}
    if model.can_generate():
        read = GenerationConfig.from_pretrained(folder).to_dict()
        meant = model.generation_config.to_dict()  # pyright: ignore (a model that can generate has it)
        found[_GENERATION] = _content(read) == _content(meant)
    again: Any = AutoTokenizer.from_pretrained(folder)
    ours, theirs = _facts(tokenizer), _facts(again)
    found |= {name: theirs[name] == value for name, value in ours.items()}
    return [name for name, same in found.items() if not same]


def _content(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _WRITER}


def _facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the facts that are compared between tokenizers, by name."""
    facts: dict[str, Any] = {
        "the vocabulary": tokenizer.get_vocab(),
        "the special tokens": tokenizer.all_special_tokens,
        "the padding token": tokenizer.pad_token,
        "the end-of-sequence token": tokenizer.eos_token,
        "the beginning-of-sequence token": tokenizer.bos_token,
        "the chat template": tokenizer.chat_template,
        "the token ids of a text": [tokenizer(text)["input_ids"] for text in _TEXTS],
    }
    if tokenizer.chat_template:
        facts["a rendered conversation"] = _rendered(tokenizer)
    return facts


def _rendered(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Render a short conversation with the chat template; None if the template refuses it."""
    try:
        return tokenizer.apply_chat_template(_CONVERSATION, tokenize=False)
    except Exception:  # noqa: BLE001 - templates can raise anything; the check of the rows says why
        return None


def _check_generation(source: ModelConfig, model: PreTrainedModel) -> None:
    """Refuse a contradictory generation config, which transformers loads but does not save."""
    settings: Any = model.generation_config
    try:
        settings.validate(strict=True)
    except Exception as error:
        own = local_folder(source) / _GENERATION
        file = own if own.is_file() else own.with_name("config.json")
        raise ModelError(
            f"{file}: {said_by(error)}",
            "the trained model is saved with it, and transformers saves no contradictory settings",
            "edit that file as the message says (of a hub's model, in a copy of its folder)"
            + ("; without the file there are no such settings" if file == own else ""),
        ) from error


def _not_read_back(source: ModelConfig, why: str) -> ModelError:
    return ModelError(
        f"model {source.path!r}, saved and loaded again, is not the same: {why}",
        "what training makes has the config, tokenizer, padding token and template of its base",
        "save the model and its tokenizer by `save_pretrained` with this transformers, look at "
        "what changed, and give that folder",
    )
