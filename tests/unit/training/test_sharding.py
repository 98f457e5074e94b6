"""What one process can test of sharding; tests/integration has the rest."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from raydpo.config.job import ModelConfig, TrainingConfig
from raydpo.core.errors import ConfigError
from raydpo.models.loading import load_causal_lm, meta_causal_lm
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, token_logps
from raydpo.training.sharding import World, compile_blocks, parallelize

CPU = torch.device("cpu")


def groups(lengths: list[tuple[int, int, int]]) -> list[Group]:
    """Groups of K completions: (prompt tokens, completion tokens, K)."""
    return [
        Group(str(number), [5] * prompt, [[6 + k] * tokens for k in range(completions)], [], None)
        for number, (prompt, tokens, completions) in enumerate(lengths)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["segments", None])
def test_compiled_blocks_give_the_same_log_probs_and_are_compiled_once(
    tiny_model, attention: str | None
) -> None:
    config = ModelConfig(path=str(tiny_model))
    plain, compiled = (TokenLogps(load_causal_lm(config), attention=attention) for _ in range(2))
    torch.compiler.reset()
    counters.clear()
    compile_blocks(compiled, backend="aot_eager")
    # No round length is a width of the model as well: that would be one more graph.
    shapes = [[(13, 15, 2)], [(24, 27, 2)], [(29, 22, 3)], [(13, 15, 2), (8, 8, 2)], [(2, 23, 4)]]
    graphs = []
    for lengths in [*shapes, *reversed(shapes)]:
        batch = build_micro_batch(groups(lengths), shared=plain.shared)
        got = token_logps(compiled, batch)
        got.sum().backward()
        torch.testing.assert_close(got, token_logps(plain, batch), rtol=1e-5, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] <= 4  # of both blocks together, whatever the lengths
    assert graphs[len(shapes) - 1] == graphs[-1]  # and no more when they come again
    for name, parameter in plain.named_parameters():
        assert compiled.get_parameter(name).grad is not None, name
        assert parameter.shape == compiled.get_parameter(name).shape


def test_offload_to_cpu_memory_is_refused_where_the_workers_are_there_already(tiny_model) -> None:
    module = TokenLogps(load_causal_lm(ModelConfig(path=str(tiny_model))))
    settings = TrainingConfig(strategy="fsdp", cpu_offload=True)
    with pytest.raises(ConfigError, match="device 'cpu'"):
        parallelize(module, settings, World(0, 1, CPU))


def test_a_model_on_meta_has_the_shapes_ties_and_settings_of_the_loaded_one(tiny_model) -> None:
    config = ModelConfig(path=str(tiny_model))
    loaded, empty = load_causal_lm(config), meta_causal_lm(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    names = {name: p.shape for name, p in loaded.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == names
    assert empty.get_input_embeddings().weight is empty.get_output_embeddings().weight
    assert empty.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert empty.config._attn_implementation == loaded.config._attn_implementation
