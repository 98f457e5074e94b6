"""Run the demo: `make demo`, or `python jobs/demo.py [--set section.key=value ...]`.

From jobs/demo.yaml and the models in assets/ it makes runs/demo, and prints a table of reference
and policy with the path of the report.
"""

from __future__ import annotations

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "jobs/demo.yaml", *sys.argv[1:]]))
