"""Find, check, load and fingerprint models and tokenizers.

A `ModelConfig` gives a folder, a URI or a hub name. The module loads tokenizers and transformers
models from a local folder without running any code of that folder, and fingerprints their
content.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raydpo.config.job import ModelConfig
from raydpo.core.artifacts import hold_artifacts
from raydpo.core.errors import ModelError, said_by
from raydpo.core.fingerprints import Fingerprint, shortened
from raydpo.core.private_files import kept
from raydpo.core.storage import Folder, fingerprint
from raydpo.models.content import files_fingerprint
from raydpo.models.files import (
    ADAPTER_FILE,
    read_mapping,
    read_tensors,
    refuse_adapter,
    refuse_unusable_files,
)
from raydpo.models.padding import set_padding_token
from raydpo.models.weights import (
    Exceptions,
    holds_two,
    loading_report,
    note_untied,
    refuse_unsound,
    report_of,
    without_reports,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The name that transformers gives the head of a decoder that classifies sequences.
_SCALAR_HEAD = "score.weight"
#: A folder with a tokenizer has at least one of these files.
_VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
_TOKENIZER_FILES = (
    *_VOCABULARY_FILES,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "*.jinja",
    "chat_template.json",
)
#: Layers that a classifier's file may also contain: a decoder's output layer, an encoder's pooler.
_UNUSED_BY_CLASSIFIERS = r"^(lm_head|embed_out)\.(weight|bias)$|(^|\.)pooler\.dense\.(weight|bias)$"
_WEIGHT_FILES = ("*.safetensors", "config.json", ADAPTER_FILE)
#: Keys of JSON files that say where something is; the content at that place counts itself.
_PLACES: Final = frozenset({"base_model_name_or_path"})


def local_folder(model: ModelConfig) -> Path:
    """Return the local folder of a model; a URI or hub name is downloaded once per machine.

    Files that a stage of raydpo made are compared with the hashes in the stage's manifest.

    Raises:
        ModelError: nothing exists under that name.
        DataError: a file was changed after the stage was finished; the error names it.
    """
    path = Path(model.path).expanduser()
    try:
        there = path.is_dir()
    except (OSError, ValueError) as error:  # such as a name of 300 letters in an adapter's file
        raise ModelError(
            f"model {model.path[:300]!r} cannot be looked up: {said_by(error)}",
            "a model is a Hugging Face folder, a URI of one, or a hub name such as org/name",
            "check the path",
        ) from error
    if there:
        hold_artifacts(path.absolute(), str(path.absolute()))
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
    """Load the model's tokenizer, with a padding token and the configured chat template.

    Raises:
        ModelError: it cannot be loaded, or none of its tokens can serve as padding.
    """
    import tokenizers
    from transformers import AutoTokenizer

    folder = _usable_folder(model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        tokenizer("a")  # some values in its files are read only now
    except Exception as error:
        there = any(path for pattern in _VOCABULARY_FILES for path in folder.glob(pattern))
        why = said_by(error) if there else "the folder has no vocabulary"
        raise ModelError(
            f"the tokenizer of model {model.path!r} cannot be loaded: {why}",
            "the folder holds a tokenizer.json (or a vocabulary) that the installed tokenizers "
            f"{tokenizers.__version__} reads",
            "install the tokenizers and transformers that wrote it, or copy the tokenizer's files "
            "again from where the model is from",
        ) from error
    _set_pad_token(tokenizer, model)
    if model.chat_template is not None:
        tokenizer.chat_template = _template_file(model.chat_template)
    return tokenizer


@dataclass(frozen=True)
class Kind:
    """The kind of model that a folder is loaded as.

    Attributes:
        auto_class: name of the transformers class that loads it.
        values: changes to its configuration.
        exceptions: weights that its files may lack, or contain in addition to this kind's weights.
    """

    auto_class: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    exceptions: Exceptions = field(default_factory=Exceptions)

    def of_transformers(self) -> Any:
        """Return the class itself."""
        import transformers

        return getattr(transformers, self.auto_class)


CAUSAL_LM: Final = Kind("AutoModelForCausalLM")
#: A model with a head of one number, which may be newly created.
SCALAR_HEAD: Final = Kind(
    "AutoModelForSequenceClassification",
    {"num_labels": 1},
    Exceptions(frozenset({_SCALAR_HEAD}), _UNUSED_BY_CLASSIFIERS),
)
CLASSIFIER: Final = Kind(
    "AutoModelForSequenceClassification", exceptions=Exceptions(unused=_UNUSED_BY_CLASSIFIERS)
)


def load_causal_lm(model: ModelConfig) -> PreTrainedModel:
    """Load the model with float32 parameters, in evaluation mode, on the CPU.

    Raises:
        ModelError: see `load_model`.
    """
    loaded = load_model(model, CAUSAL_LM)
    note_untied(loaded)
    return loaded


def load_scalar_head(model: ModelConfig) -> PreTrainedModel:
    """Load the model with a head of one number; float32, in evaluation mode, on the CPU.

    A causal language model gets a new head of zeros, so that all rewards are 0 at first; a reward
    model keeps its own head.

    Raises:
        ModelError: see `load_model`; only the head may be new.
    """
    import torch

    loaded = load_model(model, SCALAR_HEAD)
    if _SCALAR_HEAD not in read_tensors(local_folder(model)):
        torch.nn.init.zeros_(loaded.get_parameter(_SCALAR_HEAD))
    return loaded


def load_model(model: ModelConfig, kind: Kind) -> PreTrainedModel:
    """Load a model from its files, as all of raydpo does; float32, evaluation mode, on the CPU.

    Raises:
        ModelError: transformers cannot load it, or its files do not match the weights of its
            architecture: some are missing, left over or of another shape.
    """
    import torch

    tensors = read_tensors(_usable_folder(model))
    try:
        with without_reports():
            loaded, found = load_with(
                kind.of_transformers(),
                model,
                dtype=torch.float32,
                attn_implementation=model.attn_implementation,
                use_safetensors=True,  # the older format is a pickle, which can run code
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report contains them
                **kind.values,
            )
    except ModelError:
        check_weights(model, kind)  # says which weights are at fault, if any are
        raise
    refuse_unsound(model.path, loaded, report_of(found, kind.exceptions), tensors)
    return loaded.eval()


def check_weights(model: ModelConfig, kind: Kind) -> None:
    """Find by headers alone what `load_model` would refuse, without reading weights.

    Raises:
        ModelError: see `load_model`.
    """
    tensors = read_tensors(_usable_folder(model))
    empty = meta_model(model, kind)
    report = loading_report(empty, tensors, kind.exceptions)
    refuse_unsound(model.path, empty, report, tensors)


def load_with(auto_class: Any, model: ModelConfig, **arguments: Any) -> Any:
    """Load the model's local folder with a class of transformers.

    Args:
        auto_class: the class, such as `transformers.AutoConfig`.
        model: the model, which says where the folder is.
        arguments: arguments of the class's `from_pretrained`.

    Raises:
        ModelError: the folder asks to run its own code, or transformers cannot load it.
    """
    folder = _usable_folder(model)
    name = str(auto_class.__name__)
    try:
        return auto_class.from_pretrained(folder, **arguments)
    except Exception as error:
        raise ModelError(
            f"model {model.path!r} cannot be loaded: {said_by(error)}",
            f"its folder holds what transformers' {name} loads; weights are safetensors",
            f"try `{name}.from_pretrained(folder)` alone; `save_pretrained(folder)` of a model and "
            "of its tokenizer writes all that is needed",
        ) from error


def meta_causal_lm(model: ModelConfig) -> PreTrainedModel:
    """Build what `load_causal_lm` returns on the `meta` device, with shapes but no weights.

    Raises:
        ModelError: a configuration of the model cannot be read.
    """
    from transformers import GenerationConfig

    empty = meta_model(model, CAUSAL_LM)
    file = local_folder(model) / "generation_config.json"
    if file.is_file():
        try:
            empty.generation_config = GenerationConfig.from_pretrained(file.parent)
        except Exception as error:  # contradictory settings, or values of wrong types
            raise ModelError(
                f"{file} cannot be read: {said_by(error)}",
                "it is what transformers' GenerationConfig reads",
                "fix it, or delete it: then the model has no settings of generation",
            ) from error
    return empty


def meta_scalar_head(model: ModelConfig) -> PreTrainedModel:
    """Build what `load_scalar_head` returns on the `meta` device."""
    return meta_model(model, SCALAR_HEAD)


def meta_model(model: ModelConfig, kind: Kind) -> PreTrainedModel:
    """Build a model without weights on the `meta` device.

    Raises:
        ModelError: transformers cannot build it from its config.json.
    """
    import torch
    from transformers import AutoConfig

    untied = kind == CAUSAL_LM and unties_embeddings(model)
    values = {"tie_word_embeddings": False} if untied else kind.values
    config = load_with(AutoConfig, model, **values)
    try:
        with torch.device("meta"):
            empty: PreTrainedModel = kind.of_transformers().from_config(
                config, dtype=torch.float32, attn_implementation=model.attn_implementation
            )
    except Exception as error:
        raise ModelError(
            f"model {model.path!r}: no model can be made of its config.json: {said_by(error)}",
            f"transformers' {kind.auto_class} knows its model_type, and its sizes fit together",
            "take the config.json that was saved with the weights",
        ) from error
    return empty.eval()


def ties_embeddings(model: ModelConfig) -> bool:
    """Return whether a model's output layer is its input embedding.

    Raises:
        ModelError: a file is damaged.
    """
    return _says_tied(model) and not unties_embeddings(model)


def unties_embeddings(model: ModelConfig) -> bool:
    """Return whether a config declares tied embeddings although the files hold two tensors.

    In this case transformers loads both, and so does all of raydpo.

    Raises:
        ModelError: a file is damaged.
    """
    return _says_tied(model) and holds_two(local_folder(model), _causal_lm_class(model))


def _says_tied(model: ModelConfig) -> bool:
    from transformers import AutoConfig

    return bool(getattr(load_with(AutoConfig, model), "tie_word_embeddings", False))


def inner_prefix(model: ModelConfig) -> str:
    """Return the prefix of tensor names under a model's head, such as `transformer.`.

    Some files on the hub leave it out; files that transformers saves have it.
    """
    return f"{_causal_lm_class(model).base_model_prefix}."


def _causal_lm_class(model: ModelConfig) -> Any:
    from transformers import AutoConfig, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES

    return CLASSES.get(type(load_with(AutoConfig, model)), PreTrainedModel)  # pyright: ignore


def model_config_values(model: ModelConfig) -> dict[str, Any]:
    """Return the content of the model's config.json.

    Raises:
        ModelError: the file is missing, or is not a mapping.
    """
    path = local_folder(model) / "config.json"
    if not path.is_file():
        refuse_adapter(path.parent)
        raise ModelError(
            f"{path.parent} has no config.json",
            "a model folder holds one",
            "point `model` at the folder that `save_pretrained` wrote",
        )
    return read_mapping(path)


def parameter_count(model: ModelConfig) -> int:
    """Return the number of parameters, from the headers of the safetensors files.

    Raises:
        ModelError: there are no such files, or one is damaged.
    """
    return sum(math.prod(tensor.shape) for tensor in read_tensors(local_folder(model)).values())


def adapter_base(model: ModelConfig) -> ModelConfig | None:
    """Return the model that a LoRA adapter is for; None if the folder is a whole model.

    Raises:
        ModelError: the adapter does not name its base, or names an adapter.
    """
    path = local_folder(model) / ADAPTER_FILE
    if not path.is_file():
        return None
    name = read_mapping(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{path} names no base_model_name_or_path",
            "an adapter is used on the model that it was trained on",
            "save the adapter again with the PEFT library, or write the base's name there",
        )
    base = model.model_copy(update={"path": name, "revision": None})
    if (local_folder(base) / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{path} names {name!r} as its base, which is an adapter itself",
            "an adapter's base is a whole model",
            "write the name of the model that it was trained on as base_model_name_or_path",
        )
    return base


def weights_fingerprint(model: ModelConfig) -> Fingerprint:
    """Hash the tensors by name and the architecture, independent of the files and the folder.

    The fingerprint of an adapter is a hash of its own and its base's fingerprints.
    """
    own = files_fingerprint(_files(model, _WEIGHT_FILES), _PLACES)
    base = adapter_base(model)
    if base is None:
        return own
    below = weights_fingerprint(base)
    told = {f"base, {name}": value for name, value in below.made_of.items()}
    return Fingerprint(fingerprint([own, below]), own.made_of | told)


def tokenizer_fingerprint(model: ModelConfig) -> Fingerprint:
    """Hash the content of the tokenizer's files, the padding token and the chat template in use."""
    template = _template_file(model.chat_template) if model.chat_template else None
    files = files_fingerprint(_files(model, _TOKENIZER_FILES))
    own = {"model.pad_token": model.pad_token, "model.chat_template": template}
    told = files.made_of | shortened(own)
    return Fingerprint(fingerprint([files, model.pad_token, template]), told)


def _files(model: ModelConfig, patterns: tuple[str, ...]) -> set[Path]:
    """Return the files of a model's folder that match the patterns."""
    folder = local_folder(model)
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def _usable_folder(model: ModelConfig) -> Path:
    """Return the local folder; its JSON files can be read and do not ask to run code."""
    folder = local_folder(model)
    refuse_unusable_files(folder)
    return folder


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
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.chat_template {path!r}: {getattr(error, 'strerror', None) or said_by(error)}",
            "it is a file in UTF-8 with a Jinja chat template",
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
    # A policy that is trained again has files with the same names and sizes, but other times.
    key = fingerprint([uri, files, folder.modified()])[:32]

    def download(target: Path) -> None:
        folder.download(target)
        hold_artifacts(target, folder.uri)

    return kept(f"model-{key}", download)


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except Exception as error:
        raise ModelError(
            f"model {model.path!r}: neither a folder here nor available from the hub: "
            f"{type(error).__name__}",
            "a model is a Hugging Face folder, a URI of one, or a hub name such as org/name",
            "check the name and the network, or download it once and give the folder",
        ) from error
