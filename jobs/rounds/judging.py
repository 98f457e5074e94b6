"""The same judge on the same held-out prompts, for the policies of both sides.

For each policy it gives the judge's mean score of every prompt. Completions come from transformers'
`generate`, which neither side samples with.

    python -m rounds.judging SETTING_JSON ROOT FILE POLICY POLICY ...
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from .setting import Setting, from_json


def main() -> None:
    """Judge all policies and write `{policy: [score of each prompt]}`."""
    setting, root = from_json(Setting, sys.argv[1]), Path(sys.argv[2])
    judge = judge_of(setting, root)
    scores = {path: judged(setting, root, path, judge) for path in sys.argv[4:]}
    Path(sys.argv[3]).write_text(json.dumps(scores), encoding="utf-8")


def judge_of(setting: Setting, root: Path) -> Any:
    """The judge, a probability of the label."""
    from raydpo.config.labeling import RewardConfig
    from raydpo.labeling.classifier import load_classifier

    return load_classifier(
        RewardConfig(
            classifier=str(root / setting.judge),
            label=setting.label,
            output="probability",
            input="completion",
        )
    )


def judged(setting: Setting, root: Path, path: str, judge: Any) -> list[float]:
    """The mean score of each held-out prompt's completions."""
    from raydpo.labeling.classifier import judge_with_classifier

    prompts, completions = sampled(setting, root, path)
    values: Any = judge_with_classifier(judge, prompts, completions).values
    each = setting.heldout_samples
    return [statistics.fmean(values[i : i + each]) for i in range(0, len(values), each)]


def sampled(setting: Setting, root: Path, path: str) -> tuple[list[str], list[str]]:
    """Prompts and completions of a policy, `heldout_samples` for each held-out prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = (root / setting.heldout).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    tokenizer: Any = AutoTokenizer.from_pretrained(root / setting.model, padding_side="left")
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(path, dtype=torch.float32).eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(setting.seed)
    with torch.inference_mode():
        ids = model.generate(
            **batch,
            num_return_sequences=setting.heldout_samples,
            max_new_tokens=setting.max_completion_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    completions = ids[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [prompt for prompt in prompts for _ in range(setting.heldout_samples)], texts


if __name__ == "__main__":
    main()
