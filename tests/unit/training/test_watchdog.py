"""A train worker that makes no progress leaves the stacks of its threads, and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from raydpo.core.storage import folder_of
from raydpo.training.watchdog import stacks_in

STALLS = """
import sys, threading
from raydpo.core.pulse import Beat
from raydpo.core.storage import folder_of
from raydpo.training.watchdog import ends_without_progress

def waits_for_a_rank_that_never_comes():
    threading.Event().wait()

threading.Thread(target=waits_for_a_rank_that_never_comes, daemon=True).start()
beat = Beat("step 3, sums over all ranks")
look = ends_without_progress(folder_of(sys.argv[1]), 1, 5.0)
look(beat)
print("lives", flush=True)
beat.moved_at -= 6.0
look(beat)
print("still lives", flush=True)
"""


def test_a_process_that_gets_no_further_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLS, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "lives\n"), done.stderr
    [stacks] = stacks_in(folder_of(str(tmp_path)))
    text = Path(stacks).read_text()
    assert text.startswith("rank 1 got no further for 6 s (at: step 3, sums over all ranks); ")
    assert "in waits_for_a_rank_that_never_comes" in text
    assert Path(stacks).name.startswith("rank-00001-")
