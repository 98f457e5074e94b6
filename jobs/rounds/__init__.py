"""Online rounds against the loop that people write, for `bench_rounds.py`."""
