"""`raydpo publish`: a model's files and its card in a folder, and on the hub.

The folder gets the files that transformers or peft load, README.md with the card, the figures of
the report, config.yaml, and a list of all of them. The run is only read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raydpo import __version__
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.storage import Folder, folder_of
from raydpo.models.files import ADAPTER_FILE
from raydpo.pipeline.results import open_run
from raydpo.show.card import CardOptions, base_name, model_card
from raydpo.show.hub import open_repository
from raydpo.show.public_config import public_config
from raydpo.show.trained import TrainedModel, trained_model
from raydpo.training.export import ADAPTER, MODEL
from raydpo.training.probe import PROBE_FILE

Json = dict[str, Any]

#: Names the files that raydpo wrote into a published folder, with their SHA-256.
LIST_FILE: Final = "raydpo-published.json"
CARD_FILE: Final = "README.md"
#: Files of the tokenizer, which an adapter's folder needs as well.
_TOKENIZER_FILES: Final = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
#: The check of an export, which holds texts of the training data, and peft's own empty card.
_LEFT_OUT: Final = (PROBE_FILE, CARD_FILE)


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
        folder: where the files are on this machine.
        files: their names.
        url: of the model on the hub, if it was uploaded.
    """

    folder: str
    files: list[str]
    url: str | None


def publish_run(
    path: str,
    output: str | None = None,
    *,
    hub: str | None = None,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    round_index: int | None = None,
    merged: bool = False,
) -> Published:
    """Write a model with its card into a folder, and upload that to the hub if it is asked for.

    Args:
        path: the run directory.
        output: the folder; without it `published/NAME` in the working directory.
        hub: the name on the hub, `owner/name`.
        private: whether a repository that is made on the hub is private.
        license: an id of the hub's list of licences.
        base_model: the base model's name on the hub, if the job names a folder.
        round_index: the round; without it the best one of online rounds, otherwise the last one.
        merged: publish the merged model where an adapter was trained.

    Raises:
        RunError: the run has no finished training.
        ConfigError: the folder or the repository has other files, there is no token, or an
            adapter's base model has no name.
        StorageError: the hub cannot be reached, or refuses the upload.
        DataError: a file was changed.
    """
    run = open_run(path)
    model = trained_model(run, round_index, merged)
    options = CardOptions(license, base_model, hub)
    _check_base(model, options)
    target = _target(output or f"published/{model.config.name}", run.folder)
    repository = open_repository(hub, private, LIST_FILE) if hub is not None else None
    files = _write(model, options, target)
    url = repository.upload(target, files) if repository is not None else None
    return Published(str(target), files, url)


def _check_base(model: TrainedModel, options: CardOptions) -> None:
    if model.kind == "adapter" and base_name(model, options) is None:
        raise ConfigError(
            f"the adapter of {model.folder.uri} is of the model {model.config.model.path}",
            "who loads an adapter loads its base model first, by a name on the hub",
            "name it with --base-model owner/name, or publish the merged model with --merged",
        )


def _target(output: str, run: Folder) -> Path:
    """Return the folder to write, which is new, empty, or as an earlier `publish` left it.

    Raises:
        ConfigError: it is no folder of this machine, is in the run, or has other files.
    """
    folder = folder_of(output)
    if not folder.is_local:
        raise ConfigError(
            f"output {output}",
            "a model is published into a folder of this machine",
            "give a local folder, and copy it",
        )
    if f"{folder.uri}/".startswith(f"{run.uri.rstrip('/')}/"):
        raise ConfigError(
            f"output {folder.uri} is in the run directory {run.uri}",
            "stages own all that is in a run",
            "give --output a folder outside the run",
        )
    target = folder.local_path()
    if others := sorted(_others(target)):
        raise ConfigError(
            f"output {target} has files that raydpo did not write or that were changed since: "
            f"{', '.join(others[:5])}",
            "nothing that somebody else wrote is overwritten, such as a card with your own words",
            "give --output another folder, or delete this one",
        )
    return target


def _others(target: Path) -> Iterator[str]:
    """Yield files of a folder that its own list does not name, or that were changed since."""
    if target.is_file():
        yield target.name
        return
    listed = target / LIST_FILE
    known: dict[str, str] = json.loads(listed.read_text())["files"] if listed.is_file() else {}
    for file in sorted(p for p in target.rglob("*") if p.is_file() and p != listed):
        name = file.relative_to(target).as_posix()
        if known.get(name) != _sha256(file):
            yield name


def _write(model: TrainedModel, options: CardOptions, target: Path) -> list[str]:
    """Write all files, the list last; files of an earlier call go first."""
    into = Folder(str(target))
    for name in into.files(recursive=True):
        into.delete(name)
    written = _copy_model(model, into)
    if model.kind == "adapter":
        written[ADAPTER_FILE] = _name_base(into, str(base_name(model, options)))
    texts = {CARD_FILE: model_card(model, options), "config.yaml": public_config(model.config)}
    figures = {f"plots/{name}.png": png for name, png in model.measured.figures.items()}
    for name, content in {**{k: v.encode() for k, v in texts.items()}, **figures}.items():
        into.write_bytes(name, content)
        written[name] = hashlib.sha256(content).hexdigest()
    into.write_json(LIST_FILE, _list(model, written))
    return sorted([*written, LIST_FILE])


def _list(model: TrainedModel, files: dict[str, str]) -> Json:
    """Return what the folder's list says: the files, and which model of which run they are."""
    return {
        "raydpo": __version__,
        "run": model.config.name,
        "round": model.round_index,
        "kind": model.kind,
        "fingerprint": model.manifest["fingerprint"],
        "files": files,
    }


def _copy_model(model: TrainedModel, into: Folder) -> dict[str, str]:
    """Copy the files that load the model; return their hashes, which are those of the manifest."""
    written: dict[str, str] = {}
    for name, expected in model.files.items():
        inside, _, short = name.partition("/")
        if short in _LEFT_OUT or not _belongs(model, inside, short):
            continue
        model.folder.copy(name, into, short)
        written[short] = into.sha256(short)
        if written[short] != expected:
            raise DataError(
                f"{model.folder.uri}/{name} arrived with the SHA-256 {written[short]}",
                f"its manifest says {expected}",
                "give the command of the run again: it makes damaged files again where it can",
            )
    return written


def _belongs(model: TrainedModel, inside: str, name: str) -> bool:
    """Whether a file of the run is one of the published kind of model."""
    if model.kind == "adapter":
        return inside == ADAPTER or name.startswith(_TOKENIZER_FILES)
    return inside == MODEL


def _name_base(into: Folder, base: str) -> str:
    """Write the base model's name into an adapter's configuration; return the file's hash."""
    values = into.read_json(ADAPTER_FILE)
    into.write_json(ADAPTER_FILE, {**values, "base_model_name_or_path": base, "revision": None})
    return into.sha256(ADAPTER_FILE)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
