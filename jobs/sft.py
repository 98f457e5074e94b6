"""Run supervised fine-tuning, the stage that makes pi_ref, as a Ray job.

    ray job submit --working-dir . -- python jobs/sft.py --config jobs/sft_imdb_gpt2_large.yaml \
        --set output=/shared/runs

It accepts any `--set section.key=value`. The model is a Hugging Face folder in
`<output>/<name>/sft/policy/model`.
"""

from __future__ import annotations

import argparse
import sys

from raydpo.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Run supervised fine-tuning as a Ray job.",
        epilog="Other options are those of the command: --set KEY=VALUE, --verbose.",
    )
    parser.add_argument("--config", required=True, help="YAML file of the job")
    options, overrides = parser.parse_known_args()
    sys.exit(main(["sft", options.config, *overrides]))
