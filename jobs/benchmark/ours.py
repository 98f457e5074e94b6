"""Our contender: the train loop itself, on the scenario's groups.

It makes steps as long as the gate asks for them.
"""

from __future__ import annotations

import uuid

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raydpo.config.job import LoraSettings, ModelConfig, TrainingConfig
from raydpo.training.groups import GroupDataset, write_groups
from raydpo.training.loop import Hooks, Metrics, train
from raydpo.training.objectives import make_objective
from raydpo.training.sharding import World
from raydpo.training.sharing import token_module

from .data import group_rows, plan
from .gate import Gate
from .spec import Contender, Scenario

#: Both sides: AdamW at a constant rate, no decay, the gradient norm clipped to 1.
LEARNING_RATE = 1e-5


def random_model(scenario: Scenario) -> PreTrainedModel:
    """The scenario's model with its random weights, in float32, made on its device.

    The weights of one seed are the same for every contender on the same device.
    """
    shape = scenario.model
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=131072,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    if shape.logits_scaling is not None:
        config.logits_scaling = shape.logits_scaling
    torch.manual_seed(scenario.seed)
    with torch.device(scenario.device):
        return LlamaForCausalLM(config).float().eval()


def model_settings(scenario: Scenario, contender: Contender, path: str) -> ModelConfig:
    """What a configuration's `model` section would say."""
    values = {"precision": scenario.precision, "layout": contender.layout}
    if contender.attention is not None:
        values["attention"] = contender.attention
    return ModelConfig.model_validate({"path": path, **values})


def group_dataset(scenario: Scenario) -> GroupDataset:
    """The scenario's groups, in a file that is gone from its folder and stays mapped."""
    path = write_groups(group_rows(scenario), uuid.uuid4().hex)
    data = GroupDataset(path)
    path.unlink()
    return data


def run(scenario: Scenario, contender: Contender, gate: Gate) -> None:
    """Train until the gate ends it."""
    settings = TrainingConfig(
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_fraction=0.0,
        global_batch_groups=scenario.data.groups_per_step,
        max_tokens_per_micro_batch=contender.max_tokens or 1 << 20,
        checkpoint_every_steps=scenario.data.steps,
        compile=contender.compile,
        activation_checkpointing=contender.gradient_checkpointing,
        lora=None if contender.lora_rank is None else LoraSettings(rank=contender.lora_rank),
    )
    model = random_model(scenario)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    device = torch.device(scenario.device)
    nn.Module.to(model, device)
    module = token_module(model, model_settings(scenario, contender, "random weights"), device)
    data = group_dataset(scenario)
    gate.ready(parameters=parameters)
    train(
        module,
        data,
        make_objective(settings.objective),
        settings,
        plan(scenario),
        World(0, 1, torch.device(scenario.device)),
        _hooks(gate),
    )


def _hooks(gate: Gate) -> Hooks:
    def log(_step: int, metrics: Metrics) -> None:
        gate.step_done(lambda: metrics["loss"])

    return Hooks(
        log=log,
        checkpoint=lambda _step, _metrics, _save: lambda: None,
        first_step=lambda _largest: None,
        failed=lambda _failure: None,
    )
