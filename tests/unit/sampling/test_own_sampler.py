"""What a sampler function from outside of raydpo is called with, and what it may return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.config.sampling import SAMPLER_SETTINGS
from raydpo.core.errors import ConfigError, DataError
from raydpo.sampling.engine import Completion, Refusal
from raydpo.sampling.own_sampler import load_sampler
from raydpo.sampling.received import Receiver

SOURCE = """
import numpy as np

def one(ids): return {"token_ids": ids, "finish_reason": "length"}
def plain(prompt_ids, candidates): return [[one([5, 6])] * candidates for _ in prompt_ids]
def arrays(prompt_ids, seeds):
    return [[{"token_ids": np.array([5, s]), "logprobs": np.array([-1.0, 0.0], np.float32),
              "finish_reason": "stop"} for s in k] for k in seeds]
def optional(prompts, seeds, temperature, word="no"):
    return [[{"text": f"{p} {temperature} {word}", "finish_reason": "length"}] * 2 for p in prompts]
def anything(**given): return plain(given["prompt_ids"], given["candidates"])
def short(prompt_ids, candidates): return [[one([5])]] * len(prompt_ids)
def fewer(prompt_ids, candidates): return []
def nothing(prompt_ids, candidates): return [None] * len(prompt_ids)
def odd(prompt_ids, candidates):
    if [2] in prompt_ids: raise KeyError("odd")
    return plain(prompt_ids, candidates)
def broken(prompt_ids, candidates): raise KeyError("all")
def no_prompts(seeds): return []
def no_count(prompt_ids): return []
def asks(prompt_ids, seeds, tokenizer): return []
async def awaited(prompt_ids, seeds): return []
WHAT = None
def returns(prompt_ids, candidates): return [[WHAT] * candidates for _ in prompt_ids]
"""


def sampled(
    path: str, options: tuple[str, ...] = (), some: bool = False, **given: Any
) -> list[Any]:
    values = {
        **dict.fromkeys(SAMPLER_SETTINGS),
        "prompts": ["a", "b"],
        "prompt_ids": [[1], [2]],
        "seeds": [[10, 11], [20, 21]],
        "model": "folder",
        "candidates": 2,
        "temperature": 0.5,
        **given,
    }
    return load_sampler(path, options).sample(values, some)


def test_it_is_given_what_it_names(module: str) -> None:
    cut = {"token_ids": [5, 6], "finish_reason": "length"}
    assert sampled(f"{module}:plain") == [{"completions": [cut] * 2}] * 2
    assert sampled(f"{module}:anything") == sampled(f"{module}:plain")
    found = sampled(f"{module}:arrays")
    assert [c["token_ids"] for c in found[1]["completions"]] == [[5, 20], [5, 21]]
    assert found[0]["completions"][0]["logprobs"] == [-1.0, 0.0]
    texts = sampled(f"{module}:optional", ("word",), word="yes")
    assert texts[0]["completions"][0]["text"] == "a 0.5 yes"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("no_prompts", (), "would not know what to complete"),
        ("no_count", (), "would not know how many completions"),
        ("awaited", (), "is a coroutine function"),
        ("asks", (), "its parameter `tokenizer`"),
        ("plain", ("word",), "takes no option `word`"),
        ("absent", (), "has no 'absent'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(
    module: str, name: str, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_sampler(f"{module}:{name}", options)
    assert said in str(refused.value)


@pytest.mark.parametrize("path", ["os:system", "random:choices"])
def test_functions_of_pythons_own_library_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="of Python's own library"):
        load_sampler(path, ())


def test_a_prompt_without_k_completions_is_refused_with_the_reason(module: str) -> None:
    assert sampled(f"{module}:short") == ["the sampler function returned 1 completions of 2"] * 2
    assert "returned None, not a list" in sampled(f"{module}:nothing")[0]
    with pytest.raises(DataError, match=r"returned 0 entries \(list\) for 2 prompts"):
        sampled(f"{module}:fewer")


def test_a_prompt_for_which_it_raises_is_refused_alone(module: str) -> None:
    first, second = sampled(f"{module}:odd")
    assert isinstance(first, dict)
    assert second.startswith("the sampler function raised KeyError: 'odd' at ")
    with pytest.raises(DataError, match="raised KeyError: 'all'"):
        sampled(f"{module}:broken")
    assert all(isinstance(one, str) for one in sampled(f"{module}:broken", some=True))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a text", "is 'a text', not a mapping"),
        ({"token_ids": [1]}, "the finish_reason None, neither"),
        ({"finish_reason": "stop"}, "needs either token_ids or text"),
        ({"token_ids": [1], "text": "x", "finish_reason": "stop"}, "needs either"),
        ({"token_ids": [1.5], "finish_reason": "stop"}, "not a list of integers"),
        ({"token_ids": [True], "finish_reason": "stop"}, "not a list of integers"),
        ({"token_ids": [1], "logprobs": [], "finish_reason": "stop"}, "0 logprobs for 1"),
        ({"token_ids": [1], "logprobs": [0.5], "finish_reason": "stop"}, "the log-prob 0.5"),
        ({"token_ids": [1], "logprobs": [float("nan")], "finish_reason": "stop"}, "log-prob nan"),
        ({"text": "x", "logprobs": [-1.0], "finish_reason": "stop"}, "logprobs of a text"),
        ({"text": "x", "reason": "stop"}, "has 'reason', which is none of"),
    ],
)
def test_a_completion_that_cannot_be_used_refuses_its_prompt(
    module: str, what: Any, said: str
) -> None:
    import sys

    sampled(f"{module}:plain")
    sys.modules[module].WHAT = what  # type: ignore[attr-defined]
    [first, _] = sampled(f"{module}:returns")
    assert said in first, first


@pytest.fixture(scope="module")
def received(tiny_model: Path) -> Any:
    """Checks completions after the prompt "<s> the film" by the tiny model's tokenizer."""

    def check(*completions: Any, **settings: Any) -> list[Completion] | Refusal:
        sampling = SamplingConfig(**{"max_completion_tokens": 6, **settings})
        receiver = Receiver.of(ModelConfig(path=str(tiny_model)), sampling)
        prompt = receiver.encoder.tokenizer(" the film")["input_ids"]
        return receiver.received(prompt, {"completions": list(completions)})

    return check


#: A sampler function that says that it gives log-probs.
OWES = {"path": "a.b:c", "returns_logprobs": True}


def ids(text: str, tiny_model: Path) -> list[int]:
    from raydpo.models.loading import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts_are_tokenized_as_the_data_is(received: Any, tiny_model: Path) -> None:
    was = ids(" was good", tiny_model)
    cut, finished = received(
        {"text": " was good", "finish_reason": "length"},
        {"text": " was good", "finish_reason": "stop"},
    )
    assert (cut.token_ids, finished.token_ids) == (was, [*was, 2])
    assert cut.text == finished.text == " was good"
    assert finished.token_logps is None


def test_ids_keep_what_ended_them_and_the_text_does_not(received: Any, tiny_model: Path) -> None:
    ended = [*ids(" was good", tiny_model), 2]
    [one] = received({"token_ids": ended, "logprobs": [-1.0] * len(ended), "finish_reason": "stop"})
    assert (one.token_ids, one.text) == (ended, " was good")
    assert one.token_logps == [-1.0] * len(ended)
    at = ids(" was good and", tiny_model)
    [stopped] = received({"token_ids": at, "finish_reason": "stop"}, stop=(" and",))
    assert (stopped.token_ids, stopped.text) == (at, " was good")


@pytest.mark.parametrize(
    ("completion", "settings", "said"),
    [
        ({"token_ids": [5, 6], "finish_reason": "stop"}, {}, "its last token 6 is no end token"),
        ({"token_ids": [5, 6], "finish_reason": "stop"}, {"stop": ("zz",)}, "holds no string"),
        ({"token_ids": [5, 2, 0], "finish_reason": "stop"}, {}, "goes on after the end token 2"),
        ({"token_ids": [5, 2], "finish_reason": "length"}, {}, "its finish_reason is 'stop'"),
        ({"token_ids": [5, 99999], "finish_reason": "length"}, {}, "has the token 99999"),
        ({"token_ids": [5, -1], "finish_reason": "length"}, {}, "has the token -1"),
        ({"token_ids": [5] * 7, "finish_reason": "length"}, {}, "has 7 tokens (sampling.max"),
        ({"token_ids": [5, 2], "finish_reason": "stop"}, {"min_completion_tokens": 3}, "has 2 tok"),
        ({"token_ids": [], "finish_reason": "length"}, {}, "has no tokens"),
        ({"token_ids": [1, 5], "finish_reason": "length"}, {}, "begins with the token that begins"),
        ({"text": "x", "finish_reason": "stop"}, {"stop": ("zz",)}, "return token_ids, which show"),
        ({"text": " good", "finish_reason": "length"}, {"function": OWES}, "has no `logprobs`"),
        ({"token_ids": [5, 2], "finish_reason": "stop"}, {"function": OWES}, "has no `logprobs`"),
    ],
)
def test_a_completion_that_no_model_made_is_refused(
    received: Any, completion: Any, settings: Any, said: str
) -> None:
    found = received(completion, **settings)
    assert isinstance(found, Refusal)
    assert found.reason.startswith("completion 0 of the sampler function ")
    assert said in found.reason
