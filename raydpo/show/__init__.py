"""What a finished run tells: its tables, and whether its stages come out alike when made again.

It imports the stages and the rounds.
"""
