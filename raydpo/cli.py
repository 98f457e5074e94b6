"""The command line: `raydpo COMMAND CONFIG [--set section.key=value ...]`.

The exit status is 0 if all went well, 1 after an error that the log explains or if a replay
differs, 3 if a run waits for people's votes, and 130 if it was interrupted. Commands import what
they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from raydpo import __version__
from raydpo.core.arguments import whole_number
from raydpo.core.errors import RaydpoError
from raydpo.core.imports import uncollected
from raydpo.core.stages import OLD_WORDS, REDO, STAGES
from raydpo.show.commands import add_inspect, add_publish, add_suite

if TYPE_CHECKING:
    from raydpo.config.job import Config
    from raydpo.core.storage import Folder

#: Exit status of a run that cannot go on before people have voted.
_WAITS: Final = 3
#: What each stage at which a command can end does.
_STAGES: Final = {
    "sampling": "prompts in, K candidates for each",
    "labeling": "candidates are scored, preferences built",
    "reference": "the log-probabilities of the reference",
    "training": "the training of the policy",
    "evaluation": "policy and reference compared, Best-of-N, and the report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = command_parser().parse_args(arguments)
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
    """Print what failed in a few lines; a traceback that says more goes to a file."""
    from raydpo.core.errors import places_of
    from raydpo.core.failures import explained, has_more_to_tell, keep_traceback

    told = explained(error)
    print(f"{type(told).__name__}: {told}", file=sys.stderr)
    for place in places_of(error):
        print(f"  where: {place}", file=sys.stderr)
    if has_more_to_tell(error, told):
        print(f"  traceback: {keep_traceback(error, run)}", file=sys.stderr)


def _where(run: Folder) -> str:
    return f"run directory: {run.uri} (raydpo show {run.uri})"


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands; docs/commands.md is written from it."""
    parser = argparse.ArgumentParser(
        prog="raydpo", description="Distributed preference optimization on Ray."
    )
    parser.add_argument("--version", action="version", version=f"raydpo {__version__}")
    parser.set_defaults(run_directory=None)  # commands that write a run name it
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "the whole round: prompts in, a better policy and a report out"
    _add_redo(_add(commands, "run", text, _run))
    for name, text in _STAGES.items():
        _add_redo(_add(commands, name, f"all stages up to {name}: {text}", _run, until=name))
    _add(commands, "online", "rounds: the policy of one samples for the next", _online)
    _add(commands, "sft", "supervised fine-tuning: the model that sampling starts from", _sft)
    _add(commands, "score", "log-probabilities of existing completions under the model", _score)
    check = _add(commands, "check", "say, without a cluster, all that would go wrong", _check)
    check.add_argument("--rows", type=whole_number(1), help="look at so many rows of the data only")
    show = commands.add_parser("show", help="what a run has done so far")
    show.add_argument("run", help="the run directory")
    show.add_argument("--rows", type=whole_number(0), default=2, help="rows to show of each table")
    show.set_defaults(command=_show)
    _add_replay(commands)
    add_inspect(commands)
    _add_compare(commands)
    add_publish(commands)
    add_suite(commands)
    text = "delete what finished stages were set aside as"
    clean = commands.add_parser("clean", help=text, description=text)
    clean.add_argument("run", help="the run directory")
    clean.add_argument("--dry-run", action="store_true", help="list it, and delete nothing")
    clean.set_defaults(command=_clean)
    text = "the JSON Schema of a job, by which editors complete and check its keys"
    schema = commands.add_parser("schema", help=text, description=text)
    schema.set_defaults(command=_schema)
    _add_annotate(commands)
    return parser


def _stage(word: str) -> str:
    """Return the name of a stage, which `--redo` may call by its old word."""
    return OLD_WORDS.get(word, word)


def _add(
    commands: Any,
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    **defaults: str,
) -> argparse.ArgumentParser:
    old = [word for word, new in OLD_WORDS.items() if new == name]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, aliases=old
    )
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
    parser.set_defaults(**{"command": command, "until": STAGES[-1], **defaults})
    return parser


def _add_replay(commands: Any) -> None:
    text = "make finished stages again in another folder, and compare them with those of the run"
    replay = commands.add_parser("replay", help=text, description=text)
    replay.add_argument("run", help="the run directory, which is read and never written into")
    replay.add_argument(
        "stage",
        nargs="*",
        help="as `raydpo show` prints it, such as round-001/policy; `policy` is that of every "
        "round; without any, all that are finished",
    )
    replay.add_argument(
        "--output",
        help="a new folder that keeps what is made; without it a folder beside the run, which is "
        "deleted where all is equal",
    )
    replay.add_argument("--verbose", action="store_true", help="log more")
    replay.set_defaults(command=_replay)


def _add_compare(commands: Any) -> None:
    text = "put evaluated runs side by side: scores, win rates, KL, lengths, curves, samples"
    compare = commands.add_parser("compare", help=text, description=text)
    compare.add_argument("run", nargs="+", help="two or more run directories, which are read only")
    compare.add_argument(
        "--output",
        help="folder for comparison.html and comparison.json; without it "
        "comparisons/RUN-and-RUN in the working directory",
    )
    compare.add_argument("--seed", type=whole_number(0), default=0, help="seed of the resamples")
    compare.add_argument(
        "--resamples",
        type=whole_number(1),
        default=10_000,
        help="bootstrap resamples of the prompts, and exchanges of the test",
    )
    compare.set_defaults(command=_compare)


def _add_annotate(commands: Any) -> None:
    annotate = commands.add_parser("annotate", help="preferences from people")
    actions = annotate.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write blinded pairs to a JSONL file")
    export.add_argument("run", help="the run directory, with candidates sampled")
    export.add_argument("--output", help="the file; without it <run>/annotation.jsonl")
    text = "pairs of each prompt's candidates that people are shown"
    export.add_argument("--pairs-per-prompt", type=whole_number(1), default=1, help=text)
    export.add_argument(
        "--seed", type=whole_number(0), default=0, help="seed of the choice and order of pairs"
    )
    export.set_defaults(command=_annotate_export)
    load = actions.add_parser("import", help="build preferences from the votes in a JSONL file")
    load.add_argument("run", help="the run directory that the pairs came from")
    load.add_argument("file", help="the exported file, with `choice` and `annotator` filled in")
    load.add_argument(
        "--redo",
        type=_stage,
        choices=["labeling"],
        help="replace finished preferences that a reward made",
    )
    load.set_defaults(command=_annotate_import)


def _add_redo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        type=_stage,
        choices=REDO,
        help="do a finished stage again, though people made it; may be given several times",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would be done, kept and done again, and why; nothing is changed",
    )


def _run(options: argparse.Namespace) -> int:
    from raydpo.config.file import load_config
    from raydpo.core.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    if _refused(config):
        return 1
    if options.dry_run:
        return _dry_run(config, options)
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.pipeline.job import run_round

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
        _say_verdict(result.report)
    return 0


def _say_verdict(report: dict[str, Any] | None) -> None:
    """Print what the report of a measured training says, and where it is."""
    if report is not None:
        print(f"{report['verdict']}\nreport: {report['report']}")


def _dry_run(config: Config, options: argparse.Namespace) -> int:
    with uncollected():
        from raydpo.pipeline.dry_run import outlook_of_round

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
    from raydpo.config.file import load_config
    from raydpo.core.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    from raydpo.check.online import check_sections_of_rounds

    check_sections_of_rounds(config)
    if _refused(config):
        return 1
    _name_run_directory(config, options)
    with uncollected():
        from raydpo.online.rounds import run_online
    from raydpo.evaluation.summary import verdict_lines
    from raydpo.online.summary import PAGE_FILE, online_table

    result = run_online(config)
    print(online_table(result.folder, result.records))
    if result.stopped:
        print(f"ended early: {result.stopped}")
    print(f"engines were started {result.engine_starts} time(s)")
    print(f"best policy: {result.best.policy} (after {result.best.rounds_done} round(s))")
    print("\n".join(verdict_lines(result.verdict)))
    print(f"report:      {result.folder.uri}/{PAGE_FILE}")
    return 0


def _sft(options: argparse.Namespace) -> int:
    config = _checked(options)
    if config is None:
        return 1
    with uncollected():
        from raydpo.pipeline.job import run_sft

    model, report = run_sft(config)
    print(f"model: {model.path}")
    _say_verdict(report)
    return 0


def _score(options: argparse.Namespace) -> int:
    config = _checked(options)
    if config is None:
        return 1
    with uncollected():
        from raydpo.pipeline.job import run_score

    summary, table = run_score(config)
    for name, value in summary.items():
        print(f"{name:24} {value:,.6g}")
    print(f"table: {table.folder.uri}/part-*.parquet")
    return 0


def _checked(options: argparse.Namespace) -> Config | None:
    """Load a job, check it and name its run directory; None if there are problems."""
    from raydpo.config.file import load_config
    from raydpo.core.progress import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(options.verbose)
    if _refused(config):
        return None
    _name_run_directory(config, options)
    return config


def _name_run_directory(config: Config, options: argparse.Namespace) -> None:
    """Say where the run is, first; `main` says it again, last."""
    from raydpo.core.progress import logger
    from raydpo.core.run import run_folder

    options.run_directory = run_folder(config.output, config.name)
    logger.info("%s", _where(options.run_directory))


def _refused(config: Config) -> bool:
    """Report problems before a cluster is asked for anything; True if there are any."""
    with uncollected():
        from raydpo.check.job import problems_before_a_run

        problems = problems_before_a_run(config)
    _print_problems(problems)
    return bool(problems)


def _print_problems(problems: Sequence[RaydpoError]) -> None:
    for problem in problems:
        print(f"\n{type(problem).__name__}: {problem}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from raydpo.config.file import load_config

    config = load_config(options.config, options.overrides)
    with uncollected():
        from raydpo.check.job import run_check

        lines, problems = run_check(config, options.rows)
    print("\n".join(lines))
    _print_problems(problems)
    return 1 if problems else 0


def _show(options: argparse.Namespace) -> int:
    from raydpo.show.listing import show_run

    for line in show_run(options.run, options.rows):
        print(line)
    return 0


def _replay(options: argparse.Namespace) -> int:
    from raydpo.core.progress import start_logging

    start_logging(options.verbose)
    with uncollected():
        from raydpo.show.replay import replay

    status = 0
    for found in replay(options.run, options.stage, options.output):
        print(found, flush=True)
        status = 1 if found.problems else status
    return status


def _compare(options: argparse.Namespace) -> int:
    from raydpo.core.storage import folder_of
    from raydpo.evaluation.comparison_page import comparison_text
    from raydpo.show.compare import PAGE_FILE, compare_runs, default_output

    output = options.output or default_output(options.run)
    comparison = compare_runs(options.run, output, options.seed, options.resamples)
    print(comparison_text(comparison))
    print(f"page: {folder_of(output).uri}/{PAGE_FILE}")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from raydpo.config.file import job_schema

    print(json.dumps(job_schema(), indent=1))
    return 0


def _clean(options: argparse.Namespace) -> int:
    from raydpo.core.set_aside import clean

    found = clean(options.run, options.dry_run)
    for one in found:
        print(f"{'set aside' if options.dry_run else 'deleted'}: {one}")
    if not found:
        print("nothing is set aside")
    return 0


def _annotate_export(options: argparse.Namespace) -> int:
    from raydpo.labeling.annotate import export_run

    count, path = export_run(options.run, options.output, options.pairs_per_prompt, options.seed)
    print(f"{count} blinded pairs in {path}; fill in `choice` (a, b, tie) and `annotator`")
    return 0


def _annotate_import(options: argparse.Namespace) -> int:
    from raydpo.core.storage import folder_of
    from raydpo.labeling.annotate import import_run

    options.run_directory = folder_of(options.run)
    print(_where(options.run_directory), file=sys.stderr)
    counts, warning = import_run(options.run, options.file, options.redo is not None)
    print(json.dumps(counts, indent=1))
    if warning is not None:
        print(f"note: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
