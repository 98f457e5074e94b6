"""The same judge on the same held-out prompts, for the policies of both sides.

For each policy it gives the judge's mean score of every prompt, over samples of one vLLM. The
process loads raydpo's engine and classifier alone, without a cluster.

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
    from vllm import LLM, SamplingParams

    lines = (root / setting.heldout).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    llm = LLM(
        model=path,
        tokenizer=str(root / setting.model),
        dtype="float32",
        max_model_len=setting.max_prompt_tokens + setting.max_completion_tokens,
        enforce_eager=True,
        generation_config="vllm",
        seed=setting.seed,
    )
    parameters = SamplingParams(
        n=setting.heldout_samples, temperature=1.0, max_tokens=setting.max_completion_tokens
    )
    outputs: Any = llm.generate(prompts, parameters, use_tqdm=False)
    pairs = [(output.prompt, item.text) for output in outputs for item in output.outputs]
    return [prompt for prompt, _ in pairs], [text for _, text in pairs]


if __name__ == "__main__":
    main()
