"""Name the stages of a round: one word each in the command, the configuration and the log.

A folder of a round has the name of the table that it holds. The lists below are the only place
that connects words and folders.
"""

from __future__ import annotations

from typing import Final

from raydpo.core.errors import ConfigError

#: The stages at which a command can end, in order; each is also a section of the configuration.
STAGES: Final = ("sampling", "labeling", "reference", "training", "evaluation")

#: The words that `--redo` accepts, in order, and the folders that it sets aside for each.
FOLDERS: Final = {
    "sampling": ("candidates",),
    "scores": ("scores", "score-groups", "score-policy", "score-reference"),
    "labeling": ("preferences",),
    "reference": ("reference",),
    "training": ("policy",),
    "evaluation": ("evaluation", "evaluation-prompts", "report"),
}

#: The folders of a round, and what the log calls the work that fills each.
LABELS: Final = {
    "prompts": "prompts",
    "candidates": "sampling",
    "scores": "labeling, scores",
    "score-groups": "labeling, groups to score",
    "score-policy": "labeling, scores of the policy",
    "score-reference": "labeling, scores of the reference",
    "preferences": "labeling",
    "training-groups": "labeling, training groups",
    "reference-model": "reference, model",
    "reference": "reference",
    "sampler": "sampler",
    "policy": "training",
    "heldout": "evaluation, held-out groups",
    "evaluation-prompts": "evaluation, prompts",
    "evaluation": "evaluation",
    "report": "evaluation, report",
}

#: The words of version 0.1, which commands and `--redo` accept as well.
OLD_WORDS: Final = {
    "sample": "sampling",
    "score": "scores",
    "label": "labeling",
    "train": "training",
    "evaluate": "evaluation",
}


def refuse_other_stages(until: str, redo: tuple[str, ...] = ()) -> None:
    """Refuse words that name no stage.

    Args:
        until: the last stage of a command or call, one of `STAGES`.
        redo: stages to run again, of `FOLDERS`.

    Raises:
        ConfigError: with the new word of an old one, or with all words.
    """
    for word, words in ((until, STAGES), *((stage, tuple(FOLDERS)) for stage in redo)):
        if word not in words:
            new = OLD_WORDS.get(word)
            raise ConfigError(
                f"no stage is called {word!r}",
                f"the stages are {', '.join(words)}",
                f"write {new!r}, the new word for {word!r}"
                if new in words
                else "write one of these",
            )
