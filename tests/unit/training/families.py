"""Tiny random models of every family, for the tests of layouts and attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LOCAL_AND_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}

#: Families that share prompts, with what makes each special.
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2_sliding": ("qwen2", {"use_sliding_window": True, **LOCAL_AND_GLOBAL}),
    "qwen3": ("qwen3", {}),
    "mistral_sliding": ("mistral", {"sliding_window": 4}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            **LOCAL_AND_GLOBAL,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": ("gemma3_text", {**LOCAL_AND_GLOBAL, "query_pre_attn_scalar": 8}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": 5}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {**EXPERTS, "sliding_window": None}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "moe_intermediate_size": 16}),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **LOCAL_AND_GLOBAL}),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "granite": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.3}),
    "starcoder2": ("starcoder2", {"sliding_window": 4}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
}

#: Families that do not, and a part of the reason.
UNSHARED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2}, ""),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2}, ""),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, ""),
    "mamba": ("mamba", {"state_size": 4}, ""),
    "llama4_chunked": (
        "llama4_text",
        {**EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": 4},
        "chunked_attention",
    ),
    "lfm2_convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
}


def make_model(kind: str, special: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A random model with weights large enough that every mistake shows."""
    config = AutoConfig.for_model(kind, **{**SMALL, **special})
    torch.manual_seed(0)
    # transformers' `sdpa` has neither soft caps nor sinks, its fused experts no float64
    attention = "eager" if kind in ("gemma2", "gpt_oss") else None
    model = AutoModelForCausalLM.from_config(
        config,
        dtype=torch.float64,
        attn_implementation=attention,
        experts_implementation="eager",
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Not biases about 1: what all tokens share cancels in gradients of queries and keys.
            scale = parameter.ndim < 2 and not name.endswith("bias")
            parameter.normal_(1.0 if scale else 0.0, 0.15)
    return model.to(dtype)
