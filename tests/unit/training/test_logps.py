"""The forward pass against transformers' own logits."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raydpo.core.errors import ModelError
from raydpo.training import head as head_module
from raydpo.training.batch import build_micro_batch, split_by_sequence
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.sharing import check_forward

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "mistral_with_sliding_window": lambda: MistralForCausalLM(
        MistralConfig(**SMALL, sliding_window=4)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2)),
}


def groups_of(model, lengths=((5, (3, 9)), (11, (1, 4)), (2, (17, 6)))) -> list[Group]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, model.config.vocab_size, (count,), generator=generator).tolist()

    return [
        Group(str(i), ids(prompt), [ids(n) for n in completions], [(0, 1, 1.0)], None)
        for i, (prompt, completions) in enumerate(lengths)
    ]


def expected_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """One unpadded sequence through transformers alone, in its own logits."""
    ids = torch.tensor([prompt + completion])
    logps = model(ids).logits.log_softmax(-1)[0]
    return logps[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padded_batch_equals_transformers_on_single_sequences(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    groups = groups_of(model)
    batch = build_micro_batch(groups)
    got = split_by_sequence(token_logps(TokenLogps(model), batch).tolist(), batch)
    sequences = [(g.prompt_ids, c) for g in groups for c in g.completions]
    for (prompt, completion), values in zip(sequences, got, strict=True):
        expected = expected_logps(model, prompt, completion)
        torch.testing.assert_close(torch.tensor(values), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_real_model_equals_transformers_on_single_sequences(stories260k) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories260k).eval()
    groups = groups_of(model, ((40, (30, 60)), (3, (100, 1))))
    batch = build_micro_batch(groups)
    got = token_logps(TokenLogps(model), batch)
    expected = torch.cat(
        [expected_logps(model, g.prompt_ids, c) for g in groups for c in g.completions]
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_chunked_output_layer_gives_the_gradients_of_the_whole_one(monkeypatch) -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    batch = build_micro_batch(groups_of(model))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        (token_logps(TokenLogps(model), batch) ** 2).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    whole = gradients()
    monkeypatch.setattr(head_module, "CHUNK_POSITIONS", 7)
    monkeypatch.setattr(head_module, "KEPT_LOGIT_BYTES", 0)
    monkeypatch.setattr(TokenLogps, "output_weight", lambda _module: None)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_model_that_changes_its_logits_unknown_to_us_is_refused() -> None:
    class Shifted(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * torch.linspace(0, 1, out.logits.shape[-1])
            return out

    torch.manual_seed(0)
    model = Shifted(LlamaConfig(**SMALL, initializer_range=0.5))
    with pytest.raises(ModelError, match="Shifted: its logits differ"):
        check_forward(TokenLogps(model.eval()))


def test_plain_model_passes_the_forward_check() -> None:
    for make in MODELS.values():
        check_forward(TokenLogps(make().eval()))
