"""Compare models of each family in the shared layout with transformers' eager attention.

A task returns the largest difference of a token's log-prob and of a parameter's gradient. Our
side is the production path. The other side is the model's own forward pass on one sequence at a
time, in float32, with none of our code.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from raydpo.config.job import ModelConfig
from raydpo.training.attention.interface import attention_of
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.logps import autocast, token_logps
from raydpo.training.sharing import own_logps, token_module

from .task import Context, Task, Values

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": 331,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LOCAL: Final = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 48}
#: Families, with what makes each special: head sizes 64 to 256, windows, caps, experts.
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Llama": ("llama", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {"head_dim": 128}),
    "Gemma 2": (
        "gemma2",
        {
            **_LOCAL,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "Gemma 3": ("gemma3_text", {**_LOCAL, "head_dim": 256, "query_pre_attn_scalar": 256}),
    "GPT-NeoX": ("gpt_neox", {"rotary_pct": 0.25, "hidden_size": 320}),
    "Mixtral": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
}
#: Root mean square error of log-probs in nats, and the relative error of a parameter's gradient.
_FLOAT32: Final = (1e-4, 1e-3)
#: In bfloat16 ours may be this many times as far from float32 as eager attention, and a little.
_TIMES: Final = 2.0
_AND: Final = (2e-3, 1e-2)


def compare(context: Context, family: str, precision: str) -> Values:
    """Log-probs and every gradient of a family in one precision."""
    device = torch.device(context.device)
    plain = make_model(family, context.seed)
    ours, rounded = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (plain, rounded):
        nn.Module.to(model, device)
    groups = make_groups(context)
    settings = ModelConfig.model_validate(
        {"path": "random weights", "precision": precision, "layout": "shared"}
    )
    module = token_module(ours, settings, device).eval().to(device)
    found = token_logps(module, build_micro_batch(groups, shared=True).to(device))
    expected = own_logps(plain, groups)
    draw = torch.Generator().manual_seed(context.seed)
    weights = torch.randn(len(expected), generator=draw).to(device)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    errors = _gradient_errors(plain, ours)
    name = max(errors, key=lambda parameter: errors[parameter])
    limits, facts = _FLOAT32, dict[str, Any]()
    if precision == "bfloat16":
        with autocast(precision, device):
            theirs = own_logps(rounded, groups)
        (theirs * weights).sum().backward()
        eager = _rms(theirs - expected), max(_gradient_errors(plain, rounded).values())
        limits = (_TIMES * eager[0] + _AND[0], _TIMES * eager[1] + _AND[1])
        facts = {"eager's nats": eager[0], "eager's gradient": eager[1]}
    nats = _rms(found - expected)
    return {
        "attention": attention_of(ours).removeprefix("raydpo_"),
        "nats": nats,
        "most nats": (found - expected).abs().max().item(),
        "gradient": errors[name],
        "at": name,
        "parameters": len(errors),
        **facts,
        "passed": nats < limits[0] and errors[name] < limits[1],
        "tolerance": list(limits),
    }


def make_model(family: str, seed: int) -> PreTrainedModel:
    """Random weights, large enough that a mistake shows; eager attention, float32."""
    kind, special = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**_SMALL, **special})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim < 2 and not name.endswith("bias")
            parameter.normal_(1.0 if scale else 0.0, 0.05)
    return model


def make_groups(context: Context) -> list[Group]:
    """K = 1 to 8 (in small from 3), odd lengths, and a prompt longer than a block of 128."""
    shapes = ((1, 1, 9), (131, 3, 33), (17, 8, 21))[context.small :]
    draw = torch.Generator().manual_seed(context.seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 331, (count,), generator=draw).tolist()

    return [
        Group(str(number), tokens(prompt), [tokens(longest - k) for k in range(count)], [], None)
        for number, (prompt, count, longest) in enumerate(shapes)
    ]


def _rms(values: Tensor) -> float:
    return values.detach().square().mean().sqrt().item()


def _gradient_errors(plain: PreTrainedModel, ours: PreTrainedModel) -> dict[str, float]:
    """Relative to a gradient's own norm, and to a thousandth of all where it is next to nothing."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    others = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            found = others[name].grad
            assert found is not None, f"{name} has no gradient in the shared layout"
            pairs[name] = (found, parameter.grad)
    floor = 1e-3 * sum(expected.norm() ** 2 for _, expected in pairs.values()) ** 0.5
    return {
        name: ((found - expected).norm() / torch.clamp_min(expected.norm(), floor)).item()
        for name, (found, expected) in pairs.items()
    }


MODEL_TASKS: list[Task] = [
    Task(
        f"model {family} {precision}",
        "right",
        40 if precision == "float32" else 15,
        functools.partial(compare, family=family, precision=precision),
    )
    for precision in ("bfloat16", "float32")
    for family in FAMILIES
]
