"""The usual loop: three scripts a round, each in a process of its own, as a shell script runs them.

    python -m rounds.loop SETTING_JSON TUNING_JSON ROOT FOLDER

After each process, the seconds that it took go as one JSON line into `FOLDER/processes.jsonl`. It
needs nothing of raydpo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .setting import Setting, Tuning, from_json, prompts_file

_HERE = Path(__file__).parent
#: The processes of a round, in their order.
PROCESSES = ("sampling", "rewards and pairs", "training")
#: What tunes glibc's malloc for a training on the CPU: docs/training.md explains it.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "134217728",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}
#: vLLM on a CPU without torch.compile and without a process for its engine.
EAGER = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
}
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def main() -> None:
    """Run all rounds."""
    setting, tuning = from_json(Setting, sys.argv[1]), from_json(Tuning, sys.argv[2])
    root, folder = Path(sys.argv[3]), Path(sys.argv[4])
    model = root / setting.model
    for index in range(setting.rounds):
        for name in PROCESSES:
            started = time.perf_counter()
            command, more = step_command(name, setting, tuning, root, folder, index, model)
            subprocess.run(command, env={**os.environ, **more}, check=True)  # noqa: S603
            seconds = time.perf_counter() - started
            line = {
                **{"round": index, "name": name, "seconds": seconds, "ended": time.time()},
                **work(name, folder, index),
            }
            with open(folder / "processes.jsonl", "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        model = policy(folder, index)


def step_command(
    name: str, setting: Setting, tuning: Tuning, root: Path, folder: Path, index: int, model: Path
) -> tuple[list[str], dict[str, str]]:
    """One process of a round: its command, and the variables of its environment."""
    match name:
        case "sampling":
            arguments = sampling(setting, tuning, folder, index, model)
            threads, more = tuning.sampling_threads, VLLM | (EAGER if tuning.eager else {})
        case "rewards and pairs":
            arguments = rewards(setting, tuning, root, folder, index)
            threads, more = tuning.reward_threads, {}
        case _:
            arguments = training(setting, tuning, root, folder, index, model)
            threads, more = tuning.training_threads, MALLOC if tuning.malloc else {}
    return [sys.executable, *arguments], {"OMP_NUM_THREADS": str(threads), **more}


def output(name: str, folder: Path, index: int) -> Path:
    """What a process of a round writes."""
    match name:
        case "sampling":
            return folder / f"samples-{index}.jsonl"
        case "rewards and pairs":
            return folder / f"pairs-{index}.jsonl"
        case _:
            return policy(folder, index)


def policy(folder: Path, index: int) -> Path:
    """The model after a round."""
    return folder / f"policy-{index}"


def work(name: str, folder: Path, index: int) -> dict[str, dict[str, float]]:
    """The seconds of a process beside its start, by what it did, as it has written them."""
    path = output(name, folder, index).with_suffix(".seconds.json")
    return {"work": json.loads(path.read_text(encoding="utf-8"))}


def sampling(setting: Setting, tuning: Tuning, folder: Path, index: int, model: Path) -> list[str]:
    """The command that completes a round's prompts."""
    return [
        str(_HERE / "loop_sample.py"),
        *("--model", str(model)),
        *("--prompts", str(prompts_file(folder, index))),
        *("--candidates", str(setting.candidates)),
        *("--max-prompt-tokens", str(setting.max_prompt_tokens)),
        *("--max-completion-tokens", str(setting.max_completion_tokens)),
        *("--seed", str(1000 * setting.seed + index)),
        *("--output", str(output("sampling", folder, index))),
        *(["--enforce-eager"] if tuning.eager else []),
    ]


def rewards(setting: Setting, tuning: Tuning, root: Path, folder: Path, index: int) -> list[str]:
    """The command that scores the completions and pairs them."""
    return [
        str(_HERE / "loop_reward.py"),
        *("--reward", str(root / setting.reward)),
        *("--label", setting.label),
        *("--min-margin", str(setting.min_margin)),
        *("--batch-size", str(tuning.reward_batch)),
        *("--input", str(output("sampling", folder, index))),
        *("--output", str(output("rewards and pairs", folder, index))),
    ]


def training(
    setting: Setting, tuning: Tuning, root: Path, folder: Path, index: int, model: Path
) -> list[str]:
    """The command that trains on the pairs; the reference is the model of round 0."""
    return [
        str(_HERE / "loop_train.py"),
        *("--model", str(model)),
        *("--reference", str(root / setting.model)),
        *("--input", str(output("rewards and pairs", folder, index))),
        *("--output", str(policy(folder, index))),
        *("--beta", str(setting.beta)),
        *("--learning-rate", str(setting.learning_rate)),
        *("--groups-per-step", str(setting.groups_per_step)),
        *("--epochs", str(setting.epochs)),
        *("--batch-pairs", str(tuning.batch_pairs)),
        *("--reference-batch-pairs", str(tuning.reference_batch_pairs)),
        *("--seed", str(setting.seed)),
        *(["--bfloat16"] if tuning.bfloat16 else []),
    ]


if __name__ == "__main__":
    main()
