"""A run reports progress: how much is done, how fast, and the time left."""

from raydpo.core.progress import Progress


def progress_that_tells(lines: list[str], total: int, done: int = 0) -> Progress:
    return Progress(
        "round 0, sampling", "rows", total, done, every_seconds=3600.0, tell=lines.append
    )


def test_line_has_the_stage_the_rate_and_the_time_left() -> None:
    progress = progress_that_tells([], total=200, done=50)  # 50 were there before
    progress.add(50)
    line = progress.line(progress._started + 10.0, note="loss 0.6")
    assert line == "[round 0, sampling] 100/200 rows, 5.0/s, 0:20 left, loss 0.6"


def test_the_last_row_is_told_at_once_and_only_once() -> None:
    lines: list[str] = []
    progress = progress_that_tells(lines, total=2)
    for count in (1, 1, 0):  # a part without rows comes last
        progress.add(count)
    assert len(lines) == 1
    assert lines[0].startswith("[round 0, sampling] 2/2 rows")
