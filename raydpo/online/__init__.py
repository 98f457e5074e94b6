"""Provide what only rounds need: which policy samples, which model is the reference, what replays.

It imports the stages.
"""
