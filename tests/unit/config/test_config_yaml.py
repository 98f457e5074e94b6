"""The parser refuses YAML that it would read as something else, and never runs away."""

from __future__ import annotations

import pytest

from raydpo.config.yaml_text import override_value, yaml_values
from raydpo.core.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "/models/my model (v2) ü #1 50%",
        "*.jsonl",
        "a: b",
        "@x",
        "`x",
        "%x",
        "&x",
        "!x",
        "s3://a#b",
        "2024-13-45",
        "it's",
        "0b_",
    ],
)
def test_an_override_of_plain_text_is_that_text_to_its_last_character(text) -> None:
    assert override_value(text, "--set") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("true", True),
        ("", None),
        ("4", 4),
        ("'4'", "4"),
        ('"a #1"', "a #1"),
        ("[a, b]", ["a", "b"]),
        ("{name: ipo, tau: 0.2}", {"name": "ipo", "tau": 0.2}),
    ],
)
def test_an_override_has_the_types_of_yaml(text, value) -> None:
    assert override_value(text, "--set") == value


@pytest.mark.parametrize("text", ["{a", "[a", '"a', "[v1] model", "{a: 1, a: 2}", "[*a]"])
def test_an_override_that_is_no_yaml_says_so(text) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override_value(text, "--set model")


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bomb(9), r"unfolds into 1,234,567,\d+ values"),
        ("a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60)), "nests"),
        ("a: &a [*a]", "nests more than 40 levels"),
        ("[" * 41 + "]" * 41, "nests more than 40 levels"),
        ("{" * 5000, "nests more than 40 levels"),
        ("seed: 1\nname: a\nseed: 2", "line 3: the key 'seed' stands twice"),
        ("name: [", "is not YAML, line 1"),
        ("day: 2024-13-45", "cannot be read: month must be in"),
        ("a: 0b_", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: \x07", "is not YAML"),
        ("? [a]\n: b", "is not YAML"),
        ("a: !!python/object/apply:os.system [x]", "is not YAML"),
        ("a: 1\n--- \nb: 2", "is not YAML"),
    ],
    ids=range(14),
)
def test_yaml_that_no_configuration_needs_is_refused(text, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        yaml_values(text, "job.yaml")


def test_aliases_and_merged_keys_stay_in_use() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}"
    assert yaml_values(text, "job.yaml")["c"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_depth_is_refused_before_anything_is_made_of_it(text: str) -> None:
    with pytest.raises(ConfigError, match="nests more than 40 levels"):
        yaml_values(text, "job.yaml")


@pytest.mark.thorough
def test_too_many_values_are_refused_as_they_are_read() -> None:
    with pytest.raises(ConfigError, match="more than 20,000 values"):
        yaml_values("[" + "1, " * 200_000 + "1]", "job.yaml")
