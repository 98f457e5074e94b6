"""Is a DPO policy secretly a reward model? How well does it order held-out pairs?

    python jobs/implicit_reward.py --output runs/implicit --plot docs/implicit-reward.png \
        --human-pairs PATH --human-models assets/review-lm PATH

The study trains a policy with DPO and a reward model on the same pairs, with raydpo's own jobs:
pairs of the demo, and with `--human-pairs` transcripts of people's choices. It compares both with
log-probs, length and chance on pairs of held-out prompts. It writes scores-*.json for each data set
and seed, results.json, Markdown tables and a plot. It skips what is there, so you can run it in
pieces (`--data`, `--seeds`), and stop it anywhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from implicit.page import as_json, draw, tables
from implicit.runs import ROOT, Trained, train_on_demo, train_on_people
from implicit.scores import Scores, scores_of
from raydpo.core.cluster import connected


def main() -> None:
    """Read the options, do what is missing, write the numbers, print the tables, draw."""
    options = _parse()
    output: Path = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for data in _data(options):
            file = output / f"scores-{data.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                started = time.monotonic()
                with connected(None):
                    trained = _train(data, seed, output, options)
                found = scores_of(data, seed, trained)
                file.write_text(json.dumps(asdict(found)), encoding="utf-8")
                print(f"{data}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    done = [Scores(**json.loads(file.read_text())) for file in sorted(output.glob("scores-*.json"))]
    numbers = as_json(done)
    (output / "results.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print("\n\n".join("\n".join(lines) for lines in tables(numbers)))
    if options.plot is not None:
        draw(numbers, options.plot)
        print(f"\nwrote {options.plot}")


def _data(options: argparse.Namespace) -> Iterator[str]:
    """Names of the data sets that are asked for."""
    if "demo" in options.data:
        yield "demo"
    if "human" in options.data and options.human_pairs is not None:
        for model in options.human_models:
            yield f"people, {model.name}"


def _train(data: str, seed: int, output: Path, options: argparse.Namespace) -> Trained:
    if data == "demo":
        return train_on_demo(output, seed, options.limit)
    [model] = [one for one in options.human_models if data == f"people, {one.name}"]
    pairs = options.human_pairs.absolute()
    return train_on_people(output, pairs, model.absolute(), seed, options.limit)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Implicit rewards as judges of held-out pairs.")
    parser.add_argument("--output", type=Path, default=Path("runs/implicit"), help="folder")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--data", nargs="+", choices=["demo", "human"], default=["demo", "human"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--human-pairs", type=Path, help="JSONL of transcripts, as helpful-base")
    parser.add_argument(
        "--human-models", nargs="+", type=Path, default=[ROOT / "assets/review-lm"],
        help="folders of the models that are trained on them",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, help="prompts of the demo, and pairs of people, to use"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
