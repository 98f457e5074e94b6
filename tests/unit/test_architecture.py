"""Check the direction of imports, the sizes of files and functions, and the wording of texts."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "raydpo"

HEAVY = {"torch", "ray", "vllm", "transformers", "datasets"}
STAGES = {"prompts", "sampling", "labeling", "reference", "training", "evaluation"}

#: A room imports from its own layer and from those before it.
LAYERS = [
    {"core"},
    {"config"},
    {"models"},
    {"plan"},
    STAGES,
    {"pipeline"},
    {"online"},
    {"check"},
    {"show"},
    {"cli"},
]
#: Entries that the package may have at its top.
MOST_ENTRIES = 16
#: Stage packages do not import each other, but for these.
STAGE_IMPORTS_STAGE = {
    "evaluation": {"sampling", "labeling", "reference"},
    "reference": {"training"},
    "sampling": {"prompts"},
    "labeling": {"prompts"},
}
#: Lines that a file may have.
MOST_LINES = 600
#: Ray Train around the numeric core; everything else in training/ runs without Ray.
RAY_IN_TRAINING = {
    "raydpo.training.stage",
    "raydpo.training.handover",
    "raydpo.training.placement",
    "raydpo.training.rendezvous",
    "raydpo.training.workers",
    "raydpo.training.ray_worker",
}


def modules() -> dict[str, Path]:
    """All modules of the package by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(parent: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without blocks that only type checkers read."""
    for child in ast.iter_child_nodes(parent):
        if not is_type_checking(child):
            yield child
            yield from nodes(child)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at module level and inside functions."""
    names: set[str] = set()
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """Modules of raydpo that a module imports."""
    return {name for name in imports(MODULES[module]) if name in MODULES and name != "raydpo"}


def foreign_imports(module: str) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.split(".")[0] for name in imports(MODULES[module])}


def reached(module: str) -> set[str]:
    """The module with all of raydpo that importing it may import."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += own_imports(name)
    return found


def room(module: str) -> str:
    """`training` for raydpo.training.loop, `run` for raydpo.core.run."""
    return module.split(".")[1]


def layer(module: str) -> int:
    for index, rooms in enumerate(LAYERS):
        if room(module) in rooms:
            return index
    raise AssertionError(f"{module} stands in no layer: give it one in LAYERS")


def without_root() -> list[str]:
    return [module for module in MODULES if module != "raydpo"]


def functions() -> list[tuple[str, int]]:
    """Each function of the package, with its lines but for its docstring."""
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    docstring = node.body[0]
                    lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
                found.append((f"{module}.{node.name}", lines))
    return found


@pytest.mark.parametrize("module", without_root())
def test_imports_point_down_the_layers(module: str) -> None:
    upward = {name for name in own_imports(module) if layer(name) > layer(module)}
    assert not upward, f"{module} imports from a later layer"


def test_the_package_has_few_entries_at_its_top() -> None:
    entries = [e.name for e in PACKAGE.iterdir() if not e.name.startswith("__pycache__")]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_no_import_is_circular() -> None:
    """Modules leave the graph once all that they import have left; a circle never does."""
    left = {module: own_imports(module) - {module} for module in without_root()}
    while free := {module for module, needed in left.items() if not needed & left.keys()}:
        left = {module: needed for module, needed in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("module", [m for m in without_root() if room(m) in STAGES])
def test_stage_packages_do_not_import_each_other(module: str) -> None:
    others = {room(name) for name in own_imports(module)} & STAGES - {room(module)}
    assert others <= STAGE_IMPORTS_STAGE.get(room(module), set())


@pytest.mark.parametrize(
    "name", ["core.errors", "core.tables", "core.progress", "config.job", "config.file"]
)
def test_what_everything_imports_imports_nothing_heavy(name: str) -> None:
    for module in reached(f"raydpo.{name}"):
        assert not foreign_imports(module) & HEAVY, module


@pytest.mark.thorough
@pytest.mark.parametrize(
    "core",
    [
        *(m for m in MODULES if m.startswith("raydpo.training.") and m not in RAY_IN_TRAINING),
        "raydpo.reference.scoring",
    ],
)
def test_the_numeric_core_runs_without_ray_and_vllm(core: str) -> None:
    for module in reached(core):
        assert not foreign_imports(module) & {"ray", "vllm"}, f"{core} reaches {module}"


@pytest.mark.thorough
def test_the_pipeline_is_imported_by_the_command_line_only() -> None:
    importers = {m for m in without_root() if "raydpo.pipeline.job" in own_imports(m)}
    assert "raydpo.cli" in importers
    assert importers <= {"raydpo.cli", "raydpo.pipeline.dry_run"}


def test_the_command_line_is_imported_by_jobs_only() -> None:
    assert [m for m in without_root() if "raydpo.cli" in own_imports(m)] == []


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from raydpo.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "usage: raydpo" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_functions_are_short() -> None:
    sizes = [lines for _, lines in functions()]
    assert statistics.median(sizes) <= 12
    assert statistics.quantiles(sizes, n=10)[-1] <= 30


def test_no_function_is_long() -> None:
    assert [(name, lines) for name, lines in functions() if lines > 60] == []


@pytest.mark.parametrize("folder", ["raydpo", "jobs", "tests"])
def test_files_are_short(folder: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lengths
    too_long = {p: n for p, n in lengths.items() if n > MOST_LINES}
    assert too_long == {}


def test_no_two_test_files_have_one_name() -> None:
    """Folders of tests are no packages, so pytest cannot tell such files apart."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, files in names.items() if files > 1] == []


def test_unit_tests_stand_in_the_rooms_of_what_they_test() -> None:
    """Tests of what belongs to no room, such as documents, stand beside this file."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")}
    assert folders <= {".", "jobs", *rooms}
    of_rooms = {f"test_{path.stem}.py" for path in PACKAGE.glob("*/*.py")}
    assert of_rooms & {path.name for path in unit.glob("test_*.py")} == set()


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module: str) -> None:
    missing = []
    body = tree(MODULES[module])
    if ast.get_docstring(body) is None:
        missing.append("the module")
    definitions = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in body.body:
        if not isinstance(node, definitions) or node.name.startswith("_"):
            continue
        inner = node.body if isinstance(node, ast.ClassDef) else []
        for item in [node, *inner]:
            if (
                isinstance(item, definitions)
                and not item.name.startswith("_")
                and ast.get_docstring(item) is None
            ):
                missing.append(item.name)
    assert missing == []


def test_no_module_is_called_utils() -> None:
    assert [m for m in MODULES if m.split(".")[-1] in {"utils", "util", "helpers", "misc"}] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/integration").glob("test_*.py")), ids=lambda path: path.stem
)
def test_every_integration_test_is_slow(path: Path) -> None:
    """`make test` runs the fast tests outside that folder, then the slow ones: no others are left."""
    assert re.search(r"^pytestmark = \[?pytest\.mark\.slow", path.read_text(), re.MULTILINE)


#: Formulas and words that English texts of this project do without, and what to write instead.
BANNED_WORDS = {
    r"What comes in\b": "say in a sentence what the module takes",
    r"What goes out\b": "say in a sentence what the module gives",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:hold|holds|held|holding) (?:\w+ ){0,3}against\b": "compare ... with",
}


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Each text of a file with its line: docstrings and strings of Python, all of Markdown."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


@pytest.mark.parametrize("room", ["raydpo", "jobs", "tests", "docs", "deploy", "."])
def test_texts_use_plain_words(room: str) -> None:
    folder = ROOT / room
    files = folder.glob("*.md") if room == "." else folder.rglob("*.*")
    skipped = {Path(__file__), ROOT / "CHANGELOG.md"}
    found = [
        f"{path.relative_to(ROOT)}:{line}: {said.group()} -> {instead}"
        for path in sorted(files)
        if path.suffix in {".py", ".md"} and path not in skipped
        for line, text in texts_of(path)
        for words, instead in BANNED_WORDS.items()
        if (said := re.search(words, text))
    ]
    assert found == []
