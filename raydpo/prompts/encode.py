"""Turn prompts and completions, plain or rendered by a chat template, into token ids.

BOS occurs once, at the start. A completion is encoded on its own, so that no token spans the
boundary. One end token follows it (EOS, or see `end_tokens.py`), unless the completion was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from raydpo.core.errors import ModelError
from raydpo.prompts.end_tokens import EndTokens, end_tokens
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text before a continuation, which keeps a tokenizer from adding its own space to it.
_ANCHORS: Final = ("\n", ".", "=")


@dataclass(frozen=True)
class Conversation:
    """Messages, and what turns them into a prompt's text."""

    messages: list[dict[str, Any]]
    render: Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True)
class Text:
    """A text to be converted to token ids.

    Args:
        text: the text.
        is_rendered: whether a chat template made it; then the text contains its own BOS.
        conversation: the template's input, if a shorter text may have to be rendered.
    """

    text: str
    is_rendered: bool = False
    conversation: Conversation | None = None


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, with what must be known about its special tokens.

    Args:
        tokenizer: the model's tokenizer.
        prefix: ids before every plain text: BOS, or nothing.
        end: the tokens that end a completion.
        anchors: texts that keep the tokenizer from putting a space before a continuation, with
            their ids; empty if it puts no space there.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: tuple[int, ...]
    end: EndTokens
    anchors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def eos_id(self) -> int:
        """The tokenizer's end-of-sequence token."""
        return self.end.eos

    def prompts(self, texts: list[Text]) -> list[list[int]]:
        """Return token ids of prompts: BOS once, no EOS at the end."""
        encoded = self._encode([text.text for text in texts])
        return [
            self._whole_prompt(ids, text.is_rendered)
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Return token ids of whole texts, without special tokens."""
        return self._encode(texts)

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """Return token ids of texts that follow a prompt, without further special tokens."""
        done: list[list[int] | None] = [None] * len(texts)
        for anchor, anchor_ids in self.anchors:
            open_ones = [i for i, ids in enumerate(done) if ids is None]
            for i, ids in zip(
                open_ones, self._encode([anchor + texts[i] for i in open_ones]), strict=True
            ):
                if tuple(ids[: len(anchor_ids)]) == anchor_ids:
                    done[i] = ids[len(anchor_ids) :]
        left = [i for i, ids in enumerate(done) if ids is None]
        for i, ids in zip(left, self._encode([texts[i] for i in left]), strict=True):
            done[i] = ids
        return [ids for ids in done if ids is not None]

    def finished(self, ids: list[int]) -> list[int]:
        """Return a completion's ids with one end token, without what a template puts after it.

        Raises:
            RefusedRow: there is no token before the end, or there is a special token inside.
        """
        first = next((i for i, one in enumerate(ids) if one in (self.end.eos, self.end.turn)), None)
        if first is None:
            return [*self.inner(ids), self.end.eos]
        is_turn = ids[first] == self.end.turn
        after = [one for one in ids[first + 1 :] if not (is_turn and one == self.end.eos)]
        if self.decode(after).strip():
            raise RefusedRow("the end-of-sequence token stands inside the text")
        return [*self.inner(ids[:first]), self.end.after_turn if is_turn else self.end.eos]

    def is_finished(self, ids: list[int]) -> bool:
        """Return whether a completion has its end token; a cut completion has none."""
        return ids[-1] in (self.end.eos, self.end.after_turn)

    def inner(self, ids: list[int]) -> list[int]:
        """Return the ids of a text that must not contain BOS or EOS.

        Raises:
            RefusedRow: there are no ids, or BOS or EOS is among them.
        """
        if not ids:
            raise RefusedRow("no tokens")
        if self.eos_id in ids:
            raise RefusedRow("the end-of-sequence token stands inside the text")
        if any(special in ids for special in self.prefix):
            raise RefusedRow("the beginning-of-sequence token stands inside the text")
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def without_prefix(self, ids: list[int]) -> list[int]:
        """Return the ids after BOS."""
        start = len(self.prefix)
        return ids[start:] if tuple(ids[:start]) == self.prefix else ids

    def decode_plain(self, ids: list[int]) -> str:
        """Return the text of a cut prompt without BOS, for people to read."""
        return self.decode(self.without_prefix(ids))

    def _whole_prompt(self, ids: list[int], is_rendered: bool) -> list[int]:
        prefix = list(self.prefix)
        while prefix and ids[: len(prefix)] == prefix:  # BOS that the text already contained
            ids, is_rendered = ids[len(prefix) :], False
        return ids if is_rendered else [*prefix, *ids]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Build the encoder by observing what a tokenizer adds to a text.

    Raises:
        ModelError: the tokenizer has no EOS token.
    """
    eos_id: Any = tokenizer.eos_token_id
    if eos_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token",
            "a completion ends with EOS, in training as in sampling",
            "set `eos_token` in the tokenizer's tokenizer_config.json",
        )
    return Encoder(
        tokenizer=tokenizer,
        prefix=_prefix(tokenizer),
        end=end_tokens(tokenizer, int(eos_id)),
        anchors=_anchors(tokenizer),
    )


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special ids that the tokenizer puts before a text."""
    whole: Any = tokenizer("a")["input_ids"]
    plain: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def _anchors(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return anchors if the tokenizer puts a space before texts that begin without one."""
    alone: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    found: list[tuple[str, tuple[int, ...]]] = []
    for anchor in _ANCHORS:
        before: Any = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        both: Any = tokenizer(f"{anchor}a", add_special_tokens=False)["input_ids"]
        if both[: len(before)] == before and both[len(before) :] != alone:
            found.append((anchor, tuple(before)))
    return tuple(found)
