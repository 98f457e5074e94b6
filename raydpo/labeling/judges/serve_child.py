"""Run vLLM's server of OpenAI's API until the process that started it is gone: see `served.py`.

    python -m raydpo.labeling.judges.serve_child ARGUMENTS OF vllm.entrypoints.openai.api_server

The starter holds the other end of the standard input. When that end closes, also because the
starter was killed, this process ends with all that it has started.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_starter() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
