r"""Check correctness and speed on the available GPU, within a few minutes.

It prints a table, and under `--output` writes a page and JSON that several short runs extend.

    python jobs/gpu_acceptance.py --minutes 8
    python jobs/gpu_acceptance.py --wheels --python 3.12 --platform linux_x86_64
    python jobs/gpu_acceptance.py --list
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT))  # a checkout is enough: raydpo need not be installed

from acceptance.page import page, table  # noqa: E402
from acceptance.process import Worker  # noqa: E402
from acceptance.record import BAD, Record, made_with, stem  # noqa: E402
from acceptance.speed_page import aims_table, speed_rows  # noqa: E402
from acceptance.wheels import CORE, OPTIONAL, download_command, missing, wheels_text  # noqa: E402
from benchmark.machine import Watch  # noqa: E402
from raydpo.core.errors import RaydpoError  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Run what fits into the minutes, and write each result as it is made."""
    arguments = parse_arguments(argv)
    if arguments.wheels:
        print(wheels_text(arguments.python, arguments.platform))
        return
    say_what_is_missing(arguments)
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as folder:
        try:
            record, facts = accept(arguments, Path(folder))
        except RaydpoError as error:
            sys.exit(str(error))
    print("\n" + table(record) + "\n")
    print("\n".join(aims_table(speed_rows(record.current_results), record.small)))
    bad = [n for n, r in record.results.items() if record.current(n) and r["status"] in BAD]
    if bad:
        sys.exit(f"{facts['card']}: {len(bad)} tasks did not pass: {', '.join(bad)}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Acceptance run of the training core on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no task that ends later")
    parser.add_argument("--only", help="only tasks whose name contains this")
    parser.add_argument("--again", action="append", default=[], metavar="NAME", help="redo it")
    parser.add_argument("--list", action="store_true", help="print the tasks in their order")
    parser.add_argument("--small", action="store_true", help="small shapes; always so on CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "benchmarks")
    parser.add_argument("--wheels", action="store_true", help="print the wheels to bring")
    parser.add_argument("--python", default="3.12", help="of the machine that they are for")
    parser.add_argument("--platform", default="linux_x86_64", help="likewise")
    return parser.parse_args(argv)


def say_what_is_missing(arguments: argparse.Namespace) -> None:
    """Stop where the core cannot run; say what is left out where it can."""
    needed = missing({"torch": (), "transformers": (), **CORE})
    if needed:
        names = [name for package in needed for name in CORE.get(package, ())]
        sys.exit(
            f"missing: {', '.join(needed)}\n  rule: the training core imports them\n  way out: "
            + download_command(arguments.python, arguments.platform, names)
        )
    if absent := missing(OPTIONAL):
        print(f"not installed, so their parts are left out: {', '.join(absent)}", flush=True)


def accept(arguments: argparse.Namespace, folder: Path) -> tuple[Record, dict[str, Any]]:
    """Run the tasks that are not settled, in their order; returns all results."""
    until = time.monotonic() + 60 * arguments.minutes
    worker = _Workers(folder)
    facts = worker.get().facts
    small = arguments.small or facts["device"] == "cpu"
    path = arguments.output / f"{stem(facts)}.json"
    record = Record(path, made_with(facts, small, arguments.seed))
    chosen = [t for t in worker.get().tasks if arguments.only is None or arguments.only in t[0]]
    if arguments.list:
        for name, group, estimate in chosen:
            print(f"{name:50} {group:6} {estimate:5.0f} s{'  done' * record.settled(name)}")
        worker.end()
        return record, facts
    record.begin(shlex.join(["python", "jobs/gpu_acceptance.py", *sys.argv[1:]]))
    context = {"device": facts["device"], "small": small, "seed": arguments.seed}
    for name, _, estimate in chosen:
        if record.settled(name) and name not in arguments.again:
            continue
        left = until - time.monotonic()
        if left < estimate:
            late = f"its {estimate:.0f} s do not fit into the {max(left, 0):.0f} s that are left"
            record.add(name, {"status": "left out", "reason": late})
            continue
        # The estimates are a GPU's.
        limit = left if facts["device"] == "cpu" else min(3 * estimate + 30, left)
        scratch = Path(tempfile.mkdtemp(dir=folder))
        with Watch() as watch:
            result = worker.get().run(name, {**context, "folder": str(scratch)}, limit)
        noise = watch.noise()
        record.add(name, {**result, "noise": noise.as_json()})
        reason = result.get("reason", "")[:120]
        print(f"{result['status']:9} {name} ({noise}) {reason}".rstrip(), flush=True)
        path.with_suffix(".md").write_text(page(record, facts), encoding="utf-8")
    worker.end()
    picture = path.with_suffix(".png")
    if not missing({"matplotlib": ()}) and draw_plot(record, facts["card"], picture):
        text = page(record, facts, picture.name)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
    return record, facts


def draw_plot(record: Record, card: str, picture: Path) -> bool:
    """Draw what was measured; returns whether anything was."""
    from acceptance.speed_plot import draw  # matplotlib is optional, and slow to import

    return draw(speed_rows(record.current_results), card, record.small, picture)


class _Workers:
    """One worker process at a time, a new one where the last is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._worker: Worker | None = None
        self._count = 0

    def get(self) -> Worker:
        if self._worker is None or not self._worker.alive:
            self._count += 1
            self._worker = Worker(self._folder / f"worker-{self._count}.log")
        return self._worker

    def end(self) -> None:
        if self._worker is not None:
            self._worker.end()


if __name__ == "__main__":
    main()
