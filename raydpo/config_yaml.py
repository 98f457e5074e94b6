"""YAML of configurations: a text in, plain values out, or an error that names the line.

What comes in: the text of a file, or the value of an override. What goes out: mappings,
lists and scalars. Of YAML's surprises those that lose something are refused: keys that
stand twice, and aliases that unfold into more than anybody wrote.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from raydpo.errors import ConfigError

#: Values in a file, each alias counted as often as it is used; the longest shipped job has 60.
_MOST_NODES: Final = 20_000
#: Levels of lists and mappings; a sum of objectives has 6.
_MOST_LEVELS: Final = 40
#: What an override begins with where it is YAML of more than a plain word or number.
_STRUCTURED: Final = ("[", "{", '"', "'")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 plus numbers such as `1e-4`, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def yaml_values(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: the YAML.
        where: what it is, for the message.

    Raises:
        ConfigError: it is not YAML, or holds what no configuration needs.
    """
    try:
        return _constructed(text, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise _not_yaml(f"{where} is not YAML{place}: {problem}") from error
    # Numbers and dates that match YAML's patterns, and that Python cannot read.
    except (ValueError, OverflowError) as error:
        raise _not_yaml(f"{where} has a value that cannot be read: {error}") from error
    except RecursionError as error:
        raise _too_deep(where) from error


def override_value(text: str, where: str) -> Any:
    """The value of `--set key=TEXT`.

    A list, a mapping and a text in quotes are YAML. Everything else is one number, boolean,
    null, or a text to its last character: a file may be called `a #1` or `*.jsonl`.

    Raises:
        ConfigError: it begins as YAML, and is none.
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
        "mend that place; a text with special characters stands in quotes",
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
    """Hold a text against the limits as it is read, before a single node of it is made.

    Raises:
        ConfigError: it is too deep or has too many values.
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
    """Hold a document against the limits, each node looked at once.

    Raises:
        ConfigError: it is too deep or too large, holds itself, or a key stands twice.
    """
    known: dict[int, tuple[int, int]] = {}

    def measured(node: yaml.Node, level: int) -> tuple[int, int]:
        """How many values the node unfolds into, and how many levels."""
        if level > _MOST_LEVELS:  # a node that holds itself gets here, too
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
                "a key stands once in its section: YAML would take the last one in silence",
                "remove one of the two",
            )
        seen.add(key.value)
