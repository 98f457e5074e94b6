"""Run online rounds as a Ray job.

    ray job submit --working-dir . -- python jobs/online_dpo.py --config jobs/online_dpo.yaml \
        --set output=/shared/runs

It accepts any `--set section.key=value`. The results are in the run directory that the
configuration names. Submitted again, the job resumes where it stopped.
"""

from __future__ import annotations

import argparse
import sys

from raydpo.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Run online rounds as a Ray job.",
        epilog="Other options are those of the command: --set KEY=VALUE, --verbose.",
    )
    parser.add_argument("--config", default="jobs/online_dpo.yaml", help="YAML file of the job")
    options, overrides = parser.parse_known_args()
    sys.exit(main(["online", options.config, *overrides]))
