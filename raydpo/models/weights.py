"""Compare the weights in a model's files with those that its architecture needs.

The module takes names and shapes of tensors, and the loading report of transformers. The report
comes from a real load, or from one on the `meta` device without memory. An error names weights that
are missing, left over, misshapen or of another number format.

After resizing or merging, a folder's config may say that output layer and embedding are tied, and
its files hold a separate output layer. The module reports how transformers loads such a folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raydpo.core.errors import ModelError, said_by
from raydpo.models.files import TensorHeader, first_few, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Shape = tuple[int, ...]

#: Buffers that older checkpoints of any architecture hold, and that transformers 5 leaves out.
_OLD_BUFFERS: Final = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"attn\.masked_bias$")
#: Dtypes of safetensors whose numbers are the weights themselves.
_PLAIN_DTYPES: Final = ("F64", "F32", "F16", "BF16")
#: Prefixes that wrappers of other libraries put before every name, and what to save instead.
_WRAPPERS: Final = {
    "_orig_mod.": "torch.compile: save `model._orig_mod`",
    "module.": "DistributedDataParallel or DeepSpeed: save `model.module`",
    "_fsdp_wrapped_module.": "FSDP: save its full state_dict",
    "base_model.model.": "peft: save what `merge_and_unload()` returns",
}
_WHOLE_MODEL: Final = (
    "take config.json and weights of one and the same model, whole; `save_pretrained` of the "
    "model writes both"
)


@dataclass(frozen=True)
class LoadingReport:
    """The result of loading tensors into an architecture.

    Attributes:
        missing: names without a tensor, whose values would be invented.
        unexpected: names of tensors that have no place in the architecture.
        mismatched: for each name, the shape that was found and the one that is needed.
    """

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: dict[str, tuple[Shape, Shape]]

    @property
    def sound(self) -> bool:
        """Whether every weight has its tensor and every tensor its place."""
        return not (self.missing or self.unexpected or self.mismatched)


@dataclass(frozen=True)
class Exceptions:
    """Names that may differ if a model is loaded as another kind than it was saved as.

    Attributes:
        new: weights that the caller makes if they are missing.
        unused: a pattern of tensors that this kind of model does not use.
    """

    new: frozenset[str] = frozenset()
    unused: str = r"(?!)"


def report_of(found: Mapping[str, Any], exceptions: Exceptions) -> LoadingReport:
    """Convert the `output_loading_info` of transformers to a report, without harmless entries.

    Transformers leaves out tied weights and the names that the class itself lists
    (`_keys_to_ignore_on_load_missing` and `_unexpected`).
    """
    harmless = re.compile("|".join((*_OLD_BUFFERS, exceptions.unused)))
    return LoadingReport(
        missing=frozenset(found["missing_keys"]) - exceptions.new,
        unexpected=frozenset(n for n in found["unexpected_keys"] if not harmless.search(n)),
        mismatched={name: (tuple(a), tuple(b)) for name, a, b in found["mismatched_keys"]},
    )


def loading_report(
    empty: PreTrainedModel,
    tensors: Mapping[str, TensorHeader],
    exceptions: Exceptions = Exceptions(),
) -> LoadingReport:
    """Return the report that transformers gives for such tensors, from a trial on `meta`.

    Args:
        empty: a model of the architecture, which stays unchanged.
        tensors: headers by their names in the files.
        exceptions: see `Exceptions`.

    Raises:
        ModelError: transformers cannot convert them to the form of the architecture.
    """
    import torch

    architecture: Any = type(empty)
    state = {name: torch.empty(header.shape, device="meta") for name, header in tensors.items()}
    try:
        with without_reports():
            _, found = architecture.from_pretrained(
                None,
                config=empty.config,
                state_dict=state,
                dtype=torch.float32,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report contains them
            )
    except Exception as error:
        report = _differences(empty, tensors)
        if not report.sound:
            return report
        raise ModelError(
            f"the weights do not fit {architecture.__name__}: {said_by(error)}",
            "transformers brings the tensors of the files into the form of its architecture",
            _WHOLE_MODEL,
        ) from error
    return report_of(found, exceptions)


def refuse_unsound(
    model: str,
    architecture: PreTrainedModel,
    report: LoadingReport,
    tensors: Mapping[str, TensorHeader],
) -> None:
    """Refuse weights that do not fit the architecture.

    Args:
        model: its name, for the message.
        architecture: a model of the architecture, with or without weights.
        report: the findings of transformers.
        tensors: all tensors in the model's files.

    Raises:
        ModelError: the weights do not fit; the error names them.
    """
    if not report.sound:
        shapes = [f"{n} {_shape(a)}, not {_shape(b)}" for n, (a, b) in report.mismatched.items()]
        parts = (
            ("missing", sorted(report.missing)),
            ("no place for", sorted(report.unexpected)),
            ("other shapes", sorted(shapes)),
        )
        said = "; ".join(f"{what}: {first_few(names)}" for what, names in parts if names)
        raise ModelError(
            f"model {model!r} does not have the weights of its "
            f"{type(architecture).__name__}: {said}",
            "each weight of the architecture that config.json names is in the safetensors files, "
            "with its name and shape, and nothing else",
            _way_out(report),
        )
    _refuse_other_numbers(model, {name for name, _ in architecture.named_parameters()}, tensors)


@contextmanager
def without_reports() -> Generator[None]:
    """Silence transformers' progress bars and reports inside the block; what matters is raised."""
    from transformers.utils import logging as own

    bar, level = own.is_progress_bar_enabled(), own.get_verbosity()
    own.disable_progress_bar()
    own.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        own.set_verbosity(level)
        if bar:
            own.enable_progress_bar()


def _refuse_other_numbers(
    model: str, weights: set[str], tensors: Mapping[str, TensorHeader]
) -> None:
    """Refuse integers and 8-bit numbers, which transformers would read without decoding."""
    odd = [
        f"{name} {header.dtype}"
        for name, header in sorted(tensors.items())
        if header.dtype not in _PLAIN_DTYPES and _is_one_of(name, weights)
    ]
    if odd:
        raise ModelError(
            f"model {model!r} has weights that are not floating-point numbers: {first_few(odd)}",
            f"weights are stored as {', '.join(_PLAIN_DTYPES)}",
            "use the model that this one was quantized from, or dequantize and save it again",
        )


def _differences(empty: PreTrainedModel, tensors: Mapping[str, TensorHeader]) -> LoadingReport:
    """Compare with the files that transformers would save for the architecture.

    If transformers cannot merge tensors, such as those of experts, this says which are at fault.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tied = dict(empty.all_tied_weights_keys)
    saved = revert_weight_conversion(empty, empty.state_dict())
    shapes = {name: tuple(weight.shape) for name, weight in saved.items() if name not in tied}
    return LoadingReport(
        missing=frozenset(shapes.keys() - tensors.keys()),
        unexpected=frozenset(),
        mismatched={
            name: (tensors[name].shape, shape)
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        },
    )


def _is_one_of(name: str, weights: set[str]) -> bool:
    """Return whether a file's name is a weight's, with or without the inner model's prefix."""
    return name in weights or any(weight.endswith(f".{name}") for weight in weights)


def _way_out(report: LoadingReport) -> str:
    wrapper = next((w for w in _WRAPPERS if any(n.startswith(w) for n in report.unexpected)), None)
    if wrapper is not None:
        return f"names that begin with {wrapper!r} are of a wrapper, {_WRAPPERS[wrapper]} instead"
    if any(0 in shape for shape, _ in report.mismatched.values()):
        return (
            "DeepSpeed ZeRO-3 leaves empty tensors of weights that it did not gather: save again "
            "with stage3_gather_16bit_weights_on_model_save, or by zero_to_fp32.py"
        )
    rows = {a[0] for a, b in report.mismatched.values() if len(a) == len(b) == 2 and a[1:] == b[1:]}
    if len(rows) == 1 and not (report.missing or report.unexpected):
        return (
            f"where the embedding was resized, set vocab_size in config.json to {rows.pop()}, or "
            "save config and weights together with `save_pretrained`"
        )
    return _WHOLE_MODEL


def _shape(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


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
