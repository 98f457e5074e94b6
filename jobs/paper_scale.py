"""Estimate GPU hours and memory of the jobs at the paper's scale, by arithmetic alone.

    python jobs/paper_scale.py           # prints the tables of docs/paper-scale.md
    python jobs/paper_scale.py --write   # writes them into the page

Nothing here was measured. The useful operations are those of `benchmark/flops.py`, the memory of
weights, gradients and optimizer that of `raydpo check`. Lengths and the utilization are assumed, and
stand in the tables.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmark.flops import block_parameters, forward_flops, train_flops
from benchmark.spec import ModelShape
from raydpo.check.resources import training_bytes
from raydpo.config.file import load_config
from raydpo.config.job import Config, SftConfig, TrainerConfig, TrainingConfig

JOBS: Final = Path(__file__).parent
PAGE: Final = JOBS.parent / "docs" / "paper-scale.md"
BEGIN: Final = "<!-- `python jobs/paper_scale.py --write` writes the tables from the code. -->\n"
END: Final = "<!-- end of the tables -->\n"
GIB: Final = 1 << 30
#: Dense bfloat16 operations a second of an H100 SXM, by its data sheet.
PEAK_FLOPS: Final = 989e12
#: Assumed shares of that peak which are useful operations, from a poor to a good run.
UTILIZATION: Final = (0.1, 0.4)
#: Hours of the authors' code on four A100 of 80 GB, by its README, and that GPU's peak.
AUTHORS_HOURS: Final = {"sft_hh_pythia_2_8b.yaml": 1.5, "hh_pythia_2_8b.yaml": 2.75}
_A100_FLOPS: Final = 312e12
#: Bytes a token, unit of hidden size and layer keeps of activations in 16 bits, without scores of
#: attention (arXiv:2205.05198, eq. 2), and those that are kept where a block is computed again.
_ACTIVATION_BYTES: Final = 34
_KEPT_BYTES: Final = 2


@dataclass(frozen=True)
class Scale:
    """A job, its model's shape, and the lengths that are assumed for its data.

    Attributes:
        job: the file's name in jobs/.
        shape: of the model; `intermediate` is that of a gated block with as many parameters.
        groups: rows of the data that are trained on, of all epochs' one pass.
        prompt_tokens: assumed mean length.
        completion_tokens: assumed mean length.
        completions: in a group.
    """

    job: str
    shape: ModelShape
    groups: int
    prompt_tokens: int
    completion_tokens: int
    completions: int = 2

    @property
    def config(self) -> Config:
        """The job."""
        return load_config(JOBS / self.job)

    @property
    def parameters(self) -> int:
        """Matrices of the blocks, the embeddings and the output layer; no norms and biases."""
        ends = self.shape.vocabulary * self.shape.hidden * (1 if self.shape.tied else 2)
        return self.shape.layers * block_parameters(self.shape) + ends

    @property
    def tokens(self) -> int:
        """Tokens of a group: its prompt once, and its completions."""
        return self.prompt_tokens + self.completions * self.completion_tokens


def _neox(name: str, layers: int, hidden: int, heads: int, vocabulary: int) -> ModelShape:
    """A GPT-NeoX or GPT-2: two matrices of 4 hidden^2 in a block, where a gated one has three."""
    return ModelShape(
        name, layers, hidden, heads, heads, round(8 * hidden / 3), vocabulary, tied=False
    )


PYTHIA_2_8B: Final = _neox("Pythia-2.8B", 32, 2560, 32, 50304)
PYTHIA_6_9B: Final = _neox("Pythia-6.9B", 32, 4096, 32, 50432)
LLAMA_3_8B: Final = ModelShape("Llama 3 8B", 32, 4096, 32, 8, 14336, 128256, tied=False)
GPT2_LARGE: Final = ModelShape("GPT-2 large", 36, 1280, 20, 20, round(8 * 1280 / 3), 50257)
#: Lengths are assumed at four characters a token. Those of the dialogues are the mean characters of
#: the 2,354 rows of helpful-base.test, those of IMDb of its 25,000 training reviews, those of TL;DR
#: the 1,556 bytes a row of its data card. Those of UltraFeedback are a guess.
SCALES: Final = (
    Scale("sft_imdb_gpt2_large.yaml", GPT2_LARGE, 25_000, 0, 331, 1),
    Scale("imdb_gpt2_large.yaml", GPT2_LARGE, 25_000, 8, 64, 4),
    Scale("sft_hh_pythia_2_8b.yaml", PYTHIA_2_8B, 160_800, 136, 54),
    Scale("hh_pythia_2_8b.yaml", PYTHIA_2_8B, 160_800, 136, 54),
    Scale("sft_tldr_pythia_6_9b.yaml", PYTHIA_6_9B, 116_722, 350, 40, 1),
    Scale("tldr_pythia_6_9b.yaml", PYTHIA_6_9B, 92_858, 350, 40),
    Scale("ultrafeedback_8b.yaml", LLAMA_3_8B, 61_135, 200, 350),
)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write them into {PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(page_with(tables()), encoding="utf-8")
    else:
        print(tables())


def page_with(content: str) -> str:
    """Return the page with these tables in place of its own."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


def tables() -> str:
    """Return the table of operations and hours, and that of memory, in Markdown."""
    return "\n".join([*_hours_table(), "", *_authors_table(), "", *_memory_table(), ""])


def section_of(config: Config) -> TrainerConfig:
    """Return the section of a job that trains."""
    section = config.training or config.sft
    assert section is not None
    return section


def useful_flops(scale: Scale) -> tuple[int, int]:
    """Return the operations of training, and those of the reference's log-probs, of a whole job."""
    row = {
        "prompt_ids": range(scale.prompt_tokens),
        "completions": [range(scale.completion_tokens)] * scale.completions,
    }
    config, epochs = scale.config, section_of(scale.config).epochs
    training = config.training
    scored = training is not None and training.objective.uses_reference
    reference = forward_flops(scale.shape, [row]) if scored else 0
    return (
        scale.groups * epochs * train_flops(scale.shape, [row]),
        scale.groups * reference,
    )


def hours(scale: Scale, utilization: float) -> float:
    """Return the hours of training and reference on the job's own number of H100s."""
    workers = section_of(scale.config).fewest_workers
    return sum(useful_flops(scale)) / (workers * PEAK_FLOPS * utilization) / 3600


def authors_utilization(scale: Scale) -> float:
    """Return which share of four A100s the useful operations are in the authors' own hours.

    Their code runs padded sequences and the reference beside the policy; those operations that a
    step could avoid do not count.
    """
    seconds = 3600 * AUTHORS_HOURS[scale.job]
    return sum(useful_flops(scale)) / (4 * _A100_FLOPS * seconds)


def activation_bytes(scale: Scale) -> int:
    """Return the bytes of activations of one micro-batch of a worker, without the output layer's."""
    section, shape = section_of(scale.config), scale.shape
    a_layer = section.max_tokens_per_micro_batch * shape.hidden
    if not section.activation_checkpointing:
        return shape.layers * a_layer * _ACTIVATION_BYTES
    return a_layer * (shape.layers * _KEPT_BYTES + _ACTIVATION_BYTES)


def longest_group_tokens(config: Config) -> int | None:
    """Return the most tokens that a group can have; None where the job samples its groups."""
    if config.preferences is not None:
        limits = config.preferences
        return limits.max_prompt_tokens + 2 * limits.max_completion_tokens
    return config.sft.max_sequence_tokens if config.sft is not None else None


def _hours_table() -> list[str]:
    low, high = UTILIZATION
    head = f"GPUs | hours at {100 * high:.0f} % | hours at {100 * low:.0f} %"
    lines = [
        f"| job | parameters | groups | tokens a group (at most) | steps | PFLOP | 6 N D | {head} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for scale in SCALES:
        section, flops = section_of(scale.config), useful_flops(scale)
        tokens = scale.groups * section.epochs * scale.tokens
        most = longest_group_tokens(scale.config)
        cells = (
            f"`{scale.job}`",
            f"{scale.parameters / 1e9:.2f} G",
            f"{scale.groups:,}",
            f"{scale.tokens:,}" + (f" ({most:,})" if most else ""),
            f"{scale.groups * section.epochs / _batch(section):,.0f}",
            f"{sum(flops) / 1e15:,.0f}",
            f"{6 * scale.parameters * tokens / 1e15:,.0f}",
            str(section.fewest_workers),
            f"{hours(scale, high):.2f}",
            f"{hours(scale, low):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _authors_table() -> list[str]:
    lines = [
        "| job | hours of the authors' code on 4 A100 | useful share of the peak |",
        "| --- | ---: | ---: |",
    ]
    for scale in SCALES:
        if scale.job in AUTHORS_HOURS:
            share, spent = 100 * authors_utilization(scale), AUTHORS_HOURS[scale.job]
            lines.append(f"| `{scale.job}` | {spent:g} | {share:.1f} % |")
    return lines


def _memory_table() -> list[str]:
    lines = [
        "| job | states, all workers | states, a worker | activations, a worker | sum, a worker |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for scale in SCALES:
        worker, together = training_bytes(section_of(scale.config), scale.parameters)
        activations = activation_bytes(scale)
        sizes = (together, worker, activations, worker + activations)
        cells = " | ".join(f"{size / GIB:.1f} GiB" for size in sizes)
        lines.append(f"| `{scale.job}` | {cells} |")
    return lines


def _batch(section: TrainerConfig) -> int:
    if isinstance(section, TrainingConfig):
        return section.global_batch_groups
    assert isinstance(section, SftConfig)
    return section.global_batch_sequences


if __name__ == "__main__":
    main()
