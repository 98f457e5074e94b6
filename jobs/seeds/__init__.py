"""Means over prompts and seeds, for the studies that repeat a training with several seeds."""
