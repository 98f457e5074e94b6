"""A language model on loopback that judges by a planted rule, behind OpenAI's chat completions.

The better of two texts is the one with the higher planted quality, `[q=1.5]`, or without one the
one with more different words. A pair's result is drawn once by Bradley-Terry from `noise`, and is
the same in both orders, except that the judge prefers the first place with probability `bias`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TEXTS = re.compile(r"<(?:first_|second_)?(?:summary|reply)>\n(.*?)\n</", re.DOTALL)
_QUALITY = re.compile(r"\[q=(-?[0-9.]+)\]")

#: What goes wrong with a request: a status and a body, or None to close the connection.
Fault = tuple[int, bytes] | None


def completion(content: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


FAULTS: dict[str, Fault] = {
    "500": (500, b"boom"),
    "429": (429, b"slow down"),
    "no connection": None,
    "html": (200, b"<html>busy</html>"),
    "no choices": (200, b'{"choices": []}'),
    "prose": (200, _body(completion("The first one is better."))),
    "another key": (200, _body(completion('{"rationale": "r", "mark": 3}'))),
    "one key more": (200, _body(completion('{"rationale": "r", "score": 3, "verdict": "tie"}'))),
    "out of range": (200, _body(completion('{"rationale": "r", "score": 99}'))),
    "a text": (200, _body(completion('{"rationale": "r", "score": "3"}'))),
    "true": (200, _body(completion('{"rationale": "r", "score": true}'))),
    "cut": (200, _body(completion('{"rationale": "r"', "length"))),
    "refused": (200, _body(completion(None, refusal="I cannot judge this."))),
}


def uniform(*words: object) -> float:
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def quality(text: str) -> float:
    found = _QUALITY.search(text)
    return float(found.group(1)) if found else float(len(set(text.split())))


@dataclass
class JudgeServer:
    url: str
    bias: float = 0.0
    noise: float = 0.0
    fails: Callable[[int, str], Fault | str] = lambda _number, _question: ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)

    @property
    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    def verdict(self, question: str) -> str:
        first, second = _TEXTS.findall(question)
        if uniform("place", question) < self.bias:
            return "first"
        one, other = sorted((first, second))
        difference = quality(one) - quality(other)
        if self.noise:
            wins = uniform("pair", one, other) < 1 / (1 + math.exp(-difference / self.noise))
        else:
            wins = difference > 0
        return "first" if wins == (first == one) else "second"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        question = request["messages"][0]["content"]
        properties = request["response_format"]["json_schema"]["schema"]["properties"]
        [name] = properties.keys() - {"rationale"}
        allowed = properties[name]["enum"]
        texts = _TEXTS.findall(question)
        if len(texts) == 2:
            value: Any = self.verdict(question)
        elif len(texts) == 1:
            value = min(max(allowed[0], round(quality(texts[0]))), allowed[-1])
        else:
            value = allowed[-1]
        return completion(json.dumps({"rationale": f"because {value}", name: value}))


def a_fifth_fails(seed: int = 7) -> Callable[[int, str], Fault | str]:
    """Let a fifth of the requests fail, in each of the ways in turn."""
    draw, kinds = random.Random(seed), itertools.cycle(FAULTS)
    return lambda _number, _question: FAULTS[next(kinds)] if draw.random() < 0.2 else ""


@contextmanager
def judge_server(**rule: Any) -> Iterator[JudgeServer]:
    """A judge; `fails` gives the fault of a request, or an empty text."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = request["messages"][0]["content"]
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                fault = server.fails(number, question)
                if fault == "":
                    server.answered[question] += 1
            if fault is None:
                self.close_connection = True
                return
            status, body = (200, _body(server.answer(request))) if fault == "" else fault
            with suppress(OSError):  # whoever asked may have left
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = JudgeServer(f"http://127.0.0.1:{listening.server_port}/v1/chat/completions", **rule)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
