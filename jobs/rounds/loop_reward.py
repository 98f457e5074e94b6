"""Second script of the usual loop: score completions by a classifier pipeline, and pair them.

It reads the completions of one round, gives each the log-odds of the label, and writes all pairs
of a prompt whose rewards differ by more than the margin.

    python loop_reward.py --reward FOLDER --label positive --min-margin 0.5 --input FILE --output FILE
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Score, pair, write."""
    options = parse()
    from transformers import pipeline

    rows = [json.loads(line) for line in options.input.read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for text in row["completions"]]
    score: Any = pipeline("text-classification", model=options.reward, device="cpu")
    started = time.perf_counter()
    scored = score(
        texts, top_k=None, function_to_apply="none", batch_size=options.batch_size, truncation=True
    )
    work = {"scoring": time.perf_counter() - started}
    rewards = iter([log_odds(labels, options.label) for labels in scored])
    with open(options.output, "w", encoding="utf-8") as file:
        for row in rows:
            own = [next(rewards) for _ in row["completions"]]
            for pair in pairs(row, own, options.min_margin):
                file.write(json.dumps(pair) + "\n")
    options.output.with_suffix(".seconds.json").write_text(json.dumps(work), encoding="utf-8")


def log_odds(labels: list[dict[str, Any]], label: str) -> float:
    """Log-odds of one of two labels, from both logits."""
    logits = {one["label"]: one["score"] for one in labels}
    own = logits.pop(label)
    (other,) = logits.values()
    return own - other


def pairs(row: dict[str, Any], rewards: list[float], min_margin: float) -> list[dict[str, Any]]:
    """All pairs of a prompt's completions whose rewards differ by more than the margin."""
    found: list[dict[str, Any]] = []
    for a, b in itertools.combinations(range(len(rewards)), 2):
        chosen, rejected = (a, b) if rewards[a] > rewards[b] else (b, a)
        if rewards[chosen] - rewards[rejected] > min_margin:
            found.append(
                {
                    "prompt": row["prompt"],
                    "prompt_ids": row["prompt_ids"],
                    "chosen_ids": row["completion_ids"][chosen],
                    "rejected_ids": row["completion_ids"][rejected],
                }
            )
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reward", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--min-margin", type=float, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
