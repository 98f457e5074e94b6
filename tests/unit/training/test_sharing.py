"""Shared, padded and masked layouts against transformers alone in float64, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import SHARED, SMALL, UNSHARED, make_model
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.training.attention.backends import choose_backend
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.sharing import check_sharing, token_module

#: Prompt and completion lengths: K = 1, 2, 4; prompts and completions of one token.
LENGTHS = ((5, (3, 9)), (1, (4,)), (11, (1, 17, 6, 2)), (30, (12, 1)))


def groups_of() -> list[Group]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 97, (count,), generator=generator).tolist()

    return [
        Group(str(i), ids(prompt), [ids(n) for n in completions], [], None)
        for i, (prompt, completions) in enumerate(LENGTHS)
    ]


def loss_of(logps: Tensor) -> Tensor:
    """Any function in which every token counts differently."""
    weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
    return (weights * logps).sum() + 0.01 * (logps**2).sum()


def loss_and_gradients(model: PreTrainedModel, logps: Tensor) -> dict[str, Tensor]:
    loss = loss_of(logps)
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **{n: g.double() for n, g in gradients.items()}}


def by_transformers_alone(model: PreTrainedModel) -> dict[str, Tensor]:
    logps: list[Tensor] = []
    for group in groups_of():
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion])
            rows = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            start = len(group.prompt_ids)
            logps.append(rows[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0])
    return loss_and_gradients(model, torch.cat(logps))


def by_us(model: PreTrainedModel, attention: str | None) -> dict[str, Tensor]:
    batch = build_micro_batch(groups_of(), shared=attention is not None)
    return loss_and_gradients(model, token_logps(TokenLogps(model, attention=attention), batch))


def relative_error(got: Tensor, expected: Tensor, total: Tensor) -> float:
    """Relative to the expected gradient, or to all of them where it is zero but for rounding."""
    norm = expected.norm()
    return ((got - expected).norm() / (norm if norm > 1e-9 * total else total)).item()


@pytest.mark.thorough
@pytest.mark.parametrize("family", SHARED)
def test_loss_and_every_gradient_are_those_of_transformers_in_float64(family: str) -> None:
    expected = by_transformers_alone(make_model(*SHARED[family], torch.float64))
    model = make_model(*SHARED[family], torch.float32)
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    errors = {}
    for attention in (None, "segments", "mask"):
        got = by_us(model, attention)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            errors[name, attention] = relative_error(got[name], value, total)
    assert {place: error for place, error in errors.items() if not error < 1e-5} == {}


@pytest.mark.parametrize("family", SHARED)
def test_family_passes_the_check_at_the_start(family: str) -> None:
    check_sharing(make_model(*SHARED[family], torch.float32))


@pytest.mark.parametrize("family", UNSHARED)
def test_family_that_cannot_share_is_refused_by_name_or_runs_padded(family: str, caplog) -> None:
    kind, special, reason = UNSHARED[family]
    model = make_model(kind, special, torch.float32)
    before = model.config._attn_implementation
    with pytest.raises(
        ModelError, match=f"{type(model).__name__} cannot share prompts: .*{reason}"
    ):
        token_module(model, ModelConfig(path="m", layout="shared"), torch.device("cpu"))
    module = token_module(model, ModelConfig(path="m"), torch.device("cpu"))
    assert not module.shared
    assert model.config._attn_implementation == before
    assert "prompts are not shared" in caplog.text


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        (ModelConfig(path="m"), True),
        (ModelConfig(path="m", attention="mask"), True),
        (ModelConfig(path="m", layout="padded"), False),
        (ModelConfig(path="m", attention="sdpa"), False),
    ],
)
def test_layout_is_what_the_configuration_says(settings: ModelConfig, shared: bool) -> None:
    model = make_model(*SHARED["llama"], torch.float32)
    assert token_module(model, settings, torch.device("cpu")).shared == shared


def test_soft_capped_scores_are_not_left_to_sdpa() -> None:
    model = make_model(*SHARED["gemma2"], torch.float32)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="drops that"):
        token_module(model, ModelConfig(path="m", attention="sdpa"), torch.device("cpu"))
    token_module(model, ModelConfig(path="m", layout="padded"), torch.device("cpu"))
    assert model.config._attn_implementation == "eager"


def test_a_cuda_backend_is_refused_on_a_cpu() -> None:
    model = make_model(*SHARED["llama"], torch.float32)
    with pytest.raises(ModelError, match="runs on cuda only"):
        token_module(model, ModelConfig(path="m", attention="varlen"), torch.device("cpu"))


def test_window_that_is_not_handed_to_the_attention_is_seen() -> None:
    model = make_model(*SHARED["llama"], torch.float32)
    model.config.sliding_window = 4
    with pytest.raises(ModelError, match=r"windows \[None, None\], its config says \[4, 4\]"):
        check_sharing(model)


BY_THE_BATCH = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    },
}


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("kind", BY_THE_BATCH)
def test_no_sequence_sets_the_rotary_positions_of_another(kind: str, layout: str) -> None:
    """Above their limit, transformers turns a whole batch by its longest sequence."""
    rope = {"rope_theta": 1e4, **BY_THE_BATCH[kind]}
    keys = {"rope_parameters": rope, "max_position_embeddings": 16 if kind == "dynamic" else 64}
    model = make_model("llama", keys, torch.float32)
    module = token_module(model, ModelConfig(path="m", layout=layout), torch.device("cpu"))
    short = Group("a", [5, 6, 7], [[8, 9], [10, 11, 12]], [], None)
    full = Group("b", list(range(3, 14)), [[20, 21, 22, 23, 24]], [], None)
    longer = Group("b", list(range(3, 14)), [[20, 21, 22, 23, 24, 25]], [], None)

    def logps(*groups: Group) -> Tensor:
        return token_logps(module, build_micro_batch(list(groups), shared=module.shared))

    alone, beside = logps(short), logps(short, full)
    torch.testing.assert_close(beside[: len(alone)], alone, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match=f"of 17 tokens(.|\n)*rope type `{kind}`"):
        logps(short, longer)


@pytest.mark.parametrize(
    ("family", "special", "precision", "expected"),
    [
        ("llama", {}, "bfloat16", "varlen"),
        ("llama", {}, "float32", "flex"),
        ("gemma2", {}, "bfloat16", "flex"),  # soft-capped scores
        ("gpt_oss", {}, "bfloat16", "flex"),  # sinks
        ("llama", {"head_dim": 20}, "bfloat16", "flex"),
        ("llama", {"head_dim": 264}, "bfloat16", "flex"),
        ("gpt_neox", {"hidden_size": 80}, "bfloat16", "flex"),  # four heads of 20
    ],
)
def test_auto_on_cuda_is_a_backend_that_can_run_the_model(
    family: str, special: dict[str, Any], precision: str, expected: str
) -> None:
    kind, usual = SHARED[family]
    values = {**SMALL, **usual, **special}
    if kind == "gpt_neox":
        values.pop("head_dim")
    config = AutoConfig.for_model(kind, **values)
    settings = ModelConfig.model_validate({"path": "m", "precision": precision})
    assert choose_backend(settings, torch.device("cuda"), config) == expected
