"""One small training by the production loop, and what the comparisons need to know of it.

A context, groups and settings of the `training` section give losses, gradient norms, the first
log-ratio and the trained parameters. The model is a folder on disk, which production code loads.
The loop, its checkpoints and the optimizer are production's too.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raydpo.config.job import ModelConfig, TrainingConfig
from raydpo.models.loading import load_causal_lm
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, write_groups
from raydpo.training.logps import TokenLogps, completion_logps
from raydpo.training.loop import BeginSave, EndSave, Hooks, Metrics, train
from raydpo.training.objectives import make_objective
from raydpo.training.probe import probe
from raydpo.training.sharding import current_world, full_parameters, parallelize, wrap
from raydpo.training.sharing import token_module

from .task import Context

#: Groups of a step, and steps of a run where nothing else is said.
GROUPS: Final = 4
STEPS: Final = 4
LEARNING_RATE: Final = 1e-4
_VOCABULARY: Final = 331


@dataclass(frozen=True)
class Run:
    """What a training left.

    Attributes:
        losses: of each step.
        norms: of each step's gradient, before it is clipped.
        first_logratio: largest of a token before the first update, in nats.
        parameters: on the CPU, float32; empty on ranks other than 0.
        probed: what the trained module says of a few completions.
        peak_bytes: of the GPU's memory.
    """

    losses: list[float]
    norms: list[float]
    first_logratio: float
    parameters: dict[str, Tensor]
    probed: list[dict[str, Any]]
    peak_bytes: int

    def distance(self, other: Run) -> float:
        """The largest difference of a parameter's element."""
        pairs = ((value, other.parameters[name]) for name, value in self.parameters.items())
        return max((a - b).abs().max().item() for a, b in pairs)


def model_settings(context: Context, precision: str, **more: Any) -> ModelConfig:
    """The `model` section for the folder of this context's model, which is made where it is not."""
    folder = context.folder / "model"
    if not folder.exists():
        _make_model(context, folder)
    return ModelConfig.model_validate({"path": str(folder), "precision": precision, **more})


def make_data(context: Context, model: ModelConfig) -> GroupDataset:
    """Groups with the reference's log-probs, by the reference stage's forward pass."""
    device = torch.device(context.device)
    plain = _dataset(context, None)
    module = load(model, device)
    nn.Module.to(module, device)
    with torch.no_grad():
        scored = [
            completion_logps(module, [plain[number]], module.shared, device)[0]
            for number in range(len(plain))
        ]
    return _dataset(context, scored)


def load(model: ModelConfig, device: torch.device) -> TokenLogps:
    """As a train worker does: on the CPU, until the loop moves it to the device."""
    return token_module(load_causal_lm(model), model, device)


def train_run(
    context: Context,
    data: GroupDataset,
    model: ModelConfig,
    steps: int = STEPS,
    save_to: Path | None = None,
    resume_from: Path | None = None,
    wrapped_alone: bool = False,
    **settings: Any,
) -> Run:
    """Train a model on the context's device.

    Args:
        context: device, size and seed.
        data: of `make_data`.
        model: of `model_settings`.
        steps: of the whole run.
        save_to: where the checkpoint of step n becomes the folder n.
        resume_from: such a folder.
        wrapped_alone: DDP or FSDP2 around the module, which one rank does without in production.
        settings: further ones of the `training` section.
    """
    config = training_settings(**settings)
    every: list[Metrics] = []
    first: list[float] = []

    def checkpoint(step: int, _metrics: Metrics, save: BeginSave) -> EndSave:
        return save(save_to / str(step)) if save_to is not None else lambda: None

    hooks = Hooks(
        log=lambda _step, metrics: every.append(metrics),
        checkpoint=checkpoint,
        first_step=first.append,
        failed=lambda _failure: None,  # the loop raises after it
    )
    world = current_world(own_device(context))
    plan = Plan(len(data), GROUPS, epochs=100, max_steps=steps, seed=context.seed)
    objective = make_objective(config.objective)
    module = load(model, world.device)
    around = wrap if wrapped_alone else parallelize
    _forget_peak(context)
    wrapped = train(module, data, objective, config, plan, world, hooks, resume_from, around)
    return Run(
        losses=[metrics["loss"] for metrics in every],
        norms=[metrics["grad_norm"] for metrics in every],
        first_logratio=max(first, default=0.0),
        probed=probe(wrapped, module.shared, False, data, plan, world),
        parameters=full_parameters(wrapped),
        peak_bytes=torch.cuda.max_memory_allocated() if context.device == "cuda" else 0,
    )


def training_settings(**settings: Any) -> TrainingConfig:
    """The `training` section of a small run."""
    return TrainingConfig.model_validate(
        {
            "learning_rate": LEARNING_RATE,
            "global_batch_groups": GROUPS,
            "max_tokens_per_micro_batch": 400,  # so that gradients are accumulated
            "checkpoint_every_steps": 2,
            "schedule": "constant",
            **settings,
        }
    )


@contextmanager
def process_group(context: Context, rank: int = 0, size: int = 1) -> Generator[None]:
    """A process group as Ray Train makes it: NCCL on CUDA with gloo beside it, gloo on the CPU.

    Args:
        context: its folder is the same on every rank.
        rank: of this process.
        size: how many there are.
    """
    backend = "cpu:gloo,cuda:nccl" if context.device == "cuda" else "gloo"
    name = f"store-{uuid.uuid4().hex}" if size == 1 else "store"
    file_store: Any = dist.FileStore  # pyright: ignore[reportPrivateImportUsage] (documented there)
    store = file_store(str(context.folder / name), size)
    if context.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(context: Context) -> torch.device:
    """Of this rank."""
    if context.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _forget_peak(context: Context) -> None:
    if context.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _make_model(context: Context, folder: Path) -> None:
    """A Llama with grouped queries and tied embeddings, and a tokenizer of bytes."""
    torch.manual_seed(context.seed)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128 if context.small else 256,
        intermediate_size=256 if context.small else 512,
        num_hidden_layers=2 if context.small else 4,
        num_attention_heads=2 if context.small else 4,
        num_key_value_heads=1 if context.small else 2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _dataset(context: Context, reference: list[list[list[float]]] | None) -> GroupDataset:
    """Groups of two to five completions, all pairs; prompts of 7 to 171 tokens; in small less."""
    most, longest = (2, 3) if context.small else (4, 5)
    draw = torch.Generator().manual_seed(context.seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, _VOCABULARY, (count,), generator=draw).tolist()

    rows: list[dict[str, Any]] = []
    for number in range(2 * GROUPS):
        count = 2 + number % most
        rows.append(
            {
                "group_id": f"group-{number}",
                "prompt_ids": tokens(7 + 41 * (number % longest)),
                "completions": [tokens(5 + 13 * ((number + k) % 4)) for k in range(count)],
                "pairs": [
                    {"chosen": i, "rejected": j, "weight": 1.0}
                    for i in range(count)
                    for j in range(i + 1, count)
                ],
                "reference_token_logps": None if reference is None else reference[number],
            }
        )
    path = write_groups(rows, uuid.uuid4().hex)
    data = GroupDataset(path)
    path.unlink()
    return data
