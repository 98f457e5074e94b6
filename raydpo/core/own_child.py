"""The loop of a process that calls a function of the user's own; `own_process.py` starts it.

Over a socket the process receives frames of JSON: first where the function is, then the questions.
It answers each with a frame, or with the error that ended the call. If the function ends this
process, `own_process.py` reports what happened. The module imports no torch, no Arrow and no Ray.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raydpo.core.errors import RaydpoError

#: Header of each frame: its length in bytes.
LENGTH: Final = struct.Struct("!Q")
#: On this signal, the process writes its stacks to the second descriptor.
DUMP_SIGNAL: Final = signal.SIGUSR1
_SECONDS_BETWEEN_LOOKS: Final = 1.0

Json = dict[str, Any]


def frame(value: Any) -> bytes:
    """Encode a value as JSON, preceded by its length."""
    content = json.dumps(value).encode()
    return LENGTH.pack(len(content)) + content


def serve(look: Callable[[Json], Json], answer: Callable[[Json], Json]) -> None:
    """Answer until the worker closes the channel, then end the process.

    Args:
        look: given where the function is (`path`, `options`), it imports the function and returns
            the words of its call as `call`, and the names that it takes as `names`.
        answer: given a question, together with that place, it calls the function.
    """
    channel = socket.socket(fileno=int(sys.argv[1]))
    dump = open(int(sys.argv[2]), "w")  # noqa: SIM115 - faulthandler writes into it to the end
    for descriptor in (channel.fileno(), dump.fileno()):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(dump)
    faulthandler.register(DUMP_SIGNAL, dump)
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
    os.dup2(2, 1)  # the function's output goes where errors go
    place = _received(channel)
    if place is not None and _answered(channel, lambda: _looked_at(look, place)):
        while (question := _received(channel)) is not None:
            _answered(channel, lambda question=question: answer({**place, **question}))
    channel.close()
    os._exit(0)  # threads of the function may still be running


def _looked_at(look: Callable[[Json], Json], place: Json) -> Json:
    """What `look` found, and the file of the function's module."""
    sys.path[:] = place["search"]
    found = look(place)
    file = getattr(sys.modules.get(place["path"].partition(":")[0]), "__file__", None)
    return {**found, "file": file and str(Path(file).absolute())}


def _end_with_parent(parent: int) -> None:
    """End when the worker ends, in any way, because the function may be waiting for anything."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.killpg(0, signal.SIGKILL)


def _received(channel: socket.socket) -> Any:
    """Return the next frame's value; None if the worker has closed the channel."""
    head = _exactly(channel, LENGTH.size)
    content = _exactly(channel, LENGTH.unpack(head)[0]) if head else b""
    return json.loads(content) if content else None


def _exactly(channel: socket.socket, size: int) -> bytes:
    """Read exactly this many bytes; return none if the channel closes first."""
    content = bytearray()
    while len(content) < size:
        piece = channel.recv(min(size - len(content), 1 << 20))
        if not piece:
            return b""
        content += piece
    return bytes(content)


def _answered(channel: socket.socket, answer: Callable[[], Json]) -> bool:
    """Send an answer, or the error that making it raised; return whether it was an answer."""
    try:
        value, well = answer(), True
    except RaydpoError as error:
        words = [error.value, error.rule, error.way_out]
        value, well = {"error": type(error).__name__, "words": words}, False
    channel.sendall(frame(value))
    return well
