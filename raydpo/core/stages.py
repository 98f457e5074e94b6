"""Name the stages of a round: one word each in the command, the configuration and the log."""

from __future__ import annotations

from typing import Final

from raydpo.core.errors import ConfigError

#: The stages at which a command can end, in order; each is also a section of the configuration.
STAGES: Final = ("sampling", "labeling", "reference", "training", "evaluation")

#: The words that `--redo` accepts, in order. `pipeline/order.py` has the folders of each.
REDO: Final = ("sampling", "scores", "labeling", "reference", "training", "evaluation")

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
        redo: stages to run again, of `REDO`.

    Raises:
        ConfigError: with the new word of an old one, or with all words.
    """
    for word, words in ((until, STAGES), *((stage, REDO) for stage in redo)):
        if word not in words:
            new = OLD_WORDS.get(word)
            raise ConfigError(
                f"no stage is called {word!r}",
                f"the stages are {', '.join(words)}",
                f"write {new!r}, the new word for {word!r}"
                if new in words
                else "write one of these",
            )
