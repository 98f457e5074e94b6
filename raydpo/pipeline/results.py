"""Read the results of a run, for notebooks and other programs.

From a run directory, in a folder or an object store, the module reads tables as Arrow, pandas or
Ray Data, metrics, and policies as transformers models. It writes nothing. It compares each file
with the hash in its manifest when it reads it.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from raydpo.config.file import config_of
from raydpo.config.job import Config, ModelConfig
from raydpo.core.artifacts import held_bytes
from raydpo.core.errors import RunError
from raydpo.core.run import (
    no_run,
    part_entry,
    read_manifest,
    read_part,
    read_quarantine,
    round_folder,
)
from raydpo.core.storage import Folder, folder_of
from raydpo.core.tables import SCHEMAS, Row
from raydpo.training.metrics_log import read_heldout, read_metrics

if TYPE_CHECKING:
    import pandas as pd
    import ray.data
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROUND: Final = re.compile(r"round-(\d+)")


@dataclass(frozen=True)
class Run:
    """A run directory, opened for reading.

    Attributes:
        folder: the directory.
    """

    folder: Folder

    @property
    def config(self) -> Config:
        """The job of the last command, as it was resolved."""
        return config_of(self.folder)

    @property
    def rounds(self) -> list[int]:
        """The numbers of the rounds that were begun."""
        names = {file.partition("/")[0] for file in self.folder.files(recursive=True)}
        return sorted(int(found[1]) for name in names if (found := _ROUND.fullmatch(name)))

    def tables(self, round_index: int = 0) -> list[str]:
        """Return names of a round's finished tables, such as `candidates` and `preferences`."""
        folder = round_folder(self.folder, round_index)
        names = [
            f.rpartition("/")[0]
            for f in folder.files(recursive=True)
            if f.endswith("/manifest.json")
        ]
        return sorted(
            n for n in set(names) if n and (read_manifest(folder.child(n)) or {}).get("table")
        )

    def arrow(self, table: str, round_index: int = 0) -> pa.Table:
        """Return a table, whole and in order.

        Raises:
            RunError: the table is not finished.
            DataError: a file of the table is damaged.
        """
        folder, manifest = self._finished(table, round_index)
        parts = [read_part(folder, manifest, index) for index in range(manifest["parts"])]
        return pa.concat_tables(parts) if parts else SCHEMAS[manifest["table"]].empty_table()

    def pandas(self, table: str, round_index: int = 0) -> pd.DataFrame:
        """Return a table as a data frame; raises as `arrow` does."""
        return self.arrow(table, round_index).to_pandas()

    def dataset(self, table: str, round_index: int = 0) -> ray.data.Dataset:
        """Return a table of any size as a Ray Data dataset with a block per part, in no order.

        If Ray is not connected, this connects as a job does: to RAY_ADDRESS, or on this machine.

        Raises:
            RunError: the table is not finished.
        """
        import ray.data

        from raydpo.core.cluster import start

        folder, manifest = self._finished(table, round_index)
        if not ray.is_initialized():
            start()
        entries = [
            {"part": index, "file": part_entry(manifest, index)}
            for index in range(manifest["parts"])
        ]
        parts = ray.data.from_items(entries, override_num_blocks=max(1, len(entries)))
        read = functools.partial(_part_of, folder, manifest["table"])
        return parts.map_batches(read, batch_size=1, batch_format="pandas")

    def refused(self, table: str, round_index: int = 0) -> list[Row]:
        """Return the rows that a stage refused, each with its reason."""
        return list(read_quarantine(*self._finished(table, round_index)))

    def counts(self, table: str, round_index: int = 0) -> dict[str, int]:
        """Return a stage's counts: rows in, out and refused, and its own counts."""
        return self._finished(table, round_index)[1]["counts"]

    def training_metrics(self, round_index: int = 0) -> list[dict[str, Any]]:
        """Return the metrics of each training step."""
        return read_metrics(self._finished("policy", round_index)[0])

    def heldout_metrics(self, round_index: int = 0) -> list[dict[str, Any]]:
        """Return the training's measurements on held-out data: `step`, and values by their names."""
        return read_heldout(self._finished("policy", round_index)[0])

    def evaluation(self, round_index: int = 0) -> dict[str, Any]:
        """Return the content of `metrics.json`: judge, KL, win rate, held-out values."""
        return json.loads(held_bytes(self._finished("evaluation", round_index)[0], "metrics.json"))

    def report(self, round_index: int = 0) -> str:
        """Return the path or URI of the report, an HTML page.

        It is that of the evaluation, or of a training that was only measured on held-out data.
        """
        return f"{self._finished(self._reported(round_index), round_index)[0].uri}/report.html"

    def figures(self, round_index: int = 0) -> dict[str, bytes]:
        """Return the figures of the report as PNG files, by name."""
        folder, manifest = self._finished(self._reported(round_index), round_index)
        names = sorted(f["name"] for f in manifest["files"] if f["name"].endswith(".png"))
        return {PurePosixPath(name).stem: held_bytes(folder, name) for name in names}

    def policy(self, round_index: int = 0) -> ModelConfig:
        """Return the policy that a round trained; its `path` is a Hugging Face folder."""
        folder, _ = self._finished("policy", round_index)
        place = {"path": folder.child("model").uri, "revision": None}
        return self.config.model.model_copy(update=place)

    def load_policy(self, round_index: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the policy and its tokenizer with transformers."""
        from raydpo.models.loading import load_causal_lm, load_tokenizer

        policy = self.policy(round_index)
        return load_causal_lm(policy), load_tokenizer(policy)

    def _reported(self, round_index: int) -> str:
        """Return the name of the stage that has the report."""
        report = round_folder(self.folder, round_index).child("report")
        evaluation = round_folder(self.folder, round_index).child("evaluation")
        only_measured = read_manifest(evaluation) is None and read_manifest(report) is not None
        return "report" if only_measured else "evaluation"

    def _finished(self, name: str, round_index: int) -> tuple[Folder, dict[str, Any]]:
        folder = round_folder(self.folder, round_index).child(name)
        manifest = read_manifest(folder)
        if manifest is None:
            there = ", ".join(self.tables(round_index)) or "none"
            raise RunError(
                f"{folder.uri} is not finished",
                "what is read of a run is a stage that has its manifest",
                f"finished tables of round {round_index} are: {there}; `raydpo show` lists all",
            )
        return folder, manifest


def open_run(path: str) -> Run:
    """Open a run directory by its path or URI.

    Raises:
        RunError: there is no run directory.
    """
    folder = folder_of(path)
    if not folder.exists("config.yaml"):
        raise no_run(folder)
    return Run(folder)


def _part_of(folder: Folder, table: str, entries: Any) -> pa.Table:
    [part], [file] = entries["part"], entries["file"]
    return read_part(folder, {"table": table, "files": [dict(file)]}, int(part))
