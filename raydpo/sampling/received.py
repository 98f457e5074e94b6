"""Check the completions of a sampler function, and tokenize those that are texts.

From what the function returned for a prompt, the module makes completions as an engine gives them:
all emitted token ids, with the end token if there is one. Otherwise it gives the reason for which
the prompt is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.models.loading import adapter_base, load_tokenizer, model_config_values
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.end_tokens import generation_stops
from raydpo.sampling.engine import Completion, Refusal


class _Unusable(Exception):
    """Why a completion cannot be used, as the rest of a sentence whose subject is the completion."""


def begins_with(ids: list[int], start: list[int]) -> bool:
    """Return whether some ids stand at the beginning of others."""
    return ids[: len(start)] == start


@dataclass(frozen=True)
class Receiver:
    """What must be known to check completions.

    Attributes:
        encoder: of the model's tokenizer.
        ends: ids of the tokens at which generation stops.
        vocabulary: number of ids.
        sampling: the limits and the stop strings.
    """

    encoder: Encoder
    ends: frozenset[int]
    vocabulary: int
    sampling: SamplingConfig

    @classmethod
    def of(cls, model: ModelConfig, sampling: SamplingConfig) -> Receiver:
        """Load what is needed of the model.

        Raises:
            ModelError: its tokenizer or its config.json cannot be read.
        """
        encoder = make_encoder(load_tokenizer(model))
        ends = {encoder.end.eos, encoder.end.after_turn, *generation_stops(encoder.tokenizer)}
        values = model_config_values(adapter_base(model) or model)
        inner: dict[str, Any] = values.get("text_config") or {}
        size = values.get("vocab_size", inner.get("vocab_size"))
        vocabulary = size if isinstance(size, int) else len(encoder.tokenizer)
        return cls(encoder, frozenset(ends), vocabulary, sampling)

    def received(
        self, prompt_ids: list[int], answer: dict[str, Any] | str
    ) -> list[Completion] | Refusal:
        """Return a prompt's completions, or the reason why they cannot be used."""
        if isinstance(answer, str):
            return Refusal(answer)
        found: list[Completion] = []
        for number, item in enumerate(answer["completions"]):
            try:
                found.append(self._completion(prompt_ids, item))
            except _Unusable as why:
                return Refusal(f"completion {number} of the sampler function {why}")
        return found

    def _completion(self, prompt_ids: list[int], item: dict[str, Any]) -> Completion:
        finish = str(item["finish_reason"])
        if "text" in item:
            text = str(item["text"])
            ids = self._tokenized(prompt_ids, text, finish)
            self._check(prompt_ids, ids, finish)
            return self._with_logprobs(Completion(ids, None, finish, text))
        ids: list[int] = item["token_ids"]
        self._check(prompt_ids, ids, finish)
        text = self._text(prompt_ids, ids, finish)
        return self._with_logprobs(Completion(ids, item.get("logprobs"), finish, text))

    def _with_logprobs(self, completion: Completion) -> Completion:
        function = self.sampling.function
        owed = function is not None and function.returns_logprobs
        if owed and completion.token_logps is None:
            raise _Unusable("has no `logprobs`, and sampling.function.returns_logprobs is true")
        return completion

    def _tokenized(self, prompt_ids: list[int], text: str, finish: str) -> list[int]:
        """The ids of a text, with the end token if it was finished."""
        if finish == "stop" and self.sampling.stop:
            raise _Unusable(
                "is a text that stopped, and sampling.stop is set: return token_ids, which show "
                "whether the end token or a stop string ended it"
            )
        [ids] = self.encoder.continuations([text])
        whole = self._decode([*prompt_ids, *ids], skip_special_tokens=False)
        if not whole.endswith(text):
            raise _Unusable("is a text that the tokenizer does not give back: return token_ids")
        return [*ids, self.encoder.end.after_turn] if finish == "stop" else ids

    def _check(self, prompt_ids: list[int], ids: list[int], finish: str) -> None:
        least, most = self.sampling.min_completion_tokens, self.sampling.max_completion_tokens
        if not ids:
            raise _Unusable("has no tokens")
        if (
            wrong := next((one for one in ids if not 0 <= one < self.vocabulary), None)
        ) is not None:
            raise _Unusable(f"has the token {wrong}; ids are 0 to {self.vocabulary - 1}")
        if self.encoder.prefix and begins_with(ids, list(self.encoder.prefix)):
            raise _Unusable("begins with the token that begins a prompt: leave the prompt out")
        if len(ids) > most:
            raise _Unusable(f"has {len(ids)} tokens (sampling.max_completion_tokens {most})")
        if len(ids) < least and finish == "stop":
            raise _Unusable(f"has {len(ids)} tokens (sampling.min_completion_tokens {least})")
        first = next((index for index, one in enumerate(ids) if one in self.ends), None)
        if first is not None and first < len(ids) - 1:
            raise _Unusable(f"goes on after the end token {ids[first]}: cut what follows it")
        if first is not None and finish == "length":
            raise _Unusable(f"ends with the end token {ids[-1]}: its finish_reason is 'stop'")

    def _text(self, prompt_ids: list[int], ids: list[int], finish: str) -> str:
        """The text of the ids without special tokens, up to the stop string that ended it."""
        before = self._decode(prompt_ids, skip_special_tokens=True)
        whole = self._decode([*prompt_ids, *ids], skip_special_tokens=True)
        inside = whole.startswith(before)  # alone, a tokenizer may leave out the first space
        text = whole[len(before) :] if inside else self._decode(ids, skip_special_tokens=True)
        if finish == "length" or ids[-1] in self.ends:
            return text
        cuts = [text.index(stop) for stop in self.sampling.stop if stop in text]
        if not cuts:
            raise _Unusable(
                f"stopped, but its last token {ids[-1]} is no end token ({sorted(self.ends)})"
                + (", and it holds no string of sampling.stop" if self.sampling.stop else "")
                + ": keep the token that ended it"
            )
        return text[: min(cuts)]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = self.encoder.tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)
