"""Third script of the usual loop: TRL's DPOTrainer on a round's pairs, from the newest policy.

The reference's log-probs are computed before the training. The pairs are token ids, as the sampler
emitted them: TRL takes them as they are, which saves it the tokenizer and an end token that it
would otherwise append to completions that were cut.

    python loop_train.py --model FOLDER --reference FOLDER --input FILE --output FOLDER ...
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

# TRL is optional and only partly typed: it is imported without types.
_trl: Any = importlib.import_module("trl")


class TokenizedPairsTrainer(_trl.DPOTrainer):
    """DPOTrainer whose data have been tokenized before."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *_arguments: Any, **_named: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        scored: Any = super()._precompute_ref_logps(*arguments, **named)
        self.reference_seconds = time.perf_counter() - started
        return scored


def main() -> None:
    """Train and save."""
    options = parse()
    rows = [json.loads(line) for line in options.input.read_text(encoding="utf-8").splitlines()]
    steps, batches = shape(rows, options.groups_per_step, options.epochs, options.batch_pairs)
    load: Any = AutoModelForCausalLM.from_pretrained
    trainer: Any = TokenizedPairsTrainer(
        model=load(options.model, dtype="float32"),
        ref_model=load(options.reference, dtype="float32"),
        args=_trl.DPOConfig(
            output_dir=str(options.output) + "-trainer",
            per_device_train_batch_size=options.batch_pairs,
            precompute_ref_batch_size=options.reference_batch_pairs,
            gradient_accumulation_steps=batches,
            gradient_checkpointing=False,
            bf16=options.bfloat16,
            use_cpu=True,
            max_length=None,
            beta=options.beta,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            max_steps=steps,
            precompute_ref_log_probs=True,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )
    before = trainer.reference_seconds
    started = time.perf_counter()
    trainer.train()
    spent = time.perf_counter() - started
    work = {
        "reference": trainer.reference_seconds,
        "training": spent - (trainer.reference_seconds - before),
    }
    trainer.save_model(str(options.output))
    done = {"pairs": len(rows), "steps": trainer.state.global_step, "batches": batches}
    (options.output / "training.json").write_text(json.dumps(done), encoding="utf-8")
    options.output.with_suffix(".seconds.json").write_text(json.dumps(work), encoding="utf-8")


def shape(
    rows: list[dict[str, Any]], groups_per_step: int, epochs: int, batch_pairs: int
) -> tuple[int, int]:
    """Steps of the training, and batches of one step.

    Steps are those of a trainer that takes `groups_per_step` prompts a step with all their pairs.
    A step takes the mean number of those pairs, rounded up to whole batches.
    """
    steps = math.ceil(len({row["prompt"] for row in rows}) / groups_per_step)
    return epochs * steps, math.ceil(len(rows) / steps / batch_pairs)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--groups-per-step", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-pairs", type=int, required=True)
    parser.add_argument("--reference-batch-pairs", type=int, required=True)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
