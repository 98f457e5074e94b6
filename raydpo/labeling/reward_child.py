"""The process that a reward function runs in: `python -m raydpo.labeling.reward_child FD FD`.

What comes in: frames of JSON over a socket, first where the function is, then prompts and
completions. What goes out: a frame for each, with rewards and reasons, or with the error that
it ended with. The function may end this process: `reward_process.py` tells what happened.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from raydpo.errors import RaydpoError
from raydpo.labeling.rewards import Refusal, judge_with_function, resolve_function

#: What stands before each frame: its length in bytes.
LENGTH: Final = struct.Struct("!Q")
#: Where this signal finds the process, its stacks are written to the second descriptor.
DUMP_SIGNAL: Final = signal.SIGUSR1
_SECONDS_BETWEEN_LOOKS: Final = 1.0


def frame(value: Any) -> bytes:
    """A value as JSON with its length before it."""
    content = json.dumps(value).encode()
    return LENGTH.pack(len(content)) + content


def _main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    dump = open(int(sys.argv[2]), "w")  # noqa: SIM115 - faulthandler writes into it to the end
    for descriptor in (channel.fileno(), dump.fileno()):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(dump)
    faulthandler.register(DUMP_SIGNAL, dump)
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
    os.dup2(2, 1)  # what the function prints goes where errors go
    place = _received(channel)
    if place is not None and _answered(channel, _looked_at, place):
        while (question := _received(channel)) is not None:
            _answered(channel, _judged, {**question, "path": place["path"]})
    channel.close()
    os._exit(0)  # threads of the function's may run on


def _end_with_parent(parent: int) -> None:
    """End when the worker does, however it ends: the function may be waiting for anything."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.killpg(0, signal.SIGKILL)


def _received(channel: socket.socket) -> Any:
    """The next frame's value; None where the worker has closed the channel."""
    head = _exactly(channel, LENGTH.size)
    content = _exactly(channel, LENGTH.unpack(head)[0]) if head else b""
    return json.loads(content) if content else None


def _exactly(channel: socket.socket, size: int) -> bytes:
    """So many bytes; none where the channel is closed before."""
    content = bytearray()
    while len(content) < size:
        piece = channel.recv(min(size - len(content), 1 << 20))
        if not piece:
            return b""
        content += piece
    return bytes(content)


def _answered(channel: socket.socket, answer: Any, question: dict[str, Any]) -> bool:
    """Send an answer, or the error that came of it; whether it was an answer."""
    try:
        value, well = answer(question), True
    except RaydpoError as error:
        words = [error.value, error.rule, error.way_out]
        value, well = {"error": type(error).__name__, "words": words}, False
    channel.sendall(frame(value))
    return well


def _looked_at(place: dict[str, Any]) -> dict[str, Any]:
    """Import the function; in which file it is, and how it is called."""
    sys.path[:] = place["search"]
    call = resolve_function(place["path"])
    file = getattr(sys.modules.get(place["path"].partition(":")[0]), "__file__", None)
    return {"call": str(call), "file": file and str(Path(file).absolute())}


def _judged(question: dict[str, Any]) -> dict[str, Any]:
    function = resolve_function(question["path"])
    judged = judge_with_function(
        function,
        question["path"],
        question["prompts"],
        question["completions"],
        question["some_of_many"],
    )
    values = judged.values
    return {
        "values": [None if isinstance(value, Refusal) else value for value in values],
        "reasons": [value.reason if isinstance(value, Refusal) else None for value in values],
    }


if __name__ == "__main__":
    _main()
