"""Hash the user's own code around a function: what its results depend on.

The hashes cover the function's module, the user's own modules that it imports at any depth, and
the files that its section declares. Installed packages and Python's library are not the user's
own. The module imports and runs none of the user's code.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raydpo.core.errors import ConfigError
from raydpo.core.own_frames import is_own
from raydpo.core.storage import Folder, fingerprint, folder_of, sha256


@dataclass(frozen=True)
class OwnCode:
    """What a function's results depend on, as far as raydpo can see.

    Attributes:
        hashes: by what is hashed: the function's own module under "", `module NAME` for the
            others, `file PATH` for what is declared.
        undeclared: files that the source names and nobody declared.
    """

    hashes: dict[str, str]
    undeclared: tuple[str, ...]

    @property
    def covered(self) -> str:
        """What the hashes cover, in words."""
        others = [name for name in self.hashes if name]
        return ", ".join(["the function's own module", *others])


def own_code(module: str, file: Path | None, depends_on: tuple[str, ...]) -> OwnCode:
    """Hash the module of a function, what it imports of the user's own, and its files.

    Args:
        module: dotted name of the function's module.
        file: the module's file, or None where it has none.
        depends_on: paths or URIs of files and folders, as the configuration has them.

    Raises:
        ConfigError: a declared file is not there, or a module's source cannot be read.
    """
    files = _own_modules(module, file)
    hashes = {"": sha256(_content(files[module])) if module in files else sha256(module.encode())}
    for name, file in sorted(files.items()):
        if name != module and (content := _content(file)):  # an empty __init__.py says nothing
            hashes[f"module {name}"] = sha256(content)
    hashes |= {f"file {name}": _content_hash(path) for name, path in _short_names(depends_on)}
    return OwnCode(hashes, _undeclared(files, depends_on))


def function_hashes(path: str) -> Mapping[str, str]:
    """Hashes of the user's own modules that a function `package.module:name` is made of, for keys."""
    module = path.partition(":")[0]
    hashes = own_code(module, module_file(module), ()).hashes
    return {name or f"module {module}": value for name, value in hashes.items()}


def _own_modules(module: str, file: Path | None) -> dict[str, Path]:
    """Files of the module and of the user's own modules that it imports, by dotted name."""
    importlib.invalidate_caches()
    # raydpo's own functions stand in modules that need nothing else of it: another version of
    # another room is no other reward.
    package = module if module.startswith("raydpo.") else module.partition(".")[0]
    found: dict[str, Path] = {}
    seen: set[str] = set()
    if file is not None:
        found[module] = file
    waiting = [*_with_parents(module)[:-1], *_imported_names(module, found.get(module))]
    while waiting:
        name = waiting.pop()
        for part in _with_parents(name):
            if part in seen or part == module:
                continue
            seen.add(part)
            origin = module_file(part)
            if origin is not None and (is_own(str(origin)) or _of_package(part, package)):
                found[part] = origin
                waiting += _imported_names(part, origin)
    return found


def _of_package(name: str, package: str) -> bool:
    """Whether a module belongs to the function's package, which may be installed."""
    inside = name == package or name.startswith(f"{package}.")
    return inside and package not in sys.stdlib_module_names


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def module_file(name: str) -> Path | None:
    """The file of a module, found without importing anything; None if it has none."""
    top, *inner = name.split(".")
    if top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:  # where the function's own process looks last
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its dotted name, a folder without __init__.py is found in imported packages only.
        spec = importlib.machinery.PathFinder.find_spec(part, spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _imported_names(module: str, file: Path | None) -> list[str]:
    """Dotted names that a source file imports, at its top or inside of functions."""
    tree = _tree(file)
    is_package = file is not None and file.stem == "__init__"
    package = module if is_package else module.rpartition(".")[0]
    return [name for node in ast.walk(tree) for name in _names_of(node, package)]


def _names_of(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*(above if node.level else []), *([node.module] if node.module else [])])
        if base:
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def _tree(file: Path | None) -> ast.Module:
    """The syntax tree of a source file; an empty one if the file is not Python source."""
    if file is None or file.suffix != ".py":
        return ast.Module([], [])
    try:
        return ast.parse(_content(file))
    except (SyntaxError, ValueError):  # of a module that is imported nowhere yet
        return ast.Module([], [])


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}, which a function of the configuration imports, cannot be read: {error.strerror}",
            "what a function makes is made again when its code has changed",
            "make it readable",
        ) from error


def _short_names(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """The paths with names that do not change when the folder around them is moved."""
    names = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return [
        (name if names.count(name) == 1 else path, path)
        for name, path in zip(names, paths, strict=True)
    ]


def _content_hash(path: str) -> str:
    """Hash of a declared file, or of all files in a declared folder but for hidden ones."""
    target = folder_of(path)
    parent, _, name = target.uri.rpartition("/")
    try:
        if Folder(parent or "/").is_file(name):
            return Folder(parent or "/").sha256(name)
        shown = [n for n in target.files(recursive=True) if not _is_hidden(n)]
        if shown:
            return fingerprint({name: target.sha256(name) for name in shown})
        why = f"there is no such file, and no folder with files in it ({target.uri})"
    except OSError as error:
        why = str(error)
    raise ConfigError(
        f"depends_on {path!r}: {why}",
        "what a function reads is declared by paths of files or folders that can be read",
        "fix the path; relative ones start in the folder that the command runs in",
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in name.split("/"))


def _undeclared(files: dict[str, Path], depends_on: tuple[str, ...]) -> tuple[str, ...]:
    """Files that the sources name in a text of their own, but for those that are hashed."""
    hashed = [Path(path).expanduser().absolute() for path in depends_on if "://" not in path]
    hashed += [file.absolute() for file in files.values()]
    found: dict[str, None] = {}
    for file in files.values():
        for text in _texts(_tree(file)):
            named = [folder / text for folder in (Path.cwd(), file.absolute().parent)]
            there = next((path for path in named if path.is_file()), None)
            if there is not None and not any(there.is_relative_to(path) for path in hashed):
                found[text] = None
    return tuple(found)


def _texts(tree: ast.Module) -> Iterator[str]:
    """Texts in a source that may be a file's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if 0 < len(text) < 256 and text.isprintable() and ("." in text or "/" in text):
                yield text
