"""Find the token that ends a completion from a tokenizer with its chat template.

Plain text ends with the tokenizer's EOS. A template may end turns with another token. That token
ends completions if generation stops there: vLLM and transformers stop at the EOS and at the
`eos_token_id` of generation_config.json. Otherwise a policy that was trained on the token would
continue after it, so the EOS replaces it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION: Final = {"role": "user", "content": "Which of the two?"}
_ANSWER: Final = "The first."


@dataclass(frozen=True)
class EndTokens:
    """The tokens that may end a completion, as ids.

    Args:
        eos: the tokenizer's own end token.
        turn: the chat template's end token, if it is a different one; else None.
        stops: whether generation stops at `turn`.
    """

    eos: int
    turn: int | None
    stops: bool

    @property
    def after_turn(self) -> int:
        """The token at the end of a completion if the template wrote `turn`."""
        return self.turn if self.turn is not None and self.stops else self.eos

    @property
    def settings(self) -> dict[str, list[int]]:
        """The settings that affect a table's content; none if the template ends turns with EOS."""
        return {} if self.turn is None else {"end_of_turn": [self.turn, self.after_turn]}


def end_tokens(tokenizer: PreTrainedTokenizerBase, eos: int) -> EndTokens:
    """Determine the end tokens from the template and from where generation stops."""
    turn = _end_of_turn(tokenizer)
    if turn == eos:
        turn = None
    return EndTokens(eos, turn, turn is not None and turn in generation_stops(tokenizer))


def describe_end(tokenizer: PreTrainedTokenizerBase, tokens: EndTokens) -> str | None:
    """Describe the end of completions in conversations, if the template has its own token."""
    if tokens.turn is None:
        return None
    turn: Any = tokenizer.convert_ids_to_tokens(tokens.turn)
    if tokens.stops:
        return f"end token of conversations: {turn!r}, the chat template's, where generation stops"
    return (
        f"end token of conversations: {tokenizer.eos_token!r}, in place of the chat template's "
        f"{turn!r}, where generation would not stop; to train that one, list its id under "
        "`eos_token_id` in the model's generation_config.json"
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the first special token that the chat template puts after the assistant's words."""
    if not tokenizer.chat_template:
        return None
    turns = [_QUESTION, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001 - a template that fails is refused where it is used
        return None
    _, found, after = whole.rpartition(_ANSWER)
    if not found:
        return None
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    ids: Any = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((int(i) for i in ids if i in special), None)


def generation_stops(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the `eos_token_id`s of generation_config.json, or without that file of config.json."""
    folder = Path(tokenizer.name_or_path)
    files = (folder / name for name in ("generation_config.json", "config.json"))
    file = next((file for file in files if file.is_file()), None)
    try:
        values: Any = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError, RecursionError):
        return set()  # loading the model reports what is wrong with it
    found: Any = values.get("eos_token_id") if isinstance(values, dict) else None
    return {i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)}
