"""The command line: `raydpo COMMAND CONFIG [--set section.key=value ...]`.

What comes in: arguments. What goes out: an exit status, 0 when all went well, 1 after an
error that the log explains, 3 where a run waits for people's votes, and 130 when interrupted.
Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from raydpo import __version__
from raydpo.errors import QuarantineBudgetError, RaydpoError
from raydpo.imports import uncollected

if TYPE_CHECKING:
    from raydpo.config import Config
    from raydpo.storage import Folder

#: Rows of each source that `run` and the stage commands look at before they start.
_ROWS_LOOKED_AT: Final = 1000
#: Exit status of a run that cannot go on before people have voted.
_WAITS: Final = 3
#: What can be done again by name; as in `pipeline.py`, which is not loaded for `--help`.
_REDO: Final = ("sample", "score", "label", "reference", "train", "evaluate")
_STAGES: Final = {
    "sample": "read prompts and sample K candidates for each",
    "label": "... and score them and build preferences",
    "reference": "... and compute the reference's log-probabilities",
    "train": "... and train the policy",
    "evaluate": "... and evaluate it and write the report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The example of a check may hold letters that this terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command(options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - no traceback reaches the user
        _print_failure(error, options.run_directory)
        return 1
    finally:
        if options.run_directory is not None:
            print(_where(options.run_directory), file=sys.stderr)


def _print_failure(error: Exception, run: Folder | None) -> None:
    """Say what failed in a few lines; the traceback goes to a file where it tells more."""
    from raydpo.errors import places_of
    from raydpo.failures import explained, has_more_to_tell, keep_traceback

    told = explained(error)
    print(f"{type(told).__name__}: {told}", file=sys.stderr)
    for place in places_of(error):
        print(f"  where: {place}", file=sys.stderr)
    if has_more_to_tell(error, told):
        print(f"  traceback: {keep_traceback(error, run)}", file=sys.stderr)


def _where(run: Folder) -> str:
    return f"run directory: {run.uri} (raydpo show {run.uri})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raydpo", description="Distributed preference optimization on Ray."
    )
    parser.add_argument("--version", action="version", version=f"raydpo {__version__}")
    parser.set_defaults(run_directory=None)  # commands that write a run name it
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "the whole round: prompts in, a better policy and a report out"
    _add_redo(_add(commands, "run", text, _run))
    for name, text in _STAGES.items():
        _add_redo(_add(commands, name, f"up to one stage: {text}", _run, until=name))
    _add(commands, "online", "rounds: the policy of one samples for the next", _online)
    _add(commands, "sft", "supervised fine-tuning: the model that sampling starts from", _sft)
    _add(commands, "score", "log-probabilities of existing completions under the model", _score)
    check = _add(commands, "check", "say, without a cluster, all that would go wrong", _check)
    check.add_argument("--rows", type=_from(1), help="look at so many rows of the data only")
    show = commands.add_parser("show", help="what a run has done so far")
    show.add_argument("run", help="the run directory")
    show.add_argument("--rows", type=_from(0), default=2, help="rows to show of each table")
    show.set_defaults(command=_show)
    text = "delete what finished stages were set aside as"
    clean = commands.add_parser("clean", help=text, description=text)
    clean.add_argument("run", help="the run directory")
    clean.add_argument("--dry-run", action="store_true", help="list it, and delete nothing")
    clean.set_defaults(command=_clean)
    _add_annotate(commands)
    return parser


def _from(least: int) -> Callable[[str], int]:
    """What reads an option that is a whole number, `least` or more."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text[:20]) < 1 << 63:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return read


def _add(
    commands: Any,
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    **defaults: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("config", help="YAML file of the job")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, as in --set training.learning_rate=1e-5",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.set_defaults(**{"command": command, "until": "evaluate", **defaults})
    return parser


def _add_annotate(commands: Any) -> None:
    annotate = commands.add_parser("annotate", help="preferences from people")
    actions = annotate.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write blinded pairs to a JSONL file")
    export.add_argument("run", help="the run directory, with candidates sampled")
    export.add_argument("--output", help="the file; without it <run>/annotation.jsonl")
    export.add_argument("--pairs-per-prompt", type=_from(1), default=1)
    export.add_argument("--seed", type=_from(0), default=0, help="of the choice and order of pairs")
    export.set_defaults(command=_annotate_export)
    load = actions.add_parser("import", help="build preferences from the votes in a JSONL file")
    load.add_argument("run", help="the run directory that the pairs came from")
    load.add_argument("file", help="the exported file, with `choice` and `annotator` filled in")
    load.add_argument(
        "--redo", choices=["label"], help="replace finished preferences that a reward made"
    )
    load.set_defaults(command=_annotate_import)


def _add_redo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        choices=_REDO,
        help="do a finished stage again, though people made it; may be given several times",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would be done, kept and done again, and why; nothing is changed",
    )


def _run(options: argparse.Namespace) -> int:
    from raydpo.config_file import load_config
    from raydpo.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    if _refused(config):
        return 1
    if options.dry_run:
        return _dry_run(config, options)
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.pipeline import run_round

    result = run_round(config, options.until, redo=options.redo)
    if result.waits_for is not None:
        return _say_who_is_waited_for(result.folder.uri.rpartition("/")[0])
    if result.metrics is not None:
        from raydpo.evaluation.summary import summary_table

        print(summary_table(result.metrics))
    elif result.policy is not None:
        training = config.training
        reward = training is not None and training.objective.scalar_head
        print(f"{'reward model' if reward else 'policy'}: {result.policy.path}")
    return 0


def _dry_run(config: Config, options: argparse.Namespace) -> int:
    with uncollected():
        from raydpo.dry_run import outlook_of_round

    print(*map(str, outlook_of_round(config, options.until, options.redo)), sep="\n")
    return 0


def _say_who_is_waited_for(run: str) -> int:
    print(
        "the candidates are sampled; the run waits for people's votes:\n"
        f"  raydpo annotate export {run}\n"
        "  (people fill in `choice` and `annotator`)\n"
        f"  raydpo annotate import {run} FILE\n"
        "and then the same command again"
    )
    return _WAITS


def _online(options: argparse.Namespace) -> int:
    from raydpo.config_file import load_config
    from raydpo.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    from raydpo.check_online import check_sections_of_rounds

    check_sections_of_rounds(config)
    if _refused(config):
        return 1
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.online import run_online
    from raydpo.online_summary import online_table

    result = run_online(config)
    print(online_table(result.folder, result.records))
    if result.stopped:
        print(f"ended early: {result.stopped}")
    print(f"engines were started {result.engine_starts} time(s)")
    print(f"best policy: {result.best.policy} (after {result.best.rounds_done} round(s))")
    return 0


def _sft(options: argparse.Namespace) -> int:
    from raydpo.config_file import load_config
    from raydpo.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    if _refused(config):
        return 1
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.pipeline import run_sft

    print(f"model: {run_sft(config).path}")
    return 0


def _score(options: argparse.Namespace) -> int:
    from raydpo.config_file import load_config
    from raydpo.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    if _refused(config):
        return 1
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.pipeline import run_score

    summary, table = run_score(config)
    for name, value in summary.items():
        print(f"{name:24} {value:,.6g}")
    print(f"table: {table.folder.uri}/part-*.parquet")
    return 0


def _name_run_directory(config: Config, options: argparse.Namespace) -> None:
    """Say where the run is, first; `main` says it again, last."""
    from raydpo.progress import logger
    from raydpo.run import run_folder

    options.run_directory = run_folder(config.output, config.name)
    logger.info("%s", _where(options.run_directory))


def _refused(config: Config) -> bool:
    """Say what is wrong before a cluster is asked for anything; True where something is.

    Only the first rows are read here; the stages count their refused rows exactly.
    """
    with uncollected():
        from raydpo.check import run_check

        _, problems = run_check(config, _ROWS_LOOKED_AT)
    problems = [p for p in problems if not isinstance(p, QuarantineBudgetError)]
    _print_problems(problems)
    return bool(problems)


def _print_problems(problems: Sequence[RaydpoError]) -> None:
    for problem in problems:
        print(f"\n{type(problem).__name__}: {problem}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from raydpo.config_file import load_config

    config = load_config(options.config, options.overrides)
    with uncollected():
        from raydpo.check import run_check

        lines, problems = run_check(config, options.rows)
    print("\n".join(lines))
    _print_problems(problems)
    return 1 if problems else 0


def _show(options: argparse.Namespace) -> int:
    from raydpo.show import show_run

    for line in show_run(options.run, options.rows):
        print(line)
    return 0


def _clean(options: argparse.Namespace) -> int:
    from raydpo.set_aside import clean

    found = clean(options.run, options.dry_run)
    for one in found:
        print(f"{'set aside' if options.dry_run else 'deleted'}: {one}")
    if not found:
        print("nothing is set aside")
    return 0


def _annotate_export(options: argparse.Namespace) -> int:
    from raydpo.annotate import export_run

    count, path = export_run(options.run, options.output, options.pairs_per_prompt, options.seed)
    print(f"{count} blinded pairs in {path}; fill in `choice` (a, b, tie) and `annotator`")
    return 0


def _annotate_import(options: argparse.Namespace) -> int:
    from raydpo.annotate import import_run
    from raydpo.storage import folder_of

    options.run_directory = folder_of(options.run)
    print(_where(options.run_directory), file=sys.stderr)
    counts, warning = import_run(options.run, options.file, options.redo is not None)
    print(json.dumps(counts, indent=1))
    if warning is not None:
        print(f"note: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
