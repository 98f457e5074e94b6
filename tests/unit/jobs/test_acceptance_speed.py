"""The acceptance run reports speeds: targets, ratios, and useful operations of an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.jobs.job_modules import modules_of


@pytest.fixture(scope="module")
def speed_page() -> Iterator[Any]:
    with modules_of("acceptance", ("speed_page",)) as found:
        yield found.speed_page


def result(contender: str, seconds: float, loss: float, scenario: str = "1B, K = 2") -> Any:
    values = {"scenario": scenario, "contender": contender, "says": "who", "losses": [loss]}
    return {"status": "passed", "values": {**values, "step_seconds": seconds, "mfu": 0.39}}


def verdicts(speed_page: Any, results: dict[str, Any], dry_run: bool = False) -> list[str]:
    lines = speed_page.aims_table(speed_page.speed_rows(results), dry_run)[2:]
    return [line.rsplit("|", 2)[1].strip() for line in lines]


def test_aims_are_met_missed_or_not_measured(speed_page: Any) -> None:
    results = {
        "a": result("raydpo", 1.0, 0.7),
        "b": result("trl_stock", 2.6, 0.7),
        "c": result("trl_best", 1.4, 0.7),
        "d": {"status": "passed", "values": {"error": 1e-6}},
        "e": {"status": "left out", "reason": "no time"},
    }
    assert verdicts(speed_page, results) == ["met", "missed", "missed"] + ["not measured"] * 5
    text = "\n".join(speed_page.speed_section(results, dry_run=False))
    assert "| 1B, K = 2: 2.5 times TRL as it comes | 2.60 | met |" in text
    assert "| 1B, K = 2 | `trl_stock` | 2.6 |" in text


def test_a_dry_run_reaches_no_aim(speed_page: Any) -> None:
    results = {"a": result("raydpo", 1.0, 0.7), "b": result("trl_stock", 9.0, 0.7)}
    assert set(verdicts(speed_page, results, dry_run=True)) == {"not measured"}


def test_contenders_with_other_losses_are_not_compared(speed_page: Any) -> None:
    results = {"a": result("raydpo", 1.0, 0.7), "b": result("trl_stock", 9.0, 0.8)}
    assert verdicts(speed_page, results)[0] == "not measured"
    assert "| losses differ: 0.7, 0.8 |" in "\n".join(speed_page.speed_section(results, False))


def test_a_group_that_does_not_fit_misses_its_aim(speed_page: Any) -> None:
    found = result("raydpo_lora", 1.0, 0.7, "8B LoRA, groups of 16,384 tokens")
    for fits, verdict in ((1.0, "met"), (0.0, "missed")):
        found["values"]["fits"] = fits
        assert verdicts(speed_page, {"a": found})[-1] == verdict


def test_useful_operations_of_an_adapter_are_those_that_torch_counts() -> None:
    peft = pytest.importorskip("peft")
    from torch.utils.flop_counter import FlopCounterMode

    with modules_of("benchmark", ("spec", "flops")) as jobs:
        shape = jobs.spec.ModelShape("s", 2, 64, 2, 1, 96, 128)
        row = {"prompt_ids": [0], "completions": [[0] * 9]}
        expected = jobs.flops.train_flops(shape, [row], lora_rank=4)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # its matrix products are counted on every device
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    adapted.enable_input_require_grads()  # a first block is not special
    with FlopCounterMode(display=False) as counter:
        adapted(input_ids=torch.arange(9)[None], use_cache=False).logits.sum().backward()
    # Torch counts the whole square of attention scores, forward and twice backward.
    masked = 3 * 4 * 2 * 64 * (9 * 9 - 9 * 10 // 2)
    assert expected + masked == pytest.approx(counter.get_total_flops(), rel=5e-3)


def test_the_page_says_how_busy_the_machine_was(tmp_path: Path) -> None:
    with (
        modules_of("acceptance", ("page", "record")) as found,
        modules_of("benchmark", ("machine",)) as shared,
    ):
        record = found.record.Record(tmp_path / "results.json", {"small": True})
        facts = {"card": "CPU", "python": "3.11", "cuda": None, "versions": {}}
        record.add("early", {"status": "passed", "values": {}})
        assert "the machine" not in found.page.page(record, facts)
        noise = shared.machine.Noise(
            3.0, 4, load=2.5, load_before=2.0, others_share=0.25, steal_share=0.01
        )
        record.add("late", {"status": "passed", "values": {}, "noise": noise.as_json()})
        text = found.page.page(record, facts)
    assert "- the machine meanwhile (4 CPUs): load 2.5 to 2.5, other processes took 25%" in text
