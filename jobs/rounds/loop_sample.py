"""First script of the usual loop: complete prompts with vLLM's offline `LLM`, and write them.

It is what recipes of iterative DPO run once a round, in a process of its own: load the newest
policy, sample K completions of each prompt, write JSON lines, end.

    python loop_sample.py --model FOLDER --prompts FILE --candidates 4 --output FILE ...
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Sample and write."""
    options = parse()
    from vllm import LLM, SamplingParams  # the slow import comes after the arguments' check

    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    llm = LLM(
        model=options.model,
        dtype="float32",
        max_model_len=options.max_prompt_tokens + options.max_completion_tokens,
        enforce_eager=options.enforce_eager,
        generation_config="vllm",
        seed=options.seed,
    )
    sampling = SamplingParams(
        n=options.candidates,
        temperature=1.0,
        max_tokens=options.max_completion_tokens,
    )
    started = time.perf_counter()
    outputs: Any = llm.generate(prompts, sampling)
    work = {"sampling": time.perf_counter() - started}
    with open(options.output, "w", encoding="utf-8") as file:
        for output in outputs:
            row = {
                "prompt": output.prompt,
                "prompt_ids": list(output.prompt_token_ids),
                "completions": [item.text for item in output.outputs],
                "completion_ids": [list(item.token_ids) for item in output.outputs],
            }
            file.write(json.dumps(row) + "\n")
    options.output.with_suffix(".seconds.json").write_text(json.dumps(work), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--candidates", type=int, required=True)
    parser.add_argument("--max-prompt-tokens", type=int, required=True)
    parser.add_argument("--max-completion-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
