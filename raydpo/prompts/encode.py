"""How prompts and completions become token ids.

What comes in: text, plain or rendered by a chat template. What goes out: token ids. The
rules: BOS stands once, at the start; a completion is encoded on its own, so that no token
straddles the boundary; one end token stands at its end (EOS, or see `end_tokens.py`),
unless the completion was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from raydpo.errors import ModelError
from raydpo.prompts.end_tokens import EndTokens, end_tokens
from raydpo.prompts.rows import RefusedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text put before a continuation, so that a tokenizer adds no space of its own to it.
_ANCHORS: Final = ("\n", ".", "=")


@dataclass(frozen=True)
class Conversation:
    """Messages, and what makes a prompt's text of them."""

    messages: list[dict[str, Any]]
    render: Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True)
class Text:
    """A text on its way to token ids.

    Args:
        text: the text.
        is_rendered: whether a chat template made it: then it brings its own BOS.
        conversation: what the template made it of, if it may have to be made again, shorter.
    """

    text: str
    is_rendered: bool = False
    conversation: Conversation | None = None


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, with what has to be known about its special tokens.

    Args:
        tokenizer: the model's.
        prefix: ids that stand before every plain text: BOS, or nothing.
        end: the tokens that end a completion.
        anchors: texts that keep the tokenizer from putting a space before a continuation,
            with their ids; empty where it puts none.
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
        """Token ids of prompts: BOS once, no EOS at the end."""
        encoded = self._encode([text.text for text in texts])
        return [
            self._whole_prompt(ids, text.is_rendered)
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Token ids of whole texts, without special tokens."""
        return self._encode(texts)

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that follow a prompt, without special tokens of their own."""
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
        """A completion's ids with one end token; what a template puts after it is dropped.

        Raises:
            RefusedRow: there is no token before it, or a special token stands inside.
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
        """Whether a completion has its end token: one that was cut has none."""
        return ids[-1] in (self.end.eos, self.end.after_turn)

    def inner(self, ids: list[int]) -> list[int]:
        """The ids of a text that BOS and EOS do not stand in.

        Raises:
            RefusedRow: there are none, or BOS or EOS is among them.
        """
        if not ids:
            raise RefusedRow("no tokens")
        if self.eos_id in ids:
            raise RefusedRow("the end-of-sequence token stands inside the text")
        if any(special in ids for special in self.prefix):
            raise RefusedRow("the beginning-of-sequence token stands inside the text")
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def without_prefix(self, ids: list[int]) -> list[int]:
        """The ids after BOS."""
        start = len(self.prefix)
        return ids[start:] if tuple(ids[:start]) == self.prefix else ids

    def decode_plain(self, ids: list[int]) -> str:
        """The text of a cut prompt, without BOS, for people to read."""
        return self.decode(self.without_prefix(ids))

    def _whole_prompt(self, ids: list[int], is_rendered: bool) -> list[int]:
        prefix = list(self.prefix)
        while prefix and ids[: len(prefix)] == prefix:  # BOS that the text brought along
            ids, is_rendered = ids[len(prefix) :], False
        return ids if is_rendered else [*prefix, *ids]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Look at what a tokenizer does around a text.

    Raises:
        ModelError: it has no EOS token.
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
    """The special ids that the tokenizer puts before a text."""
    whole: Any = tokenizer("a")["input_ids"]
    plain: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def _anchors(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Anchors, where the tokenizer puts a space before texts that begin without one."""
    alone: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    found: list[tuple[str, tuple[int, ...]]] = []
    for anchor in _ANCHORS:
        before: Any = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        both: Any = tokenizer(f"{anchor}a", add_special_tokens=False)["input_ids"]
        if both[: len(before)] == before and both[len(before) :] != alone:
            found.append((anchor, tuple(before)))
    return tuple(found)
