"""Cuts follow the stated policy: a conversation loses words, never the template's headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.check.job import check
from raydpo.config.job import Config, PreferencesConfig, PromptsConfig
from raydpo.core.cut_counts import cut_warnings
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.place import Place
from raydpo.core.storage import Folder
from raydpo.prompts.cuts import Fitted, fit_completion, fit_prompt
from raydpo.prompts.dialogue import Dialogue, render
from raydpo.prompts.encode import Encoder, Text
from raydpo.prompts.preferences import preference_parts
from raydpo.prompts.rows import RefusedRow
from raydpo.prompts.sources import SourceRow
from raydpo.prompts.stage import prompt_parts, prompts_stage

BOS, EOS = 1, 2
LONG = "the film was good and the plot was bad and the acting was slow but the end was great"


def fitted(encoder: Encoder, prompt: Any, max_tokens: int, policy: str) -> Fitted:
    text = render(Dialogue(prompt), encoder.tokenizer).prompt
    (ids,) = encoder.prompts([text])
    return fit_prompt(text, ids, encoder, max_tokens, policy)


def test_plain_prompt_policies(encoder: Encoder) -> None:
    (ids,) = encoder.prompts([Text(LONG)])
    whole = fitted(encoder, LONG, len(ids), "quarantine")
    assert (whole.ids, whole.text, whole.is_cut) == (ids, LONG, False)
    assert fitted(encoder, LONG, 5, "keep_start").ids == ids[:5]
    assert fitted(encoder, LONG, 5, "keep_end").ids == [BOS, *ids[-4:]]
    with pytest.raises(RefusedRow, match="longer than 5 tokens"):
        fitted(encoder, LONG, 5, "quarantine")
    with pytest.raises(DataError, match="policy for longer ones is `error`"):
        fitted(encoder, LONG, 5, "error")
    with pytest.raises(ConfigError, match="max_prompt_tokens: 1"):
        fitted(encoder, LONG, 1, "keep_end")


def test_a_prompt_that_ends_with_eos_is_refused(encoder: Encoder) -> None:
    with pytest.raises(RefusedRow, match="ends with the end-of-sequence token"):
        fitted(encoder, "the film</s>", 100, "quarantine")


def test_a_transcript_that_is_cut_still_asks_the_assistant(encoder: Encoder) -> None:
    prompt = f"\n\nHuman: {LONG}\n\nAssistant:"
    for policy in ("keep_start", "keep_end"):
        cut = fitted(encoder, prompt, 30, policy)
        assert len(cut.ids) == 30
        assert cut.text.endswith("\n\nAssistant:")
    assert fitted(encoder, prompt, 30, "keep_start").text.startswith("\n\nHuman: the film")


SYSTEM = {"role": "system", "content": "be kind"}
ASKED = {"role": "user", "content": LONG}
EARLIER = [{"role": "user", "content": "first " * 9}, {"role": "assistant", "content": "yes"}]


def test_the_end_of_the_last_message_is_cut_by_keep_start(encoder: Encoder) -> None:
    cut = fitted(encoder, [SYSTEM, ASKED], 60, "keep_start")
    assert cut.is_cut
    assert 55 <= len(cut.ids) <= 60
    assert cut.text.startswith("<s>[system] be kind\n[user] the film was good")
    assert cut.text.endswith("\n[assistant] ")
    assert encoder.prompts([Text(cut.text, is_rendered=True)]) == [cut.ids]


def test_keep_end_drops_whole_turns_first_and_then_the_start_of_the_last_message(
    encoder: Encoder,
) -> None:
    whole = fitted(encoder, [SYSTEM, *EARLIER, ASKED], 999, "keep_end")
    cut = fitted(encoder, [SYSTEM, *EARLIER, ASKED], len(whole.ids) - 1, "keep_end")
    assert cut.text == f"<s>[system] be kind\n[user] {LONG}\n[assistant] "
    shorter = fitted(encoder, [SYSTEM, *EARLIER, ASKED], 50, "keep_end")
    assert len(shorter.ids) <= 50
    assert shorter.text.startswith("<s>[system] be kind\n[user] ")
    assert shorter.text.endswith("the end was great\n[assistant] ")


@pytest.mark.parametrize("policy", ["keep_start", "keep_end"])
def test_a_cut_that_leaves_no_word_of_the_question_is_refused(encoder: Encoder, policy) -> None:
    with pytest.raises(RefusedRow, match="longer than 9 tokens even without the words"):
        fitted(encoder, [SYSTEM, ASKED], 9, policy)


def test_completion_policies(encoder: Encoder) -> None:
    ids = encoder.finished(encoder.continuations([" good and bad"])[0])
    assert fit_completion(ids, len(ids), "quarantine") == ids
    assert fit_completion(ids, len(ids) - 1, "keep_start") == ids[:-1]
    assert EOS not in fit_completion(ids, 2, "keep_start")
    with pytest.raises(RefusedRow):
        fit_completion(ids, 2, "quarantine")
    with pytest.raises(DataError):
        fit_completion(ids, 2, "error")


def test_cut_prompts_are_counted_where_a_policy_cuts(tokenizer) -> None:
    rows = [{"messages": [ASKED]}, {"prompt": LONG}, {"prompt": "short"}]
    section = PromptsConfig(path="x", max_prompt_tokens=30, too_long="keep_start")
    assert counts_of(prompt_parts, section, rows, tokenizer)["cut_prompts"] == 2
    quarantined = section.model_copy(update={"too_long": "quarantine"})
    assert "cut_prompts" not in counts_of(prompt_parts, quarantined, rows, tokenizer)


def test_cut_prompts_and_completions_of_preferences_are_counted(tokenizer) -> None:
    rows = [
        {"prompt": LONG, "chosen": " good", "rejected": " bad"},
        {"prompt": "short", "chosen": " good", "rejected": f" bad {LONG}"},
    ]
    section = PreferencesConfig(
        path="x",
        max_prompt_tokens=30,
        max_completion_tokens=30,
        too_long_prompt="keep_end",
        too_long_completion="keep_start",
    )
    counts = counts_of(preference_parts, section, rows, tokenizer)
    assert [counts[name] for name in ("cut_prompts", "completions", "cut_completions")] == [1, 4, 1]


def counts_of(make_parts: Any, section: Any, rows: list[Any], tokenizer: Any) -> dict[str, int]:
    given = [SourceRow(i, row, None) for i, row in enumerate(rows)]
    (part,) = make_parts(section, given, tokenizer, 64)
    return part.counts


def test_a_share_above_five_percent_is_warned_of() -> None:
    assert cut_warnings({"output": 100, "cut_prompts": 5, "cut_at_max_tokens": 0}) == []
    (line,) = cut_warnings({"output": 100, "cut_prompts": 6})
    assert line.startswith("6% of the prompts were cut to their longest length (6 of 100)")
    (line,) = cut_warnings({"output": 10, "completions": 20, "cut_completions": 20})
    assert line.startswith("100% of the completions were cut to their longest length")
    (line,) = cut_warnings({"output": 8, "cut_at_max_tokens": 8})
    assert line.startswith("100% of the completions ran into the token limit")
    assert cut_warnings({"output": 0, "cut_prompts": 0}) == []


def job(model: Path, data: Path, policy: str) -> Config:
    source = {"path": str(data), "max_prompt_tokens": 30, "too_long": policy}
    return Config.model_validate({"name": "job", "model": str(model), "prompts": source})


def test_the_check_counts_cuts_and_warns(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} {LONG}"}) + "\n" for i in range(4)))
    facts = "\n".join(check(job(tiny_model, data, "keep_start")).facts)
    assert "cut_prompts 4" in facts
    assert "  warning: 100% of the prompts were cut to their longest length (4 of 4)" in facts


def test_only_tables_that_cut_depend_on_how_it_is_done(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": LONG}))

    def settings(policy: str) -> dict[str, Any]:
        config = job(tiny_model, data, policy)
        assert config.prompts is not None
        return prompts_stage(config, config.prompts, Place(Folder(str(tmp_path)), "test")).settings

    assert "cuts_of_conversations" in settings("keep_start")
    assert "cuts_of_conversations" not in settings("quarantine")
