"""The benchmark of the train step: one module for each thing that is made, run or measured.

What comes in: command-line choices, from jobs/bench_training.py. What goes out: measurements,
as a table, JSON and a plot.
"""
