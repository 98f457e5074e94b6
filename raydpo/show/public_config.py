"""Shorten what a configuration says of the machine that it ran on, for people elsewhere.

Paths become their last name, and addresses of services and clusters are left out. Names of the hub
and everything else stay. A published folder may be read by anybody, and a path tells names of
users, machines and buckets.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from raydpo.config.file import config_to_yaml
from raydpo.config.job import Config

#: Keys whose values are paths, wherever they are.
_PATHS: Final = ("path", "data", "classifier", "chat_template", "depends_on")
#: Host of a reward service in a published configuration; RFC 2606 keeps this ending unused.
_NO_HOST: Final = "service.invalid"


def public_name(path: str) -> str:
    """Return the last name of a path or URI; a name of the hub stays as it is."""
    return path.rstrip("/").rpartition("/")[2] if is_private(path) else path


def is_private(path: str) -> bool:
    """Return whether this is a path or URI, and not a name of the hub."""
    return path.startswith("/") or "://" in path


def public_config(config: Config) -> str:
    """Return the configuration as YAML, without paths and addresses of the machine it ran on."""
    values = _shortened(yaml.safe_load(config_to_yaml(config)))
    values.update(output="runs", ray_address=None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _shortened(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _shortened(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "url":
        parts = urlsplit(value)
        return f"{parts.scheme}://{_NO_HOST}{parts.path}"
    return public_name(value) if key in _PATHS else value
