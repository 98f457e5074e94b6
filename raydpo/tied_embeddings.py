"""Whether a model's output layer is its input embedding: by its files, whatever its config says.

What comes in: a folder whose config may say tied although its files hold an output layer of
their own, as resizing and merging leave it. What goes out: what transformers makes of it. Only
such folders are read; of all others the headers are enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raydpo.model_files import read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Rows of the two tensors that are compared at a time.
_ROWS: Final = 4096


def holds_two(folder: Path, model_class: Any) -> bool:
    """Whether the files hold output layer and embedding both, and they differ.

    Args:
        folder: with safetensors.
        model_class: of transformers; it knows which of its tensors can be tied.

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
    """Let a loaded model's config say that its embeddings are two, where they are."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is getattr(embedding, "weight", None):
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _equal(one: tuple[Path, str], other: tuple[Path, str]) -> bool:
    """Whether two tensors have the same values, a few rows in memory at a time."""
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
