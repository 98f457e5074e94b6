"""TRL's contender: its DPOTrainer on the scenario's pairs.

It makes steps of one `trainer.train()`, or parts of the reference's scoring, as long as the gate
asks for them. Its data are tokenized, with the reference's log-probs, in the order of our loop.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, TrainerCallback

from .data import STEPS_A_PART, group_rows, pair_rows
from .gate import Gate
from .ours import LEARNING_RATE, random_model
from .spec import Contender, Scenario

# TRL is optional and only partly typed: it is imported without types.
_trl: Any = importlib.import_module("trl")
_heads: Any = importlib.import_module("trl.trainer.utils")
_kernels: Any = importlib.import_module("trl.kernels.chunked_logprob")


def run(scenario: Scenario, contender: Contender, gate: Gate) -> None:
    """Train until the gate ends it."""
    with _trainer(scenario, contender) as trainer:
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        trainer.add_callback(_GateCallback(trainer, gate, parameters))
        trainer.train()


def score(scenario: Scenario, contender: Contender, gate: Gate) -> None:
    """Score what the trainer would score before training, until the gate ends it.

    Each pair's completions are scored, so with K = 4 and six pairs each one three times.
    """
    pairs = scenario.data.pairs_per_step * STEPS_A_PART
    with _trainer(scenario, contender) as trainer:
        loader = DataLoader(
            trainer.train_dataset,
            batch_size=contender.batch_pairs,
            collate_fn=trainer.data_collator,
        )
        batches = iter(trainer.accelerator.prepare(loader))
        gate.ready(parameters=0)
        for _ in range(scenario.data.steps // STEPS_A_PART):
            wanted = itertools.islice(batches, pairs // (contender.batch_pairs or pairs))
            sums = [trainer.compute_ref_log_probs(trainer.model, batch) for batch in wanted]
            total = sum(float(logps.sum()) for both in sums for logps in both)
            gate.step_done(lambda total=total: total / (scenario.data.completions - 1))


@contextlib.contextmanager
def _trainer(scenario: Scenario, contender: Contender) -> Generator[Any]:
    _force_compaction(contender.compaction)
    model = random_model(scenario)
    if contender.attention is not None:
        model.set_attn_implementation(contender.attention)
    with tempfile.TemporaryDirectory() as folder:
        yield _Trainer(
            model=model,
            args=_arguments(scenario, contender, folder),
            train_dataset=Dataset.from_list(pair_rows(scenario, group_rows(scenario))),
            processing_class=_tokenizer(),
        )


def _arguments(scenario: Scenario, contender: Contender, folder: str) -> Any:
    pairs = scenario.data.pairs_per_step
    batch = min(contender.batch_pairs or pairs, pairs)
    assert pairs % batch == 0, "a step is whole batches"
    return _trl.DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=pairs // batch,
        gradient_checkpointing=contender.gradient_checkpointing,
        bf16=scenario.precision == "bfloat16",
        use_cpu=scenario.device == "cpu",
        max_length=None,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Trainer(_trl.DPOTrainer):
    """DPOTrainer that is given what it would compute before training."""

    def __init__(self, **arguments: Any) -> None:
        self.micro_losses: list[torch.Tensor] = []
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_arguments: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_arguments: Any) -> Dataset:
        return dataset

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self.micro_losses.append(loss)
        return loss

    def take_loss(self) -> Callable[[], float]:
        """The step's loss, as a function: to read it is to wait for the device."""
        losses, self.micro_losses = self.micro_losses, []
        return lambda: float(torch.stack(losses).sum())


class _GateCallback(TrainerCallback):
    """Stands between the steps of `trainer.train()`."""

    def __init__(self, trainer: _Trainer, gate: Gate, parameters: int) -> None:
        self._trainer = trainer
        self._gate = gate
        self._parameters = parameters

    def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
        self._gate.ready(parameters=self._parameters)

    def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
        self._gate.step_done(self._trainer.take_loss())


def _force_compaction(wanted: bool) -> None:
    """Let `add_fused_lm_head` score completion positions only, on any device, or as it comes.

    It asks `_use_triton(device)`, under this name in this module, for nothing else; the
    kernels ask under their own.
    """
    _heads._use_triton = (lambda _device: True) if wanted else _kernels._use_triton


def _tokenizer() -> PreTrainedTokenizerFast:
    """Never used: the data are token ids. The trainer asks for one to know the padding."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )
