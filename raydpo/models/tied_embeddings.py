"""Determine from its files, not its config, whether a model ties output layer and embedding.

After resizing or merging, a folder's config may say tied although its files hold a separate output
layer. The module reports how transformers loads such a folder. It reads weights only of such
folders; for all others the headers are enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raydpo.models.files import read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Number of rows of the two tensors that are compared at a time.
_ROWS: Final = 4096


def holds_two(folder: Path, model_class: Any) -> bool:
    """Return whether the files hold both output layer and embedding, with different values.

    Args:
        folder: a folder with safetensors files.
        model_class: the transformers class, which knows which of its tensors can be tied.

    Raises:
        ModelError: see `read_tensors`.
    """
    names: Any = getattr(model_class, "_tied_weights_keys", None)
    if not isinstance(names, dict):
        return False
    prefix = f"{model_class.base_model_prefix}."
    tensors = read_tensors(folder).items()
    # Some files leave the prefix out.
    files = {name.removeprefix(prefix): (folder / of.file, name) for name, of in tensors}
    pairs: list[tuple[str, str]] = [(str(a), str(b)) for a, b in names.items()]
    return any(
        not _equal(files[one], files[other])
        for one, other in ((a.removeprefix(prefix), b.removeprefix(prefix)) for a, b in pairs)
        if one in files and other in files
    )


def note_untied(model: PreTrainedModel) -> None:
    """Correct a loaded model's config if its output layer and embedding are separate."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is getattr(embedding, "weight", None):
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _equal(one: tuple[Path, str], other: tuple[Path, str]) -> bool:
    """Return whether two tensors have the same values, with a few rows in memory at a time."""
    import torch
    from safetensors import safe_open

    with safe_open(one[0], framework="pt") as a, safe_open(other[0], framework="pt") as b:
        ours, theirs = a.get_slice(one[1]), b.get_slice(other[1])
        if ours.get_shape() != theirs.get_shape():
            return False
        return all(
            torch.equal(ours[i : i + _ROWS].float(), theirs[i : i + _ROWS].float())
            for i in range(0, ours.get_shape()[0], _ROWS)
        )
