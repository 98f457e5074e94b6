"""A reward service on loopback that misbehaves by plan, for tests.

`plan` says what goes wrong with each request. The server answers the other requests with rewards,
and records all requests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Headers = dict[str, str]


def reward_of(prompt: str, completion: str) -> float:
    """What an undisturbed service gives."""
    return len(prompt) + len(completion) / 7


@dataclass(frozen=True)
class Answer:
    """How a request is answered; without `body`, by its rewards after `change`."""

    status: int = 200
    body: bytes | None = None
    headers: Headers = field(default_factory=dict)
    seconds: float = 0.0
    change: Callable[[list[Any]], list[Any]] = lambda rewards: rewards
    drop: bool = False
    drip_seconds: float = 0.0


Plan = Callable[[int, list[str]], Answer]


@dataclass
class Service:
    """A running service: where it is, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0

    def completions(self) -> list[list[str]]:
        return [request["completions"] for request in self.requests]


@contextmanager
def reward_service(plan: Plan = lambda _number, _completions: Answer()) -> Iterator[Service]:
    """A service whose request `number`, with these completions, is answered as `plan` says."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body)
            with lock:
                number = len(service.requests)
                service.requests.append(request)
                service.headers.append({k.lower(): v for k, v in self.headers.items()})
                service.at_once += 1
                service.most_at_once = max(service.most_at_once, service.at_once)
            texts = request.get("completions") or request["query"]
            answer = plan(number, texts)
            time.sleep(answer.seconds)
            with lock:
                service.at_once -= 1
            if answer.drop:
                self.close_connection = True
                return
            rewards = [reward_of(*row) for row in zip(request["prompts"], texts, strict=True)]
            body = answer.body
            if body is None:
                body = json.dumps({"rewards": answer.change(rewards)}).encode()
            with suppress(OSError):  # whoever asked may have left
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                pieces = (
                    [body]
                    if not answer.drip_seconds
                    else [body[i : i + 1] for i in range(len(body))]
                )
                for piece in pieces:
                    self.wfile.write(piece)
                    time.sleep(answer.drip_seconds)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = Service(f"http://127.0.0.1:{server.server_port}/score")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
