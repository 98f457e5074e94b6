"""Read a model folder: its JSON files, and the tensor headers of its safetensors files.

The module runs no code and reads no weights. Errors name the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raydpo.core.errors import ModelError, said_by

ADAPTER_FILE: Final = "adapter_config.json"
#: Files that transformers reads for a model and its tokenizer, apart from the weights.
_JSON_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    ADAPTER_FILE,
)
_WHOLE_FILE: Final = "model.safetensors"
_INDEX_FILE: Final = "model.safetensors.index.json"
#: Keys of a config.json that say how many modules or labels exist.
_COUNTS_MODULES: Final = re.compile(
    r"(^|_)(num|n)_(.*_)?(layers?|blocks?|experts|labels)$|^(encoder|decoder)_layers$"
)
#: This many layers, experts or labels are accepted without a look at the weights.
_MANY: Final = 1000
#: Layers that share weights have fewer tensors than layers; this exceeds the known models.
_LAYERS_A_TENSOR: Final = 4
#: Keys of a config.json that mark stored weights as encoded numbers.
_QUANTIZED: Final = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of one tensor: its file's name, its dtype and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains a mapping.

    Raises:
        ModelError: the file cannot be read, or contains anything else.
    """
    rule = "it is a JSON file with a mapping, as `save_pretrained` writes it"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read: {said_by(error)}",
            rule,
            "copy or download the model again, or `save_pretrained` it again",
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} holds {type(value).__name__}, not a mapping",
            rule,
            "copy or download the model again, or `save_pretrained` it again",
        )
    return value


def refuse_unusable_files(folder: Path) -> None:
    """Refuse JSON files that cannot be read, ask to run their own code, or ask for too much.

    Raises:
        ModelError: transformers would read it only in part, run the folder's code, or build layers
            without end.
    """
    for name in _JSON_FILES:
        if (folder / name).is_file():
            read_mapping(folder / name)
    refuse_remote_code(folder)
    _refuse_endless_models(folder)


def refuse_remote_code(folder: Path) -> None:
    """Refuse a model whose files ask to run their own code.

    Raises:
        ModelError: its config.json or tokenizer_config.json has an `auto_map`.
    """
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in read_mapping(path):
            raise ModelError(
                f"{path} asks to run code of its own (auto_map)",
                "raydpo runs no code that a model folder brings",
                "use a model whose architecture is part of transformers",
            )


def _refuse_endless_models(folder: Path) -> None:
    """Refuse counts of layers, experts or labels that no model with these weights can have.

    Before it looks at the weights, transformers builds as many modules, or entries of a list, as
    config.json says: a billion of them fill the memory.
    """
    file = folder / "config.json"
    counts = _large_counts(read_mapping(file), "") if file.is_file() else {}
    if not counts:
        return
    files = folder.glob("*.safetensors")
    tensors = [header for path in files for header in read_headers(path).values()]
    longest = max((size for header in tensors for size in header.shape), default=0)
    for name, count in counts.items():
        layers = "layer" in name or "block" in name
        most = _LAYERS_A_TENSOR * len(tensors) if layers else max(len(tensors), longest)
        if count > most:
            raise ModelError(
                f"{file} asks for {name} {count}",
                f"its weights are {len(tensors)} tensors, the longest of {longest} rows or columns: "
                f"no such model has more than {most}",
                "take the config.json that was saved with the weights",
            )


def _large_counts(values: dict[str, Any], prefix: str) -> dict[str, int]:
    """Return entries of a config.json that count modules or labels, by their dotted names.

    Counts that fit in any memory are left out.
    """
    found: dict[str, int] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _large_counts(value, f"{prefix}{key}.")
        elif isinstance(value, int) and value > _MANY and _COUNTS_MODULES.search(key):
            found[f"{prefix}{key}"] = value
    return found


def refuse_adapter(folder: Path) -> None:
    """Refuse the folder of a LoRA adapter.

    Raises:
        ModelError: it is one; the error names the base.
    """
    if (folder / ADAPTER_FILE).is_file():
        base = read_mapping(folder / ADAPTER_FILE).get("base_model_name_or_path")
        raise ModelError(
            f"{folder} is a LoRA adapter ({ADAPTER_FILE}) of {base!r}",
            "a whole model is needed here",
            "merge it: peft's `PeftModel.from_pretrained(base, folder).merge_and_unload()`, then "
            "`save_pretrained` into another folder",
        )


def read_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Return headers of all tensors of a whole model by name, without reading weights.

    Raises:
        ModelError: the folder is an adapter's or quantized; a file is missing, damaged or
            superfluous; or a tensor is in two files.
    """
    refuse_adapter(folder)
    _refuse_quantized(folder)
    tensors: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        for name, header in read_headers(file).items():
            if name in tensors:
                raise ModelError(
                    f"{folder}: {name} stands in {tensors[name].file} and in {header.file}",
                    "each weight is in one file; otherwise nobody can say which one counts",
                    "`save_pretrained` the model again, into an empty folder",
                )
            tensors[name] = header
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that both transformers and vLLM load.

    Transformers takes `model.safetensors`, or otherwise the files of the index. vLLM takes every
    safetensors file except those that an index leaves out.

    Raises:
        ModelError: there are none, one is missing, or the two libraries would load different files.
    """
    there = {path.name for path in folder.glob("*.safetensors")}
    indexed = _indexed_files(folder)
    missing = sorted((indexed or set()) - there)
    if missing:
        raise ModelError(
            f"{folder} has no {first_few(missing)}",
            f"every file that {_INDEX_FILE} names is there",
            "copy or download the model again",
        )
    by_transformers = {_WHOLE_FILE} if _WHOLE_FILE in there else indexed or set()
    by_vllm = there if indexed is None else indexed
    if not by_transformers:
        found = f"only {first_few(sorted(there))}" if there else "no *.safetensors file"
        raise ModelError(
            f"{folder} has {found}",
            f"weights are in {_WHOLE_FILE}, or in files that {_INDEX_FILE} names: other formats "
            "may run code",
            "load the model once in transformers and `save_pretrained` it again",
        )
    if by_transformers != by_vllm:
        raise ModelError(
            f"{folder} holds {first_few(sorted(by_transformers ^ by_vllm))} beside "
            f"{first_few(sorted(by_transformers & by_vllm) or sorted(by_transformers))}",
            "the safetensors files of a folder are one model: transformers (training) and vLLM "
            "(sampling) would load different ones here",
            "move what is not this model's out of the folder, such as backups, optimizer states, "
            "adapters and shards of another save",
        )
    return sorted(folder / name for name in by_transformers)


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """Return the tensor headers of one safetensors file.

    Raises:
        ModelError: the file is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(file.name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except Exception as error:  # safetensors' own errors derive from Exception alone
        pointer = _is_pointer(file)
        raise ModelError(
            f"{file} is damaged: {'a pointer of git-lfs' if pointer else said_by(error)}",
            "it is a whole safetensors file",
            "run `git lfs pull` in its folder" if pointer else "copy or download the model again",
        ) from error


def first_few(names: list[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _indexed_files(folder: Path) -> set[str] | None:
    """Return the names of the files in the index; None without an index."""
    path = folder / _INDEX_FILE
    if not path.is_file():
        return None
    weight_map = read_mapping(path).get("weight_map")
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(
            f"{path} has no weight_map from names of weights to names of files",
            "the index says which file of the folder each weight is in",
            "copy or download the model again, or `save_pretrained` it again",
        )
    return set(names)


def _is_pointer(file: Path) -> bool:
    """Return whether a file is what git-lfs leaves if the content was not fetched."""
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        return stream.read(24).startswith(b"version https://git-lfs")


def _refuse_quantized(folder: Path) -> None:
    config = read_mapping(folder / "config.json") if (folder / "config.json").is_file() else {}
    for key in _QUANTIZED:
        if config.get(key):
            method = (
                config[key].get("quant_method") if isinstance(config[key], dict) else config[key]
            )
            raise ModelError(
                f"{folder}/config.json has a {key}: the weights are quantized ({method})",
                "policy, reference and classifiers have weights of 16 bits or more, so that all "
                "stages compute with the same ones",
                "use the model that this one was quantized from, or dequantize and save it again",
            )
