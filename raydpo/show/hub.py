"""Upload a published folder to the hub of models.

The token is that of huggingface_hub: HF_TOKEN, or the one that `hf auth login` saved. Everything
that can fail without an upload is tried first. No message holds the token.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of httpx or httpx2, by version)
    RepositoryNotFoundError,
)

from raydpo.core.errors import ConfigError, StorageError, said_by

#: Files that a repository has before anybody wrote into it.
_OF_THE_HUB: Final = frozenset([".gitattributes"])


@dataclass(frozen=True)
class Repository:
    """A place on the hub that a folder may be uploaded to.

    Attributes:
        name: `owner/name`.
        private: whether a new repository is private.
        api: speaks to the hub.
        former: files that an earlier upload left there.
    """

    name: str
    private: bool
    api: HfApi
    former: tuple[str, ...] = ()

    def upload(self, folder: Path, files: list[str]) -> str:
        """Upload the files of a folder in one commit; return the model's address.

        Files that an earlier upload left and this one does not have are deleted.

        Raises:
            StorageError: the hub cannot be reached, or refuses the files.
        """
        gone = [name for name in self.former if name not in files and name not in _OF_THE_HUB]
        with _hub_errors(f"the upload of {folder} to {self.name}"):
            self.api.create_repo(self.name, private=self.private, exist_ok=True)
            self.api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                allow_patterns=files,
                delete_patterns=gone or None,
                commit_message="Published by raydpo",
            )
        return f"{self.api.endpoint}/{self.name}"


def open_repository(
    name: str, private: bool, list_file: str, api: HfApi | None = None
) -> Repository:
    """Look at a place on the hub: there is a token, it is valid, and nothing else would be lost.

    Args:
        name: `owner/name`.
        private: whether a new repository is private.
        list_file: the file by which a folder that raydpo published is known.
        api: speaks to the hub; without it the one of the environment.

    Raises:
        ConfigError: there is no token, the name is none, or the repository has other files.
        StorageError: the hub cannot be reached, or refuses the token.
    """
    api = api or HfApi()
    if not get_token():
        raise ConfigError(
            f"--hub {name}, and there is no token",
            "an upload needs a token that may write",
            "set HF_TOKEN, or log in with `hf auth login`; without --hub the folder alone is written",
        )
    with _hub_errors(f"--hub {name}"):
        api.whoami()
        try:
            there = tuple(api.list_repo_files(name))
        except RepositoryNotFoundError:
            there = ()
    others = sorted(set(there) - _OF_THE_HUB)
    if others and list_file not in there:
        raise ConfigError(
            f"{name} has files that raydpo did not publish: {', '.join(others[:5])}",
            "nothing that somebody else wrote is overwritten",
            "give --hub another name",
        )
    return Repository(name, private, api, there)


@contextmanager
def _hub_errors(what: str) -> Generator[None]:
    """Raise the errors of the hub, of the network and of a missing connection as our own."""
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(
            f"{what}: {said_by(error)}",
            "a name on the hub is `owner/name`",
            "give --hub such a name",
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # ValueError: of a card that it refuses
        raise StorageError(
            f"{what}: {said_by(error)}",
            "the hub answers, knows the token, and accepts the files",
            "look at the network, HF_ENDPOINT, HF_HUB_OFFLINE and the token's rights, and give the "
            "command again; the folder on this machine stays",
        ) from error
