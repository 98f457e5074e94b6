"""Call a sampler function of the user's own in the process that imported it.

For each prompt, the function at the import path `package.module:name` gives K completions.
Otherwise the module gives the reason why there are none. It imports no torch, no Arrow and no Ray.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from raydpo.config.sampling import PER_PROMPT, SAMPLER_SETTINGS
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.own_calls import batch_or_rows
from raydpo.core.own_functions import import_function, raised, taken_names

#: Parameters that a sampler may take by name.
GIVEN: Final = (*PER_PROMPT, "model", *SAMPLER_SETTINGS)
WHAT: Final = "sampler function"
OWED: Final = (
    "a sampler is `def sample(prompt_ids, seeds, model, ...)`: it may take `prompts`, `prompt_ids`, "
    "`seeds`, `model`, the settings of `sampling` by their names, and its `options`; it returns for "
    "each prompt a list of `candidates` completions, each a mapping of `token_ids` (or `text`), "
    "`finish_reason` ('stop' or 'length') and, where it has them, `logprobs`"
)
_KEYS: Final = frozenset({"token_ids", "text", "logprobs", "finish_reason"})
#: A log-softmax in half precision may come out a little above 0.
_LARGEST_LOGPROB: Final = 1e-2

Json = dict[str, Any]


@dataclass(frozen=True)
class OwnSampler:
    """A user's sampler with its arguments.

    Attributes:
        path: `package.module:name`, for messages.
        function: the function as the user wrote it.
        names: the names in `GIVEN` that it takes.
        options: the names of its options.
    """

    path: str
    function: Callable[..., Any]
    names: tuple[str, ...]
    options: tuple[str, ...]

    def __str__(self) -> str:
        """Describe the call in words."""
        return f"({', '.join(f'{name}=...' for name in (*self.names, *self.options))})"

    def sample(self, given: Json, some_of_many: bool) -> list[Json | str]:
        """Sample for a batch of prompts; if the function raises, for each of them alone.

        Args:
            given: values by the names of parameters; those in `PER_PROMPT` are lists with an entry
                for each prompt.
            some_of_many: whether there are others; then it is no error if it raises for all of
                these.

        Returns:
            For each prompt `{"completions": ...}` with K mappings, or the reason for none.

        Raises:
            DataError: the function raises for every prompt, or its result is not a list of that
                length.
        """
        names = (*self.names, *self.options)
        others = {name: given[name] for name in names if name not in PER_PROMPT}

        def sample(begin: int, end: int) -> list[Json | str]:
            rows = {name: given[name][begin:end] for name in self.names if name in PER_PROMPT}
            found = _entries(self.function(**rows, **others), self.path, end - begin)
            return [_completions(entry, given["candidates"]) for entry in found]

        def failed(error: BaseException) -> DataError:
            return DataError(
                f"{WHAT} {self.path!r} raised {raised(error)}",
                OWED,
                "fix that line; if a prompt has no completions, return None for it",
            )

        return batch_or_rows(
            sample,
            len(given["prompts"]),
            lambda how: f"the sampler function raised {how}",
            None if some_of_many else failed,
        )


def load_sampler(path: str, options: tuple[str, ...]) -> OwnSampler:
    """Import a sampler and determine how to call it.

    Raises:
        ConfigError: there is no such function, it needs a parameter that does not exist, or it
            takes no prompts, or nothing that says how many completions to return.
    """
    found = import_function(path, WHAT, OWED, [str(Path.cwd())])
    names = taken_names(found, path, WHAT, OWED, GIVEN, options)
    for either, why in (
        (("prompt_ids", "prompts"), "it would not know what to complete"),
        (("candidates", "seeds"), "it would not know how many completions a prompt needs"),
    ):
        if not set(either) & set(names):
            raise ConfigError(
                f"{WHAT} {path!r} takes neither `{either[0]}` nor `{either[1]}`: {why}",
                OWED,
                "add one of the two parameters",
            )
    return OwnSampler(path, found, names, options)


def _entries(result: Any, path: str, count: int) -> list[Any]:
    entries = list(cast("list[Any]", result)) if isinstance(result, list | tuple) else None
    if entries is None or len(entries) != count:
        found = f"{len(entries)} entries" if entries is not None else "no list"
        raise DataError(
            f"{WHAT} {path!r} returned {found} ({type(result).__name__}) for {count} prompts",
            OWED,
            "return a list with an entry for each prompt, in their order",
        )
    return entries


def _completions(entry: Any, count: int) -> Json | str:
    """The completions of one prompt as JSON, or the reason why they cannot be used."""
    if not isinstance(entry, list | tuple):
        return f"the sampler function returned {_shown(entry)}, not a list of completions"
    items = list(cast("list[Any]", entry))
    if len(items) != count:
        return f"the sampler function returned {len(items)} completions of {count}"
    found: list[Json] = []
    for number, item in enumerate(items):
        value = _completion(item)
        if isinstance(value, str):
            return f"completion {number} of the sampler function {value}"
        found.append(value)
    return {"completions": found}


def _completion(item: Any) -> Json | str:
    if not isinstance(item, Mapping):
        return f"is {_shown(item)}, not a mapping"
    given = {str(k): v for k, v in cast("Mapping[Any, Any]", item).items() if v is not None}
    if unknown := sorted(given.keys() - _KEYS):
        return f"has {unknown[0]!r}, which is none of {sorted(_KEYS)}"
    if given.get("finish_reason") not in ("stop", "length"):
        return f"has the finish_reason {given.get('finish_reason')!r}, neither 'stop' nor 'length'"
    if ("token_ids" in given) == ("text" in given):
        return "needs either token_ids or text"
    if "text" in given:
        if not isinstance(given["text"], str):
            return f"has {_shown(given['text'])} as its text"
        return given if "logprobs" not in given else "has logprobs of a text: return its token_ids"
    ids, logprobs = _plain(given["token_ids"]), _plain(given.get("logprobs"))
    if not isinstance(ids, list) or not all(_is_id(one) for one in ids):
        return f"has {_shown(ids)} as token_ids, not a list of integers"
    result: Json = {**given, "token_ids": [int(one) for one in ids]}
    if logprobs is None:
        return result
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        count = len(cast("list[Any]", logprobs)) if isinstance(logprobs, list) else "no list of"
        return f"has {count} logprobs for {len(ids)} token_ids"
    if not all(_is_logprob(value) for value in logprobs):
        wrong = next(value for value in logprobs if not _is_logprob(value))
        return f"has the log-prob {_shown(wrong)}, which is no finite number up to 0"
    return {**result, "logprobs": [float(value) for value in logprobs]}


def _plain(value: Any) -> Any:
    """A list in place of a tuple, an array or a tensor."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _is_id(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, numbers.Integral)


def _is_logprob(value: Any) -> bool:
    is_number = type(value) is not bool and isinstance(value, numbers.Real)
    return is_number and math.isfinite(value) and float(value) <= _LARGEST_LOGPROB


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]} ..." if len(text) > 60 else text
