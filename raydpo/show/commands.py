"""The commands `inspect`, `publish` and `suite`: their arguments, and what they print.

The modules that do the work are imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from raydpo.core.arguments import whole_number
from raydpo.core.imports import uncollected

_WHICH_ROUND: Final = "the round; without it the best one of online rounds, otherwise the last one"


#: The layouts and formats of `preferences`, which `--help` names without reading the configuration.
LAYOUTS: Final = ("auto", "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired")
FORMATS: Final = ("auto", "jsonl", "json", "parquet", "csv", "text", "dataset")


def add_inspect(commands: Any) -> None:
    """Add `raydpo inspect` to the commands."""
    text = "examine preferences before training: length, words, formatting, duplicates, overlap"
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument(
        "data", help="a run directory, or a file, folder, URI or dataset with preference data"
    )
    inspect.add_argument(
        "--output",
        help="folder for inspection.html and inspection.json; without it inspections/NAME in the "
        "working directory",
    )
    inspect.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PATH",
        help="prompts that must not be in the data, such as those of the evaluation; may be given "
        "several times",
    )
    inspect.add_argument(
        "--split", default="train", help="the split; the source's other splits are compared with it"
    )
    inspect.add_argument(
        "--layout", choices=LAYOUTS, default="auto", help="how the rows are laid out (docs/data.md)"
    )
    inspect.add_argument(
        "--format", choices=FORMATS, default="auto", help="how to read the files of the data"
    )
    inspect.add_argument("--limit", type=whole_number(1), help="look at so many rows only")
    inspect.add_argument(
        "--round", type=whole_number(0), help="the round of a run; without it the last one"
    )
    inspect.set_defaults(command=_inspect)


def add_publish(commands: Any) -> None:
    """Add `raydpo publish` to the commands."""
    text = "write a trained model with its model card into a folder, and upload it to the hub"
    publish = commands.add_parser("publish", help=text, description=text)
    publish.add_argument("run", help="the run directory, which is read only")
    publish.add_argument(
        "--output", help="the folder; without it published/NAME in the working directory"
    )
    publish.add_argument(
        "--hub",
        metavar="OWNER/NAME",
        help="upload the folder to this model repository; the token is HF_TOKEN, or that of "
        "`hf auth login`",
    )
    publish.add_argument(
        "--private", action="store_true", help="make a new repository a private one"
    )
    publish.add_argument("--license", help="an id of the hub's list, such as apache-2.0")
    publish.add_argument(
        "--base-model",
        metavar="OWNER/NAME",
        help="the base model's name on the hub, if the job names a folder",
    )
    publish.add_argument(
        "--round",
        type=whole_number(0),
        help=_WHICH_ROUND,
    )
    publish.add_argument(
        "--merged",
        action="store_true",
        help="publish the merged model where an adapter was trained",
    )
    publish.set_defaults(command=_publish)


def add_suite(commands: Any) -> None:
    """Add `raydpo suite` and its actions to the commands."""
    text = "standard suites of other projects on the model of a finished run"
    suite = commands.add_parser("suite", help=text, description=text)
    actions = suite.add_subparsers(required=True, metavar="SUITE")
    _add_lm_eval(actions)
    for name, file in (("alpaca-eval", "model_outputs.json"), ("arena-hard", "model_answer.jsonl")):
        text = f"write {file} from the completions of the run's evaluation"
        written = actions.add_parser(name, help=text, description=text)
        written.add_argument("run", help="the run directory")
        written.add_argument(
            "--of", choices=["policy", "reference"], default="policy", help="whose completions"
        )
        written.add_argument(
            "--name", help="the model's name in the file; without it the run's name"
        )
        written.add_argument("--round", type=whole_number(0), help=_WHICH_ROUND)
        written.set_defaults(command=_suite_file, suite=name)


def _add_lm_eval(actions: Any) -> None:
    text = "run lm-evaluation-harness, and keep its results in the run"
    lm_eval = actions.add_parser("lm-eval", help=text, description=text)
    lm_eval.add_argument("run", help="the run directory")
    lm_eval.add_argument("--tasks", required=True, help="names of its tasks or groups, with commas")
    lm_eval.add_argument(
        "--backend", choices=["hf", "vllm"], default="hf", help="transformers or vLLM"
    )
    lm_eval.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the backend, such as dtype=bfloat16; may be given several times",
    )
    lm_eval.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an option of the harness, such as num_fewshot=5 or apply_chat_template; may be given "
        "several times",
    )
    lm_eval.add_argument("--include-path", help="a folder with tasks of your own")
    lm_eval.add_argument(
        "--python", help="the interpreter that has the harness; without it raydpo's own"
    )
    lm_eval.add_argument("--round", type=whole_number(0), help=_WHICH_ROUND)
    lm_eval.set_defaults(command=_lm_eval)


def _inspect(options: argparse.Namespace) -> int:
    from raydpo.core.storage import folder_of
    from raydpo.evaluation.inspection_page import PAGE_FILE, inspection_text

    with uncollected():
        from raydpo.show.inspect import default_output, inspect_data

    output = options.output or default_output(options.data)
    inspection = inspect_data(
        options.data,
        output,
        split=options.split,
        layout=options.layout,
        format=options.format,
        against=options.against,
        limit=options.limit,
        round_index=options.round,
    )
    print(inspection_text(inspection))
    print(f"page: {folder_of(output).uri}/{PAGE_FILE}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    with uncollected():
        from raydpo.show.publish import publish_run

    published = publish_run(
        options.run,
        options.output,
        hub=options.hub,
        private=options.private,
        license=options.license,
        base_model=options.base_model,
        round_index=options.round,
        merged=options.merged,
    )
    print(f"{len(published.files)} files in {published.folder}; read its README.md")
    if published.url is not None:
        print(f"on the hub: {published.url}")
    return 0


def _lm_eval(options: argparse.Namespace) -> int:
    from raydpo.core.progress import start_logging
    from raydpo.evaluation.lm_eval import Harness

    start_logging(False)
    with uncollected():
        from raydpo.show.suite import run_lm_eval

    pairs = [text.partition("=") for text in options.option]
    arguments = [text.partition("=") for text in options.model_arg]
    harness = Harness(
        python=options.python or sys.executable,
        tasks=tuple(filter(None, options.tasks.split(","))),
        backend=options.backend,
        model_args={name: value for name, _, value in arguments},
        options={name: value if equals else None for name, equals, value in pairs},
        include_path=options.include_path,
    )
    done = run_lm_eval(options.run, harness, options.round)
    for result in done.results:
        print(result)
    print(f"results: {done.folder.uri}")
    return 0


def _suite_file(options: argparse.Namespace) -> int:
    with uncollected():
        from raydpo.show.suite import write_suite_file

    done = write_suite_file(options.run, options.suite, options.of, options.name, options.round)
    print(f"file: {done.file}")
    return 0
