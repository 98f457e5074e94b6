"""The lease of a run directory: two drivers on one address, at every interleaving."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from stepped_store import SteppedStore, Turns

from raydpo.core.errors import DataError, RunLockedError
from raydpo.core.lease import Timing, _Lease, check_lease, leased
from raydpo.core.place import Place
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    open_stage,
    read_manifest,
    read_rows,
    write_part,
)
from raydpo.core.storage import Folder, folder_of

QUICK = Timing(renewal_seconds=0.02, lapse_seconds=0.15)
PARTS = 2


def stage_of(driver: str, address: str) -> Stage:
    """Driver A and driver B make the same table from other inputs."""
    folder = Folder(f"stepped://{address}/run").child("round-000", "examples")
    return Stage(Place(folder, "test"), "examples", "examples", {"source": driver}, {})


def rows_of(driver: str, part: int) -> list[dict]:
    tokens = [ord(driver), part]
    return [
        {"example_id": f"{driver}{part}-{i}", "token_ids": tokens, "prompt_tokens": 0}
        for i in (0, 1)
    ]


def drive(driver: str, outcome: dict[str, object]) -> None:
    """What a driver does: lease, open, write each part, commit."""
    stage = stage_of(driver, driver)
    try:
        with leased(Folder(f"stepped://{driver}/run"), QUICK):
            if open_stage(stage) is None:
                for part in range(PARTS):
                    write_part(stage, part, PartResult(rows_of(driver, part), counts={"input": 2}))
                commit(stage, {}, parts=PARTS)
        outcome[driver] = "done"
    except Exception as error:  # noqa: BLE001 - the test looks at it
        outcome[driver] = error
    finally:
        SteppedStore.turns.end(driver)


def together(turns: list[str]) -> dict[str, object]:
    """Let both drivers work by turns; say how each one ended."""
    SteppedStore.files.clear()
    SteppedStore.turns = Turns(turns)
    outcome: dict[str, object] = {}
    threads = [threading.Thread(target=drive, args=(name, outcome)) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=180)
    assert len(outcome) == 2, f"a driver waits for ever: {outcome}"
    return outcome


def check_table(outcome: dict[str, object]) -> None:
    """The table is one driver's, or its damage is seen; each command done again ends well."""
    SteppedStore.turns = Turns([])
    for ended in outcome.values():
        assert ended == "done" or isinstance(ended, RunLockedError), ended
    folder = stage_of("A", "reader").folder
    if (manifest := read_manifest(folder)) is not None:
        owner = manifest["inputs"]["source"]
        try:
            rows = list(read_rows(folder, manifest))
        except (DataError, FileNotFoundError):
            pass
        else:
            assert rows == [row for part in range(PARTS) for row in rows_of(owner, part)]
    assert table_of_b() == [row for part in range(PARTS) for row in rows_of("B", part)]
    assert not [name for name in SteppedStore.files if name.startswith("run/lease/")]


def table_of_b() -> list[dict]:
    """What B's command, done again, leaves; a part that A wrote over it is named, so delete it."""
    for _ in range(PARTS + 1):
        outcome: dict[str, object] = {}
        drive("B", outcome)
        assert outcome["B"] == "done"
        folder = stage_of("B", "reader").folder
        try:
            return list(read_rows(folder, read_manifest(folder) or {}))
        except DataError as damage:
            named = re.match(rf"{folder.uri}/(part-\d+\.parquet) was changed", damage.value)
            if named is None:
                raise
            folder.delete(named[1])
    raise AssertionError("the same command does not repair the table")


def operations_of_one() -> int:
    """How many operations an undisturbed driver does."""
    SteppedStore.files.clear()
    SteppedStore.turns = Turns([])
    outcome: dict[str, object] = {}
    drive("A", outcome)
    assert outcome == {"A": "done"}
    return len(SteppedStore.turns.operations["A"])


@pytest.fixture(scope="module")
def operations() -> int:
    return operations_of_one()


def freeze(operations: int) -> Iterator[tuple[int, dict[str, object]]]:
    for done in range(1, operations + 1):
        yield done, together(["A"] * done + ["B"] * 5000)


@pytest.mark.thorough
def test_a_driver_that_stops_at_any_operation_is_replaced_and_spoils_nothing(
    operations: int,
) -> None:
    refused = 0
    for _, outcome in freeze(operations):
        assert outcome["B"] == "done"  # whoever stands still keeps nobody out
        refused += isinstance(outcome["A"], RunLockedError)
        check_table(outcome)
    assert refused > operations / 2  # it went on after that, and was told


@pytest.mark.thorough
def test_two_drivers_at_every_pair_of_interruptions(operations: int) -> None:
    for first in range(1, operations + 1, 2):
        for second in range(1, operations + 1, 3):
            check_table(together(["A"] * first + ["B"] * second + ["A"] * 5000))


def test_a_second_driver_is_told_who_holds_the_directory() -> None:
    SteppedStore.files.clear()
    SteppedStore.turns = Turns([])
    run = Folder("stepped://A/run")
    with leased(run, QUICK):
        who = f"process {os.getpid()} on "
        second = leased(Folder("stepped://B/run"), QUICK)
        with pytest.raises(RunLockedError, match=who) as refused, second:
            pass
        assert "stepped://B/run is in use" in str(refused.value)
        check_lease(run.child("round-000"))
    with leased(Folder("stepped://B/run"), QUICK):
        pass


def test_of_drivers_that_begin_together_one_works_at_a_time() -> None:
    SteppedStore.files.clear()
    SteppedStore.turns = Turns([])
    inside: list[str] = []
    most = 0
    ended: list[str] = []

    def work(driver: str) -> None:
        nonlocal most
        try:
            with leased(Folder(f"stepped://{driver}/run"), QUICK):
                inside.append(driver)
                most = max(most, len(inside))
                time.sleep(0.01)
                inside.remove(driver)
            ended.append("done")
        except RunLockedError:
            ended.append("locked")

    threads = [threading.Thread(target=work, args=(f"driver{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert "done" in ended


def test_a_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path) -> None:
    code = (
        "from raydpo.core.lease import leased; from raydpo.core.storage import folder_of\n"
        "import os, signal, sys\n"
        "with leased(folder_of(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "lease").iterdir())
    begun = time.monotonic()
    with leased(folder_of(str(tmp_path))):
        pass
    assert time.monotonic() - begun < Timing().renewal_seconds
    assert not list((tmp_path / "lease").iterdir())


def test_a_store_that_fails_while_a_late_driver_asks_gives_it_nothing(monkeypatch) -> None:
    SteppedStore.files.clear()
    SteppedStore.turns = Turns([])
    late, taker = (_Lease(Folder(f"stepped://{name}/run"), QUICK) for name in "AB")
    late.acquire()
    time.sleep(QUICK.lapse_seconds)
    taker.acquire()

    def fail(*_: object) -> None:
        raise OSError("the list of claims did not arrive")

    with monkeypatch.context() as patched:
        patched.setattr(late._watch, "look", fail)
        with pytest.raises(OSError, match="did not arrive"):
            late.check()
    with pytest.raises(RunLockedError):
        late.check(renew=True)
