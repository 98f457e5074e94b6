"""Models and tokenizers: where they are, whether they can be used, what they contain.

What comes in: a `ModelConfig`, whose path is a folder, a URI or a hub name. What goes
out: tokenizers and transformers models, loaded from a local folder without running any
code that the folder brings, and fingerprints of their content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config import ModelConfig
from raydpo.errors import ModelError
from raydpo.padding import set_padding_token
from raydpo.storage import Folder, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.jinja")
#: What transformers calls the head of a decoder that classifies sequences.
_SCALAR_HEAD = "score.weight"
#: Names of buffers that older checkpoints of any architecture hold (transformers 5 leaves them out).
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
_ADAPTER_FILE = "adapter_config.json"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", _ADAPTER_FILE)


def local_folder(model: ModelConfig) -> Path:
    """The local folder of a model; a URI or hub name is downloaded once per machine.

    Raises:
        ModelError: nothing is found under that name.
    """
    path = Path(model.path).expanduser()
    if path.is_dir():
        return path.absolute()
    if "://" in model.path:
        return _download(model.path)
    if path.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1:
        raise ModelError(
            f"model {model.path!r}: there is no such folder",
            "a model is a Hugging Face folder, a URI of one, or a hub name such as org/name",
            "check the path; relative paths start at the folder the command runs in",
        )
    return _from_hub(model)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token and the configured chat template.

    Raises:
        ModelError: it cannot be loaded, or nothing in it can be a padding token.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = load_with(AutoTokenizer, model)
    _set_pad_token(tokenizer, model)
    if model.chat_template is not None:
        tokenizer.chat_template = _template_file(model.chat_template)
    return tokenizer


def load_causal_lm(model: ModelConfig) -> PreTrainedModel:
    """The model with float32 parameters, in evaluation mode, on the CPU.

    Raises:
        ModelError: transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: PreTrainedModel = load_with(
        AutoModelForCausalLM,
        model,
        dtype=torch.float32,
        attn_implementation=model.attn_implementation,
        use_safetensors=True,  # the older format is a pickle, which can run code
    )
    return loaded.eval()


def load_scalar_head(model: ModelConfig) -> PreTrainedModel:
    """The model with a head of one number; float32, in evaluation mode, on the CPU.

    A causal language model gets a new head of zeros, so that all rewards are 0 at first; a
    reward model keeps its own.

    Raises:
        ModelError: transformers cannot load it, or more than the head would be new.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    loaded, found = load_with(
        AutoModelForSequenceClassification,
        model,
        dtype=torch.float32,
        attn_implementation=model.attn_implementation,
        use_safetensors=True,
        num_labels=1,
        output_loading_info=True,
    )
    new = sorted(found["missing_keys"])
    if new not in ([], [_SCALAR_HEAD]):
        raise ModelError(
            f"model {model.path!r} has no weights for {', '.join(new)}",
            f"as a reward model only its head, {_SCALAR_HEAD}, may be new",
            "use a causal language model of transformers' decoders, such as Llama, Qwen or GPT-2",
        )
    if new:
        torch.nn.init.zeros_(loaded.get_parameter(_SCALAR_HEAD))
    return loaded.eval()


def load_with(auto_class: Any, model: ModelConfig, **arguments: Any) -> Any:
    """What an `Auto` class of transformers makes of the model's local folder.

    Args:
        auto_class: such as `transformers.AutoModelForCausalLM`.
        model: where it is.
        arguments: of the class's `from_pretrained`.

    Raises:
        ModelError: the folder asks to run code of its own, or transformers cannot load it.
    """
    folder = local_folder(model)
    refuse_remote_code(folder)
    name = str(auto_class.__name__)
    try:
        return auto_class.from_pretrained(folder, **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {model.path!r} cannot be loaded: {error}",
            f"its folder holds what transformers' {name} loads; weights are safetensors",
            f"try `{name}.from_pretrained(folder)` alone; `save_pretrained(folder)` of a model and "
            "of its tokenizer writes all that is needed",
        ) from error


def meta_causal_lm(model: ModelConfig) -> PreTrainedModel:
    """What `load_causal_lm` returns, on the `meta` device: shapes, and no memory for weights."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    empty = _on_meta(AutoModelForCausalLM, model)
    folder = local_folder(model)
    if (folder / "generation_config.json").is_file():
        empty.generation_config = GenerationConfig.from_pretrained(folder)
    return empty


def inner_prefix(model: ModelConfig) -> str:
    """What stands before the names of the tensors under a model's head, as in `transformer.`.

    Some files of the hub leave it out; what transformers saves has it.
    """
    return f"{_causal_lm_class(model).base_model_prefix}."


def missing_weights(model: ModelConfig, needed: set[str], found: set[str]) -> set[str]:
    """Tensors of a model's files that other files of its architecture lack.

    Not missing are names that differ by `inner_prefix`, and what older checkpoints hold and
    transformers leaves out when it loads them: buffers, such as masks and rotary frequencies.

    Args:
        model: of the architecture.
        needed: names in its files.
        found: names in the others.
    """
    if needed <= found:
        return set()
    prefix = inner_prefix(model)
    there = {name.removeprefix(prefix) for name in found}
    missing = {name for name in needed if name.removeprefix(prefix) not in there}
    if not missing:
        return missing
    own: Any = _causal_lm_class(model)._keys_to_ignore_on_load_unexpected or ()
    ignored = re.compile("|".join((*own, *_OLD_BUFFERS)))
    weights = {name.removeprefix(prefix) for name in meta_causal_lm(model).state_dict()}
    return {n for n in missing if n.removeprefix(prefix) in weights or not ignored.search(n)}


def _causal_lm_class(model: ModelConfig) -> Any:
    from transformers import AutoConfig, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES

    return CLASSES.get(type(load_with(AutoConfig, model)), PreTrainedModel)  # pyright: ignore


def meta_scalar_head(model: ModelConfig) -> PreTrainedModel:
    """What `load_scalar_head` returns, on the `meta` device."""
    from transformers import AutoModelForSequenceClassification

    return _on_meta(AutoModelForSequenceClassification, model, num_labels=1)


def _on_meta(auto_class: Any, model: ModelConfig, **values: Any) -> PreTrainedModel:
    """A model without weights; `values` change its configuration."""
    import torch
    from transformers import AutoConfig

    folder = local_folder(model)
    refuse_remote_code(folder)
    with torch.device("meta"):
        empty: PreTrainedModel = auto_class.from_config(
            AutoConfig.from_pretrained(folder, **values),
            dtype=torch.float32,
            attn_implementation=model.attn_implementation,
        )
    return empty.eval()


def model_config_values(model: ModelConfig) -> dict[str, Any]:
    """The content of the model's config.json.

    Raises:
        ModelError: it is missing, or not JSON.
    """
    path = local_folder(model) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: {error}",
            "a model folder holds a config.json",
            "point `model` at the folder that `save_pretrained` wrote",
        ) from error


def refuse_remote_code(folder: Path) -> None:
    """Stop at a model whose files ask to run code of their own.

    Raises:
        ModelError: its config.json or tokenizer_config.json has an `auto_map`.
    """
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ModelError(
                f"{path} asks to run code of its own (auto_map)",
                "raydpo runs no code that a model folder brings",
                "use a model whose architecture is part of transformers",
            )


def adapter_base(model: ModelConfig) -> ModelConfig | None:
    """The model that a LoRA adapter's folder is for; None where the folder is a whole model.

    Raises:
        ModelError: the adapter does not name its base.
    """
    path = local_folder(model) / _ADAPTER_FILE
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{path} names no base_model_name_or_path",
            "an adapter is used on the model that it was trained on",
            "save the adapter again with the PEFT library, or write the base's name there",
        )
    return model.model_copy(update={"path": base, "revision": None})


def weights_fingerprint(model: ModelConfig) -> str:
    """Hash of the weights' bytes and the architecture, whatever the folder is called.

    An adapter's is a hash of its own and of its base's.
    """
    own = _files_fingerprint(local_folder(model), _WEIGHT_FILES)
    base = adapter_base(model)
    return fingerprint([own, weights_fingerprint(base)]) if base else own


def tokenizer_fingerprint(model: ModelConfig) -> str:
    """Hash of the tokenizer's files, the padding token and the chat template in use."""
    template = _template_file(model.chat_template) if model.chat_template else None
    files = _files_fingerprint(local_folder(model), _TOKENIZER_FILES)
    return fingerprint([files, model.pad_token, template])


def _files_fingerprint(folder: Path, patterns: tuple[str, ...]) -> str:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    hashes: dict[str, str] = {}
    for path in paths:
        stat = path.stat()
        hashes[path.name] = _file_hash(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return fingerprint(hashes)


@functools.cache
def _file_hash(path: Path, *_state: int) -> str:
    """Hash of a file; read again by a process that lives on when the file has changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> None:
    if model.pad_token is not None:
        known = tokenizer.get_vocab()
        if model.pad_token not in known:
            raise ModelError(
                f"model.pad_token {model.pad_token!r}",
                f"the padding token is one of the {len(known)} tokens of {model.path!r}",
                f"take one of its special tokens: {sorted(tokenizer.all_special_tokens)}",
            )
        tokenizer.pad_token = model.pad_token
    if tokenizer.pad_token_id is None:
        set_padding_token(tokenizer, model.path, model_config_values(model))


def _template_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"model.chat_template {path!r}: {error.strerror}",
            "it is a file with a Jinja chat template",
            "check the path, or remove the key to use the tokenizer's own template",
        ) from error


def _download(uri: str) -> Path:
    folder = Folder(uri)
    files = folder.files(recursive=True)
    if not files:
        raise ModelError(
            f"model {uri!r}: no files are there",
            "the URI names a folder with a Hugging Face model",
            "check the URI and the credentials in the environment",
        )
    # A policy that is trained again has files of the same names and sizes, at another time.
    key = fingerprint([uri, files, folder.modified()])[:16]
    target = Path(tempfile.gettempdir()) / f"raydpo-{os.getuid()}" / key
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent))
        folder.download(partial)
        try:
            partial.rename(target)
        except OSError:  # another process was first: its copy is as good
            shutil.rmtree(partial)
    return target


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except Exception as error:
        raise ModelError(
            f"model {model.path!r}: neither a folder here nor to be had from the hub: "
            f"{type(error).__name__}",
            "a model is a Hugging Face folder, a URI of one, or a hub name such as org/name",
            "check the name and the network, or download it once and give the folder",
        ) from error
