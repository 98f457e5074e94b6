"""Score sequences on their own: how likely a model finds existing completions.

From a table of preference groups or of supervised examples, and a model, the stage writes one row
per completion, with the log-probability of each of its tokens and their sum. It uses the
reference's forward pass, which is also that of training.
"""

from __future__ import annotations

import functools
import math

from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig, ReferenceConfig
from raydpo.core.parts import PartJob, PartStage, Table, part_work, run_work
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, read_rows
from raydpo.core.tables import Row
from raydpo.models.loading import tokenizer_fingerprint, weights_fingerprint
from raydpo.reference.stage import Scorer, scoring_workers
from raydpo.training.groups import example_rows


def score_sequences(
    place: Place, sequences: Table, model: ModelConfig, settings: ReferenceConfig
) -> Table:
    """Score every completion under `model`; a finished table is kept.

    Args:
        place: where the table goes.
        sequences: a table of preferences or of examples.
        model: the model that scores.
        settings: workers and batches.
    """
    stage = sequences_stage(place, sequences, model, settings)
    examples = sequences.manifest["table"] == "examples"
    make = functools.partial(SequenceScorer, model, settings.max_tokens_per_batch, examples)
    job = PartJob(make, scoring_workers(settings), stage.key)
    return run_work(part_work([PartStage(stage, [sequences])], job))[0]


def sequences_stage(
    place: Place, sequences: Table, model: ModelConfig, settings: ReferenceConfig
) -> Stage:
    """Describe what log-probs of these sequences under this model are made from."""
    return Stage(
        place=place,
        name="score",
        table="logps",
        inputs={
            "sequences": sequences.fingerprint,
            "model": weights_fingerprint(model),
            "tokenizer": tokenizer_fingerprint(model),
        },
        settings={**content_of(model), **content_of(settings)},
    )


class SequenceScorer:
    """Scores the completions of one part of preferences or examples."""

    def __init__(self, model: ModelConfig, max_tokens_per_batch: int, examples: bool) -> None:
        self.score = Scorer(model, max_tokens_per_batch)
        self.examples = examples

    def __call__(self, rows: list[Row]) -> PartResult:
        """Convert one part of the input to one part of the table of logps."""
        groups = list(example_rows(rows)) if self.examples else rows
        scored = self.score(groups).rows
        return PartResult(
            [
                {
                    "id": group["group_id"],
                    "completion": number,
                    "completion_ids": ids,
                    "token_logps": logps,
                    "logps": math.fsum(logps),
                }
                for group, values in zip(groups, scored, strict=True)
                for number, (ids, logps) in enumerate(
                    zip(group["completions"], values["reference_token_logps"], strict=True)
                )
            ]
        )


def summarize(scored: Table, sequences: Table) -> dict[str, float]:
    """Return means over a table of logps; for preferences also the share with a likelier chosen.

    Returns:
        `sequences`, `tokens`, `logps_per_sequence` and `logps_per_token` (nats), `perplexity`. With
        pairs also `pairs` and two weighted accuracies: `pair_accuracy` by the sums and
        `pair_accuracy_per_token` by the means.
    """
    lengths: dict[tuple[str, int], int] = {}
    sums: dict[tuple[str, int], float] = {}
    for row in read_rows(scored.folder, scored.manifest):
        place = (row["id"], row["completion"])
        lengths[place], sums[place] = len(row["token_logps"]), row["logps"]
    tokens, total = sum(lengths.values()), math.fsum(sums.values())
    means = {
        "sequences": float(len(sums)),
        "tokens": float(tokens),
        "logps_per_sequence": total / len(sums),
        "logps_per_token": total / tokens,
        "perplexity": math.exp(-total / tokens),
    }
    if sequences.manifest["table"] == "examples":
        return means
    averages = {place: value / lengths[place] for place, value in sums.items()}
    return {**means, **_pair_accuracies(sequences, sums, averages)}


def _pair_accuracies(
    preferences: Table,
    sums: dict[tuple[str, int], float],
    averages: dict[tuple[str, int], float],
) -> dict[str, float]:
    pairs = weights = right = right_per_token = 0.0
    for row in read_rows(preferences.folder, preferences.manifest):
        for pair in row["pairs"]:
            chosen, rejected = ((row["group_id"], pair[side]) for side in ("chosen", "rejected"))
            pairs += 1
            weights += pair["weight"]
            right += pair["weight"] * (sums[chosen] > sums[rejected])
            right_per_token += pair["weight"] * (averages[chosen] > averages[rejected])
    if not weights:  # unpaired judgements, or only rankings
        return {"pairs": pairs}
    return {
        "pairs": pairs,
        "pair_accuracy": right / weights,
        "pair_accuracy_per_token": right_per_token / weights,
    }
