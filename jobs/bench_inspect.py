"""Measure how long `raydpo inspect` takes, and its memory, on made-up pairs.

    python jobs/bench_inspect.py                      # 100,000 pairs
    python jobs/bench_inspect.py --pairs 20000

The words are drawn by Zipf's law from 30,000, so that there are as many rare pairs of words as in
texts of people. Each run is a process of its own. The load of the machine stands beside each time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_WORDS = 30_000
_PAIRS_AT_A_TIME = 5_000


def main() -> None:
    """Write the pairs, and inspect them in a process of its own."""
    parser = argparse.ArgumentParser(description="time and memory of `raydpo inspect`")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=80, help="mean words of a completion")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pairs.jsonl")
        write_pairs(path, options.pairs, options.words)
        size = path.stat().st_size / 1e6
        for _ in range(options.repeats):
            seconds, processor, peak = inspect(path, Path(folder, "out"))
            print(
                f"{options.pairs:,} pairs ({size:.0f} MB): {seconds:.1f} s, {processor:.1f} s of "
                f"one core, {peak / 1e3:.0f} MB at the peak, load {os.getloadavg()[0]:.1f} on "
                f"{os.cpu_count()} cores"
            )


def write_pairs(path: Path, pairs: int, words: int) -> None:
    """Write pairs whose prompts have half as many words as their completions."""
    draws = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    vocabulary = ["".join(draws.choice(letters, n)) for n in draws.integers(2, 10, _WORDS)]
    shares = 1 / np.arange(1, _WORDS + 1)
    shares /= shares.sum()
    with path.open("w") as file:
        for start in range(0, pairs, _PAIRS_AT_A_TIME):
            count = min(_PAIRS_AT_A_TIME, pairs - start)
            lengths = draws.integers(words // 4, words * 7 // 4, (count, 3))
            lengths[:, 0] //= 2
            drawn = draws.choice(_WORDS, int(lengths.sum()), p=shares)
            ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
            for row, last in zip(lengths, ends, strict=True):
                texts = [
                    " ".join(vocabulary[i] for i in drawn[end - n : end])
                    for n, end in zip(row, last, strict=True)
                ]
                names = ("prompt", "chosen", "rejected")
                file.write(json.dumps(dict(zip(names, texts, strict=True))) + "\n")


def inspect(path: Path, output: Path) -> tuple[float, float, float]:
    """Inspect a file; return seconds, seconds of one core, and the peak of memory in kB."""
    command = [sys.executable, "-m", "raydpo.cli", "inspect", str(path), "--output", str(output)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - own command
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, processor, float(after.ru_maxrss)


if __name__ == "__main__":
    main()
