"""Serve a judge's model by vLLM, in a process of its own beside the worker that asks it.

The process listens on loopback, asks for a key that only the worker knows, and ends with the
worker. vLLM's structured outputs keep its answers to the schema of the request.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import httpx

from raydpo.config.base import ModelConfig
from raydpo.config.content import content_of
from raydpo.config.judges import ServedJudgeConfig
from raydpo.core.errors import ConfigError, ModelError
from raydpo.core.notices import tell
from raydpo.core.storage import fingerprint
from raydpo.labeling.judges import serve_child
from raydpo.models.loading import (
    CAUSAL_LM,
    check_weights,
    load_tokenizer,
    local_folder,
    tokenizer_fingerprint,
    weights_fingerprint,
)

_SECONDS_BETWEEN_LOOKS: Final = 0.25
_SECONDS_BETWEEN_LINES: Final = 60.0
#: Characters of the server's log that an error shows.
_MOST_SHOWN: Final = 600
#: The server's own whitespace between JSON tokens would let a small model never come to an end.
_STRUCTURED: Final = '{"backend": "xgrammar", "disable_any_whitespace": true}'


def model_of(served: ServedJudgeConfig) -> ModelConfig:
    """Return the model's section, as raydpo's readers of models take it."""
    return ModelConfig(path=served.path, chat_template=served.chat_template)


def check_served(served: ServedJudgeConfig) -> None:
    """Check that a model can be served as a judge, without starting it.

    Raises:
        ModelError: there is no such model, or its weights do not fit its architecture.
        ConfigError: it has no chat template.
    """
    model = model_of(served)
    check_weights(model, CAUSAL_LM)
    if not load_tokenizer(model).chat_template:
        raise ConfigError(
            f"the judge {served.path} has no chat template",
            "a judge is asked by messages, which a template renders",
            "let `served.chat_template` name a file with one, or take a chat model",
        )


def served_inputs(served: ServedJudgeConfig) -> dict[str, str]:
    """Return the hashes of the model's weights and tokenizer, with its chat template."""
    model = model_of(served)
    return {"weights": weights_fingerprint(model), "tokenizer": tokenizer_fingerprint(model)}


def identity_of(served: ServedJudgeConfig) -> str:
    """Return the hash of everything that the model's answers depend on beside the question."""
    return fingerprint({**served_inputs(served), **content_of(served)})


@dataclass
class Server:
    """A server that runs.

    Attributes:
        url: address of its chat completions.
        key: what it asks for as a bearer token.
    """

    url: str
    key: str
    process: subprocess.Popen[bytes]
    files: tempfile.TemporaryDirectory[str]

    def __post_init__(self) -> None:
        # If the worker drops the object, the server ends too.
        self._finalizer = weakref.finalize(self, _end, self.process, self.files)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"Authorization": f"Bearer {self.key}"}

    def close(self) -> None:
        """End the server."""
        self._finalizer()


def start_server(served: ServedJudgeConfig, name: str) -> Server:
    """Start a server and wait until it answers.

    Args:
        served: the model and its engine.
        name: what the server calls the model.

    Raises:
        ModelError: it ends, or does not answer in `start_seconds`.
    """
    files = tempfile.TemporaryDirectory(prefix="raydpo-judge-")
    log = Path(files.name, "log")
    port, key = _free_port(), secrets.token_urlsafe(24)
    with open(log, "wb") as output:
        process = _start(_arguments(served, name, port), key, served, output)
    server = Server(f"http://127.0.0.1:{port}/v1/chat/completions", key, process, files)
    try:
        _wait(server, served, log)
    except BaseException:
        server.close()
        raise
    return server


def _start(
    arguments: list[str], key: str, served: ServedJudgeConfig, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this package, in this Python
        [sys.executable, "-m", serve_child.__name__, *arguments],
        stdin=subprocess.PIPE,  # its end tells the server that this process is gone
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_environment(served), "VLLM_API_KEY": key},
        start_new_session=True,
    )


def _arguments(served: ServedJudgeConfig, name: str, port: int) -> list[str]:
    given: dict[str, Any] = {
        "model": local_folder(model_of(served)),
        "served-model-name": name,
        "host": "127.0.0.1",
        "port": port,
        "dtype": served.dtype,
        "load-format": "safetensors",
        "generation-config": "vllm",
        "structured-outputs-config": _STRUCTURED,
    }
    if served.max_sequence_tokens is not None:
        given["max-model-len"] = served.max_sequence_tokens
    if served.chat_template is not None:
        given["chat-template"] = served.chat_template
    if _on_gpu():
        given["gpu-memory-utilization"] = served.gpu_memory_fraction
    pairs = [part for option, value in given.items() for part in (f"--{option}", str(value))]
    return pairs if _on_gpu() else [*pairs, "--enforce-eager"]


def _environment(served: ServedJudgeConfig) -> dict[str, str]:
    search = os.pathsep.join(path for path in sys.path if path)
    environment = {
        "PYTHONPATH": search,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if _on_gpu():
        return environment
    return {
        **environment,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": f"{served.cpu_kv_cache_gib:g}",
        "TORCH_COMPILE_DISABLE": "1",
    }


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _wait(server: Server, served: ServedJudgeConfig, log: Path) -> None:
    begun = said = time.monotonic()
    health = server.url.replace("/v1/chat/completions", "/health")
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while True:
            with suppress(httpx.HTTPError):
                if client.get(health).is_success:
                    return
            status, seconds = server.process.poll(), time.monotonic() - begun
            if status is not None:
                raise _failed(served, f"vLLM's server ended with status {status}", log)
            if seconds > served.start_seconds:
                raise _failed(served, f"vLLM's server did not start in {seconds:.0f} s", log)
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                tell(f"waits for the judge {served.path} to start since {seconds:.0f} s")
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _failed(served: ServedJudgeConfig, what: str, log: Path) -> ModelError:
    end = log.read_text(encoding="utf-8", errors="replace").strip()[-_MOST_SHOWN:]
    return ModelError(
        f"the judge {served.path}: {what}: {end}",
        "vLLM can load the model, and it fits into the memory of the worker",
        "look at the lines above; `served` sets memory, length and the time that a start may take",
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _end(process: subprocess.Popen[bytes], files: tempfile.TemporaryDirectory[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    files.cleanup()
