"""BOS once, EOS once, no token across the boundary."""

from __future__ import annotations

import pytest

from raydpo.core.errors import ModelError
from raydpo.prompts.encode import Encoder, Text, make_encoder
from raydpo.prompts.rows import RefusedRow
from tests.conftest import make_tokenizer

BOS, EOS = 1, 2


def _finished(encoder: Encoder, text: str) -> list[int]:
    return encoder.finished(encoder.continuations([text])[0])


@pytest.mark.parametrize("text", ["the film was", "<s>the film was", "<s><s>the film was"])
def test_a_plain_prompt_has_bos_once(encoder: Encoder, text: str) -> None:
    (ids,) = encoder.prompts([Text(text)])
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert encoder.decode(ids) == "<s>the film was"


def test_a_tokenizer_that_puts_eos_after_a_text_does_not_put_it_after_a_prompt(
    spacing_tokenizer,
) -> None:
    assert spacing_tokenizer("ab")["input_ids"][-1] == EOS
    (ids,) = make_encoder(spacing_tokenizer).prompts([Text("ab")])
    assert ids[0] == BOS
    assert EOS not in ids


def test_a_rendered_prompt_brings_its_own_bos_or_has_none(encoder: Encoder) -> None:
    with_bos, without = encoder.prompts([Text("<s>[user] hi", True), Text("[user] hi", True)])
    assert with_bos == [BOS, *without]


def test_a_tokenizer_without_bos_gets_none() -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    plain = make_encoder(tokenizer)
    assert plain.prefix == ()
    assert BOS not in plain.prompts([Text("the film")])[0]


def test_a_completion_has_eos_once_at_its_end(encoder: Encoder) -> None:
    ids = _finished(encoder, " good")
    assert ids.index(EOS) == len(ids) - 1
    assert _finished(encoder, " good</s>") == ids
    assert _finished(encoder, " good</s>\n") == ids
    assert BOS not in ids


@pytest.mark.parametrize("text", ["good</s> bad", "good</s></s>", "<s>good", "good <s> bad"])
def test_special_tokens_inside_a_completion_are_refused(encoder: Encoder, text: str) -> None:
    with pytest.raises(RefusedRow, match="of-sequence token stands inside"):
        _finished(encoder, text)


@pytest.mark.parametrize("text", ["", "</s>"])
def test_a_completion_without_tokens_is_refused(encoder: Encoder, text: str) -> None:
    with pytest.raises(RefusedRow, match="no tokens"):
        _finished(encoder, text)


def test_no_token_straddles_the_boundary(encoder: Encoder) -> None:
    """' good' is one token; split inside the word, the two sides are encoded apart."""
    (prompt,) = encoder.prompts([Text("the film was go")])
    completion = _finished(encoder, "od")
    (whole,) = encoder.prompts([Text("the film was good")])
    assert [*prompt, *completion[:-1]] != whole
    assert encoder.decode([*prompt, *completion[:-1]]) == encoder.decode(whole)


@pytest.mark.parametrize("completion", ["b", " b", "\nb", " a", "a", "\n\n a b", ".b", "="])
def test_a_continuation_decodes_to_exactly_its_text(spacing_tokenizer, completion: str) -> None:
    """A tokenizer that puts a space before a text must not put one before a completion."""
    spacing = make_encoder(spacing_tokenizer)
    (prompt,) = spacing.prompts([Text("Human: a")])
    (ids,) = spacing.continuations([completion])
    expected = "Human: a" + completion.replace("=", "")  # "=" is not in the vocabulary
    assert spacing.decode(prompt[1:] + ids) == expected


def test_batches_keep_their_order(spacing_tokenizer) -> None:
    spacing = make_encoder(spacing_tokenizer)
    texts = [" a", "ab", "\na", ".", "b ab"]
    assert spacing.continuations(texts) == [spacing.continuations([text])[0] for text in texts]


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        make_encoder(tokenizer)
