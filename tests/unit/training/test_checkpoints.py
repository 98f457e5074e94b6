"""Checkpoints load only if every byte is as written, and never run code."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import AdamW

from raydpo.core.errors import DataError
from raydpo.training.checkpoint_files import MANIFEST, SafeReader, file_entries, write_manifest
from raydpo.training.checkpoints import load_checkpoint, newest_whole, save_checkpoint


def training() -> tuple[nn.Module, AdamW]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    return module, AdamW(module.parameters(), lr=0.1)


def make_step(module: nn.Module, optimizer: AdamW) -> None:
    module(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    module, optimizer = training()
    for step in (1, 2):
        make_step(module, optimizer)
        save_checkpoint(folder / str(step), module, optimizer, step)()
    return folder


@pytest.fixture
def copies(two: Path, tmp_path: Path) -> list[Path]:
    """The same, newest first, to be damaged."""
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    return [tmp_path / "2", tmp_path / "1"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


NAMES = ["__0_0.distcp", ".metadata", MANIFEST]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["empty", "one", "half", "short", "flip", "gone"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    copies, caplog, name: str, damage: str
) -> None:
    path = copies[0] / name
    size = path.stat().st_size
    match damage:
        case "flip":
            flip(path)
        case "gone":
            path.unlink()
        case _:
            cut(path, {"empty": 0, "one": 1, "half": size // 2, "short": size - 1}[damage])
    with caplog.at_level(logging.WARNING, "raydpo"):
        assert newest_whole(copies) == (copies[1], 1)
    assert str(path) in caplog.text


def test_the_newest_is_taken_where_all_are_whole_and_none_where_none_is(copies) -> None:
    assert newest_whole(copies) == (copies[0], 2)
    for folder in copies:
        flip(folder / ".metadata")
    assert newest_whole(copies) is None
    assert newest_whole([]) is None


@pytest.mark.parametrize("in_background", [False, True])
def test_what_is_saved_is_the_state_at_that_step(tmp_path, in_background: bool) -> None:
    module, optimizer = training()
    make_step(module, optimizer)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    end = save_checkpoint(tmp_path / "1", module, optimizer, 1, in_background)
    make_step(module, optimizer)  # while it is written
    end()
    after = {name: value.clone() for name, value in module.state_dict().items()}
    other, other_optimizer = training()
    assert load_checkpoint(tmp_path / "1", other, other_optimizer) == 1
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
    make_step(other, other_optimizer)
    for name, value in other.state_dict().items():
        assert torch.equal(value, after[name]), name


class Attack:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_metadata_that_would_run_code_is_refused_even_with_a_fitting_manifest(
    copies, tmp_path
) -> None:
    newest = copies[0]
    (newest / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    write_manifest(newest, 2, file_entries(newest / name for name in NAMES[:2]))
    assert newest_whole(copies) == (newest, 2)  # hashes say nothing about who wrote it
    with pytest.raises(DataError, match="mkdir"):
        load_checkpoint(newest, *training())
    assert not (tmp_path / "owned").exists()


def test_values_that_would_run_code_are_refused(copies, tmp_path) -> None:
    """Optimizer settings are no tensors: torch pickles them into the shards."""
    newest = copies[0]
    data = SafeReader(newest).read_metadata().storage_data
    place = next(v for k, v in data.items() if k.fqn.endswith("betas"))
    attack = tmp_path / "attack"
    torch.save(Attack(tmp_path / "owned"), attack)
    shard = newest / place.relative_path
    content = shard.read_bytes()
    place.offset, place.length = len(content), attack.stat().st_size
    shard.write_bytes(content + attack.read_bytes())
    metadata = SafeReader(newest).read_metadata()
    metadata.storage_data = data
    (newest / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="weights_only"):
        load_checkpoint(newest, *training())
    assert not (tmp_path / "owned").exists()
