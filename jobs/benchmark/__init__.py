"""The benchmark of the train step: one module for each thing that is made, run or measured.

jobs/bench_training.py passes the command line's choices. The results are measurements, as a
table, JSON and a plot.
"""
