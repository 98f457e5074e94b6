"""Rewards of a classifier are those of plain transformers calls, one text at a time."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError, ModelError
from raydpo.labeling.classifier import (
    encode,
    judge_with_classifier,
    label_index,
    load_classifier,
    rewards_from_logits,
)
from raydpo.labeling.rewards import Refusal
from raydpo.labeling.stage import scorer_inputs
from tests.conftest import make_tokenizer

PROMPTS = ["the film", "the plot was", "the film", "not", "the plot"]
COMPLETIONS = [
    "was good",
    "not very very very good",
    "bad",
    "good good good good good good good",
    "was not bad",
]


def plain_logits(folder, texts: list[str]) -> torch.Tensor:
    """[texts, labels], each text alone and unpadded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows).double()


def judge(folder, prompts=PROMPTS, completions=COMPLETIONS, **reward):
    config = RewardConfig(classifier=str(folder), **reward)
    return judge_with_classifier(load_classifier(config), prompts, completions)


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("label", ["pos", 2])
def test_log_odds_are_those_of_transformers_in_the_order_of_the_input(
    make_classifier, batch_size, label
):
    folder = make_classifier()
    judged = judge(folder, label=label, input="completion", batch_size=batch_size)
    p = plain_logits(folder, COMPLETIONS).softmax(-1)[:, 2]
    assert judged.values == pytest.approx((p / (1 - p)).log().tolist(), abs=1e-5)
    assert max(judged.values) - min(judged.values) > 0.1  # the order would show


def test_probability_and_logit(make_classifier):
    folder = make_classifier()
    logits = plain_logits(folder, COMPLETIONS)
    given = {
        output: judge(folder, label="neg", output=output, input="completion").values
        for output in ("probability", "logit")
    }
    assert given["probability"] == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-6)
    assert given["logit"] == pytest.approx(logits[:, 0].tolist(), abs=1e-5)


def test_prompt_and_completion_are_read_as_one_text(make_classifier):
    folder = make_classifier()
    prompts = [prompt + " " for prompt in PROMPTS]
    judged = judge(folder, prompts=prompts, label="pos", output="logit")
    texts = [p + c for p, c in zip(prompts, COMPLETIONS, strict=True)]
    assert judged.values == pytest.approx(plain_logits(folder, texts)[:, 2].tolist(), abs=1e-5)


def test_a_model_with_one_output_needs_no_label(make_classifier):
    folder = make_classifier(("reward",))
    logits = plain_logits(folder, COMPLETIONS)[:, 0]
    assert judge(folder, input="completion").values == pytest.approx(logits.tolist(), abs=1e-5)
    assert judge(folder, input="completion", output="probability").values == pytest.approx(
        logits.sigmoid().tolist(), abs=1e-6
    )


def test_labels_that_do_not_exclude_each_other_have_sigmoids_of_their_own(make_classifier):
    folder = make_classifier(problem_type="multi_label_classification")
    logits = plain_logits(folder, COMPLETIONS)[:, 1]
    assert judge(folder, label="neutral", input="completion").values == pytest.approx(
        logits.tolist(), abs=1e-5
    )


def test_log_odds_stay_exact_where_probabilities_round_to_one():
    logits = torch.tensor([[200.0, -100.0, 3.0], [0.0, math.log(3.0), -torch.inf]])
    rewards = rewards_from_logits(logits, 0, "log_odds", independent=False)
    assert rewards.tolist() == pytest.approx([197.0, -math.log(3.0)], rel=1e-6)
    assert rewards_from_logits(logits, 0, "probability", independent=False)[0] == 1.0


@pytest.mark.parametrize("label", ["positive", 3, -1, None, "POS"])
def test_an_unknown_label_is_an_error_that_lists_the_labels(make_classifier, label):
    reward = RewardConfig(classifier=str(make_classifier()), label=label)
    with pytest.raises(ConfigError, match=r"0 \(neg\), 1 \(neutral\), 2 \(pos\)"):
        label_index(reward)


def test_texts_that_are_too_long_are_cut_and_counted(make_classifier):
    folder = make_classifier()
    long = " ".join(["good"] * 10 + ["bad"] * 10)
    completions = [long, "was good", long]
    judged = judge(
        folder, ["not"] * 3, completions, label="pos", output="logit", input="completion"
    )
    assert judged.truncated == 2
    start = " ".join(["good"] * 10 + ["bad"] * 5)  # 15 words and [CLS] are the model's 16
    expected = plain_logits(folder, [start, "was good", start])[:, 2]
    assert judged.values == pytest.approx(expected.tolist(), abs=1e-5)


def test_of_a_prompt_with_its_completion_the_end_is_kept(make_classifier):
    reward = RewardConfig(classifier=str(make_classifier()), label="pos")
    classifier = load_classifier(reward)
    (ids,), truncated = encode(classifier, [" ".join(["bad"] * 20 + ["good"] * 3)])
    assert truncated == 1
    assert classifier.tokenizer.convert_ids_to_tokens(ids) == (
        ["[CLS]"] + ["bad"] * 12 + ["good"] * 3
    )


def save_decoder(folder, kind, tokenizer, **values):
    """A random decoder classifier of small size, with a tokenizer, in a folder."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), num_labels=1, initializer_range=0.3, **size, **values
    )
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rewards_at_last_tokens(folder, texts: list[str]) -> list[float]:
    """Each text alone, read at its last token whatever that token is."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        hidden = [model.base_model(input_ids=one).last_hidden_state[0, -1] for one in ids]
        return [model.score(one).item() for one in hidden]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma", "gpt_neox", "opt"])
def test_a_decoder_reads_the_last_token_of_each_text_in_a_batch(tmp_path, kind):
    heads = {"num_key_value_heads": 2, "head_dim": 16} if kind in ("qwen2", "gemma") else {}
    save_decoder(tmp_path, kind, make_tokenizer(), pad_token_id=0, **heads)
    expected = rewards_at_last_tokens(tmp_path, COMPLETIONS)
    assert max(expected) - min(expected) > 0.01
    assert judge(tmp_path, input="completion").values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("configured", [None, "d", "</s>"])
def test_the_padding_token_of_a_config_moves_no_reward(tmp_path, configured):
    """transformers reads a text up to the last token that is not `config.pad_token_id`."""
    tokenizer = make_tokenizer()
    pad = None if configured is None else tokenizer.convert_tokens_to_ids(configured)
    save_decoder(tmp_path, "llama", tokenizer, pad_token_id=pad)
    texts = ["was good</s>", "bad", "not very very good d", "a film</s></s>"]
    expected = rewards_at_last_tokens(tmp_path, texts)
    judged = judge(tmp_path, [""] * 4, texts, input="completion")
    assert judged.values == pytest.approx(expected, abs=1e-4)


def test_scores_of_classifiers_that_were_read_otherwise_are_stale(tmp_path):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    yarn["original_max_position_embeddings"] = 128
    values = {"as before": {}, "other": {"pad_token_id": 5}, "yarn": {"rope_parameters": yarn}}
    marks = {}
    for name, changed in values.items():
        keys = {"pad_token_id": 0, "max_position_embeddings": 128, **changed}
        save_decoder(tmp_path / name, "llama", make_tokenizer(), **keys)
        reward = RewardConfig(classifier=str(tmp_path / name), name="r")
        marks[name] = scorer_inputs((reward,)).keys() - {"weights of r", "tokenizer of r"}
    assert marks == {"as before": set(), "other": {"last token of r"}, "yarn": {"context of r"}}


def test_a_classifier_without_a_padding_token_has_the_rewards_of_single_texts(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    save_decoder(tmp_path, "llama", tokenizer, pad_token_id=None)
    expected = rewards_at_last_tokens(tmp_path, COMPLETIONS)
    assert judge(tmp_path, input="completion").values == pytest.approx(expected, abs=1e-4)


def test_a_model_that_padding_disturbs_reads_one_text_at_a_time(tmp_path, caplog):
    from transformers import XLNetConfig, XLNetForSequenceClassification

    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = XLNetConfig(
        vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=32, num_labels=1,
        initializer_range=0.3,
    )  # fmt: skip
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)  # it reads the last column
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level("WARNING", "raydpo"):
        judged = judge(tmp_path, input="completion")
    assert "one at a time" in caplog.text
    expected = plain_logits(tmp_path, COMPLETIONS)[:, 0]
    assert judged.values == pytest.approx(expected.tolist(), abs=1e-4)


def test_bos_stands_once(tmp_path, tiny_model):
    from transformers import AutoConfig, LlamaForSequenceClassification

    LlamaForSequenceClassification(
        AutoConfig.from_pretrained(tiny_model, num_labels=1)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    classifier = load_classifier(RewardConfig(classifier=str(tmp_path)))
    (plain, rendered), _ = encode(classifier, ["the film", "<s>the film"])
    assert rendered == plain
    assert plain.count(1) == 1


def test_a_logit_that_is_not_finite_refuses_its_text_only(make_classifier):
    folder = make_classifier()
    classifier = load_classifier(
        RewardConfig(classifier=str(folder), label="pos", input="completion")
    )
    with torch.no_grad():
        classifier.model.bert.embeddings.word_embeddings.weight[7] = float("nan")  # "bad"
    judged = judge_with_classifier(classifier, PROMPTS[:3], ["was good", "was bad", "good"])
    assert [isinstance(value, Refusal) for value in judged.values] == [False, True, False]


def test_a_text_without_tokens_is_refused(tmp_path, make_classifier):
    folder = make_classifier()
    classifier = load_classifier(
        RewardConfig(classifier=str(folder), label="pos", input="completion")
    )
    classifier.tokenizer.backend_tokenizer.post_processor = None
    classifier.tokenizer.backend_tokenizer.no_truncation()
    judged = judge_with_classifier(classifier, ["", ""], ["", "good"])
    assert judged.values[0] == Refusal("the text has no tokens")
    assert isinstance(judged.values[1], float)


def test_no_texts_give_no_rewards(make_classifier):
    assert judge(make_classifier(), [], [], label="pos").values == []


def test_code_that_a_model_brings_is_refused(make_classifier):
    folder = make_classifier()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "m.M"}}))
    with pytest.raises(ModelError, match="auto_map"):
        load_classifier(RewardConfig(classifier=str(folder), label="pos"))
    with pytest.raises(ModelError, match="auto_map"):
        label_index(RewardConfig(classifier=str(folder), label="pos"))


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="no such folder"):
        label_index(RewardConfig(classifier="./no/such/classifier", label="pos"))
