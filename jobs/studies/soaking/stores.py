"""Where the soak's runs lie: folders on a small file system, and buckets of a store that
throttles.

In a working folder, the module makes the runs' parent folder, the environment that reaches it,
and ways to fill, throttle and damage it.

    python -m soaking.stores CONTROL_FILE     serves S3 on a free port, which it prints
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from raydpo.core.storage import Folder, folder_of

from .faults import Fault, Kind

Storage = Literal["folder", "s3"]

#: Room for the runs' files, which a full disk takes away.
_DISK: Final = "size=256m"
#: How many requests a store that throttles refuses.
_REFUSED_SHARE: Final = 0.5
_SLOW_DOWN: Final = b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"


@dataclass(frozen=True)
class Store:
    """A place for runs.

    Attributes:
        output: the runs' parent folder.
        others: which faults it can have of its own.
        begin: starts such a fault; returns what ends it.
        saves: the checkpoints that a run has begun so far, by the run's name.
    """

    output: Folder
    others: tuple[Kind, ...]
    begin: Callable[[Fault], Callable[[], None]]
    saves: Callable[[str], set[str]]


@contextmanager
def store(storage: Storage, work: Path) -> Generator[Store]:
    """A place of this kind, for as long as the block lasts."""
    opened = _disk(work) if storage == "folder" else _bucket(work)
    with opened as place:
        yield place


def flip(folder: Folder, rng: random.Random) -> tuple[str, Callable[[], bool]] | None:
    """Flip one byte of one of a folder's files, drawn by `rng`.

    Returns:
        The file's name, and what puts the byte back and says whether the file was still damaged.
        None where there is no file yet.
    """
    files = {name: size for name, size in folder.files(recursive=True).items() if size}
    names = sorted(name for name in files if not Path(name).name.startswith("."))
    if not names:
        return None
    name = rng.choice(names)
    content = bytearray(folder.read_bytes(name))
    where = rng.randrange(len(content))
    original = content[where]
    content[where] ^= 1 << rng.randrange(8)
    folder.write_bytes(name, bytes(content))

    def restore() -> bool:
        damaged = folder.is_file(name) and folder.read_bytes(name) == bytes(content)
        if damaged:
            content[where] = original
            folder.write_bytes(name, bytes(content))
        return damaged

    return name, restore


@contextmanager
def _disk(work: Path) -> Generator[Store]:
    """A file system of its own where this process may mount one."""
    disk = work / "disk"
    disk.mkdir(exist_ok=True)
    mounted = _run("mount", "-t", "tmpfs", "-o", _DISK, "tmpfs", str(disk))
    if not mounted:
        print("full disks are left out: this process may not mount a file system", flush=True)

    def fill(_fault: Fault) -> Callable[[], None]:
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(1 << 16))
            except OSError:  # it is full
                pass
        return lambda: filler.unlink(missing_ok=True)

    def saves(name: str) -> set[str]:
        checkpoints = disk / "runs" / name / "round-000" / "policy" / "checkpoints"
        return {str(folder) for folder in checkpoints.glob("checkpoint_2*")}

    others: tuple[Kind, ...] = ("full disk",) if mounted else ()
    try:
        yield Store(folder_of(str(disk / "runs")), others, fill, saves)
    finally:
        if mounted:
            _run("umount", "--lazy", str(disk))


@contextmanager
def _bucket(work: Path) -> Generator[Store]:
    """A bucket of moto's S3 in a process of its own."""
    control = work / "throttle"
    command = [sys.executable, "-m", "soaking.stores", str(control)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    assert server.stdout is not None
    port = int(server.stdout.readline())
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="soak",
        AWS_SECRET_ACCESS_KEY="soak",  # noqa: S106  (moto takes any)
        AWS_DEFAULT_REGION="us-east-1",
    )
    import boto3

    client: Any = boto3.client("s3")
    client.create_bucket(Bucket="soak")

    def throttle(_fault: Fault) -> Callable[[], None]:
        control.touch()
        return lambda: control.unlink(missing_ok=True)

    begun = _begun(control)

    def saves(name: str) -> set[str]:
        lines = begun.read_text().splitlines() if begun.exists() else []
        return {line for line in lines if f"/{name}/" in line}

    try:
        yield Store(folder_of("s3://soak/runs"), ("throttle",), throttle, saves)
    finally:
        server.terminate()
        server.wait(timeout=30)


def serve(control: Path) -> None:
    """Serve S3 on a free port of the loopback; refuse requests while `control` is there.

    Each checkpoint whose first file arrives gets a line in a file beside `control`.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    inner: Any = DomainDispatcherApplication(create_backend_app)
    rng = random.Random(0)  # noqa: S311
    seen: set[str] = set()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if control.exists() and rng.random() < _REFUSED_SHARE:
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        saved = re.match(r".*/checkpoints/checkpoint_2[^/]*", str(environ["PATH_INFO"]))
        if saved and environ["REQUEST_METHOD"] in ("PUT", "POST") and saved[0] not in seen:
            seen.add(saved[0])
            with open(_begun(control), "a") as lines:
                lines.write(saved[0] + "\n")
        return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


def _begun(control: Path) -> Path:
    """The file that lists the checkpoints whose first file has arrived."""
    return control.with_suffix(".saves")


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
