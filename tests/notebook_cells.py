"""Run the cells of a notebook in this process, in order, while a loop runs, as Jupyter does."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from typing import Any


def run_notebook(notebook: Path) -> dict[str, Any]:
    """Run all cells, print the value of each expression, and return the names that they define."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]

    async def run_cells() -> None:
        for number, cell in enumerate(cells, 1):
            if cell["cell_type"] == "code":
                body = ast.parse("".join(cell["source"])).body
                where = f"{notebook.name}, cell {number}"
                exec(compile(ast.Interactive(body), where, "single"), names)

    asyncio.run(run_cells())
    return names
