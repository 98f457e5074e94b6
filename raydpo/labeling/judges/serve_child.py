"""Run vLLM's server of OpenAI's API until the process that started it is gone: see `served.py`.

    python -m raydpo.labeling.judges.serve_child ARGUMENTS OF vllm.entrypoints.openai.api_server

The starter holds the other end of the standard input. When that end closes, also because the
starter was killed, a watching process ends the server with all that it has started. The server
cannot do this itself: Ray kills the children of a worker that ends, and vLLM's engine would live on.
"""

from __future__ import annotations

import os
import runpy
import signal
from contextlib import suppress


def _watch_starter() -> None:
    """Fork the watching process, which leaves the server's group and reads until the end."""
    group = os.getpgid(0)
    if os.fork():
        return
    os.setsid()
    while os.read(0, 1):
        pass
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    _watch_starter()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
