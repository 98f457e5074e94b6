"""Parse the YAML of configurations into plain values, or raise an error that names the line.

The text is that of a file, or the value of an override. The parser refuses two features of YAML
that lose something: duplicate keys, and aliases that expand into more than anybody wrote.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from raydpo.core.errors import ConfigError

#: Maximum number of values in a file; an alias counts each time it is used. The longest shipped job
#: has 60.
_MOST_NODES: Final = 20_000
#: Maximum depth of lists and mappings; a sum of objectives has 6 levels.
_MOST_LEVELS: Final = 40
#: First characters of an override that is more than a plain word or number in YAML.
_STRUCTURED: Final = ("[", "{", '"', "'")


class _Loader(yaml.SafeLoader):
    """A loader of YAML 1.1 that also reads numbers such as `1e-4`, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def yaml_values(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: the YAML.
        where: what the text is, for the message.

    Raises:
        ConfigError: the text is not YAML, or contains something that no configuration needs.
    """
    try:
        return _constructed(text, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise _not_yaml(f"{where} is not YAML{place}: {problem}") from error
    # Numbers and dates may match YAML's patterns although Python cannot read them.
    except (ValueError, OverflowError) as error:
        raise _not_yaml(f"{where} has a value that cannot be read: {error}") from error
    except RecursionError as error:
        raise _too_deep(where) from error


def override_value(text: str, where: str) -> Any:
    """Return the value of `--set key=TEXT`.

    A list, a mapping and a text in quotes are YAML. Everything else is one number, boolean, null,
    or a text to its last character, because a file may be called `a #1` or `*.jsonl`.

    Raises:
        ConfigError: the text begins as YAML, but is not valid YAML.
    """
    text = text.strip()
    if text.startswith(_STRUCTURED):
        return yaml_values(text, where)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, ValueError, OverflowError):
        return text  # such as the date 2024-13-45


def _not_yaml(value: str) -> ConfigError:
    return ConfigError(
        value,
        "the configuration is YAML",
        "fix that place; put a text with special characters in quotes",
    )


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        f"{where} nests more than {_MOST_LEVELS} levels",
        f"a configuration has at most {_MOST_LEVELS} levels of lists and mappings",
        "take out brackets that were not meant",
    )


def _constructed(text: str, where: str) -> Any:
    _check_events(text, where)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, where)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_events(text: str, where: str) -> None:
    """Check a text against the limits while reading it, before any of its nodes exist.

    Raises:
        ConfigError: the text is nested too deeply or has too many values.
    """
    level = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
        if level > _MOST_LEVELS:
            raise _too_deep(where)
        if count > 2 * _MOST_NODES:
            raise _too_many(where, f"more than {_MOST_NODES:,}")


def _too_many(where: str, size: str) -> ConfigError:
    return ConfigError(
        f"{where} unfolds into {size} values",
        f"a configuration has at most {_MOST_NODES:,}, an alias counted wherever it is used",
        "write out what its aliases (*name) stand for",
    )


def _check_nodes(root: yaml.Node, where: str) -> None:
    """Check a document against the limits, visiting each node once.

    Raises:
        ConfigError: the document is too deep or too large, contains itself, or repeats a key.
    """
    known: dict[int, tuple[int, int]] = {}

    def measured(node: yaml.Node, level: int) -> tuple[int, int]:
        """Return how many values the node expands into, and how many levels it has."""
        if level > _MOST_LEVELS:  # a node that contains itself also gets here
            raise _too_deep(where)
        if id(node) not in known:
            _check_keys(node, where)
            inner = [measured(one, level + 1) for one in _inner(node)]
            levels = 1 + max((levels for _, levels in inner), default=0)
            known[id(node)] = 1 + sum(size for size, _ in inner), levels
        return known[id(node)]

    size, levels = measured(root, 0)
    if levels > _MOST_LEVELS:
        raise _too_deep(where)
    if size > _MOST_NODES:
        raise _too_many(where, f"{size:,}")


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_keys(node: yaml.Node, where: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            raise ConfigError(
                f"{where}, line {key.start_mark.line + 1}: the key {key.value!r} stands twice",
                "a key occurs once in its section: YAML would silently take the last one",
                "remove one of the two",
            )
        seen.add(key.value)
