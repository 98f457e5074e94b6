"""Malformed configurations: YAML texts, values and overrides."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from raydpo.config.file import config_from_values, config_to_yaml, load_config
from tests.fuzz.fuzzing import Fuzz, allowed

pytestmark = pytest.mark.thorough

JOB = """
name: reviews
model: {path: assets/review-lm, pad_token: "<unk>"}
prompts: {path: prompts.jsonl, max_prompt_tokens: 64, too_long: keep_end}
sampling: {candidates: 4, temperature: 1.0, stop: [a, b], engines: {count: 1, cpus: 0.5}}
labeling:
  reward: [{classifier: assets/sentiment, label: positive}, {function: "a:b", weight: 0.5}]
  pairs: {builder: all_pairs, min_margin: 0.1}
reference: {model: other}
training:
  objective: {name: sum, terms: [{weight: 2, objective: {name: dpo, beta: 0.1}}, {objective: ipo}]}
  lora: {rank: 8, target_modules: [q_proj]}
  num_workers: [1, 2]
  adam_betas: [0.9, 0.999]
  learning_rate: 1.0e-4
evaluation: {prompts: heldout.jsonl, judge: {classifier: assets/judge, label: positive}}
online: {rounds: 2, replay: {share: 0.2}, stopping: {max_kl_nats: 3}}
"""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, -(2**64), 10**400]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\ud800", "~nobody/x", "[z-a]*", "s3://", "://", "a" * 5000]),
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
#: Pieces that mean something to YAML.
PIECES = st.lists(
    st.one_of(
        st.sampled_from([*"[]{}&*!|>%@`'\"#?:-,\n\t \0", ": ", "- ", "\n  ", "<<: ", "&a ", "*a"]),
        st.sampled_from(
            ["name", "model", "seed", "yes", "1e400", "0x", "0b_", "2024-99-99", "1:60"]
        ),
        st.text(max_size=4),
    ),
    max_size=30,
).map("".join)


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a configuration a value stands."""
    keys = list(values) if isinstance(values, dict) else range(len(values))
    inner = [(*path, key) for key in keys]
    deeper = [p for key in keys if isinstance(values[key], dict | list)
              for p in places(values[key], (*path, key))]  # fmt: skip
    return [*inner, *deeper]


def with_value(place: tuple[Any, ...], value: Any, key: str | None) -> dict[str, Any]:
    """The job with one value replaced, or with one key more beside it."""
    values: Any = copy.deepcopy(yaml.safe_load(JOB))
    holder = values
    for step in place[:-1]:
        holder = holder[step]
    if key is not None and isinstance(holder, dict):
        holder[key] = value
    else:
        holder[place[-1]] = value
    return values


def test_fuzz_yaml_texts(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"

    def load(text: str) -> None:
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        allowed(load_config, file)

    lines = JOB.splitlines()
    mixed = st.builds(
        lambda at, piece: "\n".join([*lines[:at], piece, *lines[at:]]),
        st.integers(0, len(lines)),
        PIECES,
    )
    cut = st.integers(0, len(JOB)).map(lambda at: JOB[:at])
    fuzz(load, st.one_of(PIECES, mixed, cut, st.text()), 60)


def test_fuzz_values_of_every_key(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"

    def check(values: dict[str, Any]) -> None:
        config = allowed(config_from_values, values, "job.yaml")
        if config is not None:
            file.write_text(config_to_yaml(config), encoding="utf-8")
            assert load_config(file) == config

    where = st.sampled_from(places(yaml.safe_load(JOB)))
    keys = st.none() | st.sampled_from(
        ["path", "name", "label", "seed", "limit", "x", "\ud800", ""]
    )
    fuzz(check, st.builds(with_value, where, VALUES, keys), 80)


def test_fuzz_overrides(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    keys = [".".join(map(str, place)) for place in places(yaml.safe_load(JOB))]
    override = st.builds(
        lambda key, text: f"{key}={text}",
        st.one_of(st.sampled_from(keys), st.text(max_size=10), PIECES),
        st.one_of(PIECES, st.text(max_size=20)),
    )
    fuzz(lambda given: allowed(load_config, file, given), st.lists(override, max_size=3), 50)
